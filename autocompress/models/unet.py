"""The family ``unet``: a class for each pixel of an image, by an encoder, a decoder, and skips between them.

    [B, C, H, W] -> stem -> stages that halve the size -> stages that double it, with skips -> 1 x 1 convolution

The encoder is that of the family ``cnn`` (Ronneberger 2015, arXiv:1505.04597, with the blocks of that family).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.core.registry import STUDENTS
from autocompress.core.task import InputSpec
from autocompress.models.base import require_head_kind, require_real_input
from autocompress.models.convolutional import BLOCKS, StageConfig


@dataclass(frozen=True)
class UNetConfig(StageConfig):
    """Shape of an encoder and its decoder.

    Example:
        >>> UNetConfig(width=8, stages=3).widths
        [8, 16, 32]
    """

    label: ClassVar[str] = "unet"
    axes: ClassVar[int] = 2


class UNet(nn.Module):
    """Encoder and decoder, ``[B, C, H, W] -> [B, classes, H, W]``, or ``{head: ...}`` with several heads."""

    def __init__(self, config: UNetConfig, channels: int, heads: Mapping[str, int]) -> None:
        super().__init__()
        block, widths = BLOCKS[config.block], config.widths
        self.stem = config.make_stem(channels)
        self.stages = config.make_stages()
        # From the smallest size to the largest; a stage reads what is below it and the encoder's stage of its own size.
        self.decoder = nn.ModuleList(
            block(below + skip, skip, 1, config) for below, skip in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.classifiers = nn.ModuleDict({head: nn.Conv2d(widths[0], size, 1) for head, size in heads.items()})

    @property
    def head_layers(self) -> list[str]:
        """Names of the layers whose outputs are the logits, in the order of the heads."""
        return [f"classifiers.{head}" for head in self.classifiers]

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """Return the logits of the only head, or of every head by name."""
        size = x.shape[2:]
        *larger, x = list_features(self.stem(x), self.stages)
        x = join_features(x, larger, self.decoder)
        logits = {head: fit_size(classifier(x), size) for head, classifier in self.classifiers.items()}
        return next(iter(logits.values())) if len(logits) == 1 else logits


def list_features(x: Tensor, stages: nn.Sequential) -> list[Tensor]:
    """Return the output of each stage, from the largest map to the smallest."""
    features = []
    for stage in stages:
        x = stage(x)
        features.append(x)
    return features


def join_features(x: Tensor, features: Sequence[Tensor], blocks: nn.ModuleList) -> Tensor:
    """Return a small map, doubled and joined by each block with the map of that size.

    Args:
        x: The smallest map.
        features: Larger maps, one for each block, from the largest on.
        blocks: Modules from both maps, side by side along the channels, to one, from the smallest size on.
    """
    for block, own in zip(blocks, reversed(features), strict=True):
        x = block(torch.cat([double_size(x, own.shape[2:]), own], 1))
    return x


def fit_size(x: Tensor, size: torch.Size) -> Tensor:
    """Return a map in the size of the image, which a stride in the stem makes larger than the map."""
    return x if x.shape[2:] == size else double_size(x, size)


def double_size(x: Tensor, size: torch.Size) -> Tensor:
    """Return a map with each value repeated twice along both axes, cut to a size, ``[B, C, H, W]``."""
    # An odd size is halved upwards, so that the doubled map has a row or column too many.
    return F.interpolate(x, scale_factor=2.0, mode="nearest")[:, :, : size[0], : size[1]]


class UNetFamily:
    """Builds networks for images ``(C, H, W)`` and heads with a class for each pixel."""

    name: ClassVar[str] = "unet"
    config = UNetConfig

    def build(self, config: UNetConfig, inputs: tuple[InputSpec, ...], heads: Mapping[str, int]) -> nn.Module:
        """Return an untrained network for images ``(C, H, W)``.

        Raises:
            UsageError: The input is not an image, there is no head, or a head has another kind.

        Example:
            >>> from autocompress.core.heads import Dense
            >>> net = UNetFamily().build(UNetConfig(width=4), (InputSpec((1, 9, 8)),), {"mask": Dense(3)})
            >>> net(torch.zeros(2, 1, 9, 8)).shape
            torch.Size([2, 3, 9, 8])
        """
        channels = require_real_input(self.name, ("channels", "height", "width"), inputs)[0]
        require_head_kind(self.name, heads, "dense", "has a class for each pixel")
        return UNet(config, channels, heads)


STUDENTS.add(UNetFamily.name, UNetFamily())
