"""Export of a study to Optuna's own tables in ``study.db``, for Optuna's tools; autocompress does not read them."""

import json
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import optuna
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState

from autocompress.errors import StorageError

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
        storage = optuna.storages.RDBStorage(f"sqlite:///{database.resolve()}")
        if name not in optuna.get_all_study_names(storage):
            optuna.create_study(storage=storage, study_name=name, directions=study.directions)
        study_id = storage.get_study_id_from_name(name)
        for key, value in study._storage.get_study_system_attrs(study._study_id).items():
            storage.set_study_system_attr(study_id, key, value)
        storage.engine.dispose()
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
