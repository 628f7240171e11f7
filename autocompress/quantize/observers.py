"""Observers: they watch tensors go by and say which range a quantizer should cover."""

import math
from collections.abc import Mapping

from torch import Tensor

from autocompress.core.knobs import RegisteredChoice
from autocompress.core.registry import OBSERVERS
from autocompress.errors import CompressionError
from autocompress.quantize.activation_recorder import (
    ActivationRecorder,
    MinMaxObserver,
    ObserverFactory,
    finite_min_max,
)
from autocompress.quantize.histogram_observers import EntropyObserver, MseObserver


class MovingAverageObserver:
    """The range is an average of each tensor's smallest and largest value, in which newer ones count more.

    Args:
        momentum: Share of the average that the next tensor leaves as it is (Jacob et al. 2018, arXiv:1712.05877).

    Example:
        >>> import torch
        >>> observer = MovingAverageObserver(momentum=0.5)
        >>> for values in (torch.tensor([0.0, 2.0]), torch.tensor([-1.0, 4.0])):
        ...     observer.observe(values)
        >>> observer.range()
        (-0.5, 3.0)
    """

    def __init__(self, momentum: float = 0.9) -> None:
        self._momentum = momentum
        self._range: tuple[float, float] | None = None

    def observe(self, values: Tensor) -> None:
        """Move both ends towards those of the tensor."""
        ends = finite_min_max(values)
        before = self._range or ends
        low, high = (old + (1 - self._momentum) * (new - old) for old, new in zip(before, ends, strict=True))
        self._range = low, high

    def range(self) -> tuple[float, float]:
        """Return the averages of the smallest and of the largest values."""
        if self._range is None:
            raise CompressionError("nothing was observed")
        return self._range


class PercentileObserver(ActivationRecorder):
    """The range cuts equal tails off both ends: from percentile ``100 - p`` to percentile ``p`` of all values.

    Args:
        percentile: Share of the values at or below the upper end, in percent; 100 is min-max.
        keep: Values remembered of one tensor; of a larger one a seeded random sample is taken.
    """

    def __init__(self, percentile: float = 99.9, keep: int = 2**18) -> None:
        super().__init__(keep)
        self._share = percentile / 100

    def range(self) -> tuple[float, float]:
        """Return the two percentiles, each a value that was seen."""
        values = self.all_values()
        count = values.numel()
        tail = math.floor((1 - self._share) * (count - 1) + 1e-6)
        low, high = (float(values.kthvalue(rank).values) for rank in (tail + 1, count - tail))
        return min(low, high), max(low, high)


_BUILTIN: Mapping[str, ObserverFactory] = {
    "minmax": lambda _: MinMaxObserver(),
    "moving_average": lambda _: MovingAverageObserver(),
    "percentile": lambda aim: PercentileObserver(aim.percentile),
    "mse": MseObserver,
    "entropy": EntropyObserver,
}
for _name, _factory in _BUILTIN.items():
    OBSERVERS.add(_name, _factory)

OBSERVER_CHOICE = RegisteredChoice(OBSERVERS, first=tuple(_BUILTIN))
