"""The registered observers: each computes the range that a quantizer should cover from observed tensors."""

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
    """Observer whose range is an exponential moving average of the minimum and the maximum of each tensor.

    Args:
        momentum: Weight of the previous average in each update (Jacob et al. 2018, arXiv:1712.05877).

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
        """Move both ends of the range towards the extremes of the tensor."""
        ends = finite_min_max(values)
        # The first tensor sets the range, so that the average has no bias towards zero.
        before = self._range or ends
        low, high = (old + (1 - self._momentum) * (new - old) for old, new in zip(before, ends, strict=True))
        self._range = low, high

    def range(self) -> tuple[float, float]:
        """Return the averages of the minima and of the maxima."""
        if self._range is None:
            raise CompressionError("nothing was observed")
        return self._range


class PercentileObserver(ActivationRecorder):
    """Observer whose range clips equal tails on both sides: from percentile ``100 - p`` to percentile ``p``.

    Args:
        percentile: Share of the values at or below the upper end, in percent; 100 is min-max.
        keep: Largest number of values stored per tensor; a larger tensor is sampled with a fixed seed.
    """

    def __init__(self, percentile: float = 99.9, keep: int = 2**18) -> None:
        super().__init__(keep)
        self._share = percentile / 100

    def range(self) -> tuple[float, float]:
        """Return the two percentiles; each is an observed value."""
        values = self.all_values()
        count = values.numel()
        # The small summand keeps a share such as 0.999 from losing a value to floating-point error.
        tail = math.floor((1 - self._share) * (count - 1) + 1e-6)
        low, high = (float(values.kthvalue(rank).values) for rank in (tail + 1, count - tail))
        return min(low, high), max(low, high)


_BUILTIN: Mapping[str, ObserverFactory] = {
    "minmax": lambda _: MinMaxObserver(),
    "moving_average": lambda _: MovingAverageObserver(),
    "percentile": lambda config: PercentileObserver(config.percentile),
    "mse": MseObserver,
    "entropy": EntropyObserver,
}
for _name, _factory in _BUILTIN.items():
    OBSERVERS.add(_name, _factory)

OBSERVER_CHOICE = RegisteredChoice(OBSERVERS, first=tuple(_BUILTIN))
