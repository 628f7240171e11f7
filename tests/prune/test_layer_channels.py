import pytest
import torch
from torch import nn

from autocompress.prune.layer_channels import INPUTS, OUTPUTS, is_matrix_layer, list_sides, output_axis, shrink_side


class Conv1D(nn.Module):
    """The linear layer of GPT-2, whose weight is ``[inputs, outputs]``."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


def shrink(layer, where, remaining):
    model = nn.ModuleDict({"layer": layer})
    sides = {entry.side: entry for entry in list_sides(model)}
    shrink_side(model, sides["layer", where], remaining)
    return layer


@pytest.mark.parametrize(
    ("layer", "where", "sizes"),
    [
        (nn.Linear(4, 6), OUTPUTS, {"in_features": 4, "out_features": 2, "weight": (2, 4), "bias": (2,)}),
        (nn.Linear(4, 6), INPUTS, {"in_features": 2, "out_features": 6, "weight": (6, 2), "bias": (6,)}),
        (Conv1D(6, 4), OUTPUTS, {"nx": 4, "nf": 2, "weight": (4, 2), "bias": (2,)}),
        (nn.Embedding(9, 4), OUTPUTS, {"embedding_dim": 2, "weight": (9, 2)}),
        (nn.ConvTranspose2d(4, 6, 3), OUTPUTS, {"out_channels": 2, "weight": (4, 2, 3, 3), "bias": (2,)}),
        (nn.Conv2d(4, 4, 3, groups=4), OUTPUTS, {"in_channels": 2, "out_channels": 2, "groups": 2}),
        (nn.BatchNorm2d(4), OUTPUTS, {"num_features": 2, "running_mean": (2,), "running_var": (2,)}),
        (nn.LayerNorm(4), OUTPUTS, {"normalized_shape": (2,), "weight": (2,)}),
        (nn.PReLU(4), OUTPUTS, {"num_parameters": 2, "weight": (2,)}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_tensors_and_numbers_of_a_layer_shrink_together(layer, where, sizes):
    shrink(layer, where, [0, 2])
    for name, size in sizes.items():
        value = getattr(layer, name)
        assert (tuple(value.shape) if isinstance(value, torch.Tensor) else value) == size


def test_a_depthwise_convolution_keeps_the_outputs_of_its_blocks():
    # Two outputs for each channel: the blocks 0 and 2 remain.
    layer = shrink(nn.Conv2d(3, 6, 1, groups=3), OUTPUTS, [0, 1, 4, 5])
    assert (layer.groups, layer.in_channels, layer.out_channels) == (2, 2, 4)
    # One output fewer for each channel: no block goes.
    layer = shrink(nn.Conv2d(3, 6, 1, groups=3), OUTPUTS, [0, 2, 4])
    assert (layer.groups, layer.in_channels, layer.out_channels) == (3, 3, 3)


def test_a_tied_weight_stays_tied():
    model = nn.ModuleDict({"table": nn.Embedding(9, 4), "out": nn.Linear(4, 9)})
    model["out"].weight = model["table"].weight
    sides = {entry.side: entry for entry in list_sides(model)}
    assert ("out", INPUTS) not in sides
    shrink_side(model, sides["table", OUTPUTS], [1, 3])
    assert model["out"].weight is model["table"].weight
    assert (model["out"].in_features, model["table"].embedding_dim) == (2, 2)


def test_a_frozen_parameter_stays_frozen_and_a_shorter_one_has_its_part_of_the_gradient():
    layer = nn.Linear(2, 3)
    layer.weight.requires_grad_(False)
    layer.bias.grad = torch.tensor([1.0, 2.0, 3.0])
    shrink(layer, OUTPUTS, [0, 2])
    assert not layer.weight.requires_grad
    assert layer.bias.grad.tolist() == [1.0, 3.0]


def test_parameters_of_other_modules_have_a_side_for_each_axis():
    attention = nn.MultiheadAttention(4, 2)
    sides = {entry.side: entry.size for entry in list_sides(attention)}
    assert sides["in_proj_weight", 0] == 12
    assert sides["in_proj_weight", 1] == 4
    assert sides["out_proj", INPUTS] == 4


def test_layouts():
    assert [output_axis(layer) for layer in (Conv1D(2, 3), nn.Linear(2, 3), nn.Embedding(2, 3))] == [1, 0, 1]
    assert is_matrix_layer(Conv1D(2, 3))
    assert not is_matrix_layer(nn.LayerNorm(3))
