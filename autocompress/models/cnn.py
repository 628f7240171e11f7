"""Convolutional networks for images: a stem, stages that halve the image and double the width, heads.

    input [B, C, H, W] -> stem (conv, batch norm, ReLU) -> stages.0 .. stages.n -> average over the image -> heads

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
    """Return a convolution and its batch norm; padding keeps an image of any size at 1x1 or more."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class Residual(nn.Module):
    """Two convolutions beside a shortcut, ``[B, C, H, W] -> [B, D, H / stride, W / stride]`` (He 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int, config: "CNNConfig") -> None:
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


class Inverted(nn.Module):
    """A wide depthwise convolution between two narrow ends, ``[B, C, H, W] -> [B, D, H / stride, W / stride]``.

    The block widens to ``expansion`` times its inputs, filters each channel, and narrows again without a
    rectifier; where the shape stays, its input is added (MobileNetV2, Sandler 2018, arXiv:1801.04381).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, config: "CNNConfig") -> None:
        super().__init__()
        wide = inputs * config.expansion
        widen = [*_conv(inputs, wide, 1, 1), nn.ReLU()] if config.expansion > 1 else []
        depthwise = [*_conv(wide, wide, config.kernel, stride, groups=wide), nn.ReLU()]
        self.body = nn.Sequential(*widen, *depthwise, *_conv(wide, outputs, 1, 1))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the narrow end, with the input added where it has the same shape."""
        out: Tensor = self.body(x)
        return x + out if self.adds else out


def plain(inputs: int, outputs: int, stride: int, config: "CNNConfig") -> nn.Module:
    """Return one convolution with batch norm and ReLU."""
    return nn.Sequential(*_conv(inputs, outputs, config.kernel, stride), nn.ReLU())


def separable(inputs: int, outputs: int, stride: int, config: "CNNConfig") -> nn.Module:
    """Return a convolution within each channel, then one across channels (Howard 2017)."""
    depthwise = _conv(inputs, inputs, config.kernel, stride, groups=inputs)
    return nn.Sequential(*depthwise, nn.ReLU(), *_conv(inputs, outputs, 1, 1), nn.ReLU())


BLOCKS: Mapping[str, Callable[[int, int, int, "CNNConfig"], nn.Module]] = {
    "plain": plain,
    "residual": Residual,
    "separable": separable,
    "inverted": Inverted,
}


@dataclass(frozen=True)
class CNNConfig(HeadConfig):
    """Shape of a convolutional network.

    Example:
        >>> CNNConfig(width=8, depth=1).to_dict()["stages"]
        3
    """

    label: ClassVar[str] = "cnn"

    width: int = knob(16, IntRange(2, 128, log=True), "channels of the stem and the first stage; doubles each stage")
    depth: int = knob(2, IntRange(1, 8), "blocks in each stage")
    stages: int = knob(3, IntRange(1, 4), "groups of blocks; each after the first halves the image")
    kernel: int = knob(3, Choice((3, 5, 7)), "side of the convolution window")
    block: str = knob("residual", Choice(tuple(BLOCKS)), "what a stage is made of")
    expansion: int = knob(4, IntRange(1, 8), "how much wider an inverted block is inside; the others ignore it")
    stem_stride: int = knob(1, Choice((1, 2)), "2 halves the image at once")


class CNN(nn.Module):
    """A convolutional network, ``[B, C, H, W] -> [B, classes]``, or ``{head: [B, classes]}`` with several heads."""

    def __init__(self, config: CNNConfig, channels: int, heads: Mapping[str, int]) -> None:
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
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.heads = make_heads(config, width, heads)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """Return the logits of the only head, or of every head by name."""
        logits: Tensor | dict[str, Tensor] = self.heads(self.pool(self.stages(self.stem(x))).flatten(1))
        return logits


class CNNFamily:
    """Builds convolutional networks for inputs ``(C, H, W)``."""

    name: ClassVar[str] = "cnn"
    config = CNNConfig

    def build(self, config: CNNConfig, inputs: tuple[InputSpec, ...], heads: Mapping[str, int]) -> nn.Module:
        """Return an untrained network for images ``(C, H, W)``.

        Raises:
            UsageError: The input is not an image, no head is asked for, or a head has no class.

        Example:
            >>> net = CNNFamily().build(CNNConfig(width=4), (InputSpec((1, 8, 8)),), {"label": 10})
            >>> sum(p.numel() for p in net.parameters()) > 0
            True
        """
        channels = only_real_input(self.name, ("channels", "height", "width"), inputs)[0]
        refuse_no_heads(self.name, heads)
        return CNN(config, channels, heads)


STUDENTS.add(CNNFamily.name, CNNFamily())
