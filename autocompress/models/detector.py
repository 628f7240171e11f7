"""The family ``detector``: boxes of objects, from one convolutional network without anchors.

    [B, C, H, W] -> stem -> stages that halve the size -> a grid of cells of 8 x 8 pixels -> 1 x 1 convolution

Stages beyond the grid are doubled and joined with it, as in a feature pyramid (Lin et al. 2017, arXiv:1612.03144), so
that a cell sees more of the image. The blocks are those of the family ``cnn``; :mod:`autocompress.core.boxes` describes
the maps.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from autocompress.core.boxes import BOX_OUTPUTS
from autocompress.core.registry import STUDENTS
from autocompress.core.task import InputSpec
from autocompress.models.base import require_head_kind, require_real_input
from autocompress.models.convolutional import BLOCKS, StageConfig
from autocompress.models.unet import join_features, list_features

# How often the size is halved from the image to the grid: cells of 8 x 8 pixels.
HALVINGS = 3
#: Side of a cell in pixels.
STRIDE = 2**HALVINGS
# Probability of each class in an untrained network: most cells have no object (Lin et al. 2017, arXiv:1708.02002).
PRIOR = 0.01


@dataclass(frozen=True)
class DetectorConfig(StageConfig):
    """Shape of a detector.

    Example:
        >>> DetectorConfig(width=8, stages=4, stem_stride=2).beyond
        1
    """

    label: ClassVar[str] = "detector"
    axes: ClassVar[int] = 2

    @property
    def beyond(self) -> int:
        """How often the last stage is halved beyond the grid; negative if it is larger than the grid."""
        return self.stages - 1 + (self.stem_stride == 2) - HALVINGS


class Detector(nn.Module):
    """A network whose cells predict boxes, ``[B, C, H, W] -> [B, classes + 5, H / 8, W / 8]``."""

    def __init__(self, config: DetectorConfig, channels: int, heads: Mapping[str, int]) -> None:
        super().__init__()
        block, widths = BLOCKS[config.block], config.widths
        self.stem = config.make_stem(channels)
        self.stages = config.make_stages()
        # A last stage that is larger than the grid is halved further.
        self.reduction = nn.Sequential(*(block(widths[-1], widths[-1], 2, config) for _ in range(-config.beyond)))
        joined = widths[-1 - max(0, config.beyond) :]
        # From the smallest size to the grid; a stage reads what is below it and the stage of its own size.
        self.joints = nn.ModuleList(
            block(below + own, own, 1, config) for below, own in zip(joined[:0:-1], joined[-2::-1], strict=True)
        )
        self.predictors = nn.ModuleDict(
            {head: nn.Conv2d(joined[0], int(size) + BOX_OUTPUTS, 1) for head, size in heads.items()}
        )
        for head, size in heads.items():
            bias = self.predictors[head].bias
            assert isinstance(bias, Tensor)
            with torch.no_grad():
                bias[: int(size)] = math.log(PRIOR / (1 - PRIOR))

    @property
    def head_layers(self) -> list[str]:
        """Names of the layers whose outputs are the maps, in the order of the heads."""
        return [f"predictors.{head}" for head in self.predictors]

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """Return the maps of the only head, or of every head by name."""
        *larger, x = list_features(self.stem(x), self.stages)
        # Maps that are larger than the grid have no joint.
        x = join_features(self.reduction(x), larger[len(larger) - len(self.joints) :], self.joints)
        maps = {head: predictor(x) for head, predictor in self.predictors.items()}
        return next(iter(maps.values())) if len(maps) == 1 else maps


class DetectorFamily:
    """Builds networks for images ``(C, H, W)`` and heads with boxes."""

    name: ClassVar[str] = "detector"
    config = DetectorConfig

    def build(self, config: DetectorConfig, inputs: tuple[InputSpec, ...], heads: Mapping[str, int]) -> nn.Module:
        """Return an untrained network for images ``(C, H, W)``.

        Raises:
            UsageError: The input is not an image, there is no head, or a head has another kind.

        Example:
            >>> from autocompress.core.heads import Detection
            >>> inputs, heads = (InputSpec((1, 32, 40)),), {"boxes": Detection(3)}
            >>> net = DetectorFamily().build(DetectorConfig(width=4), inputs, heads)
            >>> net(torch.zeros(2, 1, 32, 40)).shape
            torch.Size([2, 8, 4, 5])
        """
        channels = require_real_input(self.name, ("channels", "height", "width"), inputs)[0]
        require_head_kind(self.name, heads, "detection", "predicts boxes")
        return Detector(config, channels, heads)


STUDENTS.add(DetectorFamily.name, DetectorFamily())
