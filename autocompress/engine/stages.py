"""The way by hand, as a baseline: choose an architecture, then prune that one, then quantize what came out."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from autocompress.core.records import Base, Candidate, Cut, Job

Vector = NDArray[np.float64]


class Stages:
    """Chooses cuts one stage after the other, each on the choice of the stage before.

    The choice is the cheapest candidate that loses at most ``drop`` of the best score so far.

    Args:
        cuts: The whole grid.
        drop: What a choice may lose against the best, in the first score.
        normalise: Candidate to normalised objectives, ``[M]``.
        score: Returns a candidate's first score, more is better.
        cost: Column of the first cost in the normalised objectives.
    """

    at_once = (Cut(),)
    training_share = 0.6

    def __init__(
        self,
        cuts: Sequence[Cut],
        drop: float,
        normalise: Callable[[Candidate], Vector],
        score: Callable[[Candidate], float],
        cost: int,
    ) -> None:
        self._prunings = list(dict.fromkeys(cut.prune for cut in cuts if cut.prune is not None))
        self._quantizations = list(dict.fromkeys(cut.quantize for cut in cuts if cut.quantize is not None))
        self._drop = drop
        self._normalise = normalise
        self._score = score
        self._cost = cost
        self._floats: list[Candidate] = []
        self._begun: list[Job] = []
        self._ended: set[int] = set()
        self._trained = False

    def train(self, epochs: float) -> None:
        """Nothing: stages are not rationed."""

    def all_trained(self) -> None:
        """Begin the second stage: no training will follow."""
        self._trained = True

    def begin(self, job: Job) -> None:
        """Take note of a further cut that was handed out."""
        self._trained = True
        self._begun.append(job)

    def add(self, number: int, candidates: Sequence[Candidate], gain: float) -> None:
        """Take note of what a job ended with.

        Args:
            number: The job's.
            candidates: What it gave; none where it failed.
            gain: Not looked at: stages do not ask what pays.
        """
        self._ended.add(number)
        self._floats += [each for each in candidates if each.config.quantize is None and each.checkpoint]

    def next(self, front: Vector, owners: Sequence[str], number: int) -> Job | None:
        """Return the next cut of the stage; ``None`` while the stage before is under way, and at the end.

        Args:
            front: Not looked at.
            owners: Not looked at.
            number: Number of the job.
        """
        if not self._trained or not self._floats:
            return None
        prunings = [job for job in self._begun if job.cuts[0].quantize is None]
        if not self._begun and self._prunings:
            return self._job(self._chosen(whole=True), [Cut(self._prunings[0])], number)
        if len(prunings) < len(self._prunings):
            first = prunings[0].base
            base = next(each for each in self._floats if first is not None and each.checkpoint == first.checkpoint)
            return self._job(base, [Cut(self._prunings[len(prunings)])], number)
        done = len(self._begun) - len(prunings)
        if done == len(self._quantizations) or any(job.number not in self._ended for job in prunings):
            return None
        chosen = self._chosen(whole=False)
        return self._job(chosen, [Cut(chosen.config.prune, self._quantizations[done])], number)

    def _chosen(self, *, whole: bool) -> Candidate:
        """Return the choice among the float models: of all trainings, or all prunings of one."""
        options = [each for each in self._floats if each.config.prune is None]
        if not whole and self._begun:
            base = self._begun[0].base
            name = "" if base is None else base.checkpoint
            training = next(each.config.training for each in self._floats if each.checkpoint == name)
            options = [each for each in self._floats if each.config.training == training]
        best = max(self._score(each) for each in options)
        near = [each for each in options if self._score(each) >= best - self._drop]
        return min(near, key=lambda each: (self._normalise(each)[self._cost], each.id))

    def _job(self, chosen: Candidate, cuts: list[Cut], number: int) -> Job:
        base = Base(chosen.checkpoint, chosen.config.prune, chosen.epochs)
        return Job(number, chosen.config.training, tuple(cuts), base=base)
