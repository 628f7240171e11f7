"""The seam of promotion: which trainings go on past a rung."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, final, runtime_checkable

import moocore
import numpy as np
from numpy.typing import NDArray

from autocompress.core.registry import PROMOTION_RULES

ETA = 3

#: Trial to its candidates at one rung, ``[K, M]``: normalised objectives, 0 is the ideal and 1 the reference.
Points = Mapping[int, NDArray[np.float64]]


class PromotionRule(Protocol):
    """A pure function of the candidates at one rung; it knows neither torch nor a backend.

    Attributes:
        name: What ``search.promotion`` calls it.
    """

    name: str

    def goes_on(self, points: Points, score: int) -> frozenset[int]:
        """Return the trials that continue past the rung.

        Args:
            points: Every trial that has reached the rung, with its candidates there; NaN never ranks.
            score: Column of the first score.
        """
        ...


@dataclass(frozen=True)
class Line:
    """Who goes on past a rung by rank, and what a newcomer has to reach to change that.

    Attributes:
        order: Trials, the best first, down to those that share the last rank that goes on.
        ranked: How many trials have a rank.
        extremes: Trials that go on whatever their place.
        bar: Rows of that last rank, ``[N, M]``.
    """

    order: tuple[int, ...]
    ranked: int
    extremes: frozenset[int]
    bar: NDArray[np.float64]

    @property
    def goes_on(self) -> frozenset[int]:
        """The trials that continue past the rung."""
        return frozenset(self.order[: _places(self.ranked)]) | self.extremes

    def joined(self, rows: NDArray[np.float64]) -> "Line | None":
        """Return the line with a newcomer, or ``None`` where it has to be drawn up anew.

        Rows that the bar dominates rank behind it and dominate nobody who goes on: most newcomers change nothing but
        the number of places.

        Args:
            rows: Candidates of a trial that was not there before, ``[K, M]``.
        """
        rows = rows[np.isfinite(rows).all(axis=1)]
        if not len(rows):
            return self
        no_worse = (self.bar[None] <= rows[:, None]).all(axis=2)
        better = (self.bar[None] < rows[:, None]).any(axis=2)
        behind = np.logical_and(no_worse, better).any(axis=1).all()
        return replace(self, ranked=self.ranked + 1) if behind and _places(self.ranked + 1) <= len(self.order) else None


@runtime_checkable
class Ranking(PromotionRule, Protocol):
    """A promotion rule that can tell which newcomers change nothing; :class:`PromotionRule` is enough to have one."""

    def line(self, points: Points) -> Line:
        """Return who goes on and what a newcomer has to reach; arguments as in ``goes_on``."""
        ...


@PROMOTION_RULES.register("always")
class Always:
    """Every training runs to its last epoch."""

    name = "always"

    def goes_on(self, points: Points, score: int) -> frozenset[int]:
        """Return all trials."""
        return frozenset(points)


@PROMOTION_RULES.register("best_score")
class BestScore:
    """The third with the best first score goes on, whatever it costs: plain successive halving.

    From Jamieson and Talwalkar 2016, arXiv:1502.07943, made asynchronous as in :class:`ParetoRank`.
    Small students lose under it; it is here to be compared with.
    """

    name = "best_score"

    def goes_on(self, points: Points, score: int) -> frozenset[int]:
        """Return the best third, at least one."""
        best = {trial: float(np.nanmin(rows[:, score], initial=np.inf)) for trial, rows in points.items()}
        return frozenset(sorted(best, key=lambda trial: (best[trial], trial))[: _places(len(best))])


@PROMOTION_RULES.register("pareto_rank")
@final
class ParetoRank:
    """A trial counts by the best Pareto rank of its candidates among all candidates at the rung.

    Ties go to the larger exclusive hypervolume within that rank. A trial continues if fewer than
    max(1, ceil(n / 3)) trials are better (asynchronous successive halving, Li et al. 2020, arXiv:1810.05934, with sets
    in the place of single values); the best in one objective continues always, if it beats the reference in all.
    """

    name = "pareto_rank"

    def goes_on(self, points: Points, score: int) -> frozenset[int]:
        """Return the best third by rank, at least one, and the holders of an extreme."""
        return self.line(points).goes_on

    def line(self, points: Points) -> Line:
        """Return the same, and what a newcomer has to reach."""
        owners, rows = _stacked(points)
        if not len(rows):
            return Line((), 0, frozenset(), rows)
        ranks = np.asarray(moocore.pareto_rank(rows))
        # Those of one trial lie together.
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        trials = owners[starts]
        best = np.minimum.reduceat(ranks, starts)
        level = np.sort(best)[_places(len(trials)) - 1]
        ahead = best < level
        tied: list[int] = trials[best == level].tolist()
        at_level = ranks == level
        # Only those that share the last promoted rank need to be told apart.
        own = _exclusive(owners[at_level], rows[at_level], tied)
        order = (*trials[ahead].tolist(), *sorted(tied, key=lambda trial: (-own[trial], trial)))
        return Line(order, len(trials), _extremes(owners, rows), rows[at_level])


def _places(count: int) -> int:
    return max(1, math.ceil(count / ETA))


def _stacked(points: Points) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the owner of each finite row, and the rows."""
    if not points:
        return np.empty(0, dtype=np.int64), np.empty((0, 0))
    found = list(points.values())
    owners = np.repeat(np.fromiter(points, np.int64, len(points)), np.fromiter(map(len, found), np.int64, len(found)))
    rows = np.concatenate(found)
    finite = np.isfinite(rows).all(axis=1)
    return owners[finite], np.ascontiguousarray(rows[finite])


def _exclusive(owners: NDArray[np.int64], rows: NDArray[np.float64], trials: list[int]) -> Mapping[int, float]:
    """Return the hypervolume that each trial alone dominates."""
    return _exclusive_of(owners.tobytes(), rows.tobytes(), rows.shape[1], tuple(trials))


# Most results leave most levels as they were, and a level costs one hypervolume for each of its trials.
@lru_cache(maxsize=16)
def _exclusive_of(owners_: bytes, rows_: bytes, objectives: int, trials: tuple[int, ...]) -> Mapping[int, float]:
    owners, rows = np.frombuffer(owners_, dtype=np.int64), np.frombuffer(rows_).reshape(-1, objectives)
    volume = moocore.Hypervolume(ref=np.ones(objectives))
    whole = volume(rows)
    found = {}
    for trial in trials:
        others = rows[owners != trial]
        found[trial] = float(whole - (volume(others) if len(others) else 0.0))
    return found


def _extremes(owners: NDArray[np.int64], rows: NDArray[np.float64]) -> frozenset[int]:
    alive = (rows < 1).all(axis=1)
    if not alive.any():
        return frozenset()
    owners, rows = owners[alive], rows[alive]
    found = set()
    for column in range(rows.shape[1]):
        # The best in one objective, by the others where several are; the earliest trial among equals.
        best = rows[:, column] == rows[:, column].min()
        others = np.delete(rows[best], column, axis=1).sum(axis=1)
        found.add(int(owners[best][others == others.min()].min()))
    return frozenset(found)
