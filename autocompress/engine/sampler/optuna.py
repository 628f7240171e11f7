"""Optuna behind one small class that proposes configs and records their results.

Its storage lies in memory and is journaled in the run's own store. The study is exported to Optuna's own tables in
``study.db`` for Optuna's tools; autocompress does not read them.
"""

import json
import sqlite3
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import JsonValue
from sqlalchemy.pool import NullPool

from autocompress.core.config import fingerprint
from autocompress.core.knobs import Leaf
from autocompress.errors import StorageError
from autocompress.store.parts import dump_compact
from autocompress.store.run_store import DATABASE, RunStore

T = TypeVar("T")

#: The attributes and the intermediate values of trials that have none; Optuna copies them before it changes any.
NO_ATTRIBUTES: dict[str, Any] = {}
NO_VALUES: dict[int, float] = {}


class OptunaStorage(InMemoryStorage):
    """Optuna's storage in memory, whose changes are written in the transactions of the run's store.

    The sampler's part of a job is on disk if and only if the job is, and needs no write of its own. (Optuna's own
    tables took some thirty transactions for one trial, and each proposal read them all again; its journal stores the
    domain of every hyperparameter anew for every trial, which was a third of a driver's memory.)

    Args:
        store: The open store.
    """

    def __init__(self, store: RunStore) -> None:
        super().__init__()
        # One object for all equal distributions; its number is its place.
        self._distributions: list[BaseDistribution] = []
        self._numbers: dict[BaseDistribution, int] = {}
        # The distributions of a trial by name; most trials have those of another one.
        self._domains: dict[tuple[tuple[str, BaseDistribution], ...], dict[str, BaseDistribution]] = {}
        self._store: RunStore | None = None
        # By the first word of a journal entry; the words are stored.
        replays: Mapping[str, Callable[..., None]] = {
            "study": self._replay_study,
            "about": self.set_study_system_attr,
            "trial": self._replay_trial,
            "value": self._replay_param,
            "state": self._replay_state,
            "beside": self.set_trial_system_attr,
        }
        for entry in store.read_notes():
            # The lists that `_write_entry` wrote.
            assert isinstance(entry, list)
            name, *arguments = entry
            replays[str(name)](*arguments)
        # Only from here on are changes written.
        self._store = store

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Create a study; see Optuna's base class for this method and the following."""
        study_id = super().create_new_study(directions, study_name)
        self._write_entry("study", [int(direction) for direction in directions], study_name)
        return study_id

    # Optuna's own type of these values is private.
    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set an attribute of a study."""
        value = _round_trip(value)
        super().set_study_system_attr(study_id, key, value)
        self._write_entry("about", study_id, key, value)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial; of a template, only state, attributes and start are kept, which is all of an enqueued one."""
        trial_id = super().create_new_trial(study_id, template_trial)
        trial = self.get_trial(trial_id)
        trial.system_attrs = _round_trip(trial.system_attrs)
        self._write_entry("trial", study_id, int(trial.state), trial.system_attrs, _format_time(trial.datetime_start))
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Set the value of a hyperparameter and its distribution."""
        # Thousands of trials share the names and the distributions of a few hyperparameters.
        param_name = sys.intern(param_name)
        number = self._numbers.get(distribution)
        if number is not None:
            super().set_trial_param(trial_id, param_name, param_value_internal, self._distributions[number])
            self._write_entry("value", trial_id, param_name, param_value_internal, number)
            return
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        self._numbers[distribution] = len(self._distributions)
        self._distributions.append(distribution)
        # The text is written at the first use, the number afterwards.
        self._write_entry("value", trial_id, param_name, param_value_internal, distribution_to_json(distribution))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set state and values of a trial; return whether the state changed."""
        is_changed = super().set_trial_state_values(trial_id, state, values)
        trial = self.get_trial(trial_id)
        times = [_format_time(time) for time in (trial.datetime_start, trial.datetime_complete)]
        self._write_entry("state", trial_id, int(state), None if values is None else list(values), *times)
        return is_changed

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute of a trial, such as its constraints or its enqueued values."""
        value = _round_trip(value)
        super().set_trial_system_attr(trial_id, key, value)
        self._write_entry("beside", trial_id, key, value)

    def _set_trial(self, trial_id: int, trial: FrozenTrial) -> None:
        """Replace a trial. One that has ended takes half of the memory: Optuna never changes it again."""
        if trial.state.is_finished():
            domains = self._domains.setdefault((*trial.distributions.items(),), trial.distributions)
            trial = FrozenTrial(
                trial.number,
                trial.state,
                None,
                trial.datetime_start,
                trial.datetime_complete,
                trial.params,
                domains,
                trial.user_attrs or NO_ATTRIBUTES,
                trial.system_attrs or NO_ATTRIBUTES,
                trial.intermediate_values or NO_VALUES,
                trial_id,
                # By the constructor, because the attributes of a copy are kept in a dictionary of its own.
                values=trial.values,
            )
        super()._set_trial(trial_id, trial)

    # -- the journal --------------------------------------------------------------------------

    def _write_entry(self, *words: object) -> None:
        if self._store is not None:
            self._store.add_note(dump_compact(words))

    def _replay_study(self, directions: list[int], name: str) -> None:
        self.create_new_study([StudyDirection(direction) for direction in directions], name)

    def _replay_trial(self, study_id: int, state: int, attributes: dict[str, JsonValue], start: str | None) -> None:
        trial = self.get_trial(self.create_new_trial(study_id, None))
        trial.state, trial.system_attrs, trial.datetime_start = TrialState(state), attributes, _parse_time(start)

    def _replay_param(self, trial_id: int, name: str, value: float, entry: str | int) -> None:
        # Earlier versions wrote the text each time.
        distribution = json_to_distribution(entry) if isinstance(entry, str) else self._distributions[entry]
        self.set_trial_param(trial_id, name, value, distribution)

    def _replay_state(
        self, trial_id: int, state: int, values: list[float] | None, start: str | None, end: str | None
    ) -> None:
        self.set_trial_state_values(trial_id, TrialState(state), values)
        trial = self.get_trial(trial_id)
        trial.datetime_start, trial.datetime_complete = _parse_time(start), _parse_time(end)


def _round_trip(value: T) -> T:
    """Return a value as JSON gives it back, so that a running search and a resumed one see the same."""
    copy: T = json.loads(json.dumps(value))
    return copy


def _format_time(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def _parse_time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


_INSERTS = {
    "trials": "(trial_id, study_id, number, state, datetime_start, datetime_complete) VALUES (?, ?, ?, ?, ?, ?)",
    "trial_params": "(trial_id, param_name, param_value, distribution_json) VALUES (?, ?, ?, ?)",
    "trial_values": "(trial_id, objective, value, value_type) VALUES (?, ?, ?, 'FINITE')",
    "trial_system_attributes": "(trial_id, key, value_json) VALUES (?, ?, ?)",
}


def export_study(study: optuna.Study, database: Path) -> None:
    """Write a study as Optuna's storage for databases would, in one transaction.

    Optuna itself takes some ten milliseconds of processor time for a trial, and this a fraction of one.

    Raises:
        StorageError: No space is left, or the folder cannot be written.
    """
    name = study.study_name
    try:
        # Optuna creates the tables and the study, so they fit the installed version.
        # Without a pool, each connection is closed after its use, also where Optuna raises an exception.
        storage = optuna.storages.RDBStorage(f"sqlite:///{database.resolve()}", {"poolclass": NullPool})
        if name not in optuna.get_all_study_names(storage):
            optuna.create_study(storage=storage, study_name=name, directions=study.directions)
        study_id = storage.get_study_id_from_name(name)
        for key, value in study._storage.get_study_system_attrs(study._study_id).items():
            storage.set_study_system_attr(study_id, key, value)
        trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state is not TrialState.WAITING]
        _write_trials(database, study_id, trials)
    except Exception as fault:  # Of Optuna, SQLAlchemy or sqlite3; a search does not need these tables to go on.
        reason = str(fault.__cause__ or fault).partition("\n")[0] or type(fault).__name__
        if any(word in reason for word in ("full", "readonly", "disk I/O")):
            raise StorageError(f"cannot write {database} ({reason}); free some space, and run with --resume") from fault
        warnings.warn(f"Optuna's own tables were not written to {database}: {reason}", stacklevel=2)


def _write_trials(database: Path, study_id: int, trials: list[FrozenTrial]) -> None:
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        for table in reversed(_INSERTS):
            connection.execute(f"DELETE FROM {table}")
        for table, columns in _INSERTS.items():
            rows = (row for trial in trials for row in _list_rows(table, study_id, trial))
            connection.executemany(f"INSERT INTO {table} {columns}", rows)


def _list_rows(table: str, study_id: int, trial: FrozenTrial) -> Iterator[tuple[int | float | str | None, ...]]:
    trial_id = trial.number + 1
    if table == "trials":
        times = [None if time is None else str(time) for time in (trial.datetime_start, trial.datetime_complete)]
        yield (trial_id, study_id, trial.number, trial.state.name, *times)
    elif table == "trial_params":
        for name, value in trial.params.items():
            distribution = trial.distributions[name]
            yield trial_id, name, distribution.to_internal_repr(value), distribution_to_json(distribution)
    elif table == "trial_values":
        yield from ((trial_id, number, value) for number, value in enumerate(trial.values or ()))
    else:
        yield from ((trial_id, key, json.dumps(value)) for key, value in trial.system_attrs.items())


# Candidates that TPE scores for one proposal. More than Optuna's 24 pays in joint spaces: on NAS-Bench-201 the regret
# after 200 evaluations falls by a quarter (tests/engine/test_sampler_regret.py); with 256 it rises again.
TPE_CANDIDATES = 64


class OptunaSampler:
    """Ask and tell on an Optuna study that is in memory, and on disk in the run's store.

    Args:
        store: The open store of the run.
        name: Name of the study.
        sampler: ``surrogate``, ``tpe``, ``nsga2``, ``nsga3``, ``gp`` or ``random``.
        seed: Seed of the sampler, together with the number of each job, so a resumed search repeats its draws.
        directions: ``maximize`` or ``minimize`` for each objective.
        metric_names: Name of each objective for Optuna's own tools.
    """

    def __init__(
        self,
        store: RunStore,
        name: str,
        sampler: str,
        seed: int,
        directions: Sequence[Literal["maximize", "minimize"]],
        metric_names: Sequence[str],
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sampler = sampler
        self._seed = seed
        self._database = store.folder / DATABASE
        self._exported_trials = -1
        storage = OptunaStorage(store)
        with _ignore_experimental_warnings():
            if storage.get_all_studies():
                self._study = optuna.load_study(study_name=name, storage=storage)
            else:
                self._study = optuna.create_study(storage=storage, study_name=name, directions=list(directions))
                self._study.set_metric_names(list(metric_names))

    def enqueue(self, values: Mapping[str, Leaf]) -> None:
        """Enqueue sampler values; the next trial takes them before anything is sampled."""
        self._study.enqueue_trial(dict(values), skip_if_exists=True)

    def ask(self, number: int, attempt: int = 0) -> Trial:
        """Return an empty trial for job ``number``; further attempts at the same job draw differently."""
        with _ignore_experimental_warnings():
            # A sampler keeps no state outside its study, so a fresh one per job loses nothing. An enqueued trial needs
            # none, and the random one costs least.
            name = "random" if self.has_enqueued_trial else self._sampler
            self._study.sampler = make_sampler(name, int(fingerprint([self._seed, number, attempt]), 16))
            return self._study.ask()

    def tell(
        self,
        trial: int | Trial,
        values: Sequence[float] | None,
        constraints: Mapping[str, float] | None = None,
        *,
        stopped: bool = False,
    ) -> None:
        """Record a trial's values, or its failure; a trial that is finished already stays as it is.

        Args:
            trial: The trial or its number in the study.
            values: One value for each objective; ``None`` where the trial failed or was stopped early.
            constraints: Violation of each constraint by name; at most 0 is feasible.
            stopped: Whether a trial without values was stopped early and did not fail; TPE learns that it was poor.
        """
        if isinstance(trial, Trial):
            for name, violation in (constraints or {}).items():
                trial.set_constraint(name, violation)
        missing = TrialState.PRUNED if stopped else TrialState.FAIL
        state = TrialState.COMPLETE if values is not None else missing
        with _ignore_experimental_warnings():
            self._study.tell(trial, values, state=state, skip_if_finished=True)

    def export_tables(self) -> None:
        """Bring Optuna's own tables in ``study.db`` up to date, for Optuna's tools; autocompress does not read them.

        Raises:
            StorageError: No space is left, or the folder cannot be written.
        """
        finished = sum(trial.state.is_finished() for trial in self._study.get_trials(deepcopy=False))
        if finished == self._exported_trials:
            return
        with _ignore_experimental_warnings():
            export_study(self._study, self._database)
        self._exported_trials = finished

    @property
    def has_enqueued_trial(self) -> bool:
        """Whether enqueued values have not become a trial yet."""
        return bool(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def running_trials(self) -> list[int]:
        """Return the numbers of the trials without a result."""
        return [trial.number for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]

    def fail_trial(self, number: int) -> None:
        """Record a trial whose job was lost as failed."""
        self.tell(number, None)


def make_sampler(name: str, seed: int) -> BaseSampler:
    """Return Optuna's sampler of a name; for ``surrogate``, which falls back on it where it cannot predict, TPE."""
    seed %= 2**32
    if name in ("tpe", "surrogate"):
        return TPESampler(multivariate=True, group=True, constant_liar=True, n_ei_candidates=TPE_CANDIDATES, seed=seed)
    if name == "gp":
        return GPSampler(seed=seed, warn_independent_sampling=False)
    if name == "nsga2":
        return NSGAIISampler(seed=seed)
    return NSGAIIISampler(seed=seed) if name == "nsga3" else RandomSampler(seed=seed)


@contextmanager
def _ignore_experimental_warnings() -> Iterator[None]:
    """Silence Optuna's warnings of experimental features: this module uses them knowingly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
