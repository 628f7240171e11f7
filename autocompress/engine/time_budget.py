"""How long jobs take, so that none is begun that would end after the budget."""

from bisect import insort
from collections.abc import Callable

# What seems to take a second may take two.
SPARE = 2.0


class Pace:
    """Seconds of an epoch so far, cuts and scores included.

    Args:
        limit: Seconds that the search may take; ``None`` for no limit.
        elapsed: Returns the seconds that it has taken.
    """

    def __init__(self, limit: float | None, elapsed: Callable[[], float]) -> None:
        self._limit = limit
        self._elapsed = elapsed
        self._paces: list[float] = []
        self._seconds = 0.0
        self._effort = 0.0

    def note(self, epochs: float, seconds: float, effort: float = 0.0) -> None:
        """Take note of a job; one that trained no epochs says nothing.

        Args:
            epochs: That it trained.
            seconds: That it took.
            effort: What the epochs took of each; 0 where it is not known.
        """
        if epochs > 0 and seconds > 0:
            insort(self._paces, seconds / epochs)
        if effort > 0:
            self._seconds += seconds
            self._effort += effort

    def short(self, effort: float) -> bool:
        """Return whether so much effort should begin now to be done in time, with some to spare."""
        if self._limit is None or not self._effort:
            return False
        return self._elapsed() + SPARE * effort * self._seconds / self._effort > self._limit

    def late(self, epochs: float, share: float = 1.0) -> bool:
        """Return whether a job would end too late at the median pace; never without a limit.

        Args:
            epochs: That it trains.
            share: Of the limit, after which it is too late.
        """
        if self._limit is None:
            return False
        pace = self._paces[len(self._paces) // 2] if self._paces else 0.0
        return self._elapsed() + pace * epochs > self._limit * share
