"""The observer interface, the min-max observer, and a recorder of sampled activations that other observers extend."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from autocompress.errors import CompressionError


class Observer(Protocol):
    """Observes tensors and computes the range that a quantizer should cover."""

    def observe(self, values: Tensor) -> None:
        """Update the statistics with one tensor of any shape.

        Raises:
            CompressionError: The tensor is empty, or holds a NaN or an infinity.
        """
        ...

    def range(self) -> tuple[float, float]:
        """Return the smallest and the largest value that the grid must cover.

        Raises:
            CompressionError: Nothing was observed.
        """
        ...


@dataclass(frozen=True)
class ObserverConfig:
    """Settings of an observer: the quantizer that its range is for.

    Attributes:
        bits: Bits of a code.
        scheme: Name of the activation quantizer, ``"symmetric"`` or ``"asymmetric"``.
        percentile: Share of the values at or below the upper end, in percent; only ``percentile`` reads it.
    """

    bits: int = 8
    scheme: str = "asymmetric"
    percentile: float = 99.9


class ObserverFactory(Protocol):
    """A function or class that builds an observer; registered by name in ``OBSERVERS``."""

    def __call__(self, config: ObserverConfig, /) -> Observer:
        """Return a new observer of one tensor."""
        ...


class MinMaxObserver:
    """Observer whose range is the smallest and the largest observed value.

    Example:
        >>> observer = MinMaxObserver()
        >>> observer.observe(torch.tensor([1.0, -2.0]))
        >>> observer.range()
        (-2.0, 1.0)
    """

    def __init__(self) -> None:
        self._low, self._high = math.inf, -math.inf

    def observe(self, values: Tensor) -> None:
        """Widen the range to include every value of the tensor."""
        low, high = finite_min_max(values)
        self._low, self._high = min(self._low, low), max(self._high, high)

    def range(self) -> tuple[float, float]:
        """Return the smallest and the largest observed value."""
        if self._low > self._high:
            raise CompressionError("nothing was observed")
        return self._low, self._high


class ActivationRecorder:
    """Stores observed values; of a large tensor it stores a random sample, which is the same in every run.

    Args:
        keep: Largest number of values stored per tensor.
    """

    def __init__(self, keep: int = 2**16) -> None:
        self._keep = keep
        self._samples: list[Tensor] = []
        # A sample can miss the extreme values, so they are tracked on all values.
        self._min_max = MinMaxObserver()
        self._sampler = torch.Generator().manual_seed(0)

    def observe(self, values: Tensor) -> None:
        """Store the values of the tensor, or a sample of them."""
        self._min_max.observe(values)
        flat = values.detach().flatten()
        if flat.numel() > self._keep:
            # Drawn with replacement, so that the cost depends on the sample and not on the tensor.
            flat = flat[torch.randint(flat.numel(), (self._keep,), generator=self._sampler)]
        # A copy, because an operation in place may follow.
        self._samples.append(flat.clone())

    def all_values(self) -> Tensor:
        """Return all stored values, ``[n]``.

        Raises:
            CompressionError: Nothing was observed.
        """
        self._min_max.range()
        return torch.cat(self._samples)

    def min_max(self) -> tuple[float, float]:
        """Return the smallest and the largest observed value, whether it was stored or not."""
        return self._min_max.range()


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
