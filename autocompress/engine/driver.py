"""The driver: asks the sampler, hands out jobs, stores what comes back, tells the sampler once per training.

It trains nothing and it alone writes to the store, so it can be killed at any instant and go on from there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.trial import Trial

from autocompress.config import Part, fingerprint
from autocompress.engine.archive import Archive
from autocompress.engine.sampler import Proposer
from autocompress.engine.space import Space
from autocompress.engine.spec import SearchSection
from autocompress.knobs import Leaf
from autocompress.records import Candidate, Cut, Job, Role, State, TrialResult
from autocompress.study import StoredTrial, Study, now

MAX_ATTEMPTS = 2
HOPELESS = 10
MAX_DUPLICATES = 64


@dataclass(frozen=True)
class Progress:
    """How a search stands, for whoever shows it.

    Attributes:
        done: Trials that gave candidates.
        failed: Trials that gave none.
        running: Trials under way.
        total: Trials that the budget allows.
        elapsed: Seconds since the search began, earlier runs included.
        limit: Seconds that the budget allows, or ``None``.
        candidates: Candidates in the store.
        hypervolume: Of the front on search_val, between 0 and 1.
        front: ``(id, first score, first cost)`` of each candidate on it, the cheapest first.
        objectives: Their records.
    """

    done: int
    failed: int
    running: int
    total: int
    elapsed: float
    limit: float | None
    candidates: int
    hypervolume: float
    front: tuple[tuple[str, float, float], ...]
    objectives: Sequence[Mapping[str, Any]]


class Driver:
    """Ask, tell, budget and resume for one run.

    Args:
        study: The open store.
        space: What may be chosen.
        search: Mode, budget and seed.
        proposer: Who proposes trainings.
        objectives: Records as they stand in the run's description, the ``box`` included.
        limits: ``{name: {"min": ..., "max": ...}}``.
        start: Values proposed first.
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
    ) -> None:
        self._study = study
        self._space = space
        self._search = search
        self._proposer = proposer
        self._objectives = objectives
        self._limits = limits
        self._on_progress = on_progress
        self._cuts = space.cuts() if search.mode == "amortized" else ()
        self._archive = Archive(objectives)
        self._told: dict[int, tuple[list[float], dict[str, float]] | None] = {}
        self._known: dict[str, int] = {}
        self._waiting: dict[int, list[Trial]] = {}
        self._live: dict[int, int | Trial] = {}
        self._pending: list[Job] = []
        self._counts = dict.fromkeys(State, 0)
        self._candidates = 0
        self._seconds: list[float] = []
        self._next = 0
        self._asked = 0
        self._elapsed_before = 0.0
        self._started = now()
        self.exhausted = False
        self._resume()
        if self._asked == 0:
            for values in start:
                proposer.enqueue(values)

    # -- the two calls of a backend -----------------------------------------------------------

    def ask(self) -> Job | None:
        """Return the next job, or ``None`` when the budget is spent, the space is, or nothing works."""
        if self._pending:
            job = self._pending.pop(0)
            self._study.add_attempt(job.number)
            self._counts[State.RUNNING] += 1
            self._report()
            return job
        if self._over():
            return None
        for attempt in range(MAX_DUPLICATES):
            trial = self._proposer.ask(self._next, attempt)
            training, cut = self._space.suggest(trial, cut=self._search.mode == "sampled")
            cuts = self._cuts if self._search.mode == "amortized" else (cut,)
            key = self._key(training.unseeded(), cuts)
            if key in self._known:
                self._repeat(self._known[key], trial)
                continue
            job = Job(self._next, replace(training, seed=self._seed(self._next)), cuts)
            self._study.add_job(job, trial.number)
            self._live[job.number] = trial
            self._known[key] = job.number
            self._next += 1
            self._asked += 1
            self._counts[State.RUNNING] += 1
            self._report()
            return job
        self.exhausted = True
        return None

    def tell(self, job: Job, result: TrialResult) -> None:
        """Store a result, then tell the sampler; a crash between the two is mended on resume."""
        result = checked(result)
        self._archive.add(result.candidates)
        self._study.finish(result, elapsed=self.elapsed, hypervolume=self._archive.hypervolume)
        self._counts[State.RUNNING] -= 1
        self._absorb(job.number, result.state, result.candidates, result.seconds)
        trial = self._live.pop(job.number, None)
        for waiting in [trial, *self._waiting.pop(job.number, [])]:
            if waiting is not None:
                self._tell_sampler(waiting, job.number)
        self._report()

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

    # -- inside -------------------------------------------------------------------------------

    def _over(self) -> bool:
        if self._asked >= self._search.trials or self.hopeless:
            return True
        if self._search.minutes is None:
            return False
        typical = sorted(self._seconds)[len(self._seconds) // 2] if self._seconds else 0.0
        return self.elapsed + typical > self._search.minutes * 60

    def _seed(self, number: int) -> int:
        # Equal for the same search and number, on every machine and after every resume.
        return int(fingerprint([self._search.seed, number]), 16) % 2**31

    def _key(self, training: Mapping[str, Any], cuts: tuple[Cut, ...]) -> str:
        if self._search.mode == "amortized":
            return fingerprint(training)
        parts: list[Part | None] = [cuts[0].prune, cuts[0].quantize]
        return fingerprint([training, [None if part is None else part.to_json() for part in parts]])

    def _repeat(self, number: int, trial: Trial) -> None:
        """Answer a duplicate with the result of its twin, now or when the twin has finished."""
        if number in self._told:
            self._tell_sampler(trial, number)
        else:
            self._waiting.setdefault(number, []).append(trial)

    def _tell_sampler(self, trial: int | Trial, number: int) -> None:
        told = self._told[number]
        if told is None:
            self._proposer.tell(trial, None)
        else:
            self._proposer.tell(trial, *told)

    def _absorb(self, number: int, state: State, candidates: Sequence[Candidate], seconds: float) -> None:
        self._counts[state] += 1
        self._candidates += len(candidates)
        if candidates:
            self._seconds.append(seconds)
        # The first candidate is the uncut parent where there is one: telling all of them misleads the sampler.
        self._told[number] = (self._values(candidates[0]), self._violations(candidates)) if candidates else None

    def _values(self, candidate: Candidate) -> list[float]:
        return [float(value) for value in self._archive.values(candidate)]

    def _violations(self, candidates: Sequence[Candidate]) -> dict[str, float]:
        """Return by how much the best candidate of a training breaks each limit."""
        found = {}
        for name, limit in self._limits.items():
            values = [self._archive.value(candidate, name) for candidate in candidates]
            if limit.get("max") is not None:
                found[f"{name} max"] = min(values) - float(limit["max"] or 0)
            if limit.get("min") is not None:
                found[f"{name} min"] = float(limit["min"] or 0) - max(values)
        return found

    def _resume(self) -> None:
        """Take up what the store holds: finished trials are told again if need be, running ones run again."""
        running = set(self._proposer.running())
        for stored in self._study.stored_trials():
            self._next = max(self._next, stored.job.number + 1)
            if stored.job.role is not Role.SEARCH:
                continue
            self._asked += 1
            self._known[self._key(stored.job.training.unseeded(), stored.job.cuts)] = stored.job.number
            if stored.state is State.RUNNING:
                self._take_up(stored)
            else:
                candidates = self._study.candidates_of(stored.job.number)
                self._archive.add(candidates)
                self._elapsed_before = max(self._elapsed_before, stored.elapsed or 0.0)
                self._absorb(stored.job.number, stored.state, candidates, stored.seconds or 0.0)
                if stored.optuna in running:
                    self._tell_sampler(stored.optuna, stored.job.number)
            running.discard(-1 if stored.optuna is None else stored.optuna)
        for orphan in running:
            # Asked, but the driver died before it could record the job: the same number is asked again.
            self._proposer.abandon(orphan)

    def _take_up(self, stored: StoredTrial) -> None:
        if stored.optuna is not None:
            self._live[stored.job.number] = stored.optuna
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


def checked(result: TrialResult) -> TrialResult:
    """Return a result without candidates whose numbers are not finite; with none left it has failed."""
    good = tuple(candidate for candidate in result.candidates if _finite(candidate))
    if len(good) == len(result.candidates):
        return result
    lost = len(result.candidates) - len(good)
    reason = "; ".join(filter(None, [result.reason, f"{lost} candidates had scores that are not finite"]))
    return replace(result, candidates=good, reason=reason, state=result.state if good else State.FAILED)


def _finite(candidate: Candidate) -> bool:
    values = [value for split in candidate.scores.values() for value in split.values()]
    values += list(candidate.costs.values())
    return all(isinstance(value, int | float) and abs(value) != float("inf") and value == value for value in values)
