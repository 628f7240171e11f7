"""Parts of all families for tokens: input check, padding mask, masked pooling, heads on an encoder."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from autocompress.core.heads import as_head
from autocompress.core.task import InputSpec
from autocompress.errors import UsageError
from autocompress.models.base import describe_inputs
from autocompress.models.sharing import HeadConfig, Logits, make_heads

#: Its negative is far below any score of a network, and finite in every precision with eight exponent bits.
MASKED_SCORE = 1e9
POOLING = ("max", "mean")


def require_token_input(family: str, inputs: tuple[InputSpec, ...]) -> InputSpec:
    """Return the only input, which holds tokens along one axis.

    Raises:
        UsageError: There is another number of inputs, or an input of another form.

    Example:
        >>> require_token_input("text_cnn", (InputSpec((32,), vocabulary=257, missing=0),)).vocabulary
        257
    """
    if len(inputs) == 1 and inputs[0].vocabulary and len(inputs[0].shape) == 1 and inputs[0].shape[0] >= 1:
        return inputs[0]
    raise UsageError(f"student '{family}' takes one input of whole numbers (length), not {describe_inputs(inputs)}")


class TokenMask(nn.Module):
    """Mask of the tokens, ``[B, T] -> [B, T]``: 1 at a token, 0 at padding.

    Args:
        missing: Token of padding; ``None`` if there is no padding.
    """

    def __init__(self, missing: int | None) -> None:
        super().__init__()
        # No token is negative: without padding, every token counts.
        self.missing = -1 if missing is None else missing

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ones and zeros in single precision."""
        return (tokens != self.missing).float()


class MaskedPool(nn.Module):
    """One vector of all positions with a token, ``[B, C, T], [B, 1, T] -> [B, C]``; zeros if there is no token.

    Args:
        how: Pooling over positions: ``max``, the largest value of each feature, or ``mean``.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the pooled features."""
        if self.how == "mean":
            # The guard is for a text without tokens, whose mask sums to zero.
            return (x * mask).sum(2) / mask.sum(2).clamp_min(1.0)
        # Padding is far below zero and never the maximum; the last factor makes a text without tokens zero.
        return (x * mask + (mask - 1) * MASKED_SCORE).amax(2) * mask.amax(2)

    def extra_repr(self) -> str:
        """Return what ``repr`` shows between the brackets."""
        return self.how


class TokenEncoder(nn.Module):
    """Base class of encoders of tokens: features of every position, and of the whole text.

    A subclass defines :meth:`encode` and the attribute ``pool``.
    """

    pool: MaskedPool

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of every position ``[B, F, T']`` and their mask ``[B, 1, T']``, where T' is at most T."""
        raise NotImplementedError

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the features of each text, ``[B, T] -> [B, F]``."""
        features: Tensor = self.pool(*self.encode(tokens))
        return features


class TokenClassifier(nn.Module):
    """An encoder and the heads on its features, ``[B, T] -> [B, C]``, or ``{head: [B, C]}`` with several heads.

    Args:
        encoder: Module from tokens ``[B, T]`` to features ``[B, F]``.
        heads: Module from features to logits, of :func:`autocompress.models.sharing.make_heads`.
    """

    def __init__(self, encoder: TokenEncoder, heads: nn.Module) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, heads

    def forward(self, tokens: Tensor) -> Logits:
        """Return the logits of the only head, or of every head by name."""
        logits: Logits = self.heads(self.encoder(tokens))
        return logits


class TokenTagger(nn.Module):
    """An encoder with heads for each token, and heads for the whole text if there are any.

    ``[B, T] -> [B, T, C]`` with a single head, otherwise ``{head: [B, T, C] or [B, C]}``. The encoder is shared by all
    heads; the layers behind it are shared among the heads for tokens, and among those for texts.

    Args:
        encoder: Module with the features of every position.
        tag_heads: Module from features ``[M, F]`` to logits of every token.
        heads: Module from features ``[B, F]`` to logits of every text; ``None`` if there are only tags.
        tag_names: Names of the heads for tokens.
        text_names: Names of the heads for texts.
    """

    def __init__(
        self,
        encoder: TokenEncoder,
        tag_heads: nn.Module,
        heads: nn.Module | None,
        tag_names: Sequence[str],
        text_names: Sequence[str],
    ) -> None:
        super().__init__()
        self.encoder, self.tag_heads, self.heads = encoder, tag_heads, heads
        self.tag_names, self.text_names = tuple(tag_names), tuple(text_names)

    def forward(self, tokens: Tensor) -> Logits:
        """Return the logits of the only head, or of every head by name."""
        features, mask = self.encoder.encode(tokens)
        # [B, F, T'] -> [B, T', F]: linear layers read the last axis.
        # One row for each token, because some shared layers take two axes only.
        of_tokens = _by_name(self.tag_heads(features.transpose(1, 2).flatten(0, 1)), self.tag_names)
        logits = {
            name: spread_positions(values.unflatten(0, (-1, features.shape[2])), tokens.shape[1])
            for name, values in of_tokens.items()
        }
        if self.heads is not None:
            logits |= _by_name(self.heads(self.encoder.pool(features, mask)), self.text_names)
        return next(iter(logits.values())) if len(logits) == 1 else logits


def spread_positions(values: Tensor, length: int) -> Tensor:
    """Return values of every token from those of every stride-th one, ``[B, T', C] -> [B, T, C]``.

    Example:
        >>> import torch
        >>> spread_positions(torch.tensor([[[1.0], [2.0]]]), 3).flatten().tolist()
        [1.0, 1.0, 2.0]
    """
    if values.shape[1] == length:
        return values
    stride = -(-length // values.shape[1])
    repeated = values.unsqueeze(2).expand(-1, -1, stride, -1).flatten(1, 2)
    return repeated[:, :length]


def make_token_model(encoder: TokenEncoder, config: HeadConfig, features: int, heads: Mapping[str, int]) -> nn.Module:
    """Return an encoder with its heads: for each text, for each token (heads of tags), or both.

    Args:
        encoder: The encoder.
        config: Hyperparameters of the layers behind it.
        features: F, the number of its features.
        heads: Heads of the task.

    Raises:
        UsageError: A head has a name that a module cannot have.
    """
    tags = {name: size for name, size in heads.items() if as_head(size).kind == "tags"}
    texts = {name: size for name, size in heads.items() if name not in tags}
    if not tags:
        return TokenClassifier(encoder, make_heads(config, features, heads))
    text_heads = make_heads(config, features, texts) if texts else None
    return TokenTagger(encoder, make_heads(config, features, tags), text_heads, list(tags), list(texts))


def _by_name(logits: Logits, names: Sequence[str]) -> dict[str, Tensor]:
    # Sharing layers return a tensor for a single head.
    return {names[0]: logits} if isinstance(logits, Tensor) else logits
