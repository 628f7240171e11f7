"""Observers: each computes the range that a quantizer should cover from observed tensors.

The interface, a recorder of sampled activations, and the registered observers: minimum and maximum,
moving average, percentiles, and two that trade clipping error against rounding error: by squared error, or by
Kullback-Leibler divergence.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.core.knobs import RegisteredChoice
from autocompress.core.registry import OBSERVERS
from autocompress.errors import CompressionError
from autocompress.quantize.quantizers import ACTIVATION_QUANTIZERS, Grid


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


# Bins of a histogram, as in TensorRT's calibration.
BINS = 2048
# Ranges that a search compares, evenly spaced from the full range downwards.
CANDIDATES = 96
# Probability mass that is spread over all bins, because the divergence is infinite where one distribution is zero.
SMOOTHING = 1e-4

Floats = NDArray[np.float64]


class MseObserver(ActivationRecorder):
    """Observer whose range minimizes the mean squared quantization error of the observed values.

    Both ends are scaled together first, then each separately. Where few values are large, clipping them costs less
    than a coarser step for all others (Banner et al. 2019, arXiv:1810.05723).

    Example:
        >>> observer = MseObserver(ObserverConfig(bits=2))
        >>> observer.observe(torch.cat([torch.linspace(0, 1, 1000), torch.tensor([9.0])]))
        >>> observer.range()[1] < 4
        True
    """

    def __init__(self, config: ObserverConfig) -> None:
        super().__init__()
        self._config = config

    def range(self) -> tuple[float, float]:
        """Return the two ends with the smallest loss."""
        values = self.all_values()
        low, high = include_zero(*self.min_max())
        # Bins stand in for the values: the search then costs the same however many values were observed.
        mean, count = bin_means(values.double(), low, high)
        shares = torch.linspace(1, CANDIDATES - 1, CANDIDATES - 1, dtype=torch.float64).div(CANDIDATES).flip(0)
        shares = torch.cat([torch.ones(1, dtype=torch.float64), shares])

        def search_range(lows: Tensor, highs: Tensor) -> tuple[float, float]:
            grid = ACTIVATION_QUANTIZERS[self._config.scheme].fit(lows, highs, self._config.bits)
            best = int((compute_squared_error(mean, grid) @ count).argmin())
            return float(lows[best]), float(highs[best])

        fixed = torch.ones_like(shares)
        low, high = search_range(low * shares, high * shares)
        if low < 0 < high:
            low, high = search_range(low * fixed, high * shares)
            low, high = search_range(low * shares, high * fixed)
        return low, high


class EntropyObserver(ActivationRecorder):
    """Observer whose range minimizes the Kullback-Leibler divergence between clipped and quantized histogram.

    The histogram of the values, with its tails clipped to the range, is compared with the same histogram merged to as
    many levels as there are codes (Migacz 2017, TensorRT). Both ends are scaled together.

    Example:
        >>> observer = EntropyObserver(ObserverConfig(bits=4))
        >>> observer.observe(torch.cat([torch.linspace(0, 1, 10_000).square(), torch.tensor([50.0])]))
        >>> observer.range()[1] < 25
        True
    """

    def __init__(self, config: ObserverConfig) -> None:
        super().__init__()
        self._levels = 2**config.bits

    def range(self) -> tuple[float, float]:
        """Return the two ends with the smallest loss."""
        values = self.all_values().double()
        low, high = include_zero(*self.min_max())
        if low == high:
            return low, high
        # Every grid represents zero exactly. After a ReLU zeros are so frequent that they would dominate the histogram.
        counts = torch.histc(values[values != 0], BINS, low, high).numpy()
        width = (high - low) / BINS
        max_abs = max(-low, high)
        candidates = []
        for share in np.arange(CANDIDATES, 0, -1) / CANDIDATES:
            ends = max(low, -max_abs * float(share)), min(high, max_abs * float(share))
            first, last = round((ends[0] - low) / width), round((ends[1] - low) / width)
            # Fewer bins than levels would give a divergence of zero without any meaning.
            if last - first >= self._levels or share == 1.0:
                candidates.append((compute_divergence(counts, first, last, self._levels), *ends))
        # Candidates go from the widest range to the narrowest, and `min` returns the first of equal ones.
        _, low, high = min(candidates, key=lambda entry: entry[0])
        return low, high


def include_zero(low: float, high: float) -> tuple[float, float]:
    """Return a range widened to include zero, because padding is zero and must have no rounding error."""
    return min(low, 0.0), max(high, 0.0)


def bin_means(values: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Return the mean and the count of the values in each non-empty bin, float64 ``[bins]`` each.

    Example:
        >>> bin_means(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), 0.0, 1.0)[1].tolist()
        [2.0, 1.0]
    """
    index = (values - low).mul_((BINS - 1) / ((high - low) or 1.0)).long()
    count = torch.bincount(index, minlength=BINS).double()
    total = torch.bincount(index, values, minlength=BINS)
    filled = count > 0
    return total[filled] / count[filled], count[filled]


def compute_squared_error(values: Tensor, grid: Grid) -> Tensor:
    """Return the squared quantization error of each value under each scale of the grid.

    Example:
        >>> grid = Grid(torch.tensor([1.0, 0.5]), torch.tensor([0, 0]), 0, 3)
        >>> compute_squared_error(torch.tensor([0.5, 2.0]), grid).tolist()
        [[0.25, 0.0], [0.0, 0.25]]
    """
    scale, zero_point = grid.scale.to(values.dtype).unsqueeze(-1), grid.zero_point.unsqueeze(-1)
    codes = (values / scale).round_().add_(zero_point).clamp_(grid.low, grid.high)
    return codes.sub_(zero_point).mul_(scale).sub_(values).square_()


def compute_divergence(counts: Floats, first: int, last: int, levels: int) -> float:
    """Return the Kullback-Leibler divergence of a clipped histogram from the same histogram merged to ``levels``.

    Both histograms are smoothed, because the divergence is infinite where only one of them is empty.

    Args:
        counts: Number of values per bin, ``[bins]``.
        first: Index of the first bin inside the range.
        last: Index after the last bin inside the range.
        levels: Number of levels that the bins inside the range are merged to.
    """
    inside = counts[first:last]
    clipped = inside.copy()
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[last:].sum()
    starts = np.arange(levels) * len(inside) // levels
    # With fewer bins than levels, several levels start at the same bin: only the first of them has a bin.
    starts = starts[np.append(True, np.diff(starts) > 0)]
    mass = np.add.reduceat(inside, starts)
    filled = np.add.reduceat((inside > 0).astype(np.float64), starts)
    even = np.divide(mass, filled, out=np.zeros_like(mass), where=filled > 0)
    merged = np.where(inside > 0, np.repeat(even, np.diff(np.append(starts, len(inside)))), 0.0)
    p, q = _smooth_counts(clipped), _smooth_counts(merged)
    return float((p * np.log(p / q)).sum())


def _smooth_counts(counts: Floats) -> Floats:
    total = counts.sum()
    shares = counts / total if total else np.full(len(counts), 1 / len(counts))
    return (shares + SMOOTHING / len(counts)) / (1 + SMOOTHING)


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
