"""The driver: asks the sampler, hands out jobs, stores what comes back, tells the sampler once per training.

It trains nothing and it alone writes to the store, so it can be killed at any instant and go on from there.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from optuna.trial import Trial

from autocompress.core.config import CompressionConfig
from autocompress.core.records import Candidate, Job, Role, State, TrialResult
from autocompress.core.registry import PROMOTION_RULES
from autocompress.engine.answers import Answers
from autocompress.engine.archive import Archive
from autocompress.engine.climbing import Climb
from autocompress.engine.cutting import cutting
from autocompress.engine.identity import key_of, seed_of
from autocompress.engine.limits import CostLimits, Price
from autocompress.engine.modes import MODES
from autocompress.engine.openings import Openings, Values, opened, whole_effort
from autocompress.engine.progress import Progress, progress
from autocompress.engine.result_validation import INTERRUPTED, checked
from autocompress.engine.sampler.acquisition import Surrogate
from autocompress.engine.sampler.optuna import Proposer
from autocompress.engine.scheduler.asha import RUNGS
from autocompress.engine.scheduler.compute_cost import size_of
from autocompress.engine.space import Space
from autocompress.engine.spec import SearchSection
from autocompress.engine.time_budget import Pace
from autocompress.store.run_store import Study, now
from autocompress.store.schema import StoredTrial

MAX_ATTEMPTS = 2
HOPELESS = 10
MAX_DUPLICATES = 64


class Driver:
    """Ask, tell, budget and resume for one run.

    Args:
        study: The open store.
        space: What may be chosen.
        search: Mode, budget, seed.
        proposer: Who proposes trainings.
        objectives: Records as they stand in the run's description, the ``box`` included.
        limits: ``{name: {"min": ..., "max": ...}}``.
        start: Values of the hand-made trainings; where there are several, the last always runs to its end.
        max_drop: What the choices of the mode ``sequential`` may lose of the first score.
        price: Returns the costs of each cut of a training without training it.
        teacher: As a candidate, where its scores and costs are known: the surrogate's first observation.
        on_progress: Called after every ask and tell.
    """

    def __init__(
        self,
        study: Study,
        space: Space,
        search: SearchSection,
        proposer: Proposer,
        objectives: Sequence[Mapping[str, Any]],
        limits: Mapping[str, Mapping[str, float | None]],
        start: Sequence[Values] = (),
        on_progress: Callable[[Progress], None] = lambda progress: None,
        price: Price | None = None,
        max_drop: float = 0.01,
        teacher: Candidate | None = None,
    ) -> None:
        self._study = study
        self._space = space
        self._search = search
        self._proposer = proposer
        self._objectives = objectives
        self._on_progress = on_progress
        mode = MODES[search.mode]
        self._amortized = mode.amortized
        self._archive = Archive(objectives)
        self.limits = CostLimits(limits, self._archive.value, price)
        self._cuts = space.cuts() if self._amortized else ()
        self._refinement = cutting(mode, self._cuts, search.refine, max_drop, self._archive, objectives, price)
        rule = mode.promotion or search.promotion
        self._climb = Climb(
            PROMOTION_RULES.get(rule)(),
            0 if rule == "always" else RUNGS,
            self._refinement.at_once,
            self._archive.score_column,
            self._archive.all_normalised,
            # Without one that is shaped like the teacher, a search may end with nothing near the teacher's score.
            opened(space, start[-1], cut=False).training.student if len(start) > 1 else None,
        )
        self._surrogate: Surrogate | None = None
        if (mode.sampler or search.sampler) == "surrogate" and mode.amortized and price is not None:
            self._surrogate = Surrogate(space, price, self._archive.normalised, objectives, search.seed)
            # It knows better than to climb from the cheapest student to the dearest.
            start = [*start[:1], *start[1:][-1:]]
            if teacher is not None:
                self._surrogate.note(teacher.trial, [teacher])
        self._answers = Answers(proposer)
        self._pending: list[Job] = []
        self._under_way: set[int] = set()
        self._counts = dict.fromkeys(State, 0)
        self._refused: set[str] = set()
        self._candidates = 0
        self._next = 0
        self._elapsed_before = 0.0
        self._started = now()
        self._pace = Pace(None if search.minutes is None else search.minutes * 60, lambda: self.elapsed)
        self.exhausted = False
        self._resume()
        keys = [key_of(opened(space, values, cut=not self._amortized), self._amortized) for values in start]
        left = [values for values, key in zip(start, keys, strict=True) if not self._answers.knows(key)]
        self._openings = Openings(left, partial(whole_effort, space, price if self._amortized else None))

    # -- the two calls of a backend -----------------------------------------------------------

    def ask(self) -> Job | None:
        """Return the next job, or ``None`` when the budget is spent, the space is, or nothing works.

        Further cuts that pay come first, then what the surrogate expects most of; without one, promoted trainings,
        further cuts, new trainings. While jobs are under way, ``None`` may be followed by another job.
        """
        if self._pending:
            job = self._pending.pop(0)
            self._study.add_attempt(job.number)
            return self._hand_out(job)
        if self.hopeless:
            return None
        self._stop(self._climb.hopeless())
        found = self._guided() or self._promoted() or self._further() or self._fresh() or self._promoted(closing=True)
        if found is not None:
            return self._hand_out(found)
        if self._counts[State.RUNNING]:
            return None
        self._refinement.all_trained()
        if (found := self._further()) is not None:
            return self._hand_out(found)
        self._stop(self._climb.give_up())
        self._proposer.publish()
        self._report()
        return None

    def tell(self, job: Job, result: TrialResult) -> None:
        """Store a result, then tell the sampler; a crash between the two is mended on resume."""
        result = checked(result, [each["name"] for each in self._objectives])
        gain = self._archive.add(result.candidates)
        self._study.finish(result, elapsed=self.elapsed, hypervolume=self._archive.hypervolume)
        self._counts[State.RUNNING] -= 1
        self._under_way.discard(job.number)
        epochs = self._climb.segments.epochs(job)
        self._pace.note(epochs, result.seconds, epochs * size_of(result.candidates[0]) if result.candidates else 0.0)
        self._candidates += len(result.candidates)
        self._absorb(job, result.state, result.candidates, gain)
        self._report()

    def ahead(self) -> bool:
        """Do a little of what the next :meth:`ask` will need; return whether more is left."""
        if self._surrogate is None or not self._may_begin():
            return False
        return self._surrogate.ahead(self._archive.normalised_front()[0], self._next, self._training)

    def leave(self) -> None:
        """Close the books: what is still under way was cancelled, and did not fail."""
        if self._under_way:
            self._study.cancel(sorted(self._under_way))
            self._under_way.clear()
        self._proposer.publish()

    # -- what others may know -----------------------------------------------------------------

    @property
    def elapsed(self) -> float:
        """Seconds of search so far, earlier runs included."""
        return self._elapsed_before + now() - self._started

    @property
    def hopeless(self) -> bool:
        """Whether nothing but failures of their own came of the first trials."""
        return self._counts[State.FAILED] - self._interrupted >= HOPELESS and not self._candidates

    # -- what to do next ----------------------------------------------------------------------

    def _hand_out(self, job: Job) -> Job:
        self._counts[State.RUNNING] += 1
        self._under_way.add(job.number)
        self._report()
        return self._study.loaded(job)

    def _promoted(self, *, closing: bool = False) -> Job | None:
        """Return the next segment of the training that the rule promotes, unless it has to wait."""
        job = self._climb.promoted(closing=closing)
        return None if job is None else self._gone_on(job)

    def _gone_on(self, job: Job) -> Job | None:
        """Return the next segment of a paused training, if there is time."""
        # Late with something to show is better than in time with nothing.
        if self._archive.front() and self._pace.late(self._climb.segments.epochs(job)):
            return None
        self._climb.go_on(job)
        self._study.continue_job(job)
        self._counts[State.PAUSED] -= 1
        return job

    def _guided(self) -> Job | None:
        """Return what the surrogate expects most of; ``None`` without one, or where it expects nothing."""
        if self._surrogate is None or self._proposer.waiting:
            return None
        ready = self._surrogate.ready
        if found := self._owed() or (None if ready else self._promoted()) or self._further():
            return found
        ups = self._climb.ups if ready else {}
        front, _ = self._archive.normalised_front()
        chosen = self._surrogate.best(
            front,
            self._next,
            {number: self._climb.segments.left(job) for number, job in ups.items()},
            self._training,
            self._tried if self._may_begin() else None,
        )
        if isinstance(chosen, int):
            return self._gone_on(ups[chosen])
        if chosen is None:
            return None
        self._proposer.enqueue(self._surrogate.values(chosen))
        return self._fresh()

    def _owed(self) -> Job | None:
        """Return what is shaped like the teacher, if its turn has come: it is never expected to add much."""
        if (job := self._climb.owed(self._pace.short)) is not None:
            return self._gone_on(job)
        return self._fresh() if self._opening() else None

    def _further(self) -> Job | None:
        """Return a cut that trains, of a checkpoint that is there."""
        front, owners = self._archive.normalised_front()
        job = self._refinement.next(front, owners, self._next) if owners else None
        if job is None or self._pace.late(self._climb.segments.epochs(job)):
            return None
        self._study.add_job(job, None)
        self._refinement.begin(job)
        self._next += 1
        return job

    def _may_begin(self) -> bool:
        late = self._pace.late(self._climb.latest_epochs, self._refinement.training_share)
        return not late and self._climb.begun < self._search.trials

    def _tried(self, training: CompressionConfig) -> bool:
        key = key_of(Job(0, training, ()), amortized=True)
        return key in self._refused or self._answers.knows(key)

    def _opening(self) -> bool:
        """Propose the next hand-made training if its turn has come."""
        left = self._search.trials - self._climb.begun
        if self._proposer.waiting or not self._may_begin():
            return False
        values = self._openings.next(
            lambda effort: (
                not self._climb.begun
                or left <= len(self._openings)
                or self._climb.spending.affords(effort)
                or self._pace.short(effort)
            )
        )
        if values is not None:
            self._proposer.enqueue(values)
        return values is not None

    def _fresh(self) -> Job | None:
        """Return a training that was never asked for before."""
        for attempt in range(MAX_DUPLICATES):
            if not self._may_begin():
                return None
            self._opening()
            trial = self._proposer.ask(self._next, attempt)
            training, cut = self._space.suggest(trial, cut=not self._amortized)
            whole = Job(self._next, training, self._refinement.at_once if self._amortized else (cut,))
            key = key_of(whole, self._amortized)
            if self._answers.knows(key):
                self._answers.repeat(key, trial)
            elif violations := self.limits.excess(training, self._cuts or (cut,)):
                self._refused.add(key)
                self._proposer.tell(trial, None, violations, stopped=True)
            else:
                return self._begun(whole, key, trial)
        self.exhausted = True
        return None

    def _begun(self, whole: Job, key: str, trial: Trial) -> Job:
        whole = replace(whole, training=replace(whole.training, seed=seed_of(self._search.seed, whole.number)))
        job = self._climb.segments.of(whole, 0)
        self._study.add_job(job, trial.number)
        self._climb.enter(whole)
        self._answers.expect(job.number, key, trial)
        self._next += 1
        return job

    @property
    def _training(self) -> dict[int, CompressionConfig]:
        under_way = sorted(self._under_way & self._climb.trainings.keys())
        return {number: self._climb.trainings[number].training for number in under_way}

    # -- what came of it ----------------------------------------------------------------------

    def _absorb(self, job: Job, state: State, candidates: Sequence[Candidate], gain: float) -> None:
        if job.base is not None:
            if self._surrogate is not None:
                self._surrogate.note_cuts(candidates)
            self._refinement.add(job.number, candidates, gain)
            return
        self._counts[state] += 1
        if candidates:
            self._learn(job.number, self._climb.segments.epochs(job), candidates)
            self._climb.note(job, candidates)
        if state is State.PAUSED:
            self._climb.pause(job, candidates)
            return
        self._climb.end(job.number)
        self._refinement.add(job.number, candidates, gain)
        # The first candidate is the uncut parent where there is one: telling all of them misleads the sampler.
        complete = [candidate for candidate in candidates if candidate.complete]
        answer = (self._archive.values(complete[0]), self.limits.violations(complete)) if complete else state
        self._answers.give(job.number, answer)

    def _learn(self, number: int, epochs: float, candidates: Sequence[Candidate]) -> None:
        """Take note of epochs of training, and of what was cut after them."""
        self._refinement.train(epochs)
        if self._surrogate is not None:
            self._surrogate.note(number, candidates)

    def _stop(self, numbers: Sequence[int]) -> None:
        """Give up paused trainings: their weights go, and the sampler learns that they were not worth an end."""
        if numbers:
            self._study.stop(numbers)
        for number in numbers:
            self._counts[State.PAUSED] -= 1
            self._counts[State.STOPPED] += 1
            self._answers.give(number, State.STOPPED)

    # -- going on after an end ----------------------------------------------------------------

    def _resume(self) -> None:
        """Take up what the store holds: finished trials are told again if need be, running ones run again."""
        running = set(self._proposer.running())
        everything = self._study.stored_trials()
        self._next = max((stored.job.number + 1 for stored in everything), default=0)
        stored_trials = [stored for stored in everything if stored.job.role is Role.SEARCH]
        self._interrupted = sum(stored.reason == INTERRUPTED for stored in stored_trials)
        for stored in stored_trials:
            self._elapsed_before = max(self._elapsed_before, stored.elapsed or 0.0)
            if stored.job.base is None:
                self._remember(stored)
            else:
                self._refinement.begin(stored.job)
        for stored in sorted(stored_trials, key=_ended):
            candidates = self._study.candidates_of(stored.job.number)
            gain = self._archive.add(candidates)
            for epochs, cut in self._climb.passed(stored, candidates):
                self._learn(stored.job.number, epochs, cut)
            self._candidates += len(candidates)
            if stored.state is State.RUNNING:
                self._take_up(stored)
            elif stored.state is State.STOPPED:
                self._counts[State.STOPPED] += 1
                self._climb.end(stored.job.number)
                self._answers.give(stored.job.number, State.STOPPED)
            else:
                last = max((each.epochs for each in candidates), default=0)
                self._absorb(stored.job, stored.state, [each for each in candidates if each.epochs == last], gain)
            running.discard(-1 if stored.optuna is None else stored.optuna)
        for orphan in running:
            # Asked, but the driver died before it could record the job: the same number is asked again.
            self._proposer.abandon(orphan)

    def _remember(self, stored: StoredTrial) -> None:
        job = stored.job
        cuts = self._refinement.at_once if self._amortized else job.cuts
        self._climb.enter(replace(job, cuts=cuts, rung=None, until=None))
        self._answers.expect(job.number, key_of(job, self._amortized), stored.optuna)

    def _take_up(self, stored: StoredTrial) -> None:
        if stored.attempts < MAX_ATTEMPTS:
            self._pending.append(stored.job)
            return
        self._counts[State.RUNNING] += 1
        self._interrupted += 1
        self.tell(stored.job, TrialResult(stored.job.number, State.FAILED, reason=INTERRUPTED))

    def _report(self) -> None:
        self._on_progress(
            progress(self._counts, self._search, self.elapsed, self._candidates, self._archive, self._objectives)
        )


def _ended(stored: StoredTrial) -> tuple[float, int]:
    """Return a key that sorts trials as they were told."""
    return (math.inf if stored.elapsed is None else stored.elapsed, stored.job.number)
