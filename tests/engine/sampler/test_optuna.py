"""Ask and tell of Optuna's samplers; test_sampler_regret measures their quality."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from optuna.samplers import GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from autocompress.core.run_info import RunInfo
from autocompress.engine.sampler.optuna import OptunaSampler, make_sampler
from autocompress.store.run_store import RunStore


def make_optuna_sampler(folder: Path, name: str = "tpe", seed: int = 0) -> OptunaSampler:
    store = RunStore.create(folder, RunInfo(name="x"))
    return OptunaSampler(store, "x", name, seed, ["maximize", "minimize"], ["accuracy", "cost"])


def draw(sampler: OptunaSampler, number: int, attempt: int = 0) -> float:
    return sampler.ask(number, attempt).suggest_float("x", 0, 1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tpe", TPESampler), ("surrogate", TPESampler), ("gp", GPSampler), ("nsga2", NSGAIISampler),
        ("nsga3", NSGAIIISampler), ("random", RandomSampler),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_sampler_by_name(name: str, kind: type) -> None:
    assert type(make_sampler(name, 2**40 + 1)) is kind


def test_draw_depends_on_seed_job_and_attempt(tmp_path: Path) -> None:
    first = draw(make_optuna_sampler(tmp_path / "a"), 3)
    assert draw(make_optuna_sampler(tmp_path / "b"), 3) == first
    others = {
        draw(make_optuna_sampler(tmp_path / "c"), 4),
        draw(make_optuna_sampler(tmp_path / "d"), 3, attempt=1),
        draw(make_optuna_sampler(tmp_path / "e", seed=1), 3),
    }
    assert len(others - {first}) == 3


def test_enqueued_values_come_first_and_once(tmp_path: Path) -> None:
    sampler = make_optuna_sampler(tmp_path)
    sampler.enqueue({"x": 0.25})
    sampler.enqueue({"x": 0.25})
    assert sampler.has_enqueued_trial
    assert draw(sampler, 0) == 0.25
    assert not sampler.has_enqueued_trial
    assert draw(sampler, 1) != 0.25


def test_first_result_of_a_trial_counts(tmp_path: Path) -> None:
    sampler = make_optuna_sampler(tmp_path)
    trial = sampler.ask(0)
    assert sampler.running_trials() == [0]
    sampler.tell(trial, [0.9, 4.0], {"bytes": -1.0})
    sampler.tell(0, [0.1, 9.0])
    sampler.tell(0, None)
    assert sampler.running_trials() == []
    assert sampler._study.trials[0].values == [0.9, 4.0]
    sampler.ask(1)
    sampler.fail_trial(1)
    assert sampler._study.trials[1].state is TrialState.FAIL


def test_tables_are_exported_on_request_and_only_after_new_results(tmp_path: Path) -> None:
    def count_complete() -> int:
        with closing(sqlite3.connect(tmp_path / "study.db")) as disk:
            return int(disk.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone()[0])

    sampler = make_optuna_sampler(tmp_path)
    sampler.tell(sampler.ask(0), [0.9, 4.0])
    sampler.export_tables()
    assert count_complete() == 1
    with closing(sqlite3.connect(tmp_path / "study.db")) as disk, disk:
        disk.execute("DELETE FROM trials")
    sampler.export_tables()
    assert count_complete() == 0
    sampler.tell(sampler.ask(1), [0.8, 3.0])
    sampler.export_tables()
    assert count_complete() == 2
