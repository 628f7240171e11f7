"""How close rounding comes: mean squared error, signal to noise, cosine."""

import math

from torch import Tensor


class ErrorStatistics:
    """Compares tensors with what they became, one pair after the other.

    Example:
        >>> import torch
        >>> ErrorStatistics().add(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])).row()["sqnr_db"]
        0.0
    """

    def __init__(self) -> None:
        self._count = 0
        self._signal = self._noise = self._power = self._together = 0.0

    def add(self, exact: Tensor, rounded: Tensor) -> "ErrorStatistics":
        """Take note of a pair of one shape, and return this object."""
        before, after = exact.detach().flatten(), rounded.detach().flatten()
        error = before - after
        self._count += before.numel()
        self._signal += _dot(before, before)
        self._noise += _dot(error, error)
        self._power += _dot(after, after)
        self._together += _dot(before, after)
        return self

    def row(self, prefix: str = "") -> dict[str, float | None]:
        """Return ``mse``, ``sqnr_db`` (10 log10 of signal over noise) and ``cosine`` over all pairs.

        ``sqnr_db`` is None where nothing changed, or nothing but zeros was there.
        """
        both = math.sqrt(self._signal) * math.sqrt(self._power)
        decibels = 10 * math.log10(self._signal / self._noise) if self._noise and self._signal else None
        return {
            f"{prefix}mse": self._noise / self._count,
            f"{prefix}sqnr_db": decibels,
            f"{prefix}cosine": (self._together / both if both else 0.0) if self._noise else 1.0,
        }


def _dot(one: Tensor, other: Tensor) -> float:
    found = float(one.dot(other))
    # In double precision where the squares leave single precision.
    return found if found and math.isfinite(found) else float(one.double().dot(other.double()))
