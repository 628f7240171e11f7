"""Observers that weigh clipping against rounding: the squared error, or the information lost."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.quantize.activation_recorder import ActivationRecorder, ObserverConfig
from autocompress.quantize.quantizers import ACTIVATION_QUANTIZERS, Grid

BINS = 2048
CANDIDATES = 96
SMOOTHING = 1e-4

Floats = NDArray[np.float64]


class MseObserver(ActivationRecorder):
    """The range is the one whose grid leaves the smallest mean squared error on what was seen.

    Both ends shrink together, then each by itself: rounding a little coarser costs less than it seems where few
    values lie far out (Banner et al. 2019, arXiv:1810.05723).

    Example:
        >>> observer = MseObserver(Aim(bits=2))
        >>> observer.observe(torch.cat([torch.linspace(0, 1, 1000), torch.tensor([9.0])]))
        >>> observer.range()[1] < 4
        True
    """

    def __init__(self, aim: ObserverConfig) -> None:
        super().__init__()
        self._aim = aim

    def range(self) -> tuple[float, float]:
        """Return the ends that were best."""
        values = self.all_values()
        low, high = include_zero(*self.min_max())
        mean, count = bin_means(values.double(), low, high)
        shares = torch.linspace(1, CANDIDATES - 1, CANDIDATES - 1, dtype=torch.float64).div(CANDIDATES).flip(0)
        shares = torch.cat([torch.ones(1, dtype=torch.float64), shares])

        def best(lows: Tensor, highs: Tensor) -> tuple[float, float]:
            grid = ACTIVATION_QUANTIZERS[self._aim.scheme].fit(lows, highs, self._aim.bits)
            at = int((compute_squared_error(mean, grid) @ count).argmin())
            return float(lows[at]), float(highs[at])

        fixed = torch.ones_like(shares)
        low, high = best(low * shares, high * shares)
        if low < 0 < high:
            low, high = best(low * fixed, high * shares)
            low, high = best(low * shares, high * fixed)
        return low, high


class EntropyObserver(ActivationRecorder):
    """The range is the one whose codes lose the least information: the smallest Kullback-Leibler divergence.

    The values' histogram, its tails clipped to the range, is compared with the same histogram merged to as many
    levels as there are codes (Migacz 2017, TensorRT). Both ends move in together.

    Example:
        >>> observer = EntropyObserver(Aim(bits=4))
        >>> observer.observe(torch.cat([torch.linspace(0, 1, 10_000).square(), torch.tensor([50.0])]))
        >>> observer.range()[1] < 25
        True
    """

    def __init__(self, aim: ObserverConfig) -> None:
        super().__init__()
        self._levels = 2**aim.bits

    def range(self) -> tuple[float, float]:
        """Return the ends that were best."""
        values = self.all_values().double()
        low, high = include_zero(*self.min_max())
        if low == high:
            return low, high
        # Zero is exact in every grid, and after a ReLU so frequent that it would outweigh all else.
        counts = torch.histc(values[values != 0], BINS, low, high).numpy()
        width = (high - low) / BINS
        reach = max(-low, high)
        found = []
        for share in np.arange(CANDIDATES, 0, -1) / CANDIDATES:
            ends = max(low, -reach * float(share)), min(high, reach * float(share))
            first, last = round((ends[0] - low) / width), round((ends[1] - low) / width)
            if last - first >= self._levels or share == 1.0:
                found.append((compute_divergence(counts, first, last, self._levels), *ends))
        # The widest of equals: it clips nothing that another would not.
        _, low, high = min(found, key=lambda entry: entry[0])
        return low, high


def include_zero(low: float, high: float) -> tuple[float, float]:
    """Return a range widened to hold zero: padding and empty inputs are zero, and must cost nothing."""
    return min(low, 0.0), max(high, 0.0)


def bin_means(values: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Return the mean and the number of the values in each bin that is not empty, float64 ``[bins]`` each.

    Example:
        >>> bin_means(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), 0.0, 1.0)[1].tolist()
        [2.0, 1.0]
    """
    place = (values - low).mul_((BINS - 1) / ((high - low) or 1.0)).long()
    count = torch.bincount(place, minlength=BINS).double()
    total = torch.bincount(place, values, minlength=BINS)
    filled = count > 0
    return total[filled] / count[filled], count[filled]


def compute_squared_error(values: Tensor, grid: Grid) -> Tensor:
    """Return the squared rounding error of each value, where a grid's last axis meets all values of a row.

    Example:
        >>> grid = Grid(torch.tensor([1.0, 0.5]), torch.tensor([0, 0]), 0, 3)
        >>> compute_squared_error(torch.tensor([0.5, 2.0]), grid).tolist()
        [[0.25, 0.0], [0.0, 0.25]]
    """
    scale, zero_point = grid.scale.to(values.dtype).unsqueeze(-1), grid.zero_point.unsqueeze(-1)
    codes = (values / scale).round_().add_(zero_point).clamp_(grid.low, grid.high)
    return codes.sub_(zero_point).mul_(scale).sub_(values).square_()


def compute_divergence(counts: Floats, first: int, last: int, levels: int) -> float:
    """Return the divergence of a histogram clipped to the bins ``first`` to ``last`` from its ``levels`` merged ones.

    Empty bins get a little of the mass of the others, as a divergence needs.

    Args:
        counts: ``[bins]``.
        first: The first bin inside.
        last: One past the last bin inside.
        levels: How many levels the bins inside are merged to.
    """
    inside = counts[first:last]
    clipped = inside.copy()
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[last:].sum()
    starts = np.arange(levels) * len(inside) // levels
    starts = starts[np.append(True, np.diff(starts) > 0)]
    mass = np.add.reduceat(inside, starts)
    filled = np.add.reduceat((inside > 0).astype(np.float64), starts)
    even = np.divide(mass, filled, out=np.zeros_like(mass), where=filled > 0)
    merged = np.where(inside > 0, np.repeat(even, np.diff(np.append(starts, len(inside)))), 0.0)
    p, q = _smooth(clipped), _smooth(merged)
    return float((p * np.log(p / q)).sum())


def _smooth(counts: Floats) -> Floats:
    total = counts.sum()
    shares = counts / total if total else np.full(len(counts), 1 / len(counts))
    return (shares + SMOOTHING / len(counts)) / (1 + SMOOTHING)
