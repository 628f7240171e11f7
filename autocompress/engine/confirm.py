"""Repeats of the top candidates from scratch with several seeds, after the front is frozen.

Finished repeats are stored: the same call resumes an interrupted one, and a larger call adds the missing repeats.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from autocompress.analysis.confirmation import select_for_confirmation
from autocompress.analysis.pareto import primary_objectives
from autocompress.analysis.selection import select_candidate
from autocompress.core.config import CompressionConfig, fingerprint
from autocompress.core.records import CompressionRecipe, Job, Role, State, TrialResult
from autocompress.engine.archive import INTERRUPTED_REASON, validate_result
from autocompress.engine.driver import MAX_ATTEMPTS
from autocompress.engine.runner import make_backend
from autocompress.engine.spec import Source, parse_spec
from autocompress.errors import SearchFailedError, UsageError
from autocompress.store.run_store import RunStore
from autocompress.trial.pipeline import Setup, load_pipeline, reproducible_torch
from autocompress.trial.runner import TrialRunner
from autocompress.trial.teacher import SerializedTeacher

Progress = Callable[[int, int], None]


def confirm_candidates(
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
        count: Number of candidates: the pick and its neighbours on the front, see :func:`select_for_confirmation`.
        seeds: Number of repeats of each candidate.
        candidates: Ids of the candidates to repeat instead.
        workers: Number of workers in place of the run's own.
        backend: Name of the backend in place of the run's own.
        on_progress: Receiver of the number of finished trials, and of all of them.

    Raises:
        UsageError: The search has not ended, or a candidate cannot be repeated.
        SearchFailedError: Every repeat failed.
    """
    if count < 1 or seeds < 1:
        raise UsageError(f"confirm needs at least one candidate and one seed, got top={count} and seeds={seeds}")
    with RunStore.open(folder) as store:
        if store.run_info().front is None:
            raise UsageError(
                f"the search in {folder} has not ended: confirm reads the test split, which is read only after the "
                "front is frozen; finish it with `autocompress search ... --resume`"
            )
        ids = list(candidates) or _select_candidates(store, count)
        source = _change_backend(store, workers, backend)
        setup = replace(Setup.from_json(store.run_info().setup), device=source.spec.search.training_device)
        pool = make_backend(source)
        repeats = Repeats(store, _load_configs(store, ids), seeds, on_progress)
        repeats.record_start(ids)
        with pool.open(folder):
            teacher = _serialize_teacher(setup) if pool.is_remote else None
            runner = TrialRunner(setup, pool.collect_plugins(setup.task.name), teacher)
            pool.prepare(runner)
            pool.run(repeats.ask, runner, repeats.tell)
        repeats.check_success()


def _serialize_teacher(setup: Setup) -> SerializedTeacher:
    """Return the teacher for machines that do not share this one's cache."""
    with reproducible_torch():
        return load_pipeline(setup).teacher.serialize()


def _select_candidates(store: RunStore, count: int) -> list[str]:
    table, info = store.candidate_table(), store.run_info()
    return select_for_confirmation(table, info, select_candidate(table, info).id, count)


def _load_configs(store: RunStore, ids: Sequence[str]) -> dict[str, CompressionConfig]:
    configs = {}
    for identity in ids:
        candidate = store.read_candidate(identity)
        if not candidate.complete:
            raise UsageError(f"'{identity}' was measured before its trial was complete: it cannot be repeated")
        configs[identity] = candidate.config
    return configs


def _change_backend(store: RunStore, workers: int | None, backend: str | None) -> Source:
    """Return the run's spec with another backend or number of workers."""
    # The settings of the run's own backend do not apply to another one.
    settings = ("address", "resources", "device")
    changes = [] if backend is None else [f"search.backend={backend}", *(f"search.{name}=null" for name in settings)]
    changes += [] if workers is None else [f"search.workers={workers}"]
    return parse_spec(store.run_info().spec, "spec.yaml", changes)


@dataclass
class Repeats:
    """Asks for the missing repeats and stores their results: the two callbacks of a backend.

    Candidates of the same trial share its repeats: one trial with all of their compression recipes.

    Args:
        store: The open store.
        configs: Config of each candidate by its id.
        seeds: Number of repeats of each candidate.
        on_progress: Receiver of the number of finished trials, and of all of them.
    """

    store: RunStore
    configs: Mapping[str, CompressionConfig]
    seeds: int
    on_progress: Progress = lambda done, total: None
    reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._score = primary_objectives(self.store.run_info().objectives)[1].name
        stored = self.store.read_trials()
        self._next = max((trial.job.number + 1 for trial in stored), default=0)
        self._waiting: list[tuple[Job, bool]] = []
        done: set[tuple[str, CompressionRecipe]] = set()
        for trial in stored:
            if trial.job.role is not Role.CONFIRM:
                continue
            # Without a result: another process was killed while the repeat was running.
            if trial.state is State.RUNNING and trial.attempts >= MAX_ATTEMPTS:
                self._store_result(TrialResult(trial.job.number, State.FAILED, reason=INTERRUPTED_REASON))
            elif trial.state is State.RUNNING:
                self._waiting.append((trial.job, True))
            done |= {(trial.job.training.fingerprint, recipe) for recipe in trial.job.recipes}
        self._waiting += [(job, False) for job in self._list_missing(done)]
        self._total, self._done = len(self._waiting), 0

    def _list_missing(self, done: set[tuple[str, CompressionRecipe]]) -> list[Job]:
        trials: dict[str, tuple[CompressionConfig, list[CompressionRecipe]]] = {}
        for config in self.configs.values():
            key = fingerprint(config.training.to_json_without_seed())
            recipes = trials.setdefault(key, (config.training, []))[1]
            recipes.append(CompressionRecipe(config.prune, config.quantize))
        jobs: list[Job] = []
        # One seed after the other: an interrupted confirmation then has some repeats of every candidate.
        for repeat in range(self.seeds):
            for key, (training, recipes) in trials.items():
                # The search derives its seeds from trial numbers, so these differ; they are equal in every call.
                seeded = replace(training, seed=int(fingerprint(["confirm", key, repeat]), 16) % 2**31)
                missing = tuple(recipe for recipe in dict.fromkeys(recipes) if (seeded.fingerprint, recipe) not in done)
                if missing:
                    jobs.append(Job(self._next + len(jobs), seeded, missing, Role.CONFIRM))
        return jobs

    def ask(self) -> Job | None:
        """Return the next repeat, or ``None`` when none is missing."""
        self.on_progress(self._done, self._total)
        if not self._waiting:
            return None
        job, is_retry = self._waiting.pop(0)
        if is_retry:
            self.store.add_attempt(job.number)
        else:
            self.store.add_job(job, None)
        return replace(job, resampled=self._score)

    def tell(self, job: Job, result: TrialResult) -> None:
        """Store the result of a repeat, without its weights."""
        self._store_result(validate_result(result, [objective.name for objective in self.store.run_info().objectives]))
        self._done += 1
        self.on_progress(self._done, self._total)

    def _store_result(self, result: TrialResult) -> None:
        bare = tuple(replace(candidate, checkpoint="") for candidate in result.candidates)
        if result.reason:
            self.reasons.append(result.reason)
        self.store.record_result(
            replace(result, candidates=bare, checkpoints={}),
            elapsed=self.store.run_info().seconds or 0.0,
            # A repeat is no part of the search's front.
            hypervolume=float("nan"),
        )

    def record_start(self, ids: Sequence[str]) -> None:
        """Record the requested repeats, and one more reading of the test split if any repeat is missing."""
        info = self.store.run_info()
        repeats = {identity: max(self.seeds, info.confirmed.get(identity, 0)) for identity in ids}
        reads = info.test_reads + bool(self._waiting)
        self.store.update_run_info(replace(info, confirmed={**info.confirmed, **repeats}, test_reads=reads))

    def check_success(self) -> None:
        """Check that at least one repeat gave a candidate.

        Raises:
            SearchFailedError: Every repeat failed.
        """
        if not any(self.store.read_trial_candidates(job.number) for job in self._list_repeats()):
            raise SearchFailedError(
                f"every repeat failed: {'; '.join(dict.fromkeys(self.reasons)) or 'no reason was recorded'}"
            )

    def _list_repeats(self) -> list[Job]:
        return [trial.job for trial in self.store.read_trials() if trial.job.role is Role.CONFIRM]
