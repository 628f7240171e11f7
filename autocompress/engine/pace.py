"""How long jobs take, so that none is begun that would end after the budget."""

from bisect import insort
from collections.abc import Callable


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

    def note(self, epochs: float, seconds: float) -> None:
        """Take note of a job that trained so many epochs in so many seconds; one that trained none says nothing."""
        if epochs > 0 and seconds > 0:
            insort(self._paces, seconds / epochs)

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
