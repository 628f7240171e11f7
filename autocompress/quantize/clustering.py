"""k-means on a line: a start that is optimal on a few hundred stretches, then steps that look at every value."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STEPS = 100
BINS = 256
STRETCHES = 512

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def cluster_values(values: Tensor, weights: Tensor, count: int) -> Tensor:
    """Return at most ``count`` ascending centres, float64, that leave a small weighted squared distance to the values.

    Dynamic programming over stretches of neighbouring values (Wang and Song 2011, Ckmeans.1d.dp) finds a start, which
    is the optimum itself up to 512 different values; Lloyd's steps (1982) move it where there are more. Values that
    take no more than ``count`` different places are their own centres.

    Args:
        values: ``[n]``, finite, at least one.
        weights: ``[n]``, positive.
        count: Most centres to return.

    Example:
        >>> cluster_values(torch.tensor([1.0, 2.0, 9.0]), torch.ones(3), 2).tolist()
        [1.5, 9.0]
    """
    places, owner = np.unique(values.detach().flatten().double().numpy(), return_inverse=True)
    if len(places) <= count:
        return torch.from_numpy(places)
    mass = np.bincount(owner, weights.detach().flatten().double().numpy()).astype(np.float64)
    line = _Line(places, mass)
    return torch.from_numpy(line.settle(line.best_cuts(line.stretches(), count)))


class _Line:
    """Ascending places, the weight on each, and the prefix sums that give any stretch's weight, centre and spread."""

    def __init__(self, places: Floats, weights: Floats) -> None:
        self.places, self.weights = places, weights
        # Squares of what is far from zero would drown the spread of a stretch.
        self._middle = np.average(places, weights=weights)
        near = places - self._middle
        self._mass, self._moment, self._square = (
            np.concatenate([[0.0], sums.cumsum()]) for sums in (weights, weights * near, weights * near**2)
        )

    def stretches(self) -> Ints:
        """Return where stretches that are never split begin and end: finer where more or rarer values lie."""
        if len(self.places) <= STRETCHES:
            return np.arange(len(self.places) + 1)
        low, high = self.places[0], self.places[-1]
        edges = np.linspace(low, high, BINS + 1)
        mass = np.diff(self._mass[np.searchsorted(self.places, edges[1:-1])], prepend=0, append=self._mass[-1])
        # The asymptotically optimal density of centres is the cube root of that of the values (Panter and Dite 1951).
        reached = np.concatenate([[0.0], np.cbrt(mass).cumsum()])
        even = np.interp(np.linspace(0, reached[-1], STRETCHES // 2 + 1), reached, edges)
        ranks = np.linspace(0, len(self.places), STRETCHES // 2 + 1).astype(np.int64)
        return np.unique(np.concatenate([ranks, np.searchsorted(self.places, even[1:-1])]))

    def best_cuts(self, ends: Ints, count: int) -> Ints:
        """Return the ``count + 1`` of the ends that cut the line with the smallest squared distance."""
        mass, moment, square = (sums[ends] for sums in (self._mass, self._moment, self._square))
        # cost[b, a]: the squared distance of all from end a to end b to one centre.
        width, shift = mass[:, None] - mass, moment[:, None] - moment
        cost = np.full(width.shape, np.inf)
        np.divide(shift**2, width, out=cost, where=width > 0)
        cost = np.where(width > 0, square[:, None] - square - cost, np.inf)
        best, came_from = cost[:, 0], []
        for _ in range(count - 1):
            total = cost + best
            came_from.append(total.argmin(1))
            best = np.take_along_axis(total, came_from[-1][:, None], 1)[:, 0]
        cuts = [len(ends) - 1]
        for back in reversed(came_from):
            cuts.append(int(back[cuts[-1]]))
        return ends[[0, *reversed(cuts)]]

    def settle(self, cuts: Ints) -> Floats:
        """Return the centres between cuts that were moved until no value changes sides."""
        for _ in range(STEPS):
            centres = np.diff(self._moment[cuts]) / np.diff(self._mass[cuts]) + self._middle
            inner = np.searchsorted(self.places, (centres[1:] + centres[:-1]) / 2, side="right")
            before, cuts = cuts, np.concatenate([[0], inner, [len(self.places)]])
            # A centre between two others that are nearer to all of its values would be left with none.
            if np.array_equal(before, cuts) or bool((np.diff(cuts) == 0).any()):
                break
        return centres
