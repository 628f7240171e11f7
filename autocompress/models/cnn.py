"""Convolutional networks for images: a stem, stages that halve the image and double the width, linear heads.

    input [B, C, H, W] -> stem (conv, batch norm, ReLU) -> stages.0 .. stages.n -> average over the image -> heads

To add a block, write one function ``(inputs, outputs, kernel, stride) -> module`` and list it in ``BLOCKS``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from autocompress.errors import UsageError
from autocompress.knobs import Choice, IntRange, Settings, knob
from autocompress.registry import STUDENTS


def _conv(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> list[nn.Module]:
    """Return a convolution and its batch norm; padding keeps an image of any size at 1x1 or more."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class Residual(nn.Module):
    """Two convolutions beside a shortcut, ``[B, C, H, W] -> [B, D, H / stride, W / stride]`` (He 2016)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv(inputs, outputs, kernel, stride), nn.ReLU(), *_conv(outputs, outputs, kernel, 1)
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv(inputs, outputs, 1, stride))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the rectified sum of both branches."""
        out: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return out


def plain(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
    """Return one convolution with batch norm and ReLU."""
    return nn.Sequential(*_conv(inputs, outputs, kernel, stride), nn.ReLU())


def separable(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
    """Return a convolution within each channel, then one across channels (Howard 2017)."""
    depthwise = _conv(inputs, inputs, kernel, stride, groups=inputs)
    return nn.Sequential(*depthwise, nn.ReLU(), *_conv(inputs, outputs, 1, 1), nn.ReLU())


BLOCKS: Mapping[str, Callable[[int, int, int, int], nn.Module]] = {
    "plain": plain,
    "residual": Residual,
    "separable": separable,
}


@dataclass(frozen=True)
class CNNConfig(Settings):
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
            blocks = [block(before, width, config.kernel, 1 if stage == 0 else 2)]
            blocks += [block(width, width, config.kernel, 1) for _ in range(config.depth - 1)]
            self.stages.append(nn.Sequential(*blocks))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.heads = nn.ModuleDict({head: nn.Linear(width, classes) for head, classes in heads.items()})

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """Return the logits of the only head, or of every head by name."""
        features = self.pool(self.stages(self.stem(x))).flatten(1)
        logits: dict[str, Tensor] = {head: layer(features) for head, layer in self.heads.items()}
        if len(logits) == 1:
            return next(iter(logits.values()))
        return logits


class CNNFamily:
    """Builds convolutional networks for inputs ``(C, H, W)``."""

    name: ClassVar[str] = "cnn"
    config = CNNConfig

    def build(self, config: CNNConfig, input_shape: tuple[int, ...], heads: Mapping[str, int]) -> nn.Module:
        """Return an untrained network for images of ``input_shape`` ``(C, H, W)``.

        Raises:
            UsageError: The input is not an image, no head is asked for, or a head has no class.

        Example:
            >>> net = CNNFamily().build(CNNConfig(width=4), (1, 8, 8), {"label": 10})
            >>> sum(p.numel() for p in net.parameters()) > 0
            True
        """
        if len(input_shape) != 3 or min(input_shape) < 1:
            raise UsageError(f"student 'cnn' takes images (channels, height, width), not inputs of shape {input_shape}")
        if not heads or min(heads.values()) < 1:
            raise UsageError(f"student 'cnn' needs at least one head with at least one class, got {dict(heads)}")
        return CNN(config, input_shape[0], heads)


STUDENTS.add(CNNFamily.name, CNNFamily())
