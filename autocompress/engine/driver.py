"""The driver: decides which job a free worker runs next, stores the results, and tells the sampler about them.

It trains nothing, and it alone writes to the store. So it can be killed at any time and resumed from the store.
"""

import logging
import math
import time
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TypeAlias

from optuna.trial import Trial

from autocompress.core.config import CompressionConfig
from autocompress.core.records import Candidate, Job, Role, Segment, State, TrialResult
from autocompress.core.registry import PROMOTION_RULES
from autocompress.core.run_info import ObjectiveSpec
from autocompress.engine.archive import (
    INTERRUPTED_REASON,
    Archive,
    CostEstimator,
    CostLimits,
    Progress,
    summarize_progress,
    validate_result,
)
from autocompress.engine.initial_design import InitialDesign, Values, estimate_trial_cost, make_initial_job
from autocompress.engine.patience import Patience
from autocompress.engine.refinement import Refinement, make_refinement
from autocompress.engine.repeats import Repeat, Repeats
from autocompress.engine.sampler.acquisition import EarlierTrial, SurrogateSampler
from autocompress.engine.sampler.optuna import OptunaSampler
from autocompress.engine.scheduler.asha import MAX_RUNGS, AshaScheduler
from autocompress.engine.scheduler.compute_cost import candidate_epoch_cost
from autocompress.engine.space import MODES, Space, derive_seed, trial_key
from autocompress.engine.spec import SearchSection
from autocompress.errors import RunFolderError
from autocompress.store.control import is_pause_requested
from autocompress.store.run_store import RunStore, monotonic_seconds
from autocompress.store.schema import StoredTrial

logger = logging.getLogger(__name__)

# Number of times that a job is run when its run is interrupted. A second interruption is most likely the fault of the
# job itself, such as one that needs more memory than there is.
MAX_ATTEMPTS = 2
# The search ends when so many trials have failed and none has succeeded: the next ones would most likely fail too.
MAX_INITIAL_FAILURES = 10
# The space counts as exhausted when so many proposals in a row are duplicates or cannot meet a cost limit.
MAX_DUPLICATES = 64
# Seconds between two looks at a paused search.
PAUSE_INTERVAL = 0.5
# Factor on the predicted time of the reference trial and of later stages: what seems to take a second may take two.
TIME_SAFETY_FACTOR = 2.0
# Largest share of the time limit that trials leave for the later stages of a sequential search.
MAX_LATER_SHARE = 0.4

#: Objective values and constraint violations of a trial, or its final state if it has none.
Outcome: TypeAlias = tuple[list[float], dict[str, float]] | State


class Driver:
    """Ask, tell, budget and resume for one search.

    A backend calls :meth:`ask` when a worker is free and :meth:`tell` when a job has ended. A *trial* is one training
    run, divided into segments by the scheduler; a *refinement* is a job that compresses the checkpoint of a complete
    trial with a step that trains. Both share one sequence of job numbers.

    Args:
        store: Open store of the run.
        space: Search space.
        search: Section ``search`` of the spec: mode, budget and seed.
        sampler: Sampler that proposes trials.
        objectives: Objectives of the run, with their bounds.
        limits: Bounds by name of a score or cost: ``{name: {"min": ..., "max": ...}}``.
        initial_values: Sampler values of the initial trials. With more than one, the last is the reference trial: it
            is shaped like the teacher and always runs to its end.
        on_progress: Callback after every ask and tell.
        estimate_costs: Function that returns the costs of compression recipes of a training without training it.
        max_drop: Score that the choices of the mode ``sequential`` may lose against the best one.
        teacher: Teacher as a candidate if its scores and costs are known: the first observation of the surrogate.
        earlier: Trials of an earlier run, the oldest first: further observations of the surrogate. Those that make up
            its front run first.
        on_result: Callback after every tell, with the job, its result and the progress after it.

    Attributes:
        limits: Constraint violations, and the configurations that were skipped because of them.
        exhausted: Whether the sampler has found no new configuration in the space.
        has_converged: Whether the search ends because its front no longer moves.
    """

    def __init__(
        self,
        store: RunStore,
        space: Space,
        search: SearchSection,
        sampler: OptunaSampler,
        objectives: Sequence[ObjectiveSpec],
        limits: Mapping[str, Mapping[str, float | None]],
        initial_values: Sequence[Values] = (),
        on_progress: Callable[[Progress], None] = lambda progress: None,
        estimate_costs: CostEstimator | None = None,
        max_drop: float = 0.01,
        teacher: Candidate | None = None,
        earlier: Sequence[EarlierTrial] = (),
        on_result: Callable[[Job, TrialResult, Progress], None] = lambda job, result, progress: None,
    ) -> None:
        self._store = store
        self._space = space
        self._sampler = sampler
        self._objectives = objectives
        self._on_progress = on_progress
        self._on_result = on_result
        mode = MODES[search.mode]
        self._amortized = mode.amortized
        self._archive = Archive(objectives)
        # The trials of an earlier front that were copied are told on resume, like those of this search.
        copied = {trial.job.training for trial in store.read_trials() if trial.is_copied} if earlier else set()
        earlier = [trial for trial in earlier if trial.rungs[0][0].config.training not in copied]
        # Copies take nothing from the budget.
        search = search.model_copy(update={"trials": search.trials + len(copied)})
        self._search = search
        self.limits = CostLimits(limits, self._archive.objective_value, estimate_costs)
        self._recipes = space.compression_grid() if self._amortized else ()
        self._refinement = make_refinement(
            mode, self._recipes, search.refine, max_drop, self._archive, objectives, estimate_costs
        )
        # A search that stops every trial shaped like the teacher may end with no candidate near the teacher's score.
        reference = (
            make_initial_job(space, initial_values[-1], with_compression=False) if len(initial_values) > 1 else None
        )
        rule = mode.promotion or search.promotion
        self._scheduler = AshaScheduler(
            PROMOTION_RULES.get(rule)(),
            # Without early stopping a pause would only cost time.
            0 if rule == "always" else MAX_RUNGS,
            self._refinement.immediate_recipes,
            self._archive.score_column,
            self._archive.normalize_all,
            None if reference is None else reference.training.student,
        )
        self._surrogate: SurrogateSampler | None = None
        if (mode.sampler or search.sampler) == "surrogate" and mode.amortized and estimate_costs is not None:
            self._surrogate = SurrogateSampler(space, estimate_costs, self._archive.normalize, objectives, search.seed)
            # The surrogate needs no initial students between the first and the reference: it chooses better ones.
            initial_values = [*initial_values[:1], *initial_values[1:][-1:]]
            if teacher is not None:
                self._surrogate.record_trial(teacher.trial, [teacher])
            self._surrogate.record_earlier_trials(earlier)
        self._repeats: Repeats | None = None
        if self._surrogate is not None and earlier and isinstance(self._refinement, Refinement):
            self._repeats = Repeats(earlier, space, self._refinement.list_steps, self._archive.normalize_all)
        if self._repeats or copied:
            # The first initial trial shows what a student reaches, which the earlier trials have shown.
            initial_values = initial_values[-1:] if len(initial_values) > 1 else ()
        self._feedback = SamplerFeedback(sampler)
        self._interrupted_jobs: list[Job] = []
        # Worker and start of each running job, by its number.
        self._running_jobs: dict[int, tuple[int, float]] = {}
        self._counts = dict.fromkeys(State, 0)
        self._skipped_keys: set[str] = set()
        self._candidate_count = 0
        self._interrupted_trials = 0
        self._next_number = 0
        self._earlier_seconds = 0.0
        self._started_at = monotonic_seconds()
        self._paused_seconds = 0.0
        self._time_budget = TimeBudget(
            None if search.minutes is None else search.minutes * 60, lambda: self.elapsed_seconds
        )
        self._patience = Patience(search.patience)
        self.exhausted = self.has_converged = False
        self._resume()
        # After the resume, which tells which of the initial trials have started already.
        initial_jobs = [
            make_initial_job(space, values, with_compression=not self._amortized) for values in initial_values
        ]
        self._initial_design = InitialDesign(
            [
                values
                for values, job in zip(initial_values, initial_jobs, strict=True)
                if not self._feedback.has_trial(trial_key(job, amortized=self._amortized))
            ],
            partial(estimate_trial_cost, space, estimate_costs if self._amortized else None),
        )

    # -- interface of the backends ------------------------------------------------------------

    def ask(self) -> Job | None:
        """Return the next job for a free worker, or ``None`` if there is none at the moment.

        ``None`` is final if no job is running: the budget is spent, the space is exhausted, or every trial has failed.
        While jobs are running, their results may lead to further jobs. While the search is paused, there is none, and
        this waits if no job is running.
        """
        while (job := self._choose_job()) is not None:
            try:
                return self._store.load_job_files(job)
            except RunFolderError as error:
                # A checkpoint that someone deleted costs the job that needs it, not the search.
                self.tell(job, TrialResult(job.number, State.FAILED, reason=str(error)))
        return None

    def _choose_job(self) -> Job | None:
        if is_pause_requested(self._store.folder):
            if self._counts[State.RUNNING]:
                return None
            self._wait_for_end_of_pause()
        if self._interrupted_jobs:
            return self._repeat_job(self._interrupted_jobs.pop(0))
        if self.has_only_failed_trials:
            return None
        if self._may_end_early():
            if not self._counts[State.RUNNING]:
                self._end_search()
            return None
        self._stop_trials(self._scheduler.stop_poor_trials())
        job = (
            self._surrogate_choice()
            or self._next_promotion()
            or self._next_refinement()
            or self._propose_trial()
            # No trial can start any more, so a large one does not have to wait for the compute of others.
            or self._next_promotion(closing=True)
        )
        if job is None and not self._counts[State.RUNNING]:
            # No trial competes with refinements any more: each one that improves the front is worth its cost.
            self._refinement.end_trials()
            job = self._next_refinement()
            if job is None:
                self._end_search()
        return None if job is None else self._hand_out(job)

    def tell(self, job: Job, result: TrialResult) -> None:
        """Store the result of a job, then tell the sampler; a crash between the two is repaired on resume."""
        result = validate_result(result, [objective.name for objective in self._objectives])
        gain = self._archive.add(result.candidates)
        elapsed = self.elapsed_seconds
        # A job that an earlier session handed out has no worker in this one.
        worker, start = self._running_jobs.pop(job.number, (0, elapsed))
        self._store.record_result(
            result,
            elapsed=elapsed,
            hypervolume=self._archive.hypervolume,
            segment=Segment(worker, start, elapsed) if worker else None,
        )
        self._patience.record(self.elapsed_seconds, self._archive.hypervolume)
        logger.info(
            "job %d: ended as %s with %d candidates after %.1f s, hypervolume %.4f",
            *(job.number, result.state, len(result.candidates), result.seconds, self._archive.hypervolume),
        )
        if result.reason:
            logger.info("job %d: %s", job.number, result.reason)
        self._counts[State.RUNNING] -= 1
        epochs = self._scheduler.count_job_epochs(job)
        cost = epochs * candidate_epoch_cost(result.candidates[0]) if result.candidates else 0.0
        self._time_budget.record_job(epochs, result.seconds, cost)
        self._candidate_count += len(result.candidates)
        self._record_result(job, result.state, result.candidates, gain)
        self._on_result(job, result, self._report_progress())

    def prepare_next(self) -> bool:
        """Do a small part of the work of the next :meth:`ask` while workers are busy; return whether more is left."""
        if self._surrogate is None or not self._can_start_trial():
            return False
        front, _ = self._archive.front_points()
        return self._surrogate.price_ahead(front, self._next_number, self._running_trainings)

    def close(self) -> None:
        """Cancel the running jobs, which thereby have not failed, and export the sampler's tables."""
        if self._running_jobs:
            self._store.cancel_attempts(sorted(self._running_jobs))
            self._running_jobs.clear()
        self._sampler.export_tables()

    # -- state of the search ------------------------------------------------------------------

    @property
    def elapsed_seconds(self) -> float:
        """Seconds of search so far, those before a resume included, and those of a pause not."""
        return self._earlier_seconds + monotonic_seconds() - self._started_at - self._paused_seconds

    @property
    def has_only_failed_trials(self) -> bool:
        """Whether the first trials have all failed, interrupted ones not counted."""
        failures = self._counts[State.FAILED] - self._interrupted_trials
        return failures >= MAX_INITIAL_FAILURES and not self._candidate_count

    @property
    def _running_trainings(self) -> dict[int, CompressionConfig]:
        """Training configurations of the trials that are running, by number; without refinements."""
        trials = self._scheduler.active_trials
        return {number: trials[number].training for number in sorted(self._running_jobs.keys() & trials.keys())}

    def _wait_for_end_of_pause(self) -> None:
        """Wait until the pause is cancelled; its seconds do not count."""
        start = monotonic_seconds()
        self._report_progress(is_paused=True)
        while is_pause_requested(self._store.folder):
            time.sleep(PAUSE_INTERVAL)
        self._paused_seconds += monotonic_seconds() - start
        logger.info("continued after a pause of %.0f s", monotonic_seconds() - start)
        self._report_progress()

    def _report_progress(self, *, is_paused: bool = False) -> Progress:
        progress = summarize_progress(
            self._counts, self._search, self.elapsed_seconds, self._candidate_count, self._archive, self._objectives
        )
        self._on_progress(replace(progress, is_paused=is_paused))
        return progress

    def _may_end_early(self) -> bool:
        """Return whether the front has converged and the initial trials are through; once true, it stays so."""
        # The reference trial fills the end of the front near the teacher, and comes late.
        if not self.has_converged and not (self._initial_design or self._repeats or self._scheduler.awaits_reference):
            self.has_converged = self._patience.has_converged(self.elapsed_seconds)
        return self.has_converged

    # -- choice of the next job ---------------------------------------------------------------

    def _hand_out(self, job: Job) -> Job:
        self._counts[State.RUNNING] += 1
        busy = {worker for worker, _ in self._running_jobs.values()}
        worker = next(number for number in count(1) if number not in busy)
        self._running_jobs[job.number] = worker, self.elapsed_seconds
        self._report_progress()
        return job

    def _repeat_job(self, job: Job) -> Job:
        """Run a job again whose run was interrupted."""
        logger.info("job %d: repeated after an interruption", job.number)
        self._store.add_attempt(job.number)
        return self._hand_out(job)

    def _surrogate_choice(self) -> Job | None:
        """Return the job that the surrogate prefers, or ``None`` without a surrogate or if it expects no improvement.

        Before the surrogate's own comparison come the jobs that it does not compare: the front of an earlier run, the
        reference trial when it is due, and refinements. Paused trials are compared only once a trial is complete, as it
        shows how scores grow with the epochs; before that, the promotion rule alone decides.
        """
        # Enqueued values are proposed before any other trial.
        if self._surrogate is None or self._sampler.has_enqueued_trial:
            return None
        can_compare_paused = self._surrogate.has_complete_trial
        job = (
            self._next_repeat()
            or self._due_reference_trial()
            or (None if can_compare_paused else self._next_promotion())
            or self._next_refinement()
        )
        if job is not None:
            return job
        paused = self._scheduler.next_segments if can_compare_paused else {}
        front, _ = self._archive.front_points()
        choice = self._surrogate.select_trial(
            front,
            self._next_number,
            {number: self._scheduler.count_remaining_epochs(segment) for number, segment in paused.items()},
            self._running_trainings,
            self._was_proposed if self._can_start_trial() else None,
        )
        if choice is None:
            return None
        if isinstance(choice, int):
            return self._resume_trial(paused[choice])
        self._sampler.enqueue(self._surrogate.sampler_values(choice))
        return self._propose_trial()

    def _next_repeat(self) -> Job | None:
        """Return the next job that repeats a part of an earlier front: a segment of a trial, or a compression step."""
        if self._repeats is None:
            return None
        for segment in self._scheduler.next_segments.values():
            is_repeat = self._repeats.find_seed(segment.training) is not None
            if is_repeat and (job := self._resume_trial(segment)) is not None:
                return job
        active = {trial.training for trial in self._scheduler.active_trials.values()}
        for repeat in self._repeats:
            job = self._start_repeat(repeat)
            if job is None and repeat.step is not None:
                # The checkpoint of a trial that has not ended may still come.
                is_open = repeat.training in active or Repeat(repeat.training) in self._repeats
            else:
                is_open = job is None and not self._was_proposed(repeat.training)
            if not is_open:
                self._repeats.remove(repeat)
            if job is not None:
                return job
        return None

    def _start_repeat(self, repeat: Repeat) -> Job | None:
        """Return the first job of a repeat; ``None`` if it cannot start now or was started before."""
        if repeat.step is not None:
            assert isinstance(self._refinement, Refinement)
            job = self._refinement.make_step_job(repeat.training, repeat.step, self._next_number)
            return None if job is None else self._start_refinement(job)
        # The initial trials keep their share of the budget.
        is_spent = self._search.trials - self._scheduler.trial_count <= len(self._initial_design)
        if is_spent or not self._can_start_trial() or self._was_proposed(repeat.training):
            return None
        assert self._surrogate is not None
        self._sampler.enqueue(self._surrogate.sampler_values(repeat.training))
        return self._propose_trial()

    def _due_reference_trial(self) -> Job | None:
        """Return the next segment of the reference trial, or its first one, if it is due.

        It is due when the other trials have used enough compute, or when it would not end in time otherwise. The
        surrogate would hardly choose it: it is large, and improves the hypervolume little for its cost.
        """
        segment = self._scheduler.due_reference_segment(self._time_budget.must_start)
        if segment is not None:
            return self._resume_trial(segment)
        return self._propose_trial() if self._enqueue_initial_trial() else None

    def _next_promotion(self, *, closing: bool = False) -> Job | None:
        """Return the next segment of the trial that is promoted, or ``None`` if none is or it has to wait."""
        segment = self._scheduler.next_promotion(closing=closing)
        return None if segment is None else self._resume_trial(segment)

    def _resume_trial(self, segment: Job) -> Job | None:
        """Return the next segment of a paused trial, or ``None`` if it would not end in time."""
        # An empty front is worse than a late one, so the limit does not hold before the first complete trial.
        if self._archive.list_front() and self._time_budget.is_too_late(self._scheduler.count_job_epochs(segment)):
            logger.debug("trial %d: not promoted, as it would end after the time limit", segment.number)
            return None
        logger.info("trial %d: promoted, trains up to %s", segment.number, segment.until or "its end")
        self._scheduler.resume_trial(segment.number)
        self._store.continue_job(segment)
        self._counts[State.PAUSED] -= 1
        return segment

    def _next_refinement(self) -> Job | None:
        """Return the refinement with the largest predicted gain per compute cost, or ``None`` if none is worth it."""
        front, owners = self._archive.front_points()
        job = self._refinement.select_job(front, owners, self._next_number) if owners else None
        return None if job is None else self._start_refinement(job)

    def _start_refinement(self, job: Job) -> Job | None:
        """Record that a refinement starts, and return it, or ``None`` if it would not end in time."""
        if self._time_budget.is_too_late(self._scheduler.count_job_epochs(job)):
            return None
        logger.info(
            "job %d: refinement of checkpoint %s by %s", job.number, job.base and job.base.checkpoint, job.recipes
        )
        self._store.add_job(job, None)
        self._refinement.record_start(job)
        self._next_number += 1
        return job

    def _propose_trial(self) -> Job | None:
        """Return the first segment of a new trial, or ``None`` if the budget is spent or the space is exhausted."""
        for attempt in range(MAX_DUPLICATES):
            if not self._can_start_trial():
                return None
            self._enqueue_initial_trial()
            # The sampler is seeded by number and attempt, so a resumed search gets the same proposals.
            proposal = self._sampler.ask(self._next_number, attempt)
            training, recipe = self._space.suggest_config(proposal, with_compression=not self._amortized)
            recipes = self._refinement.immediate_recipes if self._amortized else (recipe,)
            trial = Job(self._next_number, training, recipes)
            key = trial_key(trial, amortized=self._amortized)
            if self._feedback.has_trial(key):
                logger.debug("proposal %d duplicates an earlier trial", proposal.number)
                self._feedback.answer_duplicate(key, proposal)
            elif violations := self.limits.predict_violations(training, self._recipes or (recipe,)):
                logger.debug("proposal %d cannot meet the cost limits: %s", proposal.number, violations)
                self._skipped_keys.add(key)
                self._sampler.tell(proposal, None, violations, stopped=True)
            else:
                return self._start_trial(trial, key, proposal)
        if not self.exhausted:
            logger.info("the search space is exhausted: no new configuration in %d proposals", MAX_DUPLICATES)
        self.exhausted = True
        return None

    def _start_trial(self, trial: Job, key: str, proposal: Trial) -> Job:
        earlier_seed = None if self._repeats is None else self._repeats.find_seed(trial.training)
        seed = derive_seed(self._search.seed, trial.number) if earlier_seed is None else earlier_seed
        trial = replace(trial, training=replace(trial.training, seed=seed))
        segment = self._scheduler.make_segment(trial, 0)
        logger.info("trial %d: started, trains up to %s: %s", trial.number, segment.until or "its end", trial.training)
        # The store comes first: after a crash, the sampler's trial is found there.
        self._store.add_job(segment, proposal.number)
        self._scheduler.add_trial(trial)
        self._feedback.register_trial(segment.number, key, proposal)
        self._next_number += 1
        return segment

    def _enqueue_initial_trial(self) -> bool:
        """Enqueue the next initial trial if it is due; return whether one was enqueued."""
        if self._sampler.has_enqueued_trial or not self._can_start_trial():
            return False
        remaining_trials = self._search.trials - self._scheduler.trial_count
        values = self._initial_design.pop_values(
            lambda cost: (
                not self._scheduler.trial_count
                # No more trials are left than initial ones.
                or remaining_trials <= len(self._initial_design)
                or self._scheduler.budget.can_start(cost)
                or self._time_budget.must_start(cost)
            )
        )
        if values is None:
            return False
        self._sampler.enqueue(values)
        return True

    def _can_start_trial(self) -> bool:
        """Return whether the budget in trials and time allows one more trial."""
        epochs, later_epochs = self._scheduler.latest_epochs, self._refinement.later_epochs
        is_too_late = self._time_budget.is_too_late(epochs, later_epochs)
        return not is_too_late and self._scheduler.trial_count < self._search.trials

    def _was_proposed(self, training: CompressionConfig) -> bool:
        key = trial_key(Job(0, training, ()), amortized=True)
        return key in self._skipped_keys or self._feedback.has_trial(key)

    # -- results ------------------------------------------------------------------------------

    def _record_result(self, job: Job, state: State, candidates: Sequence[Candidate], gain: float) -> None:
        """Pass a result on to the scheduler, the refinement, the surrogate and the sampler."""
        if job.base is not None:
            if self._surrogate is not None:
                self._surrogate.record_compressions(candidates)
            self._refinement.record_result(job.number, candidates, gain)
            return
        self._counts[state] += 1
        if candidates:
            self._record_training(job.number, self._scheduler.count_job_epochs(job), candidates)
            self._scheduler.record_compute(job, candidates)
        if state is State.PAUSED:
            self._scheduler.pause_trial(job, candidates)
            return
        self._scheduler.end_trial(job.number)
        self._refinement.record_result(job.number, candidates, gain)
        # The sampler is told the uncompressed candidate only, which comes first. It models one point per trial; many
        # correlated points would look like independent observations.
        complete = [candidate for candidate in candidates if candidate.complete]
        self._feedback.report_outcome(
            job.number,
            (self._archive.sampler_values(complete[0]), self.limits.measure_violations(complete))
            if complete
            else state,
        )

    def _record_training(self, number: int, epochs: float, candidates: Sequence[Candidate]) -> None:
        """Record epochs of a trial, and the candidates that were made after them."""
        self._refinement.record_training(epochs)
        if self._surrogate is not None:
            self._surrogate.record_trial(number, candidates)

    def _stop_trials(self, numbers: Sequence[int]) -> None:
        """Stop paused trials early: the store deletes their weights, and the sampler learns that they were poor."""
        if not numbers:
            return
        logger.info("trials stopped early: %s", numbers)
        self._store.stop_trials({number: self._scheduler.stop_reasons[number] for number in numbers})
        for number in numbers:
            self._counts[State.PAUSED] -= 1
            self._counts[State.STOPPED] += 1
            self._feedback.report_outcome(number, State.STOPPED)

    def _end_search(self) -> None:
        logger.info(
            "no job is left after %d of %d trials and %.0f s",
            *(self._scheduler.trial_count, self._search.trials, self.elapsed_seconds),
        )
        self._stop_trials(self._scheduler.stop_paused_trials())
        self._sampler.export_tables()
        self._report_progress()

    # -- resume -------------------------------------------------------------------------------

    def _resume(self) -> None:
        """Restore the state of the search from the store; an empty store leaves a new search.

        Results are replayed in the order in which they were told, so that scheduler, refinement, surrogate and sampler
        come to the state that they had. The sampler's own trials are stored by Optuna and are not told twice.
        """
        unanswered = set(self._sampler.running_trials())
        all_trials = self._store.read_trials()
        # The numbers of jobs for baselines and confirmation are taken too.
        self._next_number = max((stored.job.number + 1 for stored in all_trials), default=0)
        trials = [stored for stored in all_trials if stored.job.role is Role.SEARCH]
        self._interrupted_trials = sum(stored.reason == INTERRUPTED_REASON for stored in trials)
        for stored in trials:
            self._earlier_seconds = max(self._earlier_seconds, stored.elapsed or 0.0)
            if stored.job.base is None:
                self._restore_trial(stored)
            else:
                self._refinement.record_start(stored.job)
        for stored in sorted(trials, key=_result_order):
            self._replay_result(stored)
            if stored.optuna is not None:
                unanswered.discard(stored.optuna)
        for proposal in unanswered:
            # The driver was killed before it stored the job of this proposal. The same number is proposed again.
            self._sampler.fail_trial(proposal)
        if trials:
            logger.info(
                "resumed after %d trials, %d candidates and %.0f s; %d jobs are repeated",
                self._scheduler.trial_count,
                self._candidate_count,
                self._earlier_seconds,
                len(self._interrupted_jobs),
            )

    def _restore_trial(self, stored: StoredTrial) -> None:
        """Register a stored trial as it was when it started."""
        job = stored.job
        recipes = self._refinement.immediate_recipes if self._amortized else job.recipes
        self._scheduler.add_trial(replace(job, recipes=recipes, rung=None, until=None))
        self._feedback.register_trial(job.number, trial_key(job, amortized=self._amortized), stored.optuna)

    def _replay_result(self, stored: StoredTrial) -> None:
        """Record the results of a stored job: those of the rungs that it has passed, then its latest one."""
        number = stored.job.number
        candidates = self._store.read_trial_candidates(number)
        gain = self._archive.add(candidates)
        # Copies say nothing about how fast the front of this search grows.
        if stored.elapsed is not None and not stored.is_copied:
            self._patience.record(stored.elapsed, self._archive.hypervolume)
        for epochs, rung_candidates in self._scheduler.replay_rungs(stored, candidates):
            self._record_training(number, epochs, rung_candidates)
        self._candidate_count += len(candidates)
        if stored.state is State.RUNNING:
            self._recover_job(stored)
        elif stored.state is State.STOPPED:
            self._counts[State.STOPPED] += 1
            self._scheduler.end_trial(number)
            self._feedback.report_outcome(number, State.STOPPED)
        else:
            last_epoch = max((candidate.epochs for candidate in candidates), default=0)
            latest = [candidate for candidate in candidates if candidate.epochs == last_epoch]
            self._record_result(stored.job, stored.state, latest, gain)

    def _recover_job(self, stored: StoredTrial) -> None:
        """Run an interrupted job again, or record it as failed after its last attempt."""
        if stored.attempts < MAX_ATTEMPTS:
            self._interrupted_jobs.append(stored.job)
            return
        self._counts[State.RUNNING] += 1
        self._interrupted_trials += 1
        self.tell(stored.job, TrialResult(stored.job.number, State.FAILED, reason=INTERRUPTED_REASON))


def _result_order(stored: StoredTrial) -> tuple[float, int]:
    """Return a key that sorts trials in the order in which their results were told; running ones come last."""
    return (math.inf if stored.elapsed is None else stored.elapsed, stored.job.number)


class SamplerFeedback:
    """Tells the sampler the outcome of each trial once, and gives the same answer to every duplicate.

    Args:
        sampler: Sampler that has proposed the trials.
    """

    def __init__(self, sampler: OptunaSampler) -> None:
        self._sampler = sampler
        self._numbers: dict[str, int] = {}
        self._waiting: dict[int, list[int | Trial]] = {}
        self._outcomes: dict[int, Outcome] = {}

    def has_trial(self, key: str) -> bool:
        """Return whether a trial with this key was registered."""
        return key in self._numbers

    def register_trial(self, number: int, key: str, proposal: int | Trial | None) -> None:
        """Register a trial that starts.

        Args:
            number: Trial number.
            key: Key that is equal for duplicates.
            proposal: Sampler's trial or its number; ``None`` if the sampler waits for no answer.
        """
        self._numbers[key] = number
        if proposal is not None:
            self._waiting.setdefault(number, []).append(proposal)

    def answer_duplicate(self, key: str, proposal: Trial) -> None:
        """Answer a duplicate with the outcome of the original trial, now or when that has ended."""
        number = self._numbers[key]
        self._waiting.setdefault(number, []).append(proposal)
        if number in self._outcomes:
            self.report_outcome(number, self._outcomes[number])

    def report_outcome(self, number: int, outcome: Outcome) -> None:
        """Tell the sampler the outcome of a trial."""
        self._outcomes[number] = outcome
        for proposal in self._waiting.pop(number, []):
            if isinstance(outcome, State):
                self._sampler.tell(proposal, None, stopped=outcome is State.STOPPED)
            else:
                self._sampler.tell(proposal, *outcome)


class TimeBudget:
    """The time limit of a search, and predictions of which jobs end within it.

    Args:
        limit: Time limit in seconds; ``None`` for no limit.
        elapsed: Function that returns the elapsed seconds.
    """

    def __init__(self, limit: float | None, elapsed: Callable[[], float]) -> None:
        self._limit = limit
        self._elapsed = elapsed
        self._epoch_seconds: list[float] = []
        self._seconds = 0.0
        self._cost = 0.0

    def record_job(self, epochs: float, seconds: float, cost: float = 0.0) -> None:
        """Record the duration of a job; one without epochs changes no prediction.

        Args:
            epochs: Number of epochs trained.
            seconds: Duration in seconds, compression and scoring included.
            cost: Compute cost of the epochs; 0 if unknown.
        """
        if epochs > 0 and seconds > 0:
            insort(self._epoch_seconds, seconds / epochs)
        if cost > 0:
            self._seconds += seconds
            self._cost += cost

    def must_start(self, cost: float) -> bool:
        """Return whether work of some compute cost must start now to end in time; never without a limit."""
        if self._limit is None or not self._cost:
            return False
        return self._elapsed() + TIME_SAFETY_FACTOR * cost * self._seconds / self._cost > self._limit

    def is_too_late(self, epochs: float, later_epochs: float = 0.0) -> bool:
        """Return whether a job would end too late; never without a limit.

        Args:
            epochs: Number of epochs of the job. Their duration is the median one so far, as a few slow trials would
                shift the mean.
            later_epochs: Number of epochs that have to follow within the limit. They reserve at most
                ``MAX_LATER_SHARE`` of it.
        """
        if self._limit is None:
            return False
        epoch_seconds = self._epoch_seconds[len(self._epoch_seconds) // 2] if self._epoch_seconds else 0.0
        later_seconds = min(TIME_SAFETY_FACTOR * epoch_seconds * later_epochs, MAX_LATER_SHARE * self._limit)
        return self._elapsed() + epoch_seconds * epochs > self._limit - later_seconds
