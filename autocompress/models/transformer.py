"""Transformers for texts: embedding and learned positions, blocks of attention and feed-forward layers, heads.

    tokens [B, T] -> embedding + positions [B, T, D] -> stages.0 .. stages.n -> norm -> mean or max -> heads

A block normalises before each half and adds the input to the output (pre-norm; Xiong et al. 2020, arXiv:2002.04745).
Padding has no effect: no token attends to it, and it is zero after every block. The attention
probabilities ``[B, H, T, T]`` of block n are the output of the layer ``encoder.stages.<n>.attention.probabilities``.
After the attention of a block, tokens can be dropped; the blocks behind it then compute fewer positions.
"""

from collections.abc import Mapping
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
    MASKED_SCORE,
    POOLING,
    MaskedPool,
    TokenEncoder,
    TokenMask,
    make_token_model,
    require_token_input,
)

#: Standard deviation of the untrained embedding and positions, as in GPT (Radford et al. 2018).
INITIAL_DEVIATION = 0.02


class Positions:
    """The mask of the tokens, which changes when tokens are dropped.

    Args:
        mask: 1 at a token and 0 at padding, ``[B, T]``.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self._selected: Tensor | None = None

    @property
    def over_features(self) -> Tensor:
        """The mask as a factor of the features, ``[B, T, 1]``."""
        return self.mask.unsqueeze(2)

    def compute_bias(self) -> Tensor:
        """Return what attention adds to its scores, ``[B, 1, 1, T]``: zero at a token, far below zero at padding."""
        # The same for every head and every query.
        return ((self.mask - 1) * MASKED_SCORE).unsqueeze(1).unsqueeze(2)

    def select(self, probabilities: Tensor, count: int) -> None:
        """Choose the tokens that receive the most attention.

        The attention that a token receives is summed over heads and over the tokens that attend to it (significance
        score of Goyal et al. 2020, arXiv:2001.08950, section 3.2). Padding receives none, so it is dropped first.

        Args:
            probabilities: Attention of each query to each token, ``[B, H, T, T]``.
            count: Number of tokens to keep; a shorter text keeps all.
        """
        received = (probabilities.sum(1) * self.over_features).sum(1)
        self._selected = torch.topk(received, min(count, received.shape[1]), dim=1).indices
        self.mask = self.mask.gather(1, self._selected)

    def take(self, x: Tensor) -> Tensor:
        """Return the features of the tokens that were chosen last, ``[B, T, D] -> [B, T', D]``; otherwise all."""
        if self._selected is None:
            return x
        indices, self._selected = self._selected.unsqueeze(2).expand(-1, -1, x.shape[2]), None
        return x.gather(1, indices)


class Attention(nn.Module):
    """Several attentions side by side, ``[B, T, D] -> [B, T, D]``.

    softmax(Q K^T / sqrt(d) + bias) V for each of H heads of d numbers (Vaswani et al. 2017, arXiv:1706.03762); the
    bias is zero at a token and far below zero at padding. With a number of ``kept_tokens``, it chooses the tokens that
    the rest of the model reads; 0 keeps all.
    """

    def __init__(self, width: int, heads: int, head_size: int) -> None:
        super().__init__()
        self.heads, self.head_size = heads, head_size
        self.kept_tokens = 0
        inner = heads * head_size
        self.query, self.key, self.value = (nn.Linear(width, inner) for _ in range(3))
        self.probabilities = nn.Softmax(dim=-1)
        self.out = nn.Linear(inner, width)

    def forward(self, x: Tensor, positions: Positions) -> Tensor:
        """Return the attention output of each position."""
        query, key, value = (self._split_heads(layer(x)) for layer in (self.query, self.key, self.value))
        # Dividing by sqrt(d) keeps the size of the scores independent of the size of a head.
        scores = query @ key.transpose(2, 3) * self.head_size**-0.5
        probabilities = self.probabilities(scores + positions.compute_bias())
        if self.kept_tokens:
            positions.select(probabilities, self.kept_tokens)
        gathered = probabilities @ value
        out: Tensor = self.out(gathered.transpose(1, 2).flatten(2))
        return out

    def _split_heads(self, x: Tensor) -> Tensor:
        """Return the tensor with a separate axis of heads, ``[B, T, H d] -> [B, H, T, d]``."""
        split: Tensor = x.unflatten(2, (self.heads, self.head_size)).transpose(1, 2)
        return split


class Block(nn.Module):
    """Attention, then two linear layers with a ReLU between them, ``[B, T, D] -> [B, T', D]``; T' is T or fewer."""

    def __init__(self, config: "TransformerConfig") -> None:
        super().__init__()
        width = config.attention_heads * config.head_size
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, config.attention_heads, config.head_size)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, width * config.feed_forward), nn.ReLU(), nn.Linear(width * config.feed_forward, width)
        )

    def forward(self, x: Tensor, positions: Positions) -> Tensor:
        """Return the sum of the input and both halves, zero at padding."""
        x = positions.take(x + self.attention(self.attention_norm(x), positions))
        x = x + self.feed_forward(self.feed_forward_norm(x))
        return x * positions.over_features


@dataclass(frozen=True)
class TransformerConfig(HeadConfig):
    """Shape of a transformer; its width is ``attention_heads`` times ``head_size``, so that any combination fits.

    Example:
        >>> TransformerConfig(attention_heads=2, head_size=8).to_dict()["feed_forward"]
        2
    """

    label: ClassVar[str] = "transformer"

    layers: int = knob(2, IntRange(1, 8), "blocks of attention and feed-forward layers")
    attention_heads: int = knob(4, IntRange(1, 8), "attentions side by side in each block")
    head_size: int = knob(
        16, IntRange(2, 64, log=True), "numbers of each attention head; the model's width is heads times head size"
    )
    feed_forward: int = knob(2, IntRange(1, 4), "width of the feed-forward layer as a multiple of the model's width")
    embedding: int = knob(0, IntRange(0, 256), "numbers in the embedding of a token; 0 = the model's width")
    pooling: str = knob("mean", Choice(POOLING), "pooling over the positions")


class TransformerEncoder(TokenEncoder):
    """Tokens to features, ``[B, T] -> [B, D]``.

    If the ``embedding`` has another width than the model, a linear layer follows it (Lan et al. 2020,
    arXiv:1909.11942).

    Args:
        config: Hyperparameters of the family.
        tokens: Input specification, with the largest T; a call may have a smaller T.
    """

    def __init__(self, config: TransformerConfig, tokens: InputSpec) -> None:
        super().__init__()
        width = config.attention_heads * config.head_size
        size = config.embedding or width
        self.mask = TokenMask(tokens.missing)
        self.embedding = nn.Embedding(tokens.vocabulary, size, padding_idx=tokens.missing)
        self.widen = nn.Identity() if size == width else nn.Linear(size, width, bias=False)
        self.positions = nn.Parameter(torch.empty(tokens.shape[0], width))
        # Positions and tokens start at the same small scale, so that attention can use both from the first step.
        nn.init.normal_(self.positions, std=INITIAL_DEVIATION)
        with torch.no_grad():
            self.embedding.weight.mul_(INITIAL_DEVIATION)
        self.stages = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.pool = MaskedPool(config.pooling)

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of every position that is left and their mask."""
        positions = Positions(self.mask(tokens))
        # A shorter batch takes the first positions.
        x = (self.widen(self.embedding(tokens)) + self.positions[: tokens.shape[1]]) * positions.over_features
        for stage in self.stages:
            x = stage(x, positions)
        return self.norm(x).transpose(1, 2), positions.mask.unsqueeze(1)


class TransformerFamily:
    """Builds transformers for inputs of ``(T,)`` tokens."""

    name: ClassVar[str] = "transformer"
    config = TransformerConfig

    def build(self, config: TransformerConfig, inputs: tuple[InputSpec, ...], heads: Mapping[str, int]) -> nn.Module:
        """Return an untrained transformer for texts of up to ``(T,)`` tokens.

        Raises:
            UsageError: The input does not hold tokens, there is no head, or one of another kind than classes and tags.

        Example:
            >>> net = TransformerFamily().build(TransformerConfig(layers=1), (InputSpec((32,), 100, 0),), {"label": 3})
            >>> net(torch.zeros(2, 32, dtype=torch.int64)).shape
            torch.Size([2, 3])
        """
        tokens = require_token_input(self.name, inputs)
        check_heads(self.name, heads, "tags")
        return make_token_model(
            TransformerEncoder(config, tokens), config, config.attention_heads * config.head_size, heads
        )


STUDENTS.add(TransformerFamily.name, TransformerFamily())
