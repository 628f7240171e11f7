"""What trainings cost by their size: a big one that was promoted waits until much was learned from small ones.

Without this, the first students that reach a rung go on whatever they cost, and a search spends half of its first
minutes on the largest of them. Effort is counted in operations, not in seconds, so that a search repeats itself.
"""

from autocompress.records import Candidate

# What a training may take to its next rung, as a share of what all took before.
SHARE = 0.5


class Spending:
    """Operations spent on trainings so far."""

    def __init__(self) -> None:
        self._each: dict[int, float] = {}
        self._total = 0.0

    def size(self, trial: int, candidate: Candidate) -> None:
        """Take note of a training by its uncut candidate."""
        self._each[trial] = candidate.costs.get("flops", 1.0)

    def spend(self, trial: int, epochs: float) -> None:
        """Take note of epochs of a training."""
        self._total += self.of(trial) * epochs

    def of(self, trial: int) -> float:
        """Return the operations of a student for one example."""
        return self._each.get(trial, 1.0)

    def allows(self, trial: int, epochs: float) -> bool:
        """Return whether a training may go on already."""
        return self.of(trial) * epochs <= SHARE * self._total
