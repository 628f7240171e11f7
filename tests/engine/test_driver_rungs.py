"""Rungs, further cuts, modes: who goes on, and what is cut of whom."""

import json
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from autocompress.core.records import State, TrialResult
from autocompress.engine.modes import MODES
from autocompress.engine.space import open_space
from autocompress.engine.spec import parse_spec
from autocompress.store.run_store import Study
from tests.engine.driving import (
    CLIMB,
    FURTHER,
    SPEC,
    close,
    driver,
    finish,
    poor,
    states,
    table,
    whole_and_killed,
)
from tests.fakes import fake_result


@pytest.mark.parametrize(("last", "end"), [(True, "complete"), (False, "stopped")])
def test_the_last_of_the_hand_made_students_runs_to_its_end_however_poor(tmp_path: Path, last: bool, end: str) -> None:
    small = {"student.cnn.width": 4, "student.cnn.depth": 1, "distill": "none"}
    large = {"student.cnn.width": 64, "student.cnn.depth": 2, "distill": "none"}
    found = driver(
        tmp_path, *CLIMB, start=[small, large] if last else [small, large, {**small, "student.cnn.depth": 2}]
    )
    while (job := found.ask()) is not None:
        found.tell(job, poor(job))
    with Study.read(tmp_path) as study:
        trials = study.trials()
    ended = {json.loads(row.config)["student"]["cnn"]["width"]: row.state for row in trials.itertuples()}
    assert ended[64] == end


def test_trainings_pause_at_rungs_and_only_the_best_come_to_their_end(tmp_path: Path) -> None:
    jobs = finish(driver(tmp_path, *CLIMB))
    begun = [job for job in jobs if job.rung == 0]
    ended = [job for job in jobs if job.until is None]
    assert len(begun) == 18
    assert {job.until for job in begun} == {2}
    assert 2 <= len(ended) < 14
    # What an earlier segment left is what the next one goes on from.
    assert {job.paused for job in jobs if job.rung == 1} == {b"after 2"}
    assert {job.paused for job in ended} == {b"after 5"}
    assert states(tmp_path) == {"complete": len(ended), "stopped": 18 - len(ended)}
    assert not list((tmp_path / "paused").iterdir())


def test_only_complete_candidates_stand_on_the_front(tmp_path: Path) -> None:
    found = driver(tmp_path, *CLIMB)
    finish(found)
    rows = table(tmp_path).set_index("id")
    assert set(rows["complete"]) == {True, False}
    assert all(rows.loc[identity, "complete"] for identity, _, _ in found._archive.front())
    partial = rows[~rows["complete"]]
    assert set(partial["epochs"]) == {2, 5}
    assert all("r" in identity for identity in partial.index)


def test_the_sampler_learns_that_stopped_trainings_were_poor(tmp_path: Path) -> None:
    finish(driver(tmp_path, *CLIMB))
    study = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="x")
    told = [trial.state.name for trial in study.trials]
    assert set(told) == {"COMPLETE", "PRUNED"}
    assert told.count("PRUNED") == states(tmp_path)["stopped"]


@pytest.mark.parametrize("killed_after", [1, 4, 7, 15, 23])
def test_a_search_killed_among_rungs_goes_on_to_the_same_table(tmp_path: Path, killed_after: int) -> None:
    whole_and_killed(tmp_path, CLIMB, killed_after)
    assert states(tmp_path / "cut") == states(tmp_path / "whole")


def test_no_worker_waits_for_another(tmp_path: Path) -> None:
    found = driver(tmp_path, *CLIMB)
    slow = found.ask()
    assert slow is not None
    others = finish(found)
    assert len([job for job in others if job.rung == 0]) == 17
    assert [job for job in others if job.until is None]
    found.tell(slow, fake_result(slow))
    finish(found)
    assert sum(states(tmp_path).values()) == 18


def test_accuracy_alone_would_kill_the_small_students(tmp_path: Path) -> None:
    smallest = {}
    for rule in ("pareto_rank", "best_score"):
        finish(driver(tmp_path / rule, *CLIMB, f"search.promotion={rule}"))
        rows = table(tmp_path / rule)
        smallest[rule] = rows[rows["complete"]]["effective_flops"].min()
    assert smallest["pareto_rank"] < smallest["best_score"] / 4


def test_however_little_time_there_is_one_training_comes_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("autocompress.engine.driver.now", lambda: clock[0])
    found = driver(tmp_path, *CLIMB, "search.minutes=1")
    while (job := found.ask()) is not None:
        clock[0] += 50
        found.tell(job, replace(fake_result(job), seconds=50.0))
    assert states(tmp_path) == {"complete": 1}
    assert clock[0] == 150


def test_cuts_that_train_are_jobs_of_their_own_made_of_few_checkpoints(tmp_path: Path) -> None:
    jobs = finish(driver(tmp_path, *FURTHER))
    trainings = [job for job in jobs if job.base is None]
    further = [job for job in jobs if job.base is not None]
    assert len(trainings) == 6
    # Nothing that trains is cut at once.
    assert all(cut.prune is None for job in trainings for cut in job.cuts)
    assert 3 <= len(further) < 6 * 3
    rows = table(tmp_path)
    assert set(rows["prune.structured.pruning_ratio"].dropna()) == {0.25, 0.5}
    assert "lsq" in set(rows["quantize"])


def test_no_further_cuts_without_a_share_of_the_epochs(tmp_path: Path) -> None:
    assert all(job.base is None for job in finish(driver(tmp_path, *FURTHER, "search.refine=0")))


@pytest.mark.parametrize("killed_after", [1, 3, 5, 8])
def test_a_search_killed_among_further_cuts_goes_on_to_the_same_table(tmp_path: Path, killed_after: int) -> None:
    whole_and_killed(tmp_path, FURTHER, killed_after)


def test_random_trains_to_the_end_and_cuts_all(tmp_path: Path) -> None:
    jobs = finish(driver(tmp_path, "search.mode=random", "search.promotion=pareto_rank"))
    assert len(jobs) == 12
    assert {job.rung for job in jobs} == {None}
    assert {len(job.cuts) for job in jobs} == {3}


def test_sequential_chooses_an_architecture_then_a_pruning_then_bits(tmp_path: Path) -> None:
    jobs = finish(driver(tmp_path, *FURTHER, "search.mode=sequential"))
    trainings = [job for job in jobs if job.base is None]
    assert [len(job.cuts) for job in trainings] == [1] * 6
    further = jobs[6:]
    assert all(job.base is not None for job in further)
    prunings, quantizations = further[:2], further[2:]
    assert [cut.prune.values["pruning_ratio"] for job in prunings for cut in job.cuts if cut.prune] == [0.25, 0.5]
    assert len(quantizations) == 3
    rows = table(tmp_path).set_index("id")
    # One architecture: the cheapest that loses at most a point of the best score; then its cheapest pruning that does.
    whole = rows[rows["trial"] < 6]
    chosen = whole[whole["accuracy"] >= whole["accuracy"].max() - 0.01]["effective_flops"].idxmin()
    assert {job.base.checkpoint for job in prunings if job.base} == {f"t{whole.loc[chosen, 'trial']}p0.0"}
    assert len({job.base.checkpoint for job in quantizations if job.base}) == 1
    assert {job.cuts[0].quantize for job in quantizations if job.cuts[0].quantize} == {
        cut.quantize for cut in open_space(parse_spec(SPEC, "x", FURTHER)).cuts() if cut.quantize
    }


def test_a_sequential_search_goes_on_to_bits_where_a_pruning_fails(tmp_path: Path) -> None:
    found = driver(tmp_path, *FURTHER, "search.mode=sequential")
    finish(found, at_most=6)
    failed = found.ask()
    assert failed is not None
    assert failed.cuts[0].prune is not None
    found.tell(failed, TrialResult(failed.number, State.FAILED, reason="cannot be cut"))
    rest = finish(found)
    assert [job.cuts[0].quantize is None for job in rest] == [True, False, False, False]


@pytest.mark.parametrize("killed_after", [3, 6, 7, 8, 10])
def test_a_sequential_search_goes_on_where_it_was_killed(tmp_path: Path, killed_after: int) -> None:
    overrides = (*FURTHER, "search.mode=sequential")
    finish(driver(tmp_path / "whole", *overrides))
    first = driver(tmp_path / "cut", *overrides)
    finish(first, at_most=killed_after)
    close(first)
    finish(driver(tmp_path / "cut", *overrides))
    assert table(tmp_path / "cut").equals(table(tmp_path / "whole"))


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_leaves_a_space_that_can_be_searched(mode: str) -> None:
    space = MODES[mode].narrow(open_space(parse_spec(SPEC, "x", FURTHER)))
    cuts = space.cuts()
    assert cuts[0].prune is None
    if mode == "uniform_int8":
        (quantize,) = {cut.quantize for cut in cuts if cut.quantize}
        assert (quantize.values["weight_bits"], quantize.values["activation_bits"]) == (8, 8)
        assert all(cut.prune is None for cut in cuts)
    if mode == "no_distillation":
        assert set(space.sections["distill"]) == {"none"}
