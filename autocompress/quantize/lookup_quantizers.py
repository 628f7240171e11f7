"""Non-uniform weight quantizers with a lookup table: powers of two, and a codebook found by k-means on the weights."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.errors import CompressionError
from autocompress.quantize.quantizers import LARGEST_SCALE, SMALLEST_SCALE, broadcast_parameter

# Largest number of Lloyd iterations; the start is near the optimum, so few are needed.
LLOYD_ITERATIONS = 100
# Bins of the histogram that places the segment bounds.
BINS = 256
# Segments of the dynamic program, whose cost grows with their square.
SEGMENTS = 512

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def cluster_values(values: Tensor, weights: Tensor, count: int) -> Tensor:
    """Return at most ``count`` ascending cluster centres, float64, of small weighted squared distance to the values.

    Dynamic programming over segments of neighbouring values (Ckmeans.1d.dp, Wang and Song 2011) gives the start, which
    is the global optimum for up to 512 distinct values. With more, Lloyd's algorithm (1982) improves it. At most
    ``count`` distinct values are their own centres.

    Args:
        values: Finite values, ``[n]``, at least one.
        weights: Positive weights, ``[n]``.
        count: Largest number of centres.

    Example:
        >>> cluster_values(torch.tensor([1.0, 2.0, 9.0]), torch.ones(3), 2).tolist()
        [1.5, 9.0]
    """
    points, index = np.unique(values.detach().flatten().double().numpy(), return_inverse=True)
    # No error is possible below this number of distinct values.
    if len(points) <= count:
        return torch.from_numpy(points)
    mass = np.bincount(index, weights.detach().flatten().double().numpy()).astype(np.float64)
    line = _WeightedPoints(points, mass)
    return torch.from_numpy(line.run_lloyd(line.optimal_bounds(line.segment_bounds(), count)))


class _WeightedPoints:
    """Points in ascending order with weights, and prefix sums that give weight, mean and variance of any segment.

    Args:
        points: Distinct values in ascending order, ``[n]``.
        weights: Weight of each point, ``[n]``.
    """

    def __init__(self, points: Floats, weights: Floats) -> None:
        self.points = points
        # Centred, because squares of values far from zero would cancel in the variance of a segment.
        self._mean = np.average(points, weights=weights)
        centred = points - self._mean
        self._mass, self._moment, self._square = (
            np.concatenate([[0.0], sums.cumsum()]) for sums in (weights, weights * centred, weights * centred**2)
        )

    def segment_bounds(self) -> Ints:
        """Return the bounds of the segments that the dynamic program does not split, as indices of points."""
        if len(self.points) <= SEGMENTS:
            return np.arange(len(self.points) + 1)
        low, high = self.points[0], self.points[-1]
        edges = np.linspace(low, high, BINS + 1)
        mass = np.diff(self._mass[np.searchsorted(self.points, edges[1:-1])], prepend=0, append=self._mass[-1])
        # The asymptotically optimal density of centres is the cube root of that of the values (Panter and Dite 1951).
        cumulative = np.concatenate([[0.0], np.cbrt(mass).cumsum()])
        bounds = np.interp(np.linspace(0, cumulative[-1], SEGMENTS // 2 + 1), cumulative, edges)
        # The other half of the bounds lie at quantiles, so that no segment holds a large share of the points.
        ranks = np.linspace(0, len(self.points), SEGMENTS // 2 + 1).astype(np.int64)
        return np.unique(np.concatenate([ranks, np.searchsorted(self.points, bounds[1:-1])]))

    def optimal_bounds(self, bounds: Ints, count: int) -> Ints:
        """Return the ``count + 1`` of the bounds that divide the points into clusters of least squared distance."""
        mass, moment, square = (sums[bounds] for sums in (self._mass, self._moment, self._square))
        # cost[b, a]: squared distance of the points from bound a to bound b to their mean.
        width, shift = mass[:, None] - mass, moment[:, None] - moment
        cost = np.full(width.shape, np.inf)
        np.divide(shift**2, width, out=cost, where=width > 0)
        cost = np.where(width > 0, square[:, None] - square - cost, np.inf)
        # best[b]: smallest cost of the points before bound b with the clusters so far; each pass adds one cluster.
        best, predecessors = cost[:, 0], []
        for _ in range(count - 1):
            total = cost + best
            predecessors.append(total.argmin(1))
            best = np.take_along_axis(total, predecessors[-1][:, None], 1)[:, 0]
        chosen = [len(bounds) - 1]
        for predecessor in reversed(predecessors):
            chosen.append(int(predecessor[chosen[-1]]))
        return bounds[[0, *reversed(chosen)]]

    def run_lloyd(self, bounds: Ints) -> Floats:
        """Return the cluster centres after Lloyd's algorithm, which ends when no point changes its cluster."""
        for _ in range(LLOYD_ITERATIONS):
            centres = np.diff(self._moment[bounds]) / np.diff(self._mass[bounds]) + self._mean
            # On a line the cluster borders are the midpoints between neighbouring centres.
            inner = np.searchsorted(self.points, (centres[1:] + centres[:-1]) / 2, side="right")
            before, bounds = bounds, np.concatenate([[0], inner, [len(self.points)]])
            # A cluster loses all of its points where two other centres are nearer to them; its mean would be undefined.
            if np.array_equal(before, bounds) or bool((np.diff(bounds) == 0).any()):
                break
        return centres


# A weight below 2**-24 of the largest one does not change a float32 sum that contains the largest.
LARGEST_EXPONENTS = 24


@dataclass(frozen=True)
class LookupTable:
    """Unevenly spaced values: code ``c`` stands for ``levels[c] * scale``.

    Attributes:
        levels: Table of values in ascending order, float32, ``[L]``.
        scale: Factor of the levels, float32; ``[]`` for a whole tensor, ``[C]`` along axis 0, ``[C, G]`` for groups of
            each flattened row.
        group: Number of values that share a scale with groups, 0 without; the last group of a row may be shorter.
    """

    levels: Tensor
    scale: Tensor
    group: int = 0

    def encode(self, values: Tensor) -> Tensor:
        """Return the code of the nearest level, uint8; a tie goes to the lower level."""
        # Nearest level: the number of midpoints below the value is the code. In double precision to keep ties exact.
        midpoints = (self.levels[1:].double() + self.levels[:-1].double()) / 2
        return torch.bucketize(values.double() / broadcast_parameter(self.scale, values, self.group), midpoints).to(
            torch.uint8
        )

    def decode(self, codes: Tensor) -> Tensor:
        """Return the float32 value of each code."""
        return self.levels[codes.int()] * broadcast_parameter(self.scale, codes, self.group)


def build_power_of_two_levels(bits: int) -> Tensor:
    """Return the levels ``-1, -1/2, .., 0, .., 1/2, 1`` (INQ, Zhou et al. 2017, arXiv:1702.03044).

    At most 24 exponents are used, so 7 and 8 bits give the same levels as 6.

    Raises:
        CompressionError: ``bits`` is below 2: zero would be the only level.

    Example:
        >>> build_power_of_two_levels(3).tolist()
        [-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]
    """
    if bits < 2:
        raise CompressionError("powers of two need 2 bits: a sign and an exponent")
    exponents = min(2 ** (bits - 1) - 1, LARGEST_EXPONENTS)
    positive = torch.ldexp(torch.ones(exponents), torch.arange(1 - exponents, 1))
    return torch.cat([-positive.flip(0), torch.zeros(1), positive])


def fit_power_of_two_table(max_abs: Tensor, bits: int) -> LookupTable:
    """Return the table of powers of two whose largest level is nearest to ``max_abs``, ``[]``, ``[C]`` or ``[C, G]``.

    Values up to ``max_abs`` have an error of at most half of the table's scale, the largest level.

    Raises:
        CompressionError: ``bits`` is below 2.

    Example:
        >>> table = fit_power_of_two_table(torch.tensor(0.7), bits=3)
        >>> table.decode(table.encode(torch.tensor([-0.7, 0.2, 0.01]))).tolist()
        [-0.5, 0.25, 0.0]
    """
    levels = build_power_of_two_levels(bits)
    fraction, exponent = torch.frexp(max_abs.double())
    # max_abs = fraction * 2**exponent with a fraction in [1/2, 1): from 3/4 on the larger power is nearer.
    scale = torch.ldexp(torch.ones_like(fraction), exponent - (fraction < 0.75).int())
    scale = torch.where(max_abs == 0, 1.0, scale.clamp(SMALLEST_SCALE, LARGEST_SCALE))
    return LookupTable(levels, scale.float())


def fit_codebook(values: Tensor, scale: Tensor, group: int, bits: int) -> LookupTable:
    """Return a table of at most ``2 ** bits`` levels clustered from a weight (Deep Compression, Han et al. 2016).

    The clustering minimizes the squared error of ``levels * scale``. Weights that are exactly zero stay zero, so
    pruned weights stay pruned.

    Args:
        values: The weight, ``[C, ...]``.
        scale: Positive factor of the levels, ``[]``, ``[C]`` or ``[C, G]``.
        group: Number of values that share a scale with groups, 0 without.
        bits: Number of bits of a code, 1 to 8.
    """
    scales = broadcast_parameter(scale, values, group).double().expand_as(values).flatten()
    normalized = values.detach().flatten().double() / scales
    zero = normalized == 0
    # One level is reserved for pruned weights.
    count = 2**bits - bool(zero.any())
    levels = torch.zeros(0, dtype=torch.float64)
    if not bool(zero.all()):
        # An error of a normalized value counts by its squared scale.
        levels = cluster_values(normalized[~zero], scales[~zero].square(), count)
    if count < 2**bits:
        levels = torch.cat([levels, torch.zeros(1, dtype=torch.float64)])
    # `unique` sorts the levels and merges those that are equal in float32.
    return LookupTable(levels.float().unique(), scale, group)
