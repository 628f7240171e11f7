"""How trainings are divided into jobs: a segment up to each rung, and the rest."""

from collections.abc import Sequence
from dataclasses import replace

from autocompress.core.config import CompressionConfig
from autocompress.core.records import Cut, Job
from autocompress.engine.scheduler.asha import at_a_rung, pauses
from autocompress.engine.scheduler.compute_cost import epochs_of, epochs_of_fit


class Segments:
    """Where trainings pause, and what is cut from them there.

    Args:
        rungs: How often a training pauses at most.
        cuts: What is made of a finished training.
    """

    def __init__(self, rungs: int, cuts: Sequence[Cut]) -> None:
        self._rungs = rungs
        self._cuts = cuts

    def steps(self, training: CompressionConfig) -> tuple[int, ...]:
        """Return after which epochs a training pauses."""
        return pauses(epochs_of_fit(training.fit), self._rungs)

    def of(self, whole: Job, rung: int) -> Job:
        """Return the part of a training that ends at a rung, or at its end above the last one."""
        steps = self.steps(whole.training)
        if rung < len(steps):
            return replace(whole, cuts=at_a_rung(self._cuts), rung=rung, until=steps[rung])
        return replace(whole, rung=rung if steps else None)

    def epochs(self, job: Job) -> float:
        """Return how many epochs a job trains, further cuts included."""
        if job.base is not None:
            return sum(
                epochs_of(Cut(prune)) for prune in {cut.prune for cut in job.cuts} if prune != job.base.prune
            ) + sum(epochs_of(Cut(quantize=cut.quantize)) for cut in job.cuts)
        return (job.until or epochs_of_fit(job.training.fit)) - self._begun(job)

    def left(self, job: Job) -> float:
        """Return how many epochs a training has left, from the beginning of one of its segments on."""
        return epochs_of_fit(job.training.fit) - self._begun(job)

    def _begun(self, job: Job) -> int:
        return self.steps(job.training)[job.rung - 1] if job.rung else 0
