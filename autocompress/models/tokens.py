"""Parts of all families for tokens: input check, padding mask, masked pooling, heads on an encoder."""

from torch import Tensor, nn

from autocompress.core.task import InputSpec
from autocompress.errors import UsageError
from autocompress.models.base import describe_inputs
from autocompress.models.sharing import Logits

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


class TokenClassifier(nn.Module):
    """An encoder and the heads on its features, ``[B, T] -> [B, C]``, or ``{head: [B, C]}`` with several heads.

    Args:
        encoder: Module from tokens ``[B, T]`` to features ``[B, F]``.
        heads: Module from features to logits, of :func:`autocompress.models.sharing.make_heads`.
    """

    def __init__(self, encoder: nn.Module, heads: nn.Module) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, heads

    def forward(self, tokens: Tensor) -> Logits:
        """Return the logits of the only head, or of every head by name."""
        logits: Logits = self.heads(self.encoder(tokens))
        return logits
