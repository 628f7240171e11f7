"""The rungs of a search: where trainings pause, and who of the paused goes on."""

from collections.abc import Callable, Sequence, Set as AbstractSet

import numpy as np
from numpy.typing import NDArray

from autocompress.core.records import Cut
from autocompress.engine.scheduler.promotion import ETA, Line, PromotionRule, Ranking

RUNGS = 2
# Below this many trials at a rung, nobody is given up for good.
CROWD = 2 * ETA
# About that many wait at a rung at most: each keeps its weights on disk and a place in the sampler.
WAITING = 12
# Where so many trials have reached a rung, twice as many may wait, as to find the hopeless takes long then.
LARGE = 128
# Quantized candidates of a training at a rung.
QUANTIZED = 3


def pauses(epochs: int, rungs: int = RUNGS) -> tuple[int, ...]:
    """Return after which epochs a training pauses: a ninth and a third of them; none of what is too short.

    Example:
        >>> pauses(27), pauses(15), pauses(4), pauses(1)
        ((3, 9), (2, 5), (1, 2), ())
    """
    found = {-(-epochs // ETA**power) for power in range(1, rungs + 1)}
    return tuple(sorted(epoch for epoch in found if 0 < epoch < epochs))


class Rung:
    """One rung: who has reached it, and who of them goes on.

    Args:
        rule: Who goes on.
        score: Column of the first score in the points.
        kept: Those who go on whoever is better, here or elsewhere.
    """

    def __init__(self, rule: PromotionRule, score: int, kept: AbstractSet[int]) -> None:
        self._rule = rule
        self._ranking = rule if isinstance(rule, Ranking) else None
        self._score = score
        self._kept = kept
        self._points: dict[int, NDArray[np.float64]] = {}
        # What follows from the points, found out when somebody asks.
        self._line: Line | None = None
        self._chosen: frozenset[int] | None = None
        self._near: frozenset[int] | None = None

    def __len__(self) -> int:
        return len(self._points)

    def note(self, trial: int, points: NDArray[np.float64]) -> None:
        """Take note of a trial's candidates here, ``[K, M]``."""
        if self._line is not None:
            self._line = None if trial in self._points else self._line.joined(points)
        self._points[trial] = points
        self.forget()

    def forget(self) -> None:
        """Take note that others than before may go on."""
        self._chosen = self._near = None

    @property
    def chosen(self) -> frozenset[int]:
        """Who goes on."""
        if self._chosen is None:
            if self._ranking is None:
                found = self._rule.goes_on(self._points, self._score)
            else:
                self._line = self._line or self._ranking.line(self._points)
                found = self._line.goes_on
            self._chosen = found | (self._kept & self._points.keys())
        return self._chosen

    @property
    def near(self) -> frozenset[int]:
        """Who goes on, and those who would if these were not there, but not too many of them."""
        if self._near is None:
            line = frozenset(self._points) - self.chosen
            while len(line) > WAITING:
                shorter = self._rule.goes_on({trial: self._points[trial] for trial in line}, self._score)
                if shorter == line:
                    break
                line = shorter
            self._near = self.chosen | line
        return self._near


class Ladder:
    """Trainings by the rung that they have reached; asynchronous, so that no worker ever waits for another.

    Args:
        rule: Who goes on.
        score: Column of the first score in the points.
    """

    def __init__(self, rule: PromotionRule, score: int) -> None:
        self._rule = rule
        self._score = score
        self._rungs: list[Rung] = []
        self._paused: dict[int, int] = {}
        self._kept: set[int] = set()

    @property
    def paused(self) -> list[int]:
        """Numbers of the trainings that wait, in the order of their numbers."""
        return sorted(self._paused)

    @property
    def places(self) -> dict[int, int]:
        """The rung of each training that waits, by its number."""
        return dict(sorted(self._paused.items()))

    def note(self, trial: int, rung: int, points: NDArray[np.float64]) -> None:
        """Take note of a trial's candidates at a rung.

        Args:
            trial: Its number.
            rung: 0 is the first.
            points: Normalised objectives of the candidates, ``[K, M]``: 0 is the ideal, 1 the reference.
        """
        while len(self._rungs) <= rung:
            self._rungs.append(Rung(self._rule, self._score, self._kept))
        self._rungs[rung].note(trial, points)

    def keep(self, trial: int) -> None:
        """Let a trial go on past every rung, whoever is better."""
        self._kept.add(trial)
        for rung in self._rungs:
            rung.forget()

    def pause(self, trial: int, rung: int) -> None:
        """Let a trial wait at a rung that it was noted at."""
        self._paused[trial] = rung

    def next(self, effort: Callable[[int, int], float]) -> tuple[int, int] | None:
        """Return the trial that goes on next and the rung it stands on: the one with the least to do.

        Args:
            effort: Of going on to the next rung, by trial and rung.
        """
        chosen = {rung: self._rungs[rung].chosen for rung in set(self._paused.values())}
        able = [(trial, rung) for trial, rung in self._paused.items() if trial in chosen[rung]]
        return min(able, key=lambda each: (effort(*each), each), default=None)

    def take(self, trial: int) -> None:
        """Take out a trial: it goes on."""
        del self._paused[trial]

    def hopeless(self) -> list[int]:
        """Take out the trials that will hardly ever go on: those far behind the share that does."""
        found = []
        for rung in sorted(set(self._paused.values())):
            here = [trial for trial, place in self._paused.items() if place == rung]
            arrived = len(self._rungs[rung])
            if arrived < CROWD or (arrived > LARGE and len(here) <= 2 * WAITING):
                continue
            near = self._rungs[rung].near
            found += [trial for trial in here if trial not in near]
        for trial in found:
            del self._paused[trial]
        return sorted(found)

    def give_up(self) -> list[int]:
        """Take out all that wait: the search is over."""
        left = self.paused
        self._paused.clear()
        return left


def at_a_rung(cuts: Sequence[Cut]) -> tuple[Cut, ...]:
    """Return the cuts to make of a training that is under way: itself, and a few quantizations, evenly spread.

    They show how well it takes rounding; the whole grid would take longer than it tells.
    """
    whole = [cut for cut in cuts if cut.prune is None]
    first, rest = whole[0], whole[1:]
    if len(rest) > QUANTIZED:
        rest = [rest[round(place * (len(rest) - 1) / (QUANTIZED - 1))] for place in range(QUANTIZED)]
    return (first, *rest)
