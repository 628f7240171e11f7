"""The budget, the sampler, what survives a kill, results that are no numbers."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from autocompress.core.records import State, TrialResult
from autocompress.engine.driver import HOPELESS, Driver
from autocompress.engine.progress import Progress
from autocompress.engine.result_validation import checked
from autocompress.engine.sampler.optuna import Proposer
from autocompress.engine.space import open_space
from autocompress.engine.spec import parse_spec
from autocompress.store.run_store import Study
from tests.engine.driving import SPEC, close, driver, finish, states, table
from tests.fakes import OBJECTIVES, fake_result


def test_the_budget_in_trials_is_kept_and_every_candidate_stored(tmp_path: Path) -> None:
    seen: list[Progress] = []
    found = driver(tmp_path, seen=seen)
    jobs = finish(found)
    assert len(jobs) == 12
    assert all(len(job.cuts) == 3 for job in jobs)
    assert len(table(tmp_path)) == 36
    assert seen[-1].done == 12
    assert seen[-1].running == 0
    assert seen[-1].hypervolume > 0
    volumes = [progress.hypervolume for progress in seen]
    assert volumes == sorted(volumes)


def test_the_sampler_is_told_the_uncut_parent_once_per_training(tmp_path: Path) -> None:
    jobs = finish(driver(tmp_path))
    study = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="x")
    with Study.read(tmp_path) as stored:
        numbers = [trial.optuna for trial in stored.stored_trials()]
    assert len(set(numbers)) == 12
    for job, number in zip(jobs, numbers, strict=True):
        assert number is not None
        trial = study.trials[number]
        parent = fake_result(job).candidates[0]
        assert trial.values[0] == pytest.approx(parent.scores["search_val"]["accuracy"])
        assert trial.values[1] == pytest.approx(math.log10(parent.costs["effective_flops"]))


def test_the_same_search_seed_gives_the_same_table_and_another_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        finish(driver(tmp_path / name, f"search.seed={seed}"))
    a, b, c = (table(tmp_path / name) for name in "abc")
    assert a.equals(b)
    assert not a.equals(c)


def test_each_training_has_its_own_seed(tmp_path: Path) -> None:
    assert len({job.training.seed for job in finish(driver(tmp_path))}) == 12


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "gp", "random"])
def test_every_sampler_proposes(tmp_path: Path, sampler: str) -> None:
    assert len(finish(driver(tmp_path, f"search.sampler={sampler}", "search.trials=4"))) == 4


def test_sampled_mode_gives_one_candidate_a_trial_and_varies_the_cut(tmp_path: Path) -> None:
    jobs = finish(driver(tmp_path, "search.mode=sampled", "search.trials=20"))
    assert all(len(job.cuts) == 1 for job in jobs)
    assert len({job.cuts for job in jobs}) == 3


def test_hand_made_values_come_first(tmp_path: Path) -> None:
    start = {"student.cnn.width": 32, "student.cnn.depth": 2, "distill": "none"}
    jobs = finish(driver(tmp_path, start=[start]), at_most=2)
    assert jobs[0].training.student.values["width"] == 32
    assert jobs[0].training.distill[0].name == "none"


def test_duplicates_are_not_trained_again_and_an_exhausted_space_ends_the_search(tmp_path: Path) -> None:
    found = driver(tmp_path, "student.cnn.width=[4, 8]", "distill=none")
    jobs = finish(found)
    assert len(jobs) == len({str(job.training.unseeded()) for job in jobs}) == 4
    assert found.exhausted
    study = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="x")
    assert len([t for t in study.trials if t.state is optuna.trial.TrialState.COMPLETE]) > 4


def test_a_duplicate_of_a_running_training_is_answered_when_that_finishes(tmp_path: Path) -> None:
    found = driver(tmp_path, "student.cnn.width=[4, 8]", "student.cnn.depth=1", "distill=none")
    first, second = found.ask(), found.ask()
    assert first is not None
    assert second is not None
    assert found.ask() is None
    study = found._proposer._study
    assert not [t for t in study.trials if t.state is optuna.trial.TrialState.COMPLETE]
    found.tell(first, fake_result(first))
    found.tell(second, fake_result(second))
    assert {t.state for t in study.trials} == {optuna.trial.TrialState.COMPLETE}


def test_a_time_budget_stops_before_a_training_would_end_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("autocompress.engine.driver.now", lambda: clock[0])
    found = driver(tmp_path, "search.minutes=1")
    count = 0
    while (job := found.ask()) is not None:
        clock[0] += 25
        found.tell(job, replace(fake_result(job), seconds=25.0))
        count += 1
    assert count == 2


@pytest.mark.parametrize("killed_after", [0, 1, 5, 11])
def test_a_killed_search_goes_on_to_the_same_table(tmp_path: Path, killed_after: int) -> None:
    finish(driver(tmp_path / "whole"))
    first = driver(tmp_path / "cut")
    finish(first, at_most=killed_after)
    lost = first.ask()
    close(first)
    second = driver(tmp_path / "cut")
    again = second.ask()
    assert again == lost
    assert again is not None
    second.tell(again, fake_result(again))
    finish(second)
    assert table(tmp_path / "cut").equals(table(tmp_path / "whole"))
    study = optuna.load_study(storage=f"sqlite:///{tmp_path}/cut/study.db", study_name="x")
    assert not [t for t in study.trials if not t.state.is_finished()]


def test_a_crash_between_store_and_sampler_is_mended(tmp_path: Path) -> None:
    first = driver(tmp_path)
    job = first.ask()
    assert job is not None
    first._study.finish(fake_result(job), elapsed=1.0, hypervolume=0.5)
    close(first)
    finish(driver(tmp_path))
    study = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="x")
    assert {t.state.name for t in study.trials} == {"COMPLETE"}


def test_a_crash_before_the_job_was_stored_asks_the_same_again_hand_made_values_included(tmp_path: Path) -> None:
    start = {"student.cnn.width": 32, "student.cnn.depth": 2, "distill": "none"}
    first = driver(tmp_path, start=[start])
    first._proposer.ask(0)
    close(first)
    job = driver(tmp_path, start=[start]).ask()
    assert job is not None
    assert job.number == 0
    assert job.training.student.values["width"] == 32


def test_a_training_that_was_interrupted_twice_is_given_up(tmp_path: Path) -> None:
    for _ in range(2):
        found = driver(tmp_path)
        assert found.ask() is not None
        close(found)
    found = driver(tmp_path)
    following = found.ask()
    assert following is not None
    assert following.number == 1
    with Study.read(tmp_path) as study:
        row = study.trials().iloc[0]
    assert row["state"] == "failed"
    assert row["reason"] == "interrupted twice"


def test_drivers_that_are_killed_again_and_again_do_not_end_a_search_whose_trainings_are_sound(tmp_path: Path) -> None:
    for _ in range(2 * HOPELESS + 2):
        found = driver(tmp_path)
        assert found.ask() is not None
        close(found)
    found = driver(tmp_path)
    assert not found.hopeless
    finish(found)
    with Study.read(tmp_path) as study:
        states = study.trials()["state"]
    assert (states == "failed").sum() > HOPELESS
    assert (states == "complete").any()


def test_a_search_in_which_nothing_works_ends_early(tmp_path: Path) -> None:
    found = driver(tmp_path, "search.trials=100")
    count = 0
    while (job := found.ask()) is not None:
        found.tell(job, TrialResult(job.number, State.FAILED, reason="no luck"))
        count += 1
    assert count == HOPELESS
    assert found.hopeless


def test_more_trials_go_on_where_fewer_ended(tmp_path: Path) -> None:
    first = driver(tmp_path, "search.trials=5")
    finish(first)
    close(first)
    assert [job.number for job in finish(driver(tmp_path, "search.trials=8"))] == [5, 6, 7]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), None, "0.9"])
def test_results_that_are_not_finite_numbers_never_reach_the_front(tmp_path: Path, bad: Any) -> None:
    found = driver(tmp_path)
    job = found.ask()
    assert job is not None
    good, poor, *_ = fake_result(job).candidates
    broken = replace(poor, scores={"search_val": {"accuracy": bad}, "select_val": {"accuracy": 0.5}})
    costly = replace(poor, id="t0c9", costs={"effective_flops": bad})
    result = checked(TrialResult(0, State.COMPLETE, (good, broken, costly)))
    assert result.candidates == (good,)
    assert "2 candidates" in result.reason
    assert checked(TrialResult(0, State.COMPLETE, (broken,))).state is State.FAILED
    found.tell(job, TrialResult(0, State.COMPLETE, (good, broken)))
    assert list(table(tmp_path)["id"]) == ["t0c0"]


@pytest.mark.parametrize("rungs", ["always", "pareto_rank"])
def test_a_candidate_without_an_objective_is_left_out_at_any_rung(tmp_path: Path, rungs: str) -> None:
    found = driver(tmp_path, f"search.promotion={rungs}")
    job = found.ask()
    assert job is not None
    result = fake_result(job)
    good, poor, *_ = result.candidates
    blank = replace(poor, costs={})
    other = replace(poor, id="t0c9", scores={"search_val": {"agreement": 1.0}})
    found.tell(job, replace(result, candidates=(good, blank, other)))
    with Study.read(tmp_path) as study:
        assert study.trials()["reason"].tolist() == ["candidates had no accuracy, effective_flops"]
    assert list(table(tmp_path)["id"]) == [good.id]
    job = found.ask()
    assert job is not None
    found.tell(job, replace(fake_result(job), candidates=(replace(good, id="t1c0", costs={}),)))
    with Study.read(tmp_path) as study:
        assert study.trials()["state"].tolist()[job.number] == "failed"


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "gp", "random"])
@pytest.mark.parametrize("promotion", ["always", "best_score", "pareto_rank"])
@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
def test_an_objective_that_never_varies_leaves_the_other_to_choose_by(
    tmp_path: Path, sampler: str, promotion: str
) -> None:
    found = driver(tmp_path, f"search.sampler={sampler}", f"search.promotion={promotion}", "search.trials=14")
    while (job := found.ask()) is not None:
        result = fake_result(job)
        flat = [replace(each, scores={s: {"accuracy": 0.5} for s in each.scores}) for each in result.candidates]
        found.tell(job, replace(result, candidates=tuple(flat)))
    rows = table(tmp_path)
    assert set(rows["accuracy"]) == {0.5}
    complete = rows[rows["complete"]]
    assert len(complete)
    # One point is left of a front: the cheapest.
    assert found._archive.front()[0][2] == complete["effective_flops"].min()
    assert len(found._archive.front()) == 1


def test_a_reference_inside_the_front_counts_nothing_beyond_it_and_the_search_goes_on(tmp_path: Path) -> None:
    source = parse_spec(SPEC, "x", ["search.promotion=pareto_rank"])
    study = Study.create(tmp_path, {})
    proposer = Proposer(study, "x", "tpe", 0, ["maximize", "minimize"], ["a", "b"])
    # No student is as good as the worst that counts.
    box = [{**OBJECTIVES[0], "box": [0.999, 1.0]}, OBJECTIVES[1]]
    found = Driver(study, open_space(source), source.spec.search, proposer, box, {})
    jobs = finish(found)
    assert len({job.number for job in jobs if job.base is None}) == 12
    assert found._archive.hypervolume == 0.0
    assert len(found._archive.front()) > 1
    close(found)


@pytest.mark.parametrize("trials", [1, 2])
def test_fewer_trainings_than_any_start_up_still_come_to_their_end(tmp_path: Path, trials: int) -> None:
    found = driver(tmp_path, f"search.trials={trials}", "search.promotion=pareto_rank")
    finish(found)
    complete = table(tmp_path)["complete"]
    assert complete.any()


def test_a_training_that_was_cancelled_as_often_as_it_likes_has_not_failed(tmp_path: Path) -> None:
    for _ in range(4):
        found = driver(tmp_path)
        job = found.ask()
        assert job is not None
        assert job.number == 0
        found.leave()
        close(found)
    finish(driver(tmp_path))
    assert states(tmp_path) == {"complete": 12}
