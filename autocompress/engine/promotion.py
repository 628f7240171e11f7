"""The seam of promotion: which trainings go on past a rung."""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

import moocore
import numpy as np
from numpy.typing import NDArray

from autocompress.registry import PROMOTION_RULES

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
        return _first(sorted(best, key=lambda trial: (best[trial], trial)))


@PROMOTION_RULES.register("pareto_rank")
class ParetoRank:
    """A trial counts by the best Pareto rank of its candidates among all candidates at the rung.

    Ties go to the larger exclusive hypervolume within that rank. A trial continues if fewer than
    max(1, ceil(n / 3)) trials are better (asynchronous successive halving, Li et al. 2020, arXiv:1810.05934, with sets
    in the place of single values); the best in one objective continues always, if it beats the reference in all.
    """

    name = "pareto_rank"

    def goes_on(self, points: Points, score: int) -> frozenset[int]:
        """Return the best third by rank, at least one, and the holders of an extreme."""
        owners, rows = _stacked(points)
        if not len(rows):
            return frozenset()
        ranks = np.asarray(moocore.pareto_rank(rows))
        trials, starts = np.unique(owners, return_index=True)
        best = np.minimum.reduceat(ranks, starts)
        ordered = np.lexsort((trials, best))
        order: list[int] = trials[ordered].tolist()
        places = _places(len(order))
        if len(order) > places:
            # Only those that share the last promoted rank need to be told apart.
            level = best[ordered[places - 1]]
            tied: list[int] = trials[best == level].tolist()
            at_level = ranks == level
            own = _exclusive(owners[at_level], rows[at_level], tied)
            order = order[: int((best < level).sum())]
            order += sorted(tied, key=lambda trial: (-own[trial], trial))
        return _first(order, places) | _extremes(owners, rows)


def _places(count: int) -> int:
    return max(1, math.ceil(count / ETA))


def _first(order: list[int], places: int | None = None) -> frozenset[int]:
    return frozenset(order[: _places(len(order)) if places is None else places])


def _stacked(points: Points) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the owner of each finite row, and the rows."""
    if not points:
        return np.empty(0, dtype=np.int64), np.empty((0, 0))
    found = list(points.values())
    sizes = np.fromiter(map(len, found), np.int64, len(found))
    owners = np.repeat(np.fromiter(points, np.int64, len(points)), sizes)
    # Those of one trial lie together; in the order of the trials, whoever came first.
    order = np.argsort(owners, kind="stable")
    owners, rows = owners[order], np.concatenate(found)[order]
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
