"""The driver: asks the sampler, hands out jobs, stores what comes back, tells the sampler once per training.

It trains nothing and it alone writes to the store, so it can be killed at any instant and go on from there.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from optuna.trial import Trial

from autocompress.config import Part, fingerprint
from autocompress.engine.answers import Answers
from autocompress.engine.archive import Archive
from autocompress.engine.effort import epochs_of_fit
from autocompress.engine.ladder import RUNGS, Ladder
from autocompress.engine.limits import CostLimits, Price
from autocompress.engine.modes import MODES, Mode
from autocompress.engine.pace import Pace
from autocompress.engine.progress import Progress
from autocompress.engine.refinement import Refinement
from autocompress.engine.results import checked
from autocompress.engine.sampler import Proposer
from autocompress.engine.segments import Segments
from autocompress.engine.space import Space
from autocompress.engine.spec import SearchSection
from autocompress.engine.spending import Spending
from autocompress.engine.stages import Stages
from autocompress.engine.starts import Fixed
from autocompress.front import axes
from autocompress.knobs import Leaf
from autocompress.records import Candidate, Cut, Job, Role, State, TrialResult
from autocompress.registry import PROMOTION_RULES
from autocompress.rows import StoredTrial
from autocompress.study import Study, now

MAX_ATTEMPTS = 2
HOPELESS = 10
MAX_DUPLICATES = 64


class Driver:
    """Ask, tell, budget and resume for one run.

    Args:
        study: The open store.
        space: What may be chosen.
        search: Mode, budget and seed.
        proposer: Who proposes trainings.
        objectives: Records as they stand in the run's description, the ``box`` included.
        limits: ``{name: {"min": ..., "max": ...}}``.
        start: Values proposed first; where there are several, the student of the last always runs to its end.
        max_drop: What the choices of the mode ``sequential`` may lose of the first score.
        price: Returns the costs of each cut of a training without training it; asked only where a cost is limited.
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
        start: Sequence[Mapping[str, Leaf]] = (),
        on_progress: Callable[[Progress], None] = lambda progress: None,
        price: Price | None = None,
        max_drop: float = 0.01,
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
        self._limits = CostLimits(limits, self._archive.value, price)
        self._cuts = space.cuts() if self._amortized else ()
        self._refinement = self._cutting(self._cuts, mode, max_drop, price)
        rule = mode.promotion or search.promotion
        self._segments = Segments(0 if rule == "always" else RUNGS, self._refinement.at_once)
        self._ladder = Ladder(PROMOTION_RULES.get(rule)(), self._archive.score_column)
        self._spending = Spending()
        # Without one that is shaped like the teacher, a search may end with nothing near the teacher's score.
        self._sure = space.suggest(Fixed(start[-1]), cut=False)[0].student if len(start) > 1 else None
        self._trainings: dict[int, Job] = {}
        self._answers = Answers(proposer)
        self._pending: list[Job] = []
        self._under_way: set[int] = set()
        self._counts = dict.fromkeys(State, 0)
        self._candidates = 0
        self._next = 0
        self._elapsed_before = 0.0
        self._started = now()
        self._pace = Pace(None if search.minutes is None else search.minutes * 60, lambda: self.elapsed)
        self.exhausted = False
        self.refused = 0
        self._resume()
        if not self._trainings:
            for values in start:
                proposer.enqueue(values)

    def _cutting(self, cuts: Sequence[Cut], mode: Mode, max_drop: float, price: Price | None) -> Refinement | Stages:
        if not mode.stages:
            return Refinement(cuts, self._search.refine, self._archive.normalised, price)
        cost, score = axes(self._objectives)
        sign = 1.0 if score["direction"] == "maximize" else -1.0
        return Stages(
            cuts,
            max_drop,
            self._archive.normalised,
            lambda candidate: sign * self._archive.value(candidate, score["name"]),
            [each["name"] for each in self._objectives].index(cost["name"]),
        )

    # -- the two calls of a backend -----------------------------------------------------------

    def ask(self) -> Job | None:
        """Return the next job, or ``None`` when the budget is spent, the space is, or nothing works.

        Trainings that were promoted go on first, then further cuts that pay, then new trainings. While jobs are under
        way, ``None`` may be followed by another job: what they bring may be worth going on with.
        """
        if self._pending:
            job = self._pending.pop(0)
            self._study.add_attempt(job.number)
            return self._hand_out(job)
        if self.hopeless:
            return None
        # Once for all results since the last call.
        self._stop(self._ladder.hopeless())
        found = self._promoted() or self._further() or self._fresh() or self._promoted(closing=True)
        if found is not None:
            return self._hand_out(found)
        if self._counts[State.RUNNING]:
            return None
        self._refinement.all_trained()
        found = self._further()
        if found is not None:
            return self._hand_out(found)
        self._stop(self._ladder.give_up())
        self._proposer.publish()
        self._report()
        return None

    def tell(self, job: Job, result: TrialResult) -> None:
        """Store a result, then tell the sampler; a crash between the two is mended on resume."""
        result = checked(result, [each["name"] for each in self._objectives])
        gain = self._gain(result.candidates)
        self._study.finish(result, elapsed=self.elapsed, hypervolume=self._archive.hypervolume)
        self._counts[State.RUNNING] -= 1
        self._under_way.discard(job.number)
        self._pace.note(self._segments.epochs(job), result.seconds)
        self._absorb(job, result.state, result.candidates, gain)
        self._report()

    def leave(self) -> None:
        """Close the books: what is still under way was cancelled by whoever ends the search, and did not fail."""
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
        """Whether nothing but failures came of the first trials."""
        return self._counts[State.FAILED] >= HOPELESS and not self._candidates

    @property
    def next_number(self) -> int:
        """Number that the next job would get."""
        return self._next

    # -- what to do next ----------------------------------------------------------------------

    def _hand_out(self, job: Job) -> Job:
        self._counts[State.RUNNING] += 1
        self._under_way.add(job.number)
        self._report()
        return self._study.loaded(job)

    def _promoted(self, *, closing: bool = False) -> Job | None:
        """Return the next segment of a paused training, unless it has to wait; when ``closing``, none has."""
        found = self._ladder.next(
            lambda number, rung: self._spending.effort(number, self._segments.epochs(self._up(number, rung)))
        )
        if found is None:
            return None
        number, rung = found
        job = self._up(number, rung)
        if not (closing or self._spending.allows(number, self._segments.epochs(job))):
            return None
        # Late with something to show is better than in time with nothing.
        if self._archive.front() and self._pace.late(self._segments.epochs(job)):
            return None
        self._ladder.take(number)
        self._study.continue_job(job)
        self._counts[State.PAUSED] -= 1
        return job

    def _up(self, number: int, rung: int) -> Job:
        return self._segments.of(self._trainings[number], rung + 1)

    def _further(self) -> Job | None:
        """Return a cut that trains, of a checkpoint that is there."""
        front, owners = self._archive.normalised_front()
        job = self._refinement.next(front, owners, self._next) if owners else None
        if job is None or self._pace.late(self._segments.epochs(job)):
            return None
        self._study.add_job(job, None)
        self._refinement.begin(job)
        self._next += 1
        return job

    def _fresh(self) -> Job | None:
        """Return a training that was never asked for before."""
        for attempt in range(MAX_DUPLICATES):
            late = self._pace.late(self._longest, self._refinement.training_share)
            if late or len(self._trainings) >= self._search.trials:
                return None
            trial = self._proposer.ask(self._next, attempt)
            training, cut = self._space.suggest(trial, cut=not self._amortized)
            whole = Job(self._next, training, self._refinement.at_once if self._amortized else (cut,))
            key = self._key(whole)
            if self._answers.knows(key):
                self._answers.repeat(key, trial)
            elif violations := self._limits.excess(training, self._cuts or (cut,)):
                self.refused += 1
                self._proposer.tell(trial, None, violations, stopped=True)
            else:
                return self._begun(whole, key, trial)
        self.exhausted = True
        return None

    def _begun(self, whole: Job, key: str, trial: Trial) -> Job:
        whole = replace(whole, training=replace(whole.training, seed=self._seed(whole.number)))
        job = self._segments.of(whole, 0)
        self._study.add_job(job, trial.number)
        self._enter(whole)
        self._answers.expect(job.number, key, trial)
        self._next += 1
        return job

    def _enter(self, whole: Job) -> None:
        """Put a training on the list."""
        self._trainings[whole.number] = whole
        if whole.training.student == self._sure:
            self._ladder.keep(whole.number)
            self._sure = None

    @property
    def _longest(self) -> int:
        """Epochs of the latest training: about those of the next."""
        latest = next(reversed(self._trainings.values()), None)
        return 0 if latest is None else epochs_of_fit(latest.training.fit)

    def _seed(self, number: int) -> int:
        # Equal for the same search and number, on every machine and after every resume.
        return int(fingerprint([self._search.seed, number]), 16) % 2**31

    def _key(self, job: Job) -> str:
        training = job.training.unseeded()
        if self._amortized:
            return fingerprint(training)
        parts: list[Part | None] = [job.cuts[0].prune, job.cuts[0].quantize]
        return fingerprint([training, [None if part is None else part.to_json() for part in parts]])

    # -- what came of it ----------------------------------------------------------------------

    def _gain(self, candidates: Sequence[Candidate]) -> float:
        """Let candidates onto the front; return what hypervolume they add."""
        before = self._archive.hypervolume
        self._archive.add(candidates)
        return self._archive.hypervolume - before

    def _absorb(self, job: Job, state: State, candidates: Sequence[Candidate], gain: float) -> None:
        self._candidates += len(candidates)
        if job.base is not None:
            self._refinement.add(job.number, candidates, gain)
            return
        self._counts[state] += 1
        if candidates:
            self._refinement.train(self._segments.epochs(job))
            self._spending.size(job.number, candidates[0])
            self._spending.spend(job.number, self._segments.epochs(job))
        if state is State.PAUSED:
            points = [self._archive.normalised(candidate) for candidate in candidates]
            self._ladder.note(job.number, job.rung or 0, np.clip(np.stack(points), 0.0, 1.0))
            self._ladder.pause(job.number, job.rung or 0)
            return
        self._refinement.add(job.number, candidates, gain)
        # The first candidate is the uncut parent where there is one: telling all of them misleads the sampler.
        complete = [candidate for candidate in candidates if candidate.complete]
        answer = (self._archive.values(complete[0]), self._limits.violations(complete)) if complete else state
        self._answers.give(job.number, answer)

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
        for stored in stored_trials:
            self._elapsed_before = max(self._elapsed_before, stored.elapsed or 0.0)
            if stored.job.base is None:
                self._remember(stored)
            else:
                self._refinement.begin(stored.job)
        for stored in sorted(stored_trials, key=_ended):
            candidates = self._study.candidates_of(stored.job.number)
            gain = self._gain(candidates)
            self._climbed(stored, candidates)
            if stored.state is State.RUNNING:
                self._candidates += len(candidates)
                self._take_up(stored)
            elif stored.state is State.STOPPED:
                self._candidates += len(candidates)
                self._counts[State.STOPPED] += 1
                self._answers.give(stored.job.number, State.STOPPED)
            else:
                self._absorb(stored.job, stored.state, candidates, gain)
            running.discard(-1 if stored.optuna is None else stored.optuna)
        for orphan in running:
            # Asked, but the driver died before it could record the job: the same number is asked again.
            self._proposer.abandon(orphan)

    def _remember(self, stored: StoredTrial) -> None:
        job = stored.job
        cuts = self._refinement.at_once if self._amortized else job.cuts
        self._enter(replace(job, cuts=cuts, rung=None, until=None))
        self._answers.expect(job.number, self._key(job), stored.optuna)

    def _climbed(self, stored: StoredTrial, candidates: Sequence[Candidate]) -> None:
        """Take note of the rungs below the one that a training was last seen at."""
        steps = self._segments.steps(stored.job.training) if stored.job.base is None else ()
        for rung, step in enumerate(steps):
            partial = [each for each in candidates if not each.complete and each.epochs == step]
            here = stored.state is State.PAUSED and rung == stored.job.rung
            if partial and not here:
                points = [self._archive.normalised(candidate) for candidate in partial]
                self._ladder.note(stored.job.number, rung, np.clip(np.stack(points), 0.0, 1.0))
                epochs = step - (steps[rung - 1] if rung else 0)
                self._refinement.train(epochs)
                self._spending.size(stored.job.number, partial[0])
                self._spending.spend(stored.job.number, epochs)

    def _take_up(self, stored: StoredTrial) -> None:
        if stored.attempts < MAX_ATTEMPTS:
            self._pending.append(stored.job)
            return
        self._counts[State.RUNNING] += 1
        self.tell(stored.job, TrialResult(stored.job.number, State.FAILED, reason="interrupted twice"))

    def _report(self) -> None:
        minutes = self._search.minutes
        self._on_progress(
            Progress(
                done=self._counts[State.COMPLETE] + self._counts[State.STOPPED],
                failed=self._counts[State.FAILED] + self._counts[State.INFEASIBLE],
                running=self._counts[State.RUNNING],
                total=self._search.trials,
                elapsed=self.elapsed,
                limit=None if minutes is None else minutes * 60,
                candidates=self._candidates,
                hypervolume=self._archive.hypervolume,
                front=self._archive.front(),
                objectives=self._objectives,
            )
        )


def _ended(stored: StoredTrial) -> tuple[float, int]:
    """Return a key that sorts trials as they were told."""
    return (math.inf if stored.elapsed is None else stored.elapsed, stored.job.number)
