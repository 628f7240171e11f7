"""What observers share: what they watch for, and what they remember."""

import math
from dataclasses import dataclass
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


@dataclass(frozen=True)
class ObserverConfig:
    """What a range is chosen for.

    Attributes:
        bits: Bits of the codes that will cover it.
        scheme: Name of the quantizer that will.
        percentile: Share of the values at or below the upper end, in percent; one observer reads it.
    """

    bits: int = 8
    scheme: str = "asymmetric"
    percentile: float = 99.9


class ObserverFactory(Protocol):
    """A function or class that makes an observer; registered by name in ``OBSERVERS``."""

    def __call__(self, config: ObserverConfig, /) -> Observer:
        """Return a new observer of one tensor."""
        ...


class MinMaxObserver:
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
        low, high = finite_min_max(values)
        self._low, self._high = min(self._low, low), max(self._high, high)

    def range(self) -> tuple[float, float]:
        """Return the smallest and the largest value seen."""
        if self._low > self._high:
            raise CompressionError("nothing was observed")
        return self._low, self._high


class ActivationRecorder:
    """Remembers the values that it is shown, of a large tensor a repeatable random share.

    Args:
        keep: Values remembered of one tensor.
    """

    def __init__(self, keep: int = 2**16) -> None:
        self._keep = keep
        self._seen: list[Tensor] = []
        self._ends = MinMaxObserver()
        self._sampler = torch.Generator().manual_seed(0)

    def observe(self, values: Tensor) -> None:
        """Remember the values, or a sample of them."""
        self._ends.observe(values)
        flat = values.detach().flatten()
        if flat.numel() > self._keep:
            flat = flat[torch.randint(flat.numel(), (self._keep,), generator=self._sampler)]
        self._seen.append(flat.clone())

    def all_values(self) -> Tensor:
        """Return everything that is remembered, ``[n]``.

        Raises:
            CompressionError: Nothing was observed.
        """
        self._ends.range()
        return torch.cat(self._seen)

    def min_max(self) -> tuple[float, float]:
        """Return the smallest and the largest value seen, remembered or not."""
        return self._ends.range()


def finite_min_max(values: Tensor) -> tuple[float, float]:
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
