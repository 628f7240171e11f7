import sqlite3
from pathlib import Path

import optuna
import pytest

from autocompress.engine.sampler.optuna_export import export_study
from autocompress.errors import StorageError


def study() -> optuna.Study:
    found = optuna.create_study(study_name="x", directions=["maximize", "minimize"])
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        found.set_metric_names(["accuracy", "cost"])
    found.enqueue_trial({"width": 3})
    for values in ([0.5, 2.0], [0.25, 1.0], None):
        trial = found.ask()
        trial.suggest_int("width", 1, 9)
        trial.suggest_float("rate", 1e-3, 1.0, log=True)
        trial.suggest_categorical("kind", ["plain", None])
        state = optuna.trial.TrialState.FAIL if values is None else None
        found.tell(trial, values, state=state)
    found.ask()
    return found


def test_optunas_tools_read_the_same_study_however_often_it_was_written(tmp_path: Path) -> None:
    ours = study()
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


def test_what_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise sqlite3.OperationalError(words)

    monkeypatch.setattr("autocompress.engine.sampler.optuna_export._write_trials", broken)
    words = "database or disk is full"
    with pytest.raises(StorageError, match="free some space"):
        export_study(study(), tmp_path / "study.db")
    # Tables that a later Optuna lays out otherwise are no reason to lose a search.
    words = "table trials has no column named number"
    with pytest.warns(UserWarning, match="Optuna's own tables were not written"):
        export_study(study(), tmp_path / "study.db")
