"""Observers: they watch tensors go by and say which range a quantizer should cover."""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from autocompress.errors import CompressionError


class Observer(Protocol):
    """Watches tensors and settles on a range."""

    def observe(self, values: Tensor) -> None:
        """Take note of one tensor of any shape.

        Raises:
            CompressionError: The tensor is empty, or holds a NaN or an infinity.
        """
        ...

    def range(self) -> tuple[float, float]:
        """Return the lowest and the highest value to represent.

        Raises:
            CompressionError: Nothing was observed.
        """
        ...


class MinMax:
    """The range is the smallest and the largest value seen.

    Example:
        >>> observer = MinMax()
        >>> observer.observe(torch.tensor([1.0, -2.0]))
        >>> observer.range()
        (-2.0, 1.0)
    """

    def __init__(self) -> None:
        self._low, self._high = math.inf, -math.inf

    def observe(self, values: Tensor) -> None:
        """Widen the range to hold every value."""
        low, high = extremes(values)
        self._low, self._high = min(self._low, low), max(self._high, high)

    def range(self) -> tuple[float, float]:
        """Return the smallest and the largest value seen."""
        if self._low > self._high:
            raise CompressionError("nothing was observed")
        return self._low, self._high


class Percentile:
    """The range cuts equal tails off both ends: from percentile ``100 - p`` to percentile ``p`` of all values.

    Args:
        percentile: Share of the values at or below the upper end, in percent; 100 is min-max.
        keep: Values remembered of one tensor; of a larger one a seeded random sample is taken.
    """

    def __init__(self, percentile: float = 99.9, keep: int = 2**18) -> None:
        self._share = percentile / 100
        self._keep = keep
        self._seen: list[Tensor] = []
        self._sampler = torch.Generator().manual_seed(0)

    def observe(self, values: Tensor) -> None:
        """Remember the values, or a sample of them."""
        extremes(values)
        flat = values.detach().flatten()
        if flat.numel() > self._keep:
            flat = flat[torch.randint(flat.numel(), (self._keep,), generator=self._sampler)]
        self._seen.append(flat.clone())

    def range(self) -> tuple[float, float]:
        """Return the two percentiles, each a value that was seen."""
        if not self._seen:
            raise CompressionError("nothing was observed")
        values = torch.cat(self._seen)
        count = values.numel()
        tail = math.floor((1 - self._share) * (count - 1) + 1e-6)
        low, high = (float(values.kthvalue(rank).values) for rank in (tail + 1, count - tail))
        return min(low, high), max(low, high)


# Each builds an observer; the percentile is the one setting that any of them reads so far.
OBSERVERS: dict[str, Callable[[float], Observer]] = {
    "minmax": lambda _: MinMax(),
    "percentile": Percentile,
}


def extremes(values: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest value of a tensor.

    Raises:
        CompressionError: The tensor is empty, or holds a NaN or an infinity.
    """
    if values.numel() == 0:
        raise CompressionError("an empty tensor has no range")
    low, high = (float(end) for end in torch.aminmax(values.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise CompressionError("a tensor with NaN or infinite values has no range")
    return low, high
