"""What trainings cost by their size: a big one that was promoted waits until enough new ones were looked at.

Without this, the first students that reach a rung go on whatever they cost, and a search spends half of its first
minutes on the largest of them. Effort is counted in operations, not in seconds, so that a search repeats itself.
"""

from autocompress.records import Candidate

# Operations of trainings that go on, as a multiple of those up to the first rung. Halving by three over two rungs takes
# 1.3 where all students are alike; those on an extreme of the front go on besides.
SHARE = 3.0


class Spending:
    """Operations spent on first rungs, and on what goes on from there."""

    def __init__(self) -> None:
        self._each: dict[int, float] = {}
        self._first = 0.0
        self._further = 0.0

    def begin(self, trial: int, candidate: Candidate, epochs: float) -> None:
        """Take note of a training that reached its first rung, and of its uncut candidate there."""
        self._each[trial] = candidate.costs.get("flops", 1.0)
        self._first += self.of(trial) * epochs

    def go_on(self, trial: int, epochs: float) -> None:
        """Take note of a training that goes on for some epochs."""
        self._further += self.of(trial) * epochs

    def of(self, trial: int) -> float:
        """Return the operations of a student for one example."""
        return self._each.get(trial, 1.0)

    def allows(self, trial: int, epochs: float) -> bool:
        """Return whether a training may go on already."""
        return self._further + self.of(trial) * epochs <= SHARE * self._first
