"""Optuna behind one small class; what its samplers are worth is measured in test_sampler_regret."""

import sqlite3
from pathlib import Path

import pytest
from optuna.samplers import GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from autocompress.engine.sampler.optuna import OptunaSampler, make_sampler
from autocompress.store.run_store import RunStore


def proposer(folder: Path, sampler: str = "tpe", seed: int = 0) -> OptunaSampler:
    store = RunStore.create(folder, {"name": "x"})
    return OptunaSampler(store, "x", sampler, seed, ["maximize", "minimize"], ["accuracy", "cost"])


def drawn(found: OptunaSampler, number: int, attempt: int = 0) -> float:
    return found.ask(number, attempt).suggest_float("x", 0, 1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tpe", TPESampler), ("surrogate", TPESampler), ("gp", GPSampler), ("nsga2", NSGAIISampler),
        ("nsga3", NSGAIIISampler), ("random", RandomSampler),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_each_name_is_its_sampler(name: str, kind: type) -> None:
    assert type(make_sampler(name, 2**40 + 1)) is kind


def test_a_draw_follows_from_seed_job_and_attempt(tmp_path: Path) -> None:
    first = drawn(proposer(tmp_path / "a"), 3)
    assert drawn(proposer(tmp_path / "b"), 3) == first
    others = {
        drawn(proposer(tmp_path / "c"), 4),
        drawn(proposer(tmp_path / "d"), 3, attempt=1),
        drawn(proposer(tmp_path / "e", seed=1), 3),
    }
    assert len(others - {first}) == 3


def test_what_is_enqueued_comes_first_and_once(tmp_path: Path) -> None:
    found = proposer(tmp_path)
    found.enqueue({"x": 0.25})
    found.enqueue({"x": 0.25})
    assert found.has_enqueued_trial
    assert drawn(found, 0) == 0.25
    assert not found.has_enqueued_trial
    assert drawn(found, 1) != 0.25


def test_a_trial_is_told_once(tmp_path: Path) -> None:
    found = proposer(tmp_path)
    trial = found.ask(0)
    assert found.running_trials() == [0]
    found.tell(trial, [0.9, 4.0], {"bytes": -1.0})
    found.tell(0, [0.1, 9.0])
    found.tell(0, None)
    assert found.running_trials() == []
    assert found._study.trials[0].values == [0.9, 4.0]
    found.ask(1)
    found.fail_trial(1)
    assert found._study.trials[1].state is TrialState.FAIL


def test_optunas_own_tables_are_written_when_asked_for_and_when_something_is_new(tmp_path: Path) -> None:
    def told() -> int:
        with sqlite3.connect(tmp_path / "study.db") as disk:
            return int(disk.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone()[0])

    found = proposer(tmp_path)
    found.tell(found.ask(0), [0.9, 4.0])
    found.export_tables()
    assert told() == 1
    with sqlite3.connect(tmp_path / "study.db") as disk:
        disk.execute("DELETE FROM trials")
    found.export_tables()
    assert told() == 0
    found.tell(found.ask(1), [0.8, 3.0])
    found.export_tables()
    assert told() == 2
