"""Promotion rules: pure functions that select the trials that continue past a rung."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, final, runtime_checkable

import moocore
import numpy as np
from numpy.typing import NDArray

from autocompress.core.registry import PROMOTION_RULES

# The reduction factor eta of successive halving: about one trial in ETA is promoted, and the epochs grow by ETA from
# rung to rung. Hyperband (Li et al. 2018, arXiv:1603.06560) recommends 3 or 4.
ETA = 3

#: Trial number to the points of its candidates at one rung, ``[K, M]``: normalized objectives, 0 is the ideal and 1 the
#: reference point.
Points = Mapping[int, NDArray[np.float64]]


class PromotionRule(Protocol):
    """A pure function of the candidates at one rung; it depends neither on torch nor on a backend.

    Attributes:
        name: Name of the rule in ``search.promotion``.
    """

    name: str

    def select_promotions(self, points: Points, score: int) -> frozenset[int]:
        """Return the numbers of the trials that continue past the rung.

        Args:
            points: Points of every trial that has reached the rung; a row that holds NaN never ranks.
            score: Column of the first score in the points.
        """
        ...


@dataclass(frozen=True)
class RankingBoundary:
    """Order of the trials at a rung down to the last promoted rank, and what a new trial must reach to change it.

    Attributes:
        order: Trial numbers, best first, down to the trials that share the last promoted rank.
        ranked: Number of trials that have a rank.
        extremes: Trials that are promoted whatever their rank: the best in one objective.
        boundary_points: Points of the last promoted rank, ``[N, M]``.
    """

    order: tuple[int, ...]
    ranked: int
    extremes: frozenset[int]
    boundary_points: NDArray[np.float64]

    @property
    def top_trials(self) -> frozenset[int]:
        """The trials that continue past the rung."""
        return frozenset(self.order[: _count_promotions(self.ranked)]) | self.extremes

    def with_trial(self, rows: NDArray[np.float64]) -> "RankingBoundary | None":
        """Return the boundary after one more trial, or ``None`` if it must be computed again from all trials.

        Rows that a boundary point dominates rank behind the boundary and dominate no promoted trial, so most new trials
        change nothing but the number of promotions.

        Args:
            rows: Points of a trial that was not at the rung before, ``[K, M]``.
        """
        rows = rows[np.isfinite(rows).all(axis=1)]
        if not len(rows):
            return self
        no_worse = (self.boundary_points[None] <= rows[:, None]).all(axis=2)
        better = (self.boundary_points[None] < rows[:, None]).any(axis=2)
        is_behind = np.logical_and(no_worse, better).any(axis=1).all()
        # The order ends at the boundary: with more promotions than trials in it, the next rank has to be known.
        if not is_behind or _count_promotions(self.ranked + 1) > len(self.order):
            return None
        return replace(self, ranked=self.ranked + 1)


@runtime_checkable
class RankingRule(PromotionRule, Protocol):
    """A promotion rule that tells which new trials change no promotion.

    This is optional and saves time at large rungs: a :class:`PromotionRule` is complete without it.
    """

    def find_boundary(self, points: Points) -> RankingBoundary:
        """Return the ranking down to the last promoted rank; ``points`` is as in ``select_promotions``."""
        ...


@PROMOTION_RULES.register("always")
class Always:
    """Every trial runs to its last epoch."""

    name = "always"

    def select_promotions(self, points: Points, score: int) -> frozenset[int]:
        """Return all trials."""
        return frozenset(points)


@PROMOTION_RULES.register("best_score")
class BestScore:
    """The third of the trials with the best first score is promoted, whatever its cost: plain successive halving.

    From Jamieson and Talwalkar 2016, arXiv:1502.07943, made asynchronous as in :class:`ParetoRank`.
    Small students are stopped under this rule; it is a baseline for comparison.
    """

    name = "best_score"

    def select_promotions(self, points: Points, score: int) -> frozenset[int]:
        """Return the best third, at least one trial."""
        best = {trial: float(np.nanmin(rows[:, score], initial=np.inf)) for trial, rows in points.items()}
        return frozenset(sorted(best, key=lambda trial: (best[trial], trial))[: _count_promotions(len(best))])


@PROMOTION_RULES.register("pareto_rank")
@final
class ParetoRank:
    """The third of the trials with the best Pareto rank is promoted.

    The rank of a trial is the best rank of its candidates among all candidates at the rung. Ties go to the larger
    exclusive hypervolume within that rank. A trial is promoted if fewer than max(1, ceil(n / 3)) trials are better:
    asynchronous successive halving (Li et al. 2020, arXiv:1810.05934) with sets of points instead of single values. The
    best trial in each objective is always promoted if it is better than the reference point in all of them.
    """

    name = "pareto_rank"

    def select_promotions(self, points: Points, score: int) -> frozenset[int]:
        """Return the best third by rank, at least one trial, and the best trial in each objective."""
        return self.find_boundary(points).top_trials

    def find_boundary(self, points: Points) -> RankingBoundary:
        """Return the ranking down to the last promoted rank."""
        owners, rows = _stack_points(points)
        if not len(rows):
            return RankingBoundary((), 0, frozenset(), rows)
        ranks = np.asarray(moocore.pareto_rank(rows))
        # The rows of one trial are contiguous, so one reduction per segment gives its best rank.
        segment_starts = np.flatnonzero(np.diff(owners, prepend=-1))
        trials = owners[segment_starts]
        best_ranks = np.minimum.reduceat(ranks, segment_starts)
        last_rank = np.sort(best_ranks)[_count_promotions(len(trials)) - 1]
        in_last_rank = ranks == last_rank
        tied: list[int] = trials[best_ranks == last_rank].tolist()
        # Trials of better ranks are promoted in any order: only those of the last rank have to be compared.
        volumes = _exclusive_hypervolumes(owners[in_last_rank], rows[in_last_rank], tied)
        order = (
            *trials[best_ranks < last_rank].tolist(),
            *sorted(tied, key=lambda trial: (-volumes[trial], trial)),
        )
        return RankingBoundary(order, len(trials), _find_extremes(owners, rows), rows[in_last_rank])


def _count_promotions(trials: int) -> int:
    # At least one, so that the first trial at a rung does not wait for others: no worker is ever idle.
    return max(1, math.ceil(trials / ETA))


def _stack_points(points: Points) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the trial number of each finite row, ``[N]``, and the rows, ``[N, M]``."""
    if not points:
        return np.empty(0, dtype=np.int64), np.empty((0, 0))
    sets = list(points.values())
    owners = np.repeat(np.fromiter(points, np.int64, len(points)), np.fromiter(map(len, sets), np.int64, len(sets)))
    rows = np.concatenate(sets)
    finite = np.isfinite(rows).all(axis=1)
    return owners[finite], np.ascontiguousarray(rows[finite])


def _exclusive_hypervolumes(
    owners: NDArray[np.int64], rows: NDArray[np.float64], trials: list[int]
) -> Mapping[int, float]:
    """Return the hypervolume that only the points of one trial dominate, for each trial."""
    return _cached_exclusive_hypervolumes(owners.tobytes(), rows.tobytes(), rows.shape[1], tuple(trials))


# A new result leaves the last promoted rank of most rungs as it was, and a rank costs one hypervolume for each of its
# trials. Arrays are not hashable, so the cache is keyed by their bytes.
@lru_cache(maxsize=16)
def _cached_exclusive_hypervolumes(
    owner_bytes: bytes, row_bytes: bytes, objectives: int, trials: tuple[int, ...]
) -> Mapping[int, float]:
    owners, rows = np.frombuffer(owner_bytes, dtype=np.int64), np.frombuffer(row_bytes).reshape(-1, objectives)
    hypervolume = moocore.Hypervolume(ref=np.ones(objectives))
    total = hypervolume(rows)
    volumes = {}
    for trial in trials:
        others = rows[owners != trial]
        volumes[trial] = float(total - (hypervolume(others) if len(others) else 0.0))
    return volumes


def _find_extremes(owners: NDArray[np.int64], rows: NDArray[np.float64]) -> frozenset[int]:
    """Return the best trial in each objective among the points that are better than the reference point."""
    inside = (rows < 1).all(axis=1)
    if not inside.any():
        return frozenset()
    owners, rows = owners[inside], rows[inside]
    extremes = set()
    for column in range(rows.shape[1]):
        # Equal values are compared by the sum of the other objectives; of equal points the earliest trial counts.
        best = rows[:, column] == rows[:, column].min()
        others = np.delete(rows[best], column, axis=1).sum(axis=1)
        extremes.add(int(owners[best][others == others.min()].min()))
    return frozenset(extremes)
