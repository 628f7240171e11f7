"""Asynchronous successive halving (ASHA; Li et al. 2020, arXiv:1810.05934): rungs, promotion and early stopping.

A trial runs in segments: one job up to each rung, where it pauses, and a last job up to its end. A paused trial is
promoted, so that its next segment may run, as soon as the promotion rule selects it among all trials that have reached
its rung. Promotion is decided again with each arrival, so no worker ever waits for another one.

Three things differ from the paper. A trial is ranked by the set of its candidates instead of a single value
(:mod:`autocompress.engine.scheduler.promotion`). Paused trials with a poor rank are stopped early for good, as each
keeps its weights on disk. The promotion of a large trial is postponed until the other trials have used enough compute
(:class:`ComputeBudget`).
"""

import logging
import sys
from bisect import insort
from collections.abc import Callable, Iterator, Sequence, Set as AbstractSet
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Candidate, CompressionRecipe, Job, State
from autocompress.engine.scheduler.compute_cost import candidate_epoch_cost, count_fit_epochs, count_recipe_epochs
from autocompress.engine.scheduler.promotion import ETA, PromotionRule, RankingBoundary, RankingRule
from autocompress.store.schema import StoredTrial

logger = logging.getLogger(__name__)

# Number of rungs of a trial: with ETA = 3 they lie at a ninth and at a third of its epochs.
MAX_RUNGS = 2
# With fewer trials at a rung no trial is stopped early: ranks among so few say little.
MIN_TRIALS_TO_STOP = 2 * ETA
# Number of trials that stay paused at a rung, next in line behind the promoted ones. Each keeps its weights on disk and
# is compared at every decision of the surrogate.
MAX_PAUSED = 12
# From this many trials at a rung on, early stopping waits until twice as many are paused: finding the trials to stop
# ranks the whole rung, which takes long at that size.
LARGE_RUNG = 128
# Number of quantized candidates that are scored at a rung beside the uncompressed model.
RUNG_QUANTIZATIONS = 3
# Compute that a large trial may use at most, as a share of the compute of all other trials.
MAX_COMPUTE_SHARE = 0.5


def rung_epochs(epochs: int, max_rungs: int = MAX_RUNGS) -> tuple[int, ...]:
    """Return the epochs after which a trial pauses: a ninth and a third of all, without those that would be no pause.

    Example:
        >>> rung_epochs(27), rung_epochs(15), rung_epochs(4), rung_epochs(1)
        ((3, 9), (2, 5), (1, 2), ())
    """
    # Rounded up, so that the first rung of a short trial lies after its first epoch and not before it.
    steps = {-(-epochs // ETA**power) for power in range(1, max_rungs + 1)}
    return tuple(sorted(step for step in steps if 0 < step < epochs))


def select_rung_recipes(recipes: Sequence[CompressionRecipe]) -> tuple[CompressionRecipe, ...]:
    """Return the recipes that are scored at a rung: no compression, and a few evenly spaced quantizations.

    They show how well a trial tolerates quantization. Scoring the whole grid would take more time than the additional
    information is worth.
    """
    unpruned = [recipe for recipe in recipes if recipe.prune is None]
    uncompressed, quantizations = unpruned[0], unpruned[1:]
    if len(quantizations) > RUNG_QUANTIZATIONS:
        last = len(quantizations) - 1
        quantizations = [
            quantizations[round(index * last / (RUNG_QUANTIZATIONS - 1))] for index in range(RUNG_QUANTIZATIONS)
        ]
    return (uncompressed, *quantizations)


class Rung:
    """One rung: the trials that have reached it, and which of them are promoted.

    Args:
        rule: Promotion rule.
        score_column: Column of the first score in the points.
        always_promoted: Numbers of the trials that are promoted whatever their rank, here and at other rungs.
    """

    def __init__(self, rule: PromotionRule, score_column: int, always_promoted: AbstractSet[int]) -> None:
        self._rule = rule
        self._ranking_rule = rule if isinstance(rule, RankingRule) else None
        self._score_column = score_column
        self._always_promoted = always_promoted
        self._points: dict[int, NDArray[np.float64]] = {}
        # Both selections are computed on demand and kept until a trial arrives: ranking a rung is the costliest part
        # of a decision. The boundary outlives most arrivals (RankingBoundary.with_trial).
        self._boundary: RankingBoundary | None = None
        self._top_trials: frozenset[int] | None = None
        self._contenders: frozenset[int] | None = None

    def __len__(self) -> int:
        return len(self._points)

    def record_points(self, trial: int, points: NDArray[np.float64]) -> None:
        """Record the points of a trial's candidates at this rung, ``[K, M]``."""
        if self._boundary is not None:
            self._boundary = None if trial in self._points else self._boundary.with_trial(points)
        self._points[trial] = points
        self._top_trials = self._contenders = None

    @property
    def top_trials(self) -> frozenset[int]:
        """The trials that are promoted."""
        if self._top_trials is None:
            if self._ranking_rule is None:
                selected = self._rule.select_promotions(self._points, self._score_column)
            else:
                self._boundary = self._boundary or self._ranking_rule.find_boundary(self._points)
                selected = self._boundary.top_trials
            self._top_trials = selected | (self._always_promoted & self._points.keys())
        return self._top_trials

    @property
    def contenders(self) -> frozenset[int]:
        """The trials that are promoted, and at most ``MAX_PAUSED`` others that are next in line."""
        if self._contenders is None:
            candidates = frozenset(self._points) - self.top_trials
            # The rule keeps the best share of the rest until few are left. It may keep all of them: then all stay.
            while len(candidates) > MAX_PAUSED:
                best = self._rule.select_promotions(
                    {trial: self._points[trial] for trial in candidates}, self._score_column
                )
                if best == candidates:
                    break
                candidates = best
            self._contenders = self.top_trials | candidates
        return self._contenders


class ComputeBudget:
    """Compute used by each trial, which postpones large trials until the others have used enough.

    Without it, the first trials that reach a rung are promoted whatever they cost, and a search spends half of its
    first minutes on the largest of them.
    """

    def __init__(self) -> None:
        self._epoch_costs: dict[int, float] = {}
        self._sorted_costs: list[float] = []
        self._used: dict[int, float] = {}
        self._total = 0.0

    def record_epoch_cost(self, trial: int, uncompressed: Candidate) -> None:
        """Record the cost of an epoch of a trial, which its uncompressed candidate tells."""
        if trial not in self._epoch_costs:
            self._epoch_costs[trial] = candidate_epoch_cost(uncompressed)
            insort(self._sorted_costs, self._epoch_costs[trial])

    def record_epochs(self, trial: int, epochs: float) -> None:
        """Record epochs that a trial has trained; its epoch cost was recorded before."""
        cost = self.estimate_cost(trial, epochs)
        self._used[trial] = self._used.get(trial, 0.0) + cost
        self._total += cost

    def estimate_cost(self, trial: int, epochs: float) -> float:
        """Return the compute cost of some epochs of a trial; 0 if its epoch cost is unknown."""
        return self._epoch_costs.get(trial, 0.0) * epochs

    def can_promote(self, trial: int, epochs: float) -> bool:
        """Return whether a trial may train some more epochs now.

        A trial up to the median epoch cost always may. A larger one may use half of the compute of all others.
        """
        if trial not in self._epoch_costs or self._epoch_costs[trial] <= self._median_epoch_cost:
            return True
        used = self._used.get(trial, 0.0)
        return used + self.estimate_cost(trial, epochs) <= MAX_COMPUTE_SHARE * (self._total - used)

    def can_start(self, cost: float) -> bool:
        """Return whether a trial of a known total cost may start: when all others have used as much; the first may."""
        return not self._total or cost <= self._total

    @property
    def _median_epoch_cost(self) -> float:
        return self._sorted_costs[(len(self._sorted_costs) - 1) // 2]


class AshaScheduler:
    """The trials of a search that have not ended: their segments, and which are promoted or stopped early.

    A trial is given as the :class:`~autocompress.core.records.Job` that would run it in one piece.

    Attributes:
        trial_count: Number of trials started so far, ended ones included.
        latest_epochs: Epochs of the latest trial, an estimate for the next one.
        active_trials: Trials that have not ended, by number.
        stop_reasons: Reason of each early stop, by trial number.
        budget: Compute used by each trial.

    Args:
        rule: Promotion rule.
        max_rungs: Maximum number of pauses of a trial.
        recipes: Compression recipes of a complete trial, the empty one first.
        score_column: Column of the first score in the normalized objectives.
        normalize: Function from candidates to their normalized objectives, ``[K, M]``, not clipped.
        reference_student: Student whose first trial is promoted at every rung, or ``None``.
    """

    def __init__(
        self,
        rule: PromotionRule,
        max_rungs: int,
        recipes: Sequence[CompressionRecipe],
        score_column: int,
        normalize: Callable[[Sequence[Candidate]], NDArray[np.float64]],
        reference_student: Part | None = None,
    ) -> None:
        self.trial_count = 0
        self.latest_epochs = 0
        self.active_trials: dict[int, Job] = {}
        self.budget = ComputeBudget()
        self._rule = rule
        self._max_rungs = max_rungs
        self._recipes = recipes
        self._score_column = score_column
        self._normalize = normalize
        self._reference_student = reference_student
        self.stop_reasons: dict[int, str] = {}
        self._reference_trial: int | None = None
        self._always_promoted: set[int] = set()
        self._rungs: list[Rung] = []
        self._paused: dict[int, int] = {}

    @property
    def awaits_reference(self) -> bool:
        """Whether the reference trial has not ended yet; never without one."""
        if self._reference_student is None:
            return False
        return self._reference_trial is None or self._reference_trial in self.active_trials

    # -- segments -----------------------------------------------------------------------------

    def add_trial(self, trial: Job) -> None:
        """Add a trial that starts."""
        self.trial_count += 1
        self.latest_epochs = count_fit_epochs(trial.training.fit)
        self.active_trials[trial.number] = trial
        # Later trials of the same student compete like all others.
        if self._reference_trial is None and trial.training.student == self._reference_student:
            self._reference_trial = trial.number
            self._always_promoted.add(trial.number)

    def make_segment(self, trial: Job, rung: int) -> Job:
        """Return the job that runs a trial from the rung below up to ``rung``, or to its end above the last rung."""
        pauses = self._pause_epochs(trial.training)
        if rung < len(pauses):
            return replace(trial, recipes=select_rung_recipes(self._recipes), rung=rung, until=pauses[rung])
        return replace(trial, rung=rung if pauses else None)

    def count_job_epochs(self, job: Job) -> float:
        """Return the number of epochs that a job trains, those of its compression recipes included."""
        if job.base is None:
            return (job.until or count_fit_epochs(job.training.fit)) - self._start_epoch(job)
        # A job that compresses an existing checkpoint prunes once for all its recipes, and then quantizes each.
        prunings = {recipe.prune for recipe in job.recipes} - {job.base.prune}
        return sum(count_recipe_epochs(CompressionRecipe(prune)) for prune in prunings) + sum(
            count_recipe_epochs(CompressionRecipe(quantize=recipe.quantize)) for recipe in job.recipes
        )

    def count_remaining_epochs(self, segment: Job) -> float:
        """Return the number of epochs from the start of a segment up to the end of its trial."""
        return count_fit_epochs(segment.training.fit) - self._start_epoch(segment)

    def _pause_epochs(self, training: CompressionConfig) -> tuple[int, ...]:
        return rung_epochs(count_fit_epochs(training.fit), self._max_rungs)

    def _start_epoch(self, segment: Job) -> int:
        return self._pause_epochs(segment.training)[segment.rung - 1] if segment.rung else 0

    # -- results ------------------------------------------------------------------------------

    def record_compute(self, segment: Job, candidates: Sequence[Candidate]) -> None:
        """Record the compute that a segment has used; ``candidates`` are its results, the uncompressed one first."""
        if candidates:
            self._record_epochs(segment.number, self.count_job_epochs(segment), candidates[0])

    def pause_trial(self, segment: Job, candidates: Sequence[Candidate]) -> None:
        """Pause a trial at the rung that its segment has reached, with its candidates there."""
        rung = segment.rung or 0
        self._record_points(segment.number, rung, candidates)
        self._paused[segment.number] = rung
        logger.debug("trial %d paused at rung %d", segment.number, rung)

    def replay_rungs(
        self, stored: StoredTrial, candidates: Sequence[Candidate]
    ) -> Iterator[tuple[float, list[Candidate]]]:
        """Record the rungs that a stored trial has passed, without the one where it is paused now.

        Args:
            stored: Trial as the store holds it.
            candidates: All its candidates.

        Yields:
            The epochs of the segment up to each rung, and the candidates there.
        """
        pauses = self._pause_epochs(stored.job.training) if stored.job.base is None else ()
        for rung, epoch in enumerate(pauses):
            partial = [candidate for candidate in candidates if not candidate.complete and candidate.epochs == epoch]
            is_paused_here = stored.state is State.PAUSED and rung == stored.job.rung
            if partial and not is_paused_here:
                self._record_points(stored.job.number, rung, partial)
                epochs = epoch - (pauses[rung - 1] if rung else 0)
                self._record_epochs(stored.job.number, epochs, partial[0])
                yield epochs, partial

    def end_trial(self, number: int) -> None:
        """Remove a trial that is complete, has failed or was stopped."""
        self.active_trials.pop(number, None)

    def _record_points(self, number: int, rung: int, candidates: Sequence[Candidate]) -> None:
        while len(self._rungs) <= rung:
            self._rungs.append(Rung(self._rule, self._score_column, self._always_promoted))
        self._rungs[rung].record_points(number, np.clip(self._normalize(candidates), 0.0, 1.0))

    def _record_epochs(self, number: int, epochs: float, uncompressed: Candidate) -> None:
        self.budget.record_epoch_cost(number, uncompressed)
        self.budget.record_epochs(number, epochs)

    # -- promotion ----------------------------------------------------------------------------

    @property
    def next_segments(self) -> dict[int, Job]:
        """The next segment of each paused trial, by trial number in ascending order."""
        return {number: self._next_segment(number, rung) for number, rung in sorted(self._paused.items())}

    @property
    def promotable_trials(self) -> dict[int, int]:
        """The rung of each paused trial that the promotion rule selects, by trial number."""
        top_trials = {rung: self._rungs[rung].top_trials for rung in set(self._paused.values())}
        return {number: rung for number, rung in self._paused.items() if number in top_trials[rung]}

    def next_promotion(self, *, closing: bool = False) -> Job | None:
        """Return the next segment of the promoted trial with the cheapest one, or ``None`` if it has to wait.

        Args:
            closing: Whether no other trial can start any more, so that waiting for their compute is pointless.
        """
        segments = [self._next_segment(number, rung) for number, rung in self.promotable_trials.items()]
        if not segments:
            return None
        cheapest = min(segments, key=lambda segment: (self._segment_cost(segment), segment.number))
        can_run = closing or self.budget.can_promote(cheapest.number, self.count_job_epochs(cheapest))
        return cheapest if can_run else None

    def due_reference_segment(self, must_start: Callable[[float], bool]) -> Job | None:
        """Return the next segment of the paused reference trial when it is due, or ``None``.

        Args:
            must_start: Function that returns whether work of some compute cost must start now to end within the time
                budget.
        """
        if self._reference_trial is None or self._reference_trial not in self._paused:
            return None
        segment = self._next_segment(self._reference_trial, self._paused[self._reference_trial])
        remaining_cost = self.budget.estimate_cost(segment.number, self.count_remaining_epochs(segment))
        can_promote = self.budget.can_promote(segment.number, self.count_job_epochs(segment))
        return segment if must_start(remaining_cost) or can_promote else None

    def resume_trial(self, number: int) -> None:
        """Take a trial out of the paused ones: its next segment runs."""
        rung = self._paused.pop(number)
        logger.debug("trial %d promoted past rung %d", number, rung)

    def _next_segment(self, number: int, rung: int) -> Job:
        return self.make_segment(self.active_trials[number], rung + 1)

    def _segment_cost(self, segment: Job) -> float:
        return self.budget.estimate_cost(segment.number, self.count_job_epochs(segment))

    # -- early stopping -----------------------------------------------------------------------

    def stop_poor_trials(self) -> list[int]:
        """Remove the paused trials that are unlikely to be promoted, and return their numbers in ascending order.

        These are the trials behind both the promoted ones and the ``MAX_PAUSED`` next in line at their rung.
        """
        poor: list[int] = []
        for rung in sorted(set(self._paused.values())):
            paused = [number for number, reached in self._paused.items() if reached == rung]
            arrivals = len(self._rungs[rung])
            if arrivals < MIN_TRIALS_TO_STOP or (arrivals > LARGE_RUNG and len(paused) <= 2 * MAX_PAUSED):
                continue
            contenders = self._rungs[rung].contenders
            poor += [number for number in paused if number not in contenders]
        return self._stop_trials(sorted(poor), "ranked behind the promoted trials and those next in line")

    def stop_paused_trials(self) -> list[int]:
        """Remove all paused trials at the end of the search, and return their numbers in ascending order."""
        return self._stop_trials(sorted(self._paused), "not promoted before the search ended")

    def _stop_trials(self, numbers: list[int], reason: str) -> list[int]:
        for number in numbers:
            rung = self._paused.pop(number)
            epochs = self._pause_epochs(self.active_trials[number].training)[rung]
            # Thousands of trials share few reasons.
            self.stop_reasons[number] = sys.intern(f"at rung {rung + 1} ({epochs} epochs): {reason}")
            self.end_trial(number)
        return numbers
