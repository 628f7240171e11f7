"""Repeats of the top candidates from scratch with several seeds, after the front is frozen.

What is done is kept: the same call goes on where an earlier one ended, and a larger one adds what is missing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from autocompress.analysis.confirmation import top
from autocompress.analysis.pareto import axes
from autocompress.analysis.selection import pick
from autocompress.core.config import CompressionConfig, fingerprint
from autocompress.core.plugins import guests
from autocompress.core.records import Cut, Job, Role, State, TrialResult
from autocompress.engine.backend_factory import make_backend
from autocompress.engine.driver import MAX_ATTEMPTS
from autocompress.engine.result_validation import INTERRUPTED, checked
from autocompress.engine.spec import Source, parse_spec
from autocompress.errors import SearchFailedError, UsageError
from autocompress.store.run_store import Study
from autocompress.trial.pipeline import Setup, lab, settled
from autocompress.trial.runner import TrialRunner
from autocompress.trial.teacher import TeacherLuggage

Progress = Callable[[int, int], None]


def confirm(
    folder: Path,
    count: int,
    seeds: int,
    *,
    candidates: Sequence[str] = (),
    workers: int | None = None,
    backend: str | None = None,
    on_progress: Progress = lambda done, total: None,
) -> None:
    """Repeat candidates of a finished run, and store each repeat with its scores on select_val and test.

    Args:
        folder: The run folder.
        count: How many candidates: the pick and those around it on the front, see :func:`confirmation.top`.
        seeds: How often each is repeated.
        candidates: These instead, by their ids.
        workers: Instead of the run's own.
        backend: Instead of the run's own.
        on_progress: Told the trainings that are done, and all of them.

    Raises:
        UsageError: The search has not ended, or a candidate may not be repeated.
        SearchFailedError: Every repeat failed.
    """
    if count < 1 or seeds < 1:
        raise UsageError(f"confirm needs at least one candidate and one seed, got top={count} and seeds={seeds}")
    with Study.open(folder) as study:
        if study.meta("front") is None:
            raise UsageError(
                f"the search in {folder} has not ended: confirm reads the test split, which waits until the front is "
                "frozen; finish it with `autocompress search ... --resume`"
            )
        chosen = list(candidates) or _top(study, count)
        hosted = _hosted(study, workers, backend)
        setup = replace(Setup.from_json(study.meta("setup")), device=hosted.spec.search.trains_on)
        place = make_backend(hosted)
        repeats = Repeats(study, _configs(study, chosen), seeds, on_progress)
        repeats.begin(chosen)
        with place.opened(folder):
            runner = TrialRunner(setup, guests([setup.task.name]), _luggage(setup) if place.elsewhere else None)
            place.ready(runner)
            place.run(repeats.ask, runner, repeats.tell)
        repeats.end()


def _luggage(setup: Setup) -> TeacherLuggage:
    """Return the teacher for machines that do not share this one's cache."""
    with settled():
        return lab(setup).teacher.luggage()


def _top(study: Study, count: int) -> list[str]:
    table, meta = study.candidates(), study.all_meta()
    return top(table, meta, pick(table, meta).id, count)


def _configs(study: Study, chosen: Sequence[str]) -> dict[str, CompressionConfig]:
    found = {}
    for identity in chosen:
        candidate = study.candidate(identity)
        if not candidate.complete:
            raise UsageError(f"'{identity}' was measured before its training was at its end: it cannot be repeated")
        found[identity] = candidate.config
    return found


def _hosted(study: Study, workers: int | None, backend: str | None) -> Source:
    """Return the run's spec with what is changed of where it runs."""
    # Where another backend is asked for, what the run's own was told of places is not meant for it.
    places = ("address", "resources", "device")
    changes = [] if backend is None else [f"search.backend={backend}", *(f"search.{name}=null" for name in places)]
    changes += [] if workers is None else [f"search.workers={workers}"]
    return parse_spec(study.meta("spec"), "spec.yaml", changes)


@dataclass
class Repeats:
    """Asks for the repeats that are missing, and stores what they come to: the two calls of a backend.

    Candidates that share a training share its repeats: one training, all of their cuts.

    Args:
        study: The open store.
        configs: Candidate to its config.
        seeds: How often each is repeated.
        on_progress: Told the trainings that are done, and all of them.
    """

    study: Study
    configs: Mapping[str, CompressionConfig]
    seeds: int
    on_progress: Progress = lambda done, total: None
    reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._score = axes(self.study.meta("objectives"))[1]["name"]
        stored = self.study.stored_trials()
        self._next = max((trial.job.number + 1 for trial in stored), default=0)
        self._waiting: list[tuple[Job, bool]] = []
        done: set[tuple[str, Cut]] = set()
        for trial in stored:
            if trial.job.role is not Role.CONFIRM:
                continue
            if trial.state is State.RUNNING and trial.attempts >= MAX_ATTEMPTS:
                self._store(TrialResult(trial.job.number, State.FAILED, reason=INTERRUPTED))
            elif trial.state is State.RUNNING:
                self._waiting.append((trial.job, True))
            done |= {(trial.job.training.fingerprint, cut) for cut in trial.job.cuts}
        self._waiting += [(job, False) for job in self._missing(done)]
        self._total, self._done = len(self._waiting), 0

    def _missing(self, done: set[tuple[str, Cut]]) -> list[Job]:
        trainings: dict[str, tuple[CompressionConfig, list[Cut]]] = {}
        for config in self.configs.values():
            key = fingerprint(config.training.unseeded())
            cuts = trainings.setdefault(key, (config.training, []))[1]
            cuts.append(Cut(config.prune, config.quantize))
        jobs: list[Job] = []
        # By seeds first: an interrupted confirmation has every candidate a little, not a few in full.
        for repeat in range(self.seeds):
            for key, (training, cuts) in trainings.items():
                # Another seed than any of the search's, the same whenever it is asked for.
                seeded = replace(training, seed=int(fingerprint(["confirm", key, repeat]), 16) % 2**31)
                left = tuple(cut for cut in dict.fromkeys(cuts) if (seeded.fingerprint, cut) not in done)
                if left:
                    jobs.append(Job(self._next + len(jobs), seeded, left, Role.CONFIRM))
        return jobs

    def ask(self) -> Job | None:
        """Return the next repeat, or ``None`` when none is missing."""
        self.on_progress(self._done, self._total)
        if not self._waiting:
            return None
        job, again = self._waiting.pop(0)
        if again:
            self.study.add_attempt(job.number)
        else:
            self.study.add_job(job, None)
        return replace(job, resampled=self._score)

    def tell(self, job: Job, result: TrialResult) -> None:
        """Store a repeat; its weights are not kept."""
        self._store(checked(result, [each["name"] for each in self.study.meta("objectives")]))
        self._done += 1
        self.on_progress(self._done, self._total)

    def _store(self, result: TrialResult) -> None:
        bare = tuple(replace(candidate, checkpoint="") for candidate in result.candidates)
        if result.reason:
            self.reasons.append(result.reason)
        self.study.finish(
            replace(result, candidates=bare, checkpoints={}),
            elapsed=self.study.meta("seconds", 0.0),
            hypervolume=float("nan"),
        )

    def begin(self, chosen: Sequence[str]) -> None:
        """Note what was asked, and that the test split is read once more if anything is left to repeat."""
        before = self.study.meta("confirmed") or {}
        asked = {identity: max(self.seeds, before.get(identity, 0)) for identity in chosen}
        reads = self.study.meta("test_reads", 0) + bool(self._waiting)
        self.study.set_meta({"confirmed": {**before, **asked}, "test_reads": reads})

    def end(self) -> None:
        """Make sure that something came of it.

        Raises:
            SearchFailedError: Every repeat failed.
        """
        if not any(self.study.candidates_of(job.number) for job in self._repeats()):
            raise SearchFailedError(
                f"every repeat failed: {'; '.join(dict.fromkeys(self.reasons)) or 'no reason told'}"
            )

    def _repeats(self) -> list[Job]:
        return [trial.job for trial in self.study.stored_trials() if trial.job.role is Role.CONFIRM]
