"""What families for tokens share: the check of their input, where a text is, one vector of it, heads on an encoder."""

from torch import Tensor, nn

from autocompress.core.task import InputSpec
from autocompress.errors import UsageError
from autocompress.models.base import describe
from autocompress.models.sharing import Logits

#: Far below any score of a network, and finite in every precision with eight exponent bits.
FAR = 1e9
POOLING = ("max", "mean")


def only_token_input(family: str, inputs: tuple[InputSpec, ...]) -> InputSpec:
    """Return the only input, which holds tokens along one axis.

    Raises:
        UsageError: There are other inputs, or one of another form.

    Example:
        >>> only_token_input("text_cnn", (InputSpec((32,), vocabulary=257, missing=0),)).vocabulary
        257
    """
    if len(inputs) == 1 and inputs[0].vocabulary and len(inputs[0].shape) == 1 and inputs[0].shape[0] >= 1:
        return inputs[0]
    raise UsageError(f"student '{family}' takes one input of whole numbers (length), not {describe(inputs)}")


class TokenMask(nn.Module):
    """Says where a text is, ``[B, T] -> [B, T]``: 1 at a token, 0 at padding.

    Args:
        missing: The token that stands for nothing; ``None`` where all of them mean something.
    """

    def __init__(self, missing: int | None) -> None:
        super().__init__()
        # No token is negative, so that all of them count.
        self.missing = -1 if missing is None else missing

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ones and zeros in single precision."""
        return (tokens != self.missing).float()


class MaskedPool(nn.Module):
    """One vector of all positions that hold a token, ``[B, C, T], [B, 1, T] -> [B, C]``; zeros where none does.

    Args:
        how: ``max``, the largest value of each feature, or ``mean``.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the pooled features."""
        if self.how == "mean":
            return (x * mask).sum(2) / mask.sum(2).clamp_min(1.0)
        return (x * mask + (mask - 1) * FAR).amax(2) * mask.amax(2)

    def extra_repr(self) -> str:
        """Return what ``repr`` shows between the brackets."""
        return self.how


class TokenClassifier(nn.Module):
    """An encoder and the heads on its features, ``[B, T] -> [B, C]``, or ``{head: [B, C]}`` with several heads.

    Args:
        encoder: Tokens ``[B, T]`` to features ``[B, F]``.
        heads: Features to logits, of :func:`autocompress.models.sharing.make_heads`.
    """

    def __init__(self, encoder: nn.Module, heads: nn.Module) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, heads

    def forward(self, tokens: Tensor) -> Logits:
        """Return the logits of the only head, or of every head by name."""
        logits: Logits = self.heads(self.encoder(tokens))
        return logits
