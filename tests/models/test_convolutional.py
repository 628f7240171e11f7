"""Blocks and the network that the families over one and two axes share."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from autocompress.models.convolutional import (
    BLOCKS,
    CNN,
    CNN1dConfig,
    CNNConfig,
    ConvConfig,
    Residual,
    plain_block,
    separable_block,
)


@dataclass(frozen=True)
class WindowConfig(ConvConfig):
    label: ClassVar[str] = "window"
    axes: ClassVar[int] = 2


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_an_odd_kernel_keeps_the_size_and_a_stride_halves_it_upwards(kernel: int) -> None:
    layers = WindowConfig(kernel=kernel).layers
    x = torch.zeros(1, 2, 5, 1)
    assert nn.Sequential(*layers(2, 4))(x.repeat(2, 1, 1, 1)).shape == (2, 4, 5, 1)
    assert nn.Sequential(*layers(2, 4, stride=2)).eval()(x).shape == (1, 4, 3, 1)


def test_a_batch_norm_follows_each_convolution_which_has_no_bias() -> None:
    convolution, norm = WindowConfig().layers(2, 4, groups=2)
    assert isinstance(convolution, nn.Conv2d)
    assert (convolution.bias, convolution.groups) == (None, 2)
    assert isinstance(norm, nn.BatchNorm2d)


@pytest.mark.parametrize("config", [CNNConfig(), CNN1dConfig()], ids=["cnn", "cnn1d"])
@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_changes_width_and_size_over_any_number_of_axes(name: str, config: ConvConfig) -> None:
    block = BLOCKS[name](4, 6, 2, config).eval()
    assert block(torch.zeros(2, 4, *[8] * config.axes)).shape == (2, 6, *[4] * config.axes)


def test_a_shortcut_is_the_input_itself_only_where_the_shape_stays() -> None:
    assert isinstance(Residual(4, 4, 1, WindowConfig()).shortcut, nn.Identity)
    for outputs, stride in ((6, 1), (4, 2)):
        assert isinstance(Residual(4, outputs, stride, WindowConfig()).shortcut, nn.Sequential)


def test_plain_and_separable_blocks_end_in_a_rectifier() -> None:
    torch.manual_seed(0)
    for make in (plain_block, separable_block):
        outputs = make(3, 5, 1, WindowConfig()).eval()(torch.randn(2, 3, 6, 6))
        assert outputs.shape == (2, 5, 6, 6)
        assert outputs.min() >= 0


@pytest.mark.parametrize("first_stride", [1, 2])
def test_the_first_stage_halves_the_size_where_it_is_asked_to(first_stride: int) -> None:
    net = CNN(WindowConfig(width=4, depth=2, stages=2, first_stride=first_stride), 1, {"label": 3}).eval()
    assert net.stages(net.stem(torch.zeros(2, 1, 8, 8))).shape == (2, 8, 4 // first_stride, 4 // first_stride)


def test_the_network_averages_over_positions_before_its_heads() -> None:
    torch.manual_seed(0)
    net = CNN(WindowConfig(width=4, depth=1, stages=2), 1, {"label": 3}).eval()
    features: list[torch.Tensor] = []
    net.stages.register_forward_hook(lambda module, inputs, output: features.append(output))
    logits = net(torch.randn(2, 1, 8, 8))
    torch.testing.assert_close(logits, net.heads(features[0].mean((2, 3))))
