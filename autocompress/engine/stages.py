"""Compression in stages, as a baseline: choose an architecture, then a pruning of it, then a quantization of that."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from autocompress.core.records import BaseCheckpoint, Candidate, CompressionRecipe, Job

Vector = NDArray[np.float64]


class SequentialRefinement:
    """Selects refinement jobs stage by stage, each on the choice of the stage before.

    The choice of a stage is the cheapest candidate that loses at most ``drop`` against the best score of the stage.

    Args:
        recipes: Whole grid of compression recipes.
        drop: Loss against the best that a choice may have, in the first score.
        normalize: Function from a candidate to its normalized objectives, ``[M]``.
        score: Function that returns a candidate's first score, larger is better.
        cost_column: Column of the first cost in the normalized objectives.

    Attributes:
        immediate_recipes: Recipes that every complete trial gets at once: only the uncompressed model.
        training_share: Share of the time limit within which new trials may start; the rest is for the later stages.
    """

    immediate_recipes = (CompressionRecipe(),)
    training_share = 0.6

    def __init__(
        self,
        recipes: Sequence[CompressionRecipe],
        drop: float,
        normalize: Callable[[Candidate], Vector],
        score: Callable[[Candidate], float],
        cost_column: int,
    ) -> None:
        self._prunings = list(dict.fromkeys(recipe.prune for recipe in recipes if recipe.prune is not None))
        self._quantizations = list(dict.fromkeys(recipe.quantize for recipe in recipes if recipe.quantize is not None))
        self._drop = drop
        self._normalize = normalize
        self._score = score
        self._cost_column = cost_column
        self._float_candidates: list[Candidate] = []
        self._started_jobs: list[Job] = []
        self._finished_jobs: set[int] = set()
        self._trials_ended = False

    def record_training(self, epochs: float) -> None:
        """Do nothing: the stages have no budget of epochs."""

    def end_trials(self) -> None:
        """Begin the second stage: no trial will follow."""
        self._trials_ended = True

    def record_start(self, job: Job) -> None:
        """Record a refinement job that was handed out."""
        # A resumed search is in the second stage if one of its jobs had started.
        self._trials_ended = True
        self._started_jobs.append(job)

    def record_result(self, number: int, candidates: Sequence[Candidate], gain: float) -> None:
        """Record the result of a trial or refinement job.

        Args:
            number: Job number.
            candidates: Candidates of the job; empty if it failed.
            gain: Normalized hypervolume that they added to the front; not used here.
        """
        self._finished_jobs.add(number)
        self._float_candidates += [
            candidate for candidate in candidates if candidate.config.quantize is None and candidate.checkpoint
        ]

    def select_job(self, front: Vector, owners: Sequence[str], number: int) -> Job | None:
        """Return the next job of the stage; ``None`` while the stage before is running, and after the last stage.

        Args:
            front: Normalized objectives of the front, ``[N, M]``; not used here.
            owners: Checkpoint of each point of the front; not used here.
            number: Number of the new job.
        """
        if not self._trials_ended or not self._float_candidates:
            return None
        pruning_jobs = [job for job in self._started_jobs if job.recipes[0].quantize is None]
        if not self._started_jobs and self._prunings:
            return self._make_job(self._choose_architecture(), CompressionRecipe(self._prunings[0]), number)
        if len(pruning_jobs) < len(self._prunings):
            architecture = self._find_checkpoint(pruning_jobs[0])
            return self._make_job(architecture, CompressionRecipe(self._prunings[len(pruning_jobs)]), number)
        quantization_count = len(self._started_jobs) - len(pruning_jobs)
        is_pruning = any(job.number not in self._finished_jobs for job in pruning_jobs)
        if quantization_count == len(self._quantizations) or is_pruning:
            return None
        pruned = self._choose_pruning()
        recipe = CompressionRecipe(pruned.config.prune, self._quantizations[quantization_count])
        return self._make_job(pruned, recipe, number)

    def _choose_architecture(self) -> Candidate:
        return self._choose_cheapest([option for option in self._float_candidates if option.config.prune is None])

    def _choose_pruning(self) -> Candidate:
        """Return the choice among the prunings of the architecture; itself among them, for a pruning may fail."""
        if not self._started_jobs:
            return self._choose_architecture()
        training = self._find_checkpoint(self._started_jobs[0]).config.training
        return self._choose_cheapest(
            [option for option in self._float_candidates if option.config.training == training]
        )

    def _choose_cheapest(self, options: Sequence[Candidate]) -> Candidate:
        best = max(self._score(candidate) for candidate in options)
        near_best = [candidate for candidate in options if self._score(candidate) >= best - self._drop]
        # By name where costs are equal, so that the choice is the same after a resume.
        return min(near_best, key=lambda candidate: (self._normalize(candidate)[self._cost_column], candidate.id))

    def _find_checkpoint(self, job: Job) -> Candidate:
        """Return the float candidate whose checkpoint a refinement job compresses."""
        name = "" if job.base is None else job.base.checkpoint
        return next(candidate for candidate in self._float_candidates if candidate.checkpoint == name)

    def _make_job(self, candidate: Candidate, recipe: CompressionRecipe, number: int) -> Job:
        base = BaseCheckpoint(candidate.checkpoint, candidate.config.prune, candidate.epochs)
        return Job(number, candidate.config.training, (recipe,), base=base)
