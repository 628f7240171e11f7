"""Convolutional networks for images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from autocompress.core.registry import STUDENTS
from autocompress.core.task import InputSpec
from autocompress.models.base import check_heads, require_real_input
from autocompress.models.convolutional import CNN, ConvConfig


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
