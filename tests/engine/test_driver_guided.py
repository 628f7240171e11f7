"""Limits, and a search that a surrogate guides."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest

from autocompress.core.config import CompressionConfig
from autocompress.core.records import Cut, Job
from autocompress.engine.driver import Driver
from autocompress.engine.progress import Progress
from autocompress.engine.sampler.optuna import Proposer
from autocompress.engine.space import open_space
from autocompress.engine.spec import parse_spec
from autocompress.store.run_store import Study
from tests.engine.driving import (
    CLIMB,
    SPEC,
    cheap,
    close,
    driver,
    finish,
    heavy,
    table,
)
from tests.fakes import OBJECTIVES, fake_result


def test_limits_are_told_as_constraints(tmp_path: Path) -> None:
    source = parse_spec(SPEC, "x", ["search.trials=3"])
    study = Study.create(tmp_path, {})
    proposer = Proposer(study, "x", "tpe", 0, ["maximize", "minimize"], ["a", "b"])
    limits = {"effective_flops": {"max": 5e4}, "accuracy": {"min": 0.9}}
    finish(Driver(study, open_space(source), source.spec.search, proposer, OBJECTIVES, limits))
    told = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="x").trials
    for trial in told:
        width = trial.params["student.cnn.width"]
        assert trial.constraints["effective_flops max"] == pytest.approx(width**2 * 4 * 32 - 5e4)


def limited(folder: Path, most: float) -> Driver:
    source = parse_spec(SPEC, "x", ["search.trials=8"])
    study = Study.create(folder, {})
    proposer = Proposer(study, "x", "tpe", 0, ["maximize", "minimize"], ["a", "b"])

    def price(training: Any, cuts: Sequence[Any]) -> list[dict[str, float]]:
        return [dict(each.costs) for each in fake_result(Job(0, training, tuple(cuts))).candidates]

    limits = {"effective_flops": {"max": most}}
    return Driver(study, open_space(source), source.spec.search, proposer, OBJECTIVES, limits, price=price)


def test_what_breaks_a_limit_even_when_cut_is_never_trained(tmp_path: Path) -> None:
    jobs = finish(limited(tmp_path, 16**2 * 4 * 32))
    assert len(jobs) == 8
    assert all(job.training.student.values["width"] <= 16 for job in jobs)  # type: ignore[operator]
    study = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="x")
    refused = [trial for trial in study.trials if trial.state is optuna.trial.TrialState.PRUNED]
    assert refused
    assert all(trial.constraints["effective_flops max"] > 0 for trial in refused)


def test_a_limit_that_nothing_meets_ends_the_search(tmp_path: Path) -> None:
    found = limited(tmp_path, 1.0)
    assert finish(found) == []
    assert found.exhausted


GUIDED = (*CLIMB, "search.sampler=surrogate")
SMALL = {"student.cnn.width": 8, "student.cnn.depth": 1, "distill": "none"}
LARGE = {"student.cnn.width": 64, "student.cnn.depth": 2, "distill": "none"}


def guided(folder: Path, *overrides: str) -> Driver:
    return driver(folder, *GUIDED, *overrides, start=[SMALL, LARGE], price=cheap)


def test_a_guided_search_begins_by_hand_ends_with_what_is_like_the_teacher_and_keeps_its_budget(tmp_path: Path) -> None:
    jobs = finish(guided(tmp_path), run=heavy)
    trainings = {job.number: job.training for job in jobs}
    assert len(trainings) == 18
    assert trainings[0].student.values["width"] == 8
    with Study.read(tmp_path) as study:
        trials = study.trials()
    widths = {row.number: json.loads(row.config)["student"]["cnn"]["width"] for row in trials.itertuples()}
    (large,) = [number for number, width in widths.items() if width == 64][:1]
    assert trials.set_index("number")["state"][large] == "complete"
    # It costs as much as all others: it waits for them.
    assert large > 1
    assert set(trials["state"]) <= {"complete", "stopped"}


def test_a_guided_search_finds_more_than_one_that_draws(tmp_path: Path) -> None:
    """The better students of this made-up world are in the middle: 12 trainings of 122 students."""

    def found(name: str, *overrides: str) -> float:
        seen: list[Progress] = []
        folder = tmp_path / name
        source = driver(folder, *CLIMB, *overrides, "search.trials=12", start=[SMALL], price=cheap, seen=seen)
        finish(source, run=heavy)
        close(source)
        return seen[-1].hypervolume

    seeds = range(3)
    ours = [found(f"s{seed}", "search.sampler=surrogate", f"search.seed={seed}") for seed in seeds]
    chance = [found(f"r{seed}", "search.sampler=random", f"search.seed={seed}") for seed in seeds]
    assert sum(ours) > sum(chance)


@pytest.mark.parametrize("killed_after", [1, 9, 26])
def test_a_guided_search_goes_on_where_it_was_killed(tmp_path: Path, killed_after: int) -> None:
    whole = guided(tmp_path / "whole")
    finish(whole, run=heavy)
    close(whole)
    first = guided(tmp_path / "killed")
    finish(first, killed_after, heavy)
    assert first.ask() is not None
    close(first)
    second = guided(tmp_path / "killed")
    finish(second, run=heavy)
    close(second)
    assert table(tmp_path / "killed").equals(table(tmp_path / "whole"))


def test_a_guided_search_proposes_nothing_that_breaks_a_limit_twice(tmp_path: Path) -> None:
    source = parse_spec(SPEC, "x", [*GUIDED])
    study = Study.create(tmp_path, {"name": "x"})
    proposer = Proposer(study, "x", "surrogate", 0, ["maximize", "minimize"], ["accuracy", "log10 cost"])
    limits = {"effective_flops": {"max": 40.0**2 * 4 * 32}}

    def priced(training: CompressionConfig, cuts: Sequence[Cut]) -> list[dict[str, float]]:
        costs = cheap(training, cuts)[0]
        return [{"effective_flops": costs["effective_flops"] / 8}, costs] if len(cuts) > 1 else [costs]

    found = Driver(study, open_space(source), source.spec.search, proposer, OBJECTIVES, limits, [SMALL], price=priced)
    jobs = finish(found, run=heavy)
    assert jobs
    assert max(int(job.training.student.values["width"]) for job in jobs) <= 40  # type: ignore[arg-type]
