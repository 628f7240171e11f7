"""Early stopping, refinements and search modes."""

import json
import re
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from autocompress.core.records import State, TrialResult
from autocompress.engine.space import MODES, open_space
from autocompress.engine.spec import parse_spec
from autocompress.store.run_store import RunStore
from tests.engine.driving import (
    EARLY_STOPPING,
    REFINEMENTS,
    SPEC,
    build_driver,
    check_killed_search,
    close_store,
    count_states,
    fake_poor_result,
    read_candidates,
    run_search,
)
from tests.fakes import fake_result


@pytest.mark.slow
@pytest.mark.parametrize(("last", "end"), [(True, "complete"), (False, "stopped")])
def test_the_reference_trial_is_completed_whatever_its_rank(tmp_path: Path, last: bool, end: str) -> None:
    small = {"student.cnn.width": 4, "student.cnn.depth": 1, "distill": "none"}
    large = {"student.cnn.width": 64, "student.cnn.depth": 2, "distill": "none"}
    driver = build_driver(
        tmp_path, *EARLY_STOPPING, start=[small, large] if last else [small, large, {**small, "student.cnn.depth": 2}]
    )
    while (job := driver.ask()) is not None:
        driver.tell(job, fake_poor_result(job))
    with RunStore.read(tmp_path) as study:
        trials = study.trial_table()
    end_states = {json.loads(row.config)["student"]["cnn"]["width"]: row.state for row in trials.itertuples()}
    assert end_states[64] == end


def test_trials_pause_at_rungs_and_only_the_best_are_completed(tmp_path: Path) -> None:
    jobs = run_search(build_driver(tmp_path, *EARLY_STOPPING))
    started = [job for job in jobs if job.rung == 0]
    complete = [job for job in jobs if job.until is None]
    assert len(started) == 18
    assert {job.until for job in started} == {2}
    assert 2 <= len(complete) < 14
    # Each segment continues from the state that the one before has left.
    assert {job.paused for job in jobs if job.rung == 1} == {b"after 2"}
    assert {job.paused for job in complete} == {b"after 5"}
    assert count_states(tmp_path) == {"complete": len(complete), "stopped": 18 - len(complete)}
    with RunStore.read(tmp_path) as study:
        trials = study.trial_table()
    reasons = trials.loc[trials["state"] == "stopped", "reason"]
    assert all(re.match(r"at rung [12] \([25] epochs\): (ranked behind|not promoted)", reason) for reason in reasons)
    assert not list((tmp_path / "paused").iterdir())


def test_only_complete_candidates_stand_on_the_front(tmp_path: Path) -> None:
    driver = build_driver(tmp_path, *EARLY_STOPPING)
    run_search(driver)
    rows = read_candidates(tmp_path).set_index("id")
    assert set(rows["complete"]) == {True, False}
    assert all(rows.loc[identity, "complete"] for identity, _, _ in driver._archive.list_front())
    partial = rows[~rows["complete"]]
    assert set(partial["epochs"]) == {2, 5}
    assert all("r" in identity for identity in partial.index)


def test_the_sampler_is_told_that_stopped_trials_were_poor(tmp_path: Path) -> None:
    run_search(build_driver(tmp_path, *EARLY_STOPPING))
    study = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="x")
    states = [trial.state.name for trial in study.trials]
    assert set(states) == {"COMPLETE", "PRUNED"}
    assert states.count("PRUNED") == count_states(tmp_path)["stopped"]


@pytest.mark.slow
@pytest.mark.parametrize("killed_after", [1, 4, 7, 15, 23])
def test_a_killed_search_with_rungs_resumes_to_the_same_table(tmp_path: Path, killed_after: int) -> None:
    check_killed_search(tmp_path, EARLY_STOPPING, killed_after)
    assert count_states(tmp_path / "cut") == count_states(tmp_path / "whole")


@pytest.mark.slow
def test_no_worker_waits_for_another(tmp_path: Path) -> None:
    driver = build_driver(tmp_path, *EARLY_STOPPING)
    slow = driver.ask()
    assert slow is not None
    others = run_search(driver)
    assert len([job for job in others if job.rung == 0]) == 17
    assert [job for job in others if job.until is None]
    driver.tell(slow, fake_result(slow))
    run_search(driver)
    assert sum(count_states(tmp_path).values()) == 18


@pytest.mark.slow
def test_a_rule_of_accuracy_alone_stops_the_small_students(tmp_path: Path) -> None:
    smallest = {}
    for rule in ("pareto_rank", "best_score"):
        run_search(build_driver(tmp_path / rule, *EARLY_STOPPING, f"search.promotion={rule}"))
        rows = read_candidates(tmp_path / rule)
        smallest[rule] = rows[rows["complete"]]["effective_flops"].min()
    assert smallest["pareto_rank"] < smallest["best_score"] / 4


def test_one_trial_is_completed_however_short_the_time_limit_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("autocompress.engine.driver.monotonic_seconds", lambda: clock[0])
    driver = build_driver(tmp_path, *EARLY_STOPPING, "search.minutes=1")
    while (job := driver.ask()) is not None:
        clock[0] += 50
        driver.tell(job, replace(fake_result(job), seconds=50.0))
    assert count_states(tmp_path) == {"complete": 1}
    assert clock[0] == 150


def test_refinements_are_jobs_on_few_checkpoints(tmp_path: Path) -> None:
    jobs = run_search(build_driver(tmp_path, *REFINEMENTS))
    trials = [job for job in jobs if job.base is None]
    refinements = [job for job in jobs if job.base is not None]
    assert len(trials) == 6
    # No recipe that trains is applied at once.
    assert all(cut.prune is None for job in trials for cut in job.recipes)
    assert 3 <= len(refinements) < 6 * 3
    rows = read_candidates(tmp_path)
    assert set(rows["prune.structured.pruning_ratio"].dropna()) == {0.25, 0.5}
    assert "lsq" in set(rows["quantize"])


def test_no_refinements_without_a_share_of_the_epochs(tmp_path: Path) -> None:
    assert all(job.base is None for job in run_search(build_driver(tmp_path, *REFINEMENTS, "search.refine=0")))


@pytest.mark.slow
@pytest.mark.parametrize("killed_after", [1, 3, 5, 8])
def test_a_killed_search_with_refinements_resumes_to_the_same_table(tmp_path: Path, killed_after: int) -> None:
    check_killed_search(tmp_path, REFINEMENTS, killed_after)


def test_random_mode_stops_no_trial_and_applies_all_recipes(tmp_path: Path) -> None:
    jobs = run_search(build_driver(tmp_path, "search.mode=random", "search.promotion=pareto_rank"))
    assert len(jobs) == 12
    assert {job.rung for job in jobs} == {None}
    assert {len(job.recipes) for job in jobs} == {3}


@pytest.mark.slow
def test_sequential_mode_chooses_an_architecture_then_a_pruning_then_a_quantization(tmp_path: Path) -> None:
    jobs = run_search(build_driver(tmp_path, *REFINEMENTS, "search.mode=sequential"))
    trials = [job for job in jobs if job.base is None]
    assert [len(job.recipes) for job in trials] == [1] * 6
    refinements = jobs[6:]
    assert all(job.base is not None for job in refinements)
    prunings, quantizations = refinements[:2], refinements[2:]
    assert [cut.prune.values["pruning_ratio"] for job in prunings for cut in job.recipes if cut.prune] == [0.25, 0.5]
    assert len(quantizations) == 3
    rows = read_candidates(tmp_path).set_index("id")
    # One architecture: the cheapest that loses at most a point of the best score; then its cheapest pruning that does.
    whole = rows[rows["trial"] < 6]
    chosen = whole[whole["accuracy"] >= whole["accuracy"].max() - 0.01]["effective_flops"].idxmin()
    assert {job.base.checkpoint for job in prunings if job.base} == {f"t{whole.loc[chosen, 'trial']}p0.0"}
    assert len({job.base.checkpoint for job in quantizations if job.base}) == 1
    assert {job.recipes[0].quantize for job in quantizations if job.recipes[0].quantize} == {
        cut.quantize for cut in open_space(parse_spec(SPEC, "x", REFINEMENTS)).compression_grid() if cut.quantize
    }


def test_a_sequential_search_continues_with_quantization_where_a_pruning_fails(tmp_path: Path) -> None:
    driver = build_driver(tmp_path, *REFINEMENTS, "search.mode=sequential")
    run_search(driver, at_most=6)
    failed = driver.ask()
    assert failed is not None
    assert failed.recipes[0].prune is not None
    driver.tell(failed, TrialResult(failed.number, State.FAILED, reason="cannot be pruned"))
    rest = run_search(driver)
    assert [job.recipes[0].quantize is None for job in rest] == [True, False, False, False]


@pytest.mark.slow
@pytest.mark.parametrize("killed_after", [3, 6, 7, 8, 10])
def test_a_killed_sequential_search_resumes_to_the_same_table(tmp_path: Path, killed_after: int) -> None:
    overrides = (*REFINEMENTS, "search.mode=sequential")
    run_search(build_driver(tmp_path / "whole", *overrides))
    first = build_driver(tmp_path / "cut", *overrides)
    run_search(first, at_most=killed_after)
    close_store(first)
    run_search(build_driver(tmp_path / "cut", *overrides))
    assert read_candidates(tmp_path / "cut").equals(read_candidates(tmp_path / "whole"))


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_leaves_a_space_that_can_be_searched(mode: str) -> None:
    space = MODES[mode].restrict_space(open_space(parse_spec(SPEC, "x", REFINEMENTS)))
    recipes = space.compression_grid()
    assert recipes[0].prune is None
    if mode == "uniform_int8":
        (quantize,) = {recipe.quantize for recipe in recipes if recipe.quantize}
        assert (quantize.values["weight_bits"], quantize.values["activation_bits"]) == (8, 8)
        assert all(recipe.prune is None for recipe in recipes)
    if mode == "no_distillation":
        assert set(space.sections["distill"]) == {"none"}
