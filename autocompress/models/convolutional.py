"""The families ``cnn`` and ``cnn1d``: convolutional networks over two axes or one.

A stem, stages that halve the size and double the width, and heads:

    input [B, C, *S] -> stem (conv, batch norm, ReLU) -> stages.0 .. stages.n -> average over *S -> heads

To add a block, write one function ``(inputs, outputs, stride, config) -> module`` and list it in ``BLOCKS``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from autocompress.core.knobs import Choice, IntRange, Settings, knob
from autocompress.core.registry import STUDENTS
from autocompress.core.task import InputSpec
from autocompress.models.base import check_heads, require_real_input
from autocompress.models.sharing import HeadConfig, make_heads

# Convolution, batch norm and pooling by the number of axes.
_LAYERS: Mapping[int, tuple[type[nn.Module], type[nn.Module], type[nn.Module]]] = {
    1: (nn.Conv1d, nn.BatchNorm1d, nn.AdaptiveAvgPool1d),
    2: (nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d),
}


@dataclass(frozen=True)
class _Layers:
    """Makes convolutions with their batch norms over some number of axes."""

    axes: int
    kernel: int

    def __call__(self, inputs: int, outputs: int, stride: int = 1, kernel: int = 0, groups: int = 1) -> list[nn.Module]:
        conv, norm, _ = _LAYERS[self.axes]
        side = kernel or self.kernel
        # The padding keeps the output of an input of any size at 1 or more positions.
        # The batch norm behind it has a shift of its own, so the convolution needs no bias.
        convolution = conv(inputs, outputs, side, stride=stride, padding=side // 2, groups=groups, bias=False)
        return [convolution, norm(outputs)]


class Residual(nn.Module):
    """Two convolutions with a shortcut, ``[B, C, *S] -> [B, D, *S / stride]`` (He 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int, config: "StageConfig") -> None:
        super().__init__()
        conv = config.layers
        self.body = nn.Sequential(*conv(inputs, outputs, stride), nn.ReLU(), *conv(outputs, outputs))
        # A shortcut between equal shapes costs nothing; otherwise a convolution of kernel 1 adapts the input.
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv(inputs, outputs, stride, kernel=1))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the rectified sum of both branches."""
        out: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return out


class Inverted(nn.Module):
    """A wide depthwise convolution between two narrow ends, ``[B, C, *S] -> [B, D, *S / stride]``.

    The block widens to ``expansion`` times its inputs, filters each channel, and narrows again without a
    rectifier; if the shape is the same, the input is added (MobileNetV2, Sandler 2018, arXiv:1801.04381).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, config: "StageConfig") -> None:
        super().__init__()
        conv, wide = config.layers, inputs * config.expansion
        # With an expansion of 1 there is nothing to widen, and the convolution is left out.
        widen = [*conv(inputs, wide, kernel=1), nn.ReLU()] if config.expansion > 1 else []
        # One group per channel makes the convolution depthwise.
        depthwise = [*conv(wide, wide, stride, groups=wide), nn.ReLU()]
        self.body = nn.Sequential(*widen, *depthwise, *conv(wide, outputs, kernel=1))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the narrow output, plus the input if it has the same shape."""
        out: Tensor = self.body(x)
        return x + out if self.adds else out


def plain_block(inputs: int, outputs: int, stride: int, config: "StageConfig") -> nn.Module:
    """Return one convolution with batch norm and ReLU."""
    return nn.Sequential(*config.layers(inputs, outputs, stride), nn.ReLU())


def separable_block(inputs: int, outputs: int, stride: int, config: "StageConfig") -> nn.Module:
    """Return a convolution within each channel, then one across channels (Howard 2017)."""
    conv = config.layers
    depthwise = conv(inputs, inputs, stride, groups=inputs)
    return nn.Sequential(*depthwise, nn.ReLU(), *conv(inputs, outputs, kernel=1), nn.ReLU())


BLOCKS: Mapping[str, Callable[[int, int, int, "StageConfig"], nn.Module]] = {
    "plain": plain_block,
    "residual": Residual,
    "separable": separable_block,
    "inverted": Inverted,
}


@dataclass(frozen=True)
class StageConfig(Settings):
    """Hyperparameters of a stem and stages over one or two axes; a family adds ``axes`` and its own hyperparameters."""

    axes: ClassVar[int]

    width: int = knob(16, IntRange(2, 128, log=True), "channels of the stem and the first stage; doubles each stage")
    depth: int = knob(2, IntRange(1, 8), "blocks in each stage")
    stages: int = knob(3, IntRange(1, 4), "groups of blocks; each after the first halves the size")
    kernel: int = knob(3, Choice((3, 5, 7)), "side of the convolution window")
    block: str = knob("residual", Choice(tuple(BLOCKS)), "kind of block in every stage")
    expansion: int = knob(4, IntRange(1, 8), "width factor inside an inverted block; other blocks ignore it")
    stem_stride: int = knob(1, Choice((1, 2)), "2 halves the size at once")

    @property
    def layers(self) -> _Layers:
        """The builder of this network's convolutions."""
        return _Layers(self.axes, self.kernel)

    @property
    def widths(self) -> list[int]:
        """Channels of each stage: the width doubles where the size halves, as in the networks of He 2016."""
        return [self.width * 2**stage for stage in range(self.stages)]

    def make_stem(self, channels: int) -> nn.Sequential:
        """Return the first layers, ``[B, channels, *S] -> [B, width, *S / stem_stride]``."""
        return nn.Sequential(*self.layers(channels, self.width, self.stem_stride), nn.ReLU())

    def make_stages(self, first_stride: int = 1) -> nn.Sequential:
        """Return the stages, ``[B, width, *S] -> [B, widths[-1], *S / (first_stride * 2**(stages - 1))]``."""
        block = BLOCKS[self.block]
        stages = nn.Sequential()
        # The stem has the width of the first stage already; later stages halve the size in their first block.
        for stage, (before, width) in enumerate(zip([self.width, *self.widths], self.widths, strict=False)):
            blocks = [block(before, width, first_stride if stage == 0 else 2, self)]
            blocks += [block(width, width, 1, self) for _ in range(self.depth - 1)]
            stages.append(nn.Sequential(*blocks))
        return stages


@dataclass(frozen=True)
class ConvConfig(StageConfig, HeadConfig):
    """Hyperparameters of networks whose heads read the average over all positions."""

    first_stride: int = knob(1, Choice((1, 2)), "2 halves the size in the first stage, too")


class CNN(nn.Module):
    """A convolutional network, ``[B, C, *S] -> [B, classes]``, or ``{head: [B, classes]}`` with several heads."""

    def __init__(self, config: ConvConfig, channels: int, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.stem = config.make_stem(channels)
        self.stages = config.make_stages(config.first_stride)
        # Averaging over all positions lets one network take inputs of any size.
        self.pool = _LAYERS[config.axes][2](1)
        self.heads = make_heads(config, config.widths[-1], heads)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """Return the logits of the only head, or of every head by name."""
        logits: Tensor | dict[str, Tensor] = self.heads(self.pool(self.stages(self.stem(x))).flatten(1))
        return logits


@dataclass(frozen=True)
class CNNConfig(ConvConfig):
    """Shape of a convolutional network for images.

    Example:
        >>> CNNConfig(width=8, depth=1).to_dict()["stages"]
        3
    """

    label: ClassVar[str] = "cnn"
    axes: ClassVar[int] = 2


class CNNFamily:
    """Builds convolutional networks for inputs ``(C, H, W)``."""

    name: ClassVar[str] = "cnn"
    config = CNNConfig

    def build(self, config: CNNConfig, inputs: tuple[InputSpec, ...], heads: Mapping[str, int]) -> nn.Module:
        """Return an untrained network for images ``(C, H, W)``.

        Raises:
            UsageError: The input is not an image, there is no head, or a head has no class.

        Example:
            >>> net = CNNFamily().build(CNNConfig(width=4), (InputSpec((1, 8, 8)),), {"label": 10})
            >>> sum(p.numel() for p in net.parameters()) > 0
            True
        """
        channels = require_real_input(self.name, ("channels", "height", "width"), inputs)[0]
        check_heads(self.name, heads)
        return CNN(config, channels, heads)


# The registry imports each module of this package once, and so finds the family.
STUDENTS.add(CNNFamily.name, CNNFamily())


@dataclass(frozen=True)
class CNN1dConfig(ConvConfig):
    """Shape of a convolutional network for signals, which may be long.

    Example:
        >>> CNN1dConfig(width=8, depth=1).to_dict()["kernel"]
        5
    """

    label: ClassVar[str] = "cnn1d"
    axes: ClassVar[int] = 1

    # Signals may be long: more stages, longer windows and a larger stride than for images.
    stages: int = knob(3, IntRange(1, 5), "groups of blocks; each after the first halves the length")
    kernel: int = knob(5, Choice((3, 5, 7, 9)), "length of the convolution window")
    stem_stride: int = knob(1, Choice((1, 2, 4)), "2 halves the length at once, 4 quarters it")


class CNN1dFamily:
    """Builds convolutional networks for inputs ``(C, L)``."""

    name: ClassVar[str] = "cnn1d"
    config = CNN1dConfig

    def build(self, config: CNN1dConfig, inputs: tuple[InputSpec, ...], heads: Mapping[str, int]) -> nn.Module:
        """Return an untrained network for signals ``(C, L)``.

        Raises:
            UsageError: The input is not a signal, there is no head, or a head has no class.

        Example:
            >>> net = CNN1dFamily().build(CNN1dConfig(width=4), (InputSpec((1, 40)),), {"label": 10})
            >>> sum(p.numel() for p in net.parameters()) > 0
            True
        """
        channels = require_real_input(self.name, ("channels", "length"), inputs)[0]
        check_heads(self.name, heads)
        return CNN(config, channels, heads)


STUDENTS.add(CNN1dFamily.name, CNN1dFamily())
