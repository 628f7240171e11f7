"""Convolutional networks for signals."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from autocompress.core.knobs import Choice, IntRange, knob
from autocompress.core.registry import STUDENTS
from autocompress.core.task import InputSpec
from autocompress.models.base import check_heads, require_real_input
from autocompress.models.convolutional import CNN, ConvConfig


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
