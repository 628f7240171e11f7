import sqlite3
from contextlib import nullcontext
from pathlib import Path

import optuna
import pytest

from autocompress.engine.sampler.optuna import export_study
from autocompress.errors import StorageError


def make_study() -> optuna.Study:
    study = optuna.create_study(study_name="x", directions=["maximize", "minimize"])
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study.set_metric_names(["accuracy", "cost"])
    study.enqueue_trial({"width": 3})
    for values in ([0.5, 2.0], [0.25, 1.0], None):
        trial = study.ask()
        trial.suggest_int("width", 1, 9)
        trial.suggest_float("rate", 1e-3, 1.0, log=True)
        trial.suggest_categorical("kind", ["plain", None])
        state = optuna.trial.TrialState.FAIL if values is None else None
        study.tell(trial, values, state=state)
    study.ask()
    return study


def test_optuna_reads_the_same_study_after_repeated_exports(tmp_path: Path) -> None:
    ours = make_study()
    for _ in range(2):
        export_study(ours, tmp_path / "study.db")
    theirs = optuna.load_study(study_name="x", storage=f"sqlite:///{tmp_path}/study.db")
    assert theirs.directions == ours.directions
    assert theirs.metric_names == ["accuracy", "cost"]
    for one, other in zip(ours.trials, theirs.trials, strict=True):
        assert one.number == other.number
        assert one.state == other.state
        assert one.params == other.params
        assert one.distributions == other.distributions
        assert one.values == other.values
        assert one.system_attrs == other.system_attrs
        assert one.datetime_complete == other.datetime_complete


def test_failed_export_is_an_error_only_if_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError(message)

    monkeypatch.setattr("autocompress.engine.sampler.optuna._write_trials", fail)
    message = "database or disk is full"
    with pytest.raises(StorageError, match="free some space"):
        export_study(make_study(), tmp_path / "study.db")
    # A later Optuna may change its tables, which must not end a search.
    message = "table trials has no column named number"
    with pytest.warns(UserWarning, match="Optuna's own tables were not written"):
        export_study(make_study(), tmp_path / "study.db")


@pytest.mark.parametrize("content", [b"", b"no database"])
def test_an_export_closes_each_connection(tmp_path: Path, open_connections: set[int], content: bytes) -> None:
    (tmp_path / "study.db").write_bytes(content)
    with pytest.warns(UserWarning, match="not a database") if content else nullcontext():
        export_study(make_study(), tmp_path / "study.db")
    assert not open_connections
