"""Limits, and searches with the surrogate."""

import json
from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest

from autocompress.core.config import CompressionConfig
from autocompress.core.records import CompressionRecipe, Job
from autocompress.core.run_info import RunInfo
from autocompress.engine.archive import Progress
from autocompress.engine.driver import Driver
from autocompress.engine.sampler.optuna import OptunaSampler
from autocompress.engine.space import open_space
from autocompress.engine.spec import parse_spec
from autocompress.store.run_store import RunStore
from tests.engine.driving import (
    EARLY_STOPPING,
    SPEC,
    build_driver,
    close_store,
    estimate_costs,
    fake_costly_result,
    read_candidates,
    run_search,
)
from tests.fakes import OBJECTIVES, fake_result


def test_limits_are_told_to_the_sampler_as_constraints(tmp_path: Path) -> None:
    source = parse_spec(SPEC, "x", ["search.trials=3"])
    store = RunStore.create(tmp_path, RunInfo())
    sampler = OptunaSampler(store, "x", "tpe", 0, ["maximize", "minimize"], ["a", "b"])
    limits = {"effective_flops": {"max": 5e4}, "accuracy": {"min": 0.9}}
    run_search(Driver(store, open_space(source), source.spec.search, sampler, OBJECTIVES, limits))
    trials = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="x").trials
    for trial in trials:
        width = trial.params["student.cnn.width"]
        assert trial.constraints["effective_flops max"] == pytest.approx(width**2 * 4 * 32 - 5e4)


def build_limited_driver(folder: Path, most: float) -> Driver:
    source = parse_spec(SPEC, "x", ["search.trials=8"])
    store = RunStore.create(folder, RunInfo())
    sampler = OptunaSampler(store, "x", "tpe", 0, ["maximize", "minimize"], ["a", "b"])

    def estimate_costs_by_result(
        training: CompressionConfig, recipes: Sequence[CompressionRecipe]
    ) -> list[dict[str, float]]:
        return [dict(candidate.costs) for candidate in fake_result(Job(0, training, tuple(recipes))).candidates]

    limits = {"effective_flops": {"max": most}}
    return Driver(
        store,
        open_space(source),
        source.spec.search,
        sampler,
        OBJECTIVES,
        limits,
        estimate_costs=estimate_costs_by_result,
    )


@pytest.mark.slow
def test_configurations_that_cannot_meet_a_cost_limit_are_skipped(tmp_path: Path) -> None:
    jobs = run_search(build_limited_driver(tmp_path, 16**2 * 4 * 32))
    assert len(jobs) == 8
    assert all(job.training.student.values["width"] <= 16 for job in jobs)  # type: ignore[operator]
    study = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="x")
    refused = [trial for trial in study.trials if trial.state is optuna.trial.TrialState.PRUNED]
    assert refused
    assert all(trial.constraints["effective_flops max"] > 0 for trial in refused)


@pytest.mark.slow
def test_a_limit_that_no_configuration_meets_ends_the_search(tmp_path: Path) -> None:
    driver = build_limited_driver(tmp_path, 1.0)
    assert run_search(driver) == []
    assert driver.exhausted


SURROGATE = (*EARLY_STOPPING, "search.sampler=surrogate")
SMALL = {"student.cnn.width": 8, "student.cnn.depth": 1, "distill": "none"}
LARGE = {"student.cnn.width": 64, "student.cnn.depth": 2, "distill": "none"}


def build_guided_driver(folder: Path, *overrides: str) -> Driver:
    return build_driver(folder, *SURROGATE, *overrides, start=[SMALL, LARGE], price=estimate_costs)


@pytest.mark.slow
def test_a_surrogate_search_starts_with_the_initial_trial_completes_the_reference_trial_and_keeps_its_budget(
    tmp_path: Path,
) -> None:
    jobs = run_search(build_guided_driver(tmp_path), run=fake_costly_result)
    configs = {job.number: job.training for job in jobs}
    assert len(configs) == 18
    assert configs[0].student.values["width"] == 8
    with RunStore.read(tmp_path) as study:
        trials = study.trial_table()
    widths = {row.number: json.loads(row.config)["student"]["cnn"]["width"] for row in trials.itertuples()}
    (large,) = [number for number, width in widths.items() if width == 64][:1]
    assert trials.set_index("number")["state"][large] == "complete"
    # It costs as much as all others: it waits for them.
    assert large > 1
    assert set(trials["state"]) <= {"complete", "stopped"}


@pytest.mark.slow
def test_a_surrogate_search_finds_more_than_a_random_one(tmp_path: Path) -> None:
    """Here the better students are those of medium width: 12 trials of 122 students."""

    def search_hypervolume(name: str, *overrides: str) -> float:
        seen: list[Progress] = []
        folder = tmp_path / name
        source = build_driver(
            folder, *EARLY_STOPPING, *overrides, "search.trials=12", start=[SMALL], price=estimate_costs, seen=seen
        )
        run_search(source, run=fake_costly_result)
        close_store(source)
        return seen[-1].hypervolume

    seeds = range(2)
    ours = [search_hypervolume(f"s{seed}", "search.sampler=surrogate", f"search.seed={seed}") for seed in seeds]
    chance = [search_hypervolume(f"r{seed}", "search.sampler=random", f"search.seed={seed}") for seed in seeds]
    assert sum(ours) > sum(chance)


@pytest.mark.slow
@pytest.mark.parametrize("killed_after", [1, 9, 26])
def test_a_killed_surrogate_search_resumes_to_the_same_table(tmp_path: Path, killed_after: int) -> None:
    whole = build_guided_driver(tmp_path / "whole")
    run_search(whole, run=fake_costly_result)
    close_store(whole)
    first = build_guided_driver(tmp_path / "killed")
    run_search(first, killed_after, fake_costly_result)
    assert first.ask() is not None
    close_store(first)
    second = build_guided_driver(tmp_path / "killed")
    run_search(second, run=fake_costly_result)
    close_store(second)
    assert read_candidates(tmp_path / "killed").equals(read_candidates(tmp_path / "whole"))


@pytest.mark.slow
def test_a_surrogate_search_skips_configurations_that_cannot_meet_a_limit(tmp_path: Path) -> None:
    source = parse_spec(SPEC, "x", [*SURROGATE])
    store = RunStore.create(tmp_path, RunInfo(name="x"))
    sampler = OptunaSampler(store, "x", "surrogate", 0, ["maximize", "minimize"], ["accuracy", "log10 cost"])
    limits = {"effective_flops": {"max": 40.0**2 * 4 * 32}}

    def estimate_two_costs(training: CompressionConfig, recipes: Sequence[CompressionRecipe]) -> list[dict[str, float]]:
        costs = estimate_costs(training, recipes)[0]
        return [{"effective_flops": costs["effective_flops"] / 8}, costs] if len(recipes) > 1 else [costs]

    driver = Driver(
        store,
        open_space(source),
        source.spec.search,
        sampler,
        OBJECTIVES,
        limits,
        [SMALL],
        estimate_costs=estimate_two_costs,
    )
    jobs = run_search(driver, run=fake_costly_result)
    assert jobs
    assert max(int(job.training.student.values["width"]) for job in jobs) <= 40  # type: ignore[arg-type]
