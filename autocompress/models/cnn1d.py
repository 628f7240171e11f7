"""Convolutional networks for signals: a stem, stages that halve the length and double the width, heads.

    input [B, C, L] -> stem (conv, batch norm, ReLU) -> stages.0 .. stages.n -> average over the length -> heads

To add a block, write one function ``(inputs, outputs, stride, config) -> module`` and list it in ``BLOCKS``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from autocompress.knobs import Choice, IntRange, knob
from autocompress.models.base import only_real_input, refuse_no_heads
from autocompress.models.sharing import HeadConfig, make_heads
from autocompress.registry import STUDENTS
from autocompress.task import InputSpec


def _conv(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> list[nn.Module]:
    """Return a convolution and its batch norm; padding keeps a signal of any length at 1 or more."""
    conv = nn.Conv1d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm1d(outputs)]


class Residual(nn.Module):
    """Two convolutions beside a shortcut, ``[B, C, L] -> [B, D, L / stride]`` (He 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int, config: "CNN1dConfig") -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv(inputs, outputs, config.kernel, stride), nn.ReLU(), *_conv(outputs, outputs, config.kernel, 1)
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv(inputs, outputs, 1, stride))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the rectified sum of both branches."""
        out: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return out


def plain(inputs: int, outputs: int, stride: int, config: "CNN1dConfig") -> nn.Module:
    """Return one convolution with batch norm and ReLU."""
    return nn.Sequential(*_conv(inputs, outputs, config.kernel, stride), nn.ReLU())


def separable(inputs: int, outputs: int, stride: int, config: "CNN1dConfig") -> nn.Module:
    """Return a convolution within each channel, then one across channels (Howard 2017)."""
    depthwise = _conv(inputs, inputs, config.kernel, stride, groups=inputs)
    return nn.Sequential(*depthwise, nn.ReLU(), *_conv(inputs, outputs, 1, 1), nn.ReLU())


BLOCKS: Mapping[str, Callable[[int, int, int, "CNN1dConfig"], nn.Module]] = {
    "plain": plain,
    "residual": Residual,
    "separable": separable,
}


@dataclass(frozen=True)
class CNN1dConfig(HeadConfig):
    """Shape of a convolutional network for signals.

    Example:
        >>> CNN1dConfig(width=8, depth=1).to_dict()["kernel"]
        5
    """

    label: ClassVar[str] = "cnn1d"

    width: int = knob(16, IntRange(2, 128, log=True), "channels of the stem and the first stage; doubles each stage")
    depth: int = knob(2, IntRange(1, 8), "blocks in each stage")
    stages: int = knob(3, IntRange(1, 5), "groups of blocks; each after the first halves the length")
    kernel: int = knob(5, Choice((3, 5, 7, 9)), "length of the convolution window")
    block: str = knob("residual", Choice(tuple(BLOCKS)), "what a stage is made of")
    stem_stride: int = knob(1, Choice((1, 2, 4)), "2 halves the length at once, 4 quarters it")


class CNN1d(nn.Module):
    """A convolutional network, ``[B, C, L] -> [B, classes]``, or ``{head: [B, classes]}`` with several heads."""

    def __init__(self, config: CNN1dConfig, channels: int, heads: Mapping[str, int]) -> None:
        super().__init__()
        block = BLOCKS[config.block]
        self.stem = nn.Sequential(*_conv(channels, config.width, config.kernel, config.stem_stride), nn.ReLU())
        self.stages = nn.Sequential()
        width = config.width
        for stage in range(config.stages):
            before, width = width, config.width * 2**stage
            blocks = [block(before, width, 1 if stage == 0 else 2, config)]
            blocks += [block(width, width, 1, config) for _ in range(config.depth - 1)]
            self.stages.append(nn.Sequential(*blocks))
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.heads = make_heads(config, width, heads)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """Return the logits of the only head, or of every head by name."""
        logits: Tensor | dict[str, Tensor] = self.heads(self.pool(self.stages(self.stem(x))).flatten(1))
        return logits


class CNN1dFamily:
    """Builds convolutional networks for inputs ``(C, L)``."""

    name: ClassVar[str] = "cnn1d"
    config = CNN1dConfig

    def build(self, config: CNN1dConfig, inputs: tuple[InputSpec, ...], heads: Mapping[str, int]) -> nn.Module:
        """Return an untrained network for signals ``(C, L)``.

        Raises:
            UsageError: The input is not a signal, no head is asked for, or a head has no class.

        Example:
            >>> net = CNN1dFamily().build(CNN1dConfig(width=4), (InputSpec((1, 40)),), {"label": 10})
            >>> sum(p.numel() for p in net.parameters()) > 0
            True
        """
        channels = only_real_input(self.name, ("channels", "length"), inputs)[0]
        refuse_no_heads(self.name, heads)
        return CNN1d(config, channels, heads)


STUDENTS.add(CNN1dFamily.name, CNN1dFamily())
