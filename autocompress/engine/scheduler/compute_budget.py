"""What trainings took by their size: a large student that was promoted waits until as much was learned from others.

Without this, the first students that reach a rung go on whatever they cost, and a search spends half of its first
minutes on the largest of them.
"""

from bisect import insort

from autocompress.core.records import Candidate
from autocompress.engine.scheduler.compute_cost import size_of

# What a large training may take at most, as a share of what all others took.
SHARE = 0.5


class Spending:
    """Effort of each training so far."""

    def __init__(self) -> None:
        self._sizes: dict[int, float] = {}
        self._by_size: list[float] = []
        self._spent: dict[int, float] = {}
        self._total = 0.0

    def size(self, trial: int, candidate: Candidate) -> None:
        """Take note of a training by its uncut candidate."""
        if trial not in self._sizes:
            self._sizes[trial] = size_of(candidate)
            insort(self._by_size, self._sizes[trial])

    def spend(self, trial: int, epochs: float) -> None:
        """Take note of epochs of a training whose size is known."""
        spent = self.effort(trial, epochs)
        self._spent[trial] = self._spent.get(trial, 0.0) + spent
        self._total += spent

    def effort(self, trial: int, epochs: float) -> float:
        """Return what so many epochs of a training take; 0 where its size is not known."""
        return self._sizes.get(trial, 0.0) * epochs

    def allows(self, trial: int, epochs: float) -> bool:
        """Return whether a training may go on for so many epochs already.

        A student up to the median size always may; a larger one takes half of what all others did together.
        """
        if trial not in self._sizes or self._sizes[trial] <= self._by_size[(len(self._by_size) - 1) // 2]:
            return True
        own = self._spent.get(trial, 0.0)
        return own + self.effort(trial, epochs) <= SHARE * (self._total - own)

    def affords(self, effort: float) -> bool:
        """Return whether a training may begin with so much effort; the first always may."""
        return not self._total or effort <= self._total
