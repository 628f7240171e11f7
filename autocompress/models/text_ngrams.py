"""Bags of n-grams for texts: hashed embeddings, summed over the text, and convolutions beside them if wanted.

    tokens [B, T] -> hashed n-grams [B, M] -> embedding bag [B, E] --+-> heads
                  -> convolutions of ``text_cnn`` [B, width] --------+   (width above 0)

Without convolutions it is fastText (Joulin et al. 2017, arXiv:1607.01759) with n-grams of tokens, which are characters
or words by the encoding of the task. It computes almost nothing: a sum of rows and one linear layer.

Trained together, the n-grams soon explain the training texts and leave the convolutions nothing to learn. With
``branch_drop`` 1 each text trains one branch at a time, and the linear head averages the logits of two independent
models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.core.knobs import Choice, FloatRange, IntRange, knob
from autocompress.core.registry import STUDENTS
from autocompress.core.task import InputSpec
from autocompress.models.base import check_heads
from autocompress.models.sharing import HeadConfig, Logits, make_heads
from autocompress.models.text_cnn import TextCNNConfig, TextCNNEncoder
from autocompress.models.tokens import TokenMask, require_token_input

# A prime. Its product with the largest bucket fits 32 bits, because some runtimes compute integers in 32 bits.
_MULTIPLIER = 4093
# Powers of two, because the remainder is then a mask of bits: OpenVINO divides in floating point, inexactly.
_BUCKETS = tuple(2**power for power in range(8, 19))
# Row of the table for no n-gram; it stays zero.
_NOTHING = 0


@dataclass(frozen=True)
class TextNGramsConfig(HeadConfig):
    """Shape of a bag of n-grams.

    Example:
        >>> TextNGramsConfig(embedding=16).to_dict()["longest"]
        4
    """

    label: ClassVar[str] = "text_ngrams"

    embedding: int = knob(32, IntRange(2, 256, log=True), "numbers in the embedding of an n-gram")
    longest: int = knob(4, IntRange(1, 6), "tokens in the longest n-gram; all shorter ones count, too")
    buckets: int = knob(
        32_768, Choice(_BUCKETS), "rows of the embedding table that n-grams are hashed into, a power of two"
    )
    drop: float = knob(0.3, FloatRange(0.0, 0.9), "share of the n-grams that a training step leaves out")
    dropout: float = knob(
        0.0, FloatRange(0.0, 0.9), "share of the features before the heads that a training step sets to zero"
    )
    width: int = knob(0, IntRange(0, 512), "channels of the convolutions beside the n-grams; 0 leaves them out")
    branch_drop: float = knob(
        0.0,
        FloatRange(0.0, 1.0),
        "share of the texts of a training step that only one branch reads, the n-grams or the convolutions",
    )
    kernel: int = knob(3, Choice((3, 5, 7)), "length of the convolution window, in positions")
    pooling: str = knob("max", Choice(("max", "mean")), "pooling of the convolutions over the positions")


class HashedNGrams(nn.Module):
    """Rows of the n-grams of texts in a table, ``[B, T] -> [B, M]`` with M = longest x (T + 1); 0 is no n-gram.

    The beginning and the end of a text are tokens of n-grams, so that prefixes and suffixes have rows of their own.

    Args:
        longest: Tokens in the longest n-gram.
        buckets: Number of rows that n-grams have, from row 1 on; a power of two.
        missing: Token of padding, if there is one.

    Example:
        >>> HashedNGrams(1, 256, missing=0)(torch.tensor([[5, 0]])).tolist()
        [[0, 8, 0]]
    """

    def __init__(self, longest: int, buckets: int, missing: int | None) -> None:
        super().__init__()
        self.longest, self.buckets = longest, buckets
        self.mask = TokenMask(missing)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the row of each n-gram, the shortest first."""
        # 0 is the border of a text: no position of padding differs from it.
        tokens = (tokens + 1) * self.mask(tokens).long()
        # The n-gram of position i begins one token before it, so the first one begins at the border.
        padded = F.pad(tokens, (1, self.longest))
        count = tokens.shape[1] + 1
        rows, code = [], torch.zeros_like(padded[:, :count])
        for size in range(1, self.longest + 1):
            # Of a border at the beginning, a digit of 0 would leave the code of the tokens after it.
            code = (code * _MULTIPLIER + padded[:, size - 1 : size - 1 + count] + 1) & (self.buckets - 1)
            # Of its tokens, the last may be the border; two tokens may also begin there. A single one may not.
            inner = padded[:, max(size - 2, 0) :][:, :count]
            is_present = inner + padded[:, 1 : 1 + count] if size == 2 else inner
            rows.append((code + 1) * (is_present > 0).long())
        return torch.cat(rows, 1)

    def extra_repr(self) -> str:
        """Return what ``repr`` shows between the brackets."""
        return f"longest={self.longest}, buckets={self.buckets}"


class TextNGramsEncoder(nn.Module):
    """Tokens to features, ``[B, T] -> [B, embedding + width]``.

    Args:
        config: Hyperparameters of the family.
        vocabulary: Number of different tokens.
        missing: Token of padding, if there is one.
    """

    def __init__(self, config: TextNGramsConfig, vocabulary: int, missing: int | None) -> None:
        super().__init__()
        self.drop, self.branch_drop = config.drop, config.branch_drop
        self.ngrams = HashedNGrams(config.longest, config.buckets, missing)
        self.table = nn.EmbeddingBag(config.buckets + 1, config.embedding, mode="sum", padding_idx=_NOTHING)
        # As fastText begins: n-grams that training never meets stay near zero, and so add little to any text.
        nn.init.uniform_(self.table.weight, -1 / config.embedding, 1 / config.embedding)
        with torch.no_grad():
            self.table.weight[_NOTHING] = 0
        # Before the heads, as in Kim 2014 (arXiv:1408.5882).
        self.dropout = nn.Dropout(config.dropout)
        self.convolutions = None
        if config.width:
            shape = TextCNNConfig(
                embedding=config.embedding,
                width=config.width,
                depth=1,
                kernel=config.kernel,
                block="parallel",
                pooling=config.pooling,
            )
            self.convolutions = TextCNNEncoder(shape, vocabulary, missing)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the features of each text."""
        rows = self.ngrams(tokens)
        if self.training and self.drop:
            rows = rows * (torch.rand(rows.shape, device=rows.device) >= self.drop).long()
        count = (rows > 0).float().sum(1, keepdim=True)
        # Divided by the root of their number, a sum of independent rows has one scale for short and long texts.
        features: Tensor = self.table(rows) / count.clamp_min(1.0).sqrt()
        if self.convolutions is not None:
            features = self._join_branches(features, self.convolutions(tokens))
        remaining: Tensor = self.dropout(features)
        return remaining

    def _join_branches(self, ngrams: Tensor, convolutions: Tensor) -> Tensor:
        """Return the features of both branches side by side; in training, some texts have those of one branch alone.

        The features of a single branch count twice. A linear head then computes the mean of the logits that it has
        for each branch alone.

        Args:
            ngrams: Features of the n-grams, ``[B, embedding]``.
            convolutions: Features of the convolutions, ``[B, width]``.
        """
        if self.training and self.branch_drop:
            draw = torch.rand(len(ngrams), 1, device=ngrams.device)
            one_branch = torch.where(draw < self.branch_drop / 2, 2.0, 0.0)
            weight = torch.where(draw < self.branch_drop, one_branch, 1.0)
            ngrams, convolutions = ngrams * weight, convolutions * (2.0 - weight)
        return torch.cat([ngrams, convolutions], 1)

    def extra_repr(self) -> str:
        """Return what ``repr`` shows between the brackets."""
        return f"drop={self.drop}, branch_drop={self.branch_drop}"


class TextNGrams(nn.Module):
    """An encoder and the heads on its features, ``[B, T] -> [B, C]``, or ``{head: [B, C]}`` with several heads.

    Args:
        encoder: Module from tokens to features.
        heads: Module from features to logits, of :func:`autocompress.models.sharing.make_heads`.
    """

    def __init__(self, encoder: TextNGramsEncoder, heads: nn.Module) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, heads

    def forward(self, tokens: Tensor) -> Logits:
        """Return the logits of the only head, or of every head by name."""
        logits: Logits = self.heads(self.encoder(tokens))
        return logits


class TextNGramsFamily:
    """Builds bags of n-grams for inputs of ``(T,)`` tokens."""

    name: ClassVar[str] = "text_ngrams"
    config = TextNGramsConfig

    def build(self, config: TextNGramsConfig, inputs: tuple[InputSpec, ...], heads: Mapping[str, int]) -> nn.Module:
        """Return an untrained network for texts of ``(T,)`` tokens.

        Raises:
            UsageError: The input does not hold tokens, there is no head, or a head is one for each token.

        Example:
            >>> net = TextNGramsFamily().build(TextNGramsConfig(embedding=8), (InputSpec((32,), 100, 0),), {"label": 3})
            >>> net(torch.zeros(2, 32, dtype=torch.int64)).shape
            torch.Size([2, 3])
        """
        tokens = require_token_input(self.name, inputs)
        check_heads(self.name, heads)
        encoder = TextNGramsEncoder(config, tokens.vocabulary, tokens.missing)
        return TextNGrams(encoder, make_heads(config, config.embedding + config.width, heads))


STUDENTS.add(TextNGramsFamily.name, TextNGramsFamily())
