"""Convolutional networks for texts: an embedding, convolutions along the text, pooling over positions, heads.

    tokens [B, T] -> embedding [B, E, T] -> stem (conv, batch norm, ReLU) -> stages.0 .. stages.n -> pooling -> heads

Positions of padding are zero before every convolution, like the positions beyond the end of a text: more padding
changes no output. To add a block, write one class like :class:`Plain` and list it in ``BLOCKS``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from autocompress.core.knobs import Choice, IntRange, knob
from autocompress.core.registry import STUDENTS
from autocompress.core.task import InputSpec
from autocompress.models.base import check_heads
from autocompress.models.sharing import HeadConfig
from autocompress.models.tokens import (
    POOLING,
    MaskedPool,
    TokenEncoder,
    TokenMask,
    make_token_model,
    require_token_input,
)


def _make_conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a convolution and its batch norm; position i of the output looks around position i * stride."""
    conv = nn.Conv1d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm1d(outputs)]


class Plain(nn.Module):
    """One convolution with batch norm and ReLU, ``[B, C, T], [B, 1, T] -> [B, C, T]``."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_make_conv(width, width, kernel), nn.ReLU())

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the features, zero at padding."""
        out: Tensor = self.body(x) * mask
        return out


class Residual(nn.Module):
    """Two convolutions with a shortcut, ``[B, C, T], [B, 1, T] -> [B, C, T]`` (He 2016)."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*_make_conv(width, width, kernel), nn.ReLU())
        self.second = nn.Sequential(*_make_conv(width, width, kernel))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the rectified sum of both branches, zero at padding."""
        # Masked between the convolutions too, because a batch norm shifts the zeros of padding.
        out: Tensor = self.relu(self.second(self.first(x) * mask) + x) * mask
        return out


class Separable(nn.Module):
    """A convolution within each channel, then one across channels, ``[B, C, T], [B, 1, T] -> [B, C, T]``.

    Source: Howard 2017, arXiv:1704.04861.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.within = nn.Sequential(*_make_conv(width, width, kernel, groups=width), nn.ReLU())
        self.across = nn.Sequential(*_make_conv(width, width, 1), nn.ReLU())

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the features, zero at padding."""
        out: Tensor = self.across(self.within(x)) * mask
        return out


class Parallel(nn.Module):
    """Windows of three lengths side by side, then one position at a time, ``[B, C, T], [B, 1, T] -> [B, C, T]``.

    The lengths are 1, the kernel and twice it less one. Source: several window sizes, Kim 2014, arXiv:1408.5882.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        # A third of the width for each window, rounded up.
        share = -(-width // 3)
        self.windows = nn.ModuleList(
            nn.Sequential(*_make_conv(width, share, size), nn.ReLU()) for size in (1, kernel, 2 * kernel - 1)
        )
        self.across = nn.Sequential(*_make_conv(3 * share, width, 1), nn.ReLU())

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the features, zero at padding."""
        out: Tensor = self.across(torch.cat([window(x) for window in self.windows], 1)) * mask
        return out


BLOCKS: Mapping[str, Callable[[int, int], nn.Module]] = {
    "plain": Plain,
    "residual": Residual,
    "separable": Separable,
    "parallel": Parallel,
}


@dataclass(frozen=True)
class TextCNNConfig(HeadConfig):
    """Shape of a convolutional network for texts.

    Example:
        >>> TextCNNConfig(width=16, depth=1).to_dict()["kernel"]
        3
    """

    label: ClassVar[str] = "text_cnn"

    embedding: int = knob(16, IntRange(2, 256, log=True), "numbers in the embedding of a token")
    width: int = knob(64, IntRange(4, 512, log=True), "channels of every convolution")
    depth: int = knob(2, IntRange(1, 8), "blocks after the stem")
    kernel: int = knob(3, Choice((3, 5, 7)), "length of the convolution window, in positions")
    block: str = knob("residual", Choice(tuple(BLOCKS)), "kind of block")
    stem_stride: int = knob(1, Choice((1, 2, 4)), "2 halves the number of positions at once, 4 quarters it")
    pooling: str = knob("max", Choice(POOLING), "pooling over the positions")


class TextCNNEncoder(TokenEncoder):
    """Tokens to features, ``[B, T] -> [B, width]``.

    Args:
        config: Hyperparameters of the family.
        vocabulary: Number of different tokens.
        missing: Token of padding, if there is one.
    """

    def __init__(self, config: TextCNNConfig, vocabulary: int, missing: int | None) -> None:
        super().__init__()
        self.mask = TokenMask(missing)
        self.embedding = nn.Embedding(vocabulary, config.embedding, padding_idx=missing)
        self.stride = config.stem_stride
        stem = _make_conv(config.embedding, config.width, config.kernel, config.stem_stride)
        self.stem = nn.Sequential(*stem, nn.ReLU())
        self.stages = nn.ModuleList(BLOCKS[config.block](config.width, config.kernel) for _ in range(config.depth))
        self.pool = MaskedPool(config.pooling)

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of every position and their mask."""
        mask = self.mask(tokens).unsqueeze(1)
        # The embedding of padding starts at zero, but an attack or a quantizer may change it.
        x = self.embedding(tokens).transpose(1, 2) * mask
        # Position i of a strided output looks around position i * stride, and takes the mask of that position.
        mask = mask[:, :, :: self.stride]
        x = self.stem(x) * mask
        for stage in self.stages:
            x = stage(x, mask)
        return x, mask


class TextCNNFamily:
    """Builds convolutional networks for inputs of ``(T,)`` tokens."""

    name: ClassVar[str] = "text_cnn"
    config = TextCNNConfig

    def build(self, config: TextCNNConfig, inputs: tuple[InputSpec, ...], heads: Mapping[str, int]) -> nn.Module:
        """Return an untrained network for texts of ``(T,)`` tokens.

        Raises:
            UsageError: The input does not hold tokens, there is no head, or one of another kind than classes and tags.

        Example:
            >>> net = TextCNNFamily().build(TextCNNConfig(width=8), (InputSpec((32,), 100, 0),), {"label": 3})
            >>> net(torch.zeros(2, 32, dtype=torch.int64)).shape
            torch.Size([2, 3])
        """
        tokens = require_token_input(self.name, inputs)
        check_heads(self.name, heads, "tags")
        encoder = TextCNNEncoder(config, tokens.vocabulary, tokens.missing)
        return make_token_model(encoder, config, config.width, heads)


STUDENTS.add(TextCNNFamily.name, TextCNNFamily())
