"""Budget, sampler, resume after a kill, and invalid results."""

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from autocompress.core.records import Job, State, TrialResult
from autocompress.core.run_info import RunInfo
from autocompress.engine.archive import Progress, validate_result
from autocompress.engine.driver import (
    MAX_INITIAL_FAILURES,
    TIME_SAFETY_FACTOR,
    Driver,
    SamplerFeedback,
    TimeBudget,
)
from autocompress.engine.sampler.optuna import OptunaSampler
from autocompress.engine.space import open_space
from autocompress.engine.spec import parse_spec
from autocompress.store.control import cancel_pause, request_pause
from autocompress.store.run_store import RunStore
from tests.engine.driving import REFINEMENTS, SPEC, build_driver, close_store, count_states, read_candidates, run_search
from tests.fakes import OBJECTIVES, fake_result


def test_the_budget_in_trials_is_kept_and_every_candidate_stored(tmp_path: Path) -> None:
    seen: list[Progress] = []
    driver = build_driver(tmp_path, seen=seen)
    jobs = run_search(driver)
    assert len(jobs) == 12
    assert all(len(job.recipes) == 3 for job in jobs)
    assert len(read_candidates(tmp_path)) == 36
    assert seen[-1].done == 12
    assert seen[-1].running == 0
    assert seen[-1].hypervolume > 0
    volumes = [progress.hypervolume for progress in seen]
    assert volumes == sorted(volumes)


def test_the_sampler_is_told_the_uncompressed_candidate_once_per_trial(tmp_path: Path) -> None:
    jobs = run_search(build_driver(tmp_path))
    study = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="x")
    with RunStore.read(tmp_path) as stored:
        numbers = [trial.optuna for trial in stored.read_trials()]
    assert len(set(numbers)) == 12
    for job, number in zip(jobs, numbers, strict=True):
        assert number is not None
        trial = study.trials[number]
        parent = fake_result(job).candidates[0]
        assert trial.values[0] == pytest.approx(parent.scores["search_val"]["accuracy"])
        assert trial.values[1] == pytest.approx(math.log10(parent.costs["effective_flops"]))


@pytest.mark.slow
def test_the_same_search_seed_gives_the_same_table_and_another_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run_search(build_driver(tmp_path / name, f"search.seed={seed}"))
    a, b, c = (read_candidates(tmp_path / name) for name in "abc")
    assert a.equals(b)
    assert not a.equals(c)


FEATURE_TERM = "distill.relational={angle_weight: {low: 1, high: 40}}"


@pytest.mark.parametrize("mode", ["amortized", "sampled", "random"])
def test_single_trial_uses_a_listed_term_on_features(tmp_path: Path, mode: str) -> None:
    (job,) = run_search(build_driver(tmp_path, FEATURE_TERM, "search.trials=1", f"search.mode={mode}"))
    assert "relational" in {part.name for part in job.training.distill}


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random"])
def test_search_of_one_trial_continues_with_more_trials(tmp_path: Path, sampler: str) -> None:
    overrides = (FEATURE_TERM, f"search.sampler={sampler}")
    first = build_driver(tmp_path, *overrides, "search.trials=1")
    run_search(first)
    close_store(first)
    jobs = run_search(build_driver(tmp_path, *overrides, "search.trials=12"))
    assert len(jobs) == 11
    assert {"relational" in {part.name for part in job.training.distill} for job in jobs} == {False, True}


def test_every_trial_uses_a_required_term(tmp_path: Path) -> None:
    jobs = run_search(build_driver(tmp_path, FEATURE_TERM, "distill.relational.required=true"))
    assert len(jobs) == 12
    assert all("relational" in {part.name for part in job.training.distill} for job in jobs)


def test_each_trial_has_its_own_seed(tmp_path: Path) -> None:
    assert len({job.training.seed for job in run_search(build_driver(tmp_path))}) == 12


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "gp", "random"])
def test_every_sampler_proposes(tmp_path: Path, sampler: str) -> None:
    assert len(run_search(build_driver(tmp_path, f"search.sampler={sampler}", "search.trials=4"))) == 4


def test_sampled_mode_gives_one_candidate_per_trial_and_varies_the_recipe(tmp_path: Path) -> None:
    jobs = run_search(build_driver(tmp_path, "search.mode=sampled", "search.trials=20"))
    assert all(len(job.recipes) == 1 for job in jobs)
    assert len({job.recipes for job in jobs}) == 3


def test_initial_values_come_first(tmp_path: Path) -> None:
    start = {"student.cnn.width": 32, "student.cnn.depth": 2, "distill": "none"}
    jobs = run_search(build_driver(tmp_path, start=[start]), at_most=2)
    assert jobs[0].training.student.values["width"] == 32
    assert jobs[0].training.distill[0].name == "none"


def test_duplicates_are_not_trained_again_and_an_exhausted_space_ends_the_search(tmp_path: Path) -> None:
    driver = build_driver(tmp_path, "student.cnn.width=[4, 8]", "distill=none")
    jobs = run_search(driver)
    assert len(jobs) == len({str(job.training.to_json_without_seed()) for job in jobs}) == 4
    assert driver.exhausted
    study = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="x")
    assert len([t for t in study.trials if t.state is optuna.trial.TrialState.COMPLETE]) > 4


def test_a_duplicate_of_a_running_trial_is_answered_when_that_ends(tmp_path: Path) -> None:
    driver = build_driver(tmp_path, "student.cnn.width=[4, 8]", "student.cnn.depth=1", "distill=none")
    first, second = driver.ask(), driver.ask()
    assert first is not None
    assert second is not None
    assert driver.ask() is None
    study = driver._sampler._study
    assert not [t for t in study.trials if t.state is optuna.trial.TrialState.COMPLETE]
    driver.tell(first, fake_result(first))
    driver.tell(second, fake_result(second))
    assert {t.state for t in study.trials} == {optuna.trial.TrialState.COMPLETE}


def test_no_trial_starts_that_would_end_after_the_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("autocompress.engine.driver.monotonic_seconds", lambda: clock[0])
    driver = build_driver(tmp_path, "search.minutes=1")
    count = 0
    while (job := driver.ask()) is not None:
        clock[0] += 25
        driver.tell(job, replace(fake_result(job), seconds=25.0))
        count += 1
    assert count == 2


def test_a_paused_search_hands_out_no_job_and_its_clock_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("autocompress.engine.driver.monotonic_seconds", lambda: now[0])
    seen: list[Progress] = []
    driver = build_driver(tmp_path, seen=seen)
    first, second = driver.ask(), driver.ask()
    assert first is not None
    assert second is not None
    request_pause(tmp_path)
    # Jobs that are running end first.
    now[0] = 3.0
    assert driver.ask() is None
    driver.tell(first, fake_result(first))
    assert driver.ask() is None
    now[0] = 5.0
    driver.tell(second, fake_result(second))

    def sleep(seconds: float) -> None:
        now[0] += 100.0
        assert seen[-1].is_paused
        if now[0] > 250.0:
            cancel_pause(tmp_path)

    monkeypatch.setattr("autocompress.engine.driver.time.sleep", sleep)
    third = driver.ask()
    assert third is not None
    assert driver.elapsed_seconds == 5.0
    assert not seen[-1].is_paused
    now[0] = 311.0
    driver.tell(third, fake_result(third))
    close_store(driver)
    with RunStore.read(tmp_path) as store:
        segments = store.trial_table()["segments"].tolist()
    times = [(part["worker"], part["start"], part["end"]) for parts in segments for part in parts]
    assert times == [(1, 0.0, 3.0), (2, 0.0, 5.0), (1, 5.0, 11.0)]


def test_a_search_ends_when_its_front_has_converged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("autocompress.engine.driver.monotonic_seconds", lambda: clock[0])

    def search(driver: Driver, at_most: int = 200) -> int:
        for count in range(at_most):
            job = driver.ask()
            if job is None:
                return count
            clock[0] += 1
            driver.tell(job, fake_result(job))
        return at_most

    patient = build_driver(tmp_path / "patient", "search.patience=0.5", "search.trials=60")
    count = search(patient)
    assert patient.has_converged
    # A resumed run knows how its front grew.
    first = build_driver(tmp_path / "cut", "search.patience=0.5", "search.trials=60")
    clock[0] = 0.0
    search(first, at_most=count - 3)
    assert not first.has_converged
    close_store(first)
    clock[0] = 0.0
    assert search(build_driver(tmp_path / "cut", "search.patience=0.5", "search.trials=60")) in (2, 3, 4)
    other = build_driver(tmp_path / "other", "search.trials=60")
    assert search(other) > count
    assert not other.has_converged


@pytest.mark.slow
@pytest.mark.parametrize("killed_after", [0, 1, 5, 11])
def test_a_killed_search_resumes_to_the_same_table(tmp_path: Path, killed_after: int) -> None:
    run_search(build_driver(tmp_path / "whole"))
    first = build_driver(tmp_path / "cut")
    run_search(first, at_most=killed_after)
    lost = first.ask()
    close_store(first)
    second = build_driver(tmp_path / "cut")
    again = second.ask()
    assert again == lost
    assert again is not None
    second.tell(again, fake_result(again))
    run_search(second)
    assert read_candidates(tmp_path / "cut").equals(read_candidates(tmp_path / "whole"))
    study = optuna.load_study(storage=f"sqlite:///{tmp_path}/cut/study.db", study_name="x")
    assert not [t for t in study.trials if not t.state.is_finished()]


def test_a_crash_between_store_and_sampler_is_repaired(tmp_path: Path) -> None:
    first = build_driver(tmp_path)
    job = first.ask()
    assert job is not None
    first._store.record_result(fake_result(job), elapsed=1.0, hypervolume=0.5)
    close_store(first)
    run_search(build_driver(tmp_path))
    study = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="x")
    assert {t.state.name for t in study.trials} == {"COMPLETE"}


def test_a_crash_before_the_job_was_stored_repeats_the_proposal_initial_values_included(tmp_path: Path) -> None:
    start = {"student.cnn.width": 32, "student.cnn.depth": 2, "distill": "none"}
    first = build_driver(tmp_path, start=[start])
    first._sampler.ask(0)
    close_store(first)
    job = build_driver(tmp_path, start=[start]).ask()
    assert job is not None
    assert job.number == 0
    assert job.training.student.values["width"] == 32


def test_a_trial_that_was_interrupted_twice_has_failed(tmp_path: Path) -> None:
    for _ in range(2):
        driver = build_driver(tmp_path)
        assert driver.ask() is not None
        close_store(driver)
    driver = build_driver(tmp_path)
    following = driver.ask()
    assert following is not None
    assert following.number == 1
    with RunStore.read(tmp_path) as study:
        row = study.trial_table().iloc[0]
    assert row["state"] == "failed"
    assert row["reason"] == "interrupted twice"


def test_repeated_kills_of_the_driver_do_not_count_as_failures_of_the_trials(tmp_path: Path) -> None:
    for _ in range(2 * MAX_INITIAL_FAILURES + 2):
        driver = build_driver(tmp_path)
        assert driver.ask() is not None
        close_store(driver)
    driver = build_driver(tmp_path)
    assert not driver.has_only_failed_trials
    run_search(driver)
    with RunStore.read(tmp_path) as study:
        states = study.trial_table()["state"]
    assert (states == "failed").sum() > MAX_INITIAL_FAILURES
    assert (states == "complete").any()


def test_a_search_with_only_failed_trials_ends_early(tmp_path: Path) -> None:
    driver = build_driver(tmp_path, "search.trials=100")
    count = 0
    while (job := driver.ask()) is not None:
        driver.tell(job, TrialResult(job.number, State.FAILED, reason="no luck"))
        count += 1
    assert count == MAX_INITIAL_FAILURES
    assert driver.has_only_failed_trials


def test_deleted_checkpoints_cost_the_refinements_that_need_them_and_not_the_search(tmp_path: Path) -> None:
    driver = build_driver(tmp_path, *REFINEMENTS)
    jobs: list[Job] = []
    while (job := driver.ask()) is not None:
        jobs.append(job)
        driver.tell(job, fake_result(job))
        for path in (tmp_path / "checkpoints").iterdir():
            path.unlink()
    driver.close()
    assert len([job for job in jobs if job.base is None]) == 6
    assert not [job for job in jobs if job.base is not None]
    close_store(driver)
    with RunStore.read(tmp_path) as store:
        failed = [trial for trial in store.read_trials() if trial.state is State.FAILED]
    assert failed
    assert all(trial.job.base and "cannot be read (No such file or directory)" in trial.reason for trial in failed)


def test_a_larger_budget_continues_a_finished_search(tmp_path: Path) -> None:
    first = build_driver(tmp_path, "search.trials=5")
    run_search(first)
    close_store(first)
    assert [job.number for job in run_search(build_driver(tmp_path, "search.trials=8"))] == [5, 6, 7]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), None, "0.9"])
def test_results_that_are_not_finite_numbers_never_reach_the_front(tmp_path: Path, bad: Any) -> None:
    driver = build_driver(tmp_path)
    job = driver.ask()
    assert job is not None
    good, poor, *_ = fake_result(job).candidates
    broken = replace(poor, scores={"search_val": {"accuracy": bad}, "select_val": {"accuracy": 0.5}})
    costly = replace(poor, id="t0c9", costs={"effective_flops": bad})
    result = validate_result(TrialResult(0, State.COMPLETE, (good, broken, costly)))
    assert result.candidates == (good,)
    assert "2 candidates" in result.reason
    assert validate_result(TrialResult(0, State.COMPLETE, (broken,))).state is State.FAILED
    driver.tell(job, TrialResult(0, State.COMPLETE, (good, broken)))
    assert list(read_candidates(tmp_path)["id"]) == ["t0c0"]


@pytest.mark.parametrize("rungs", ["always", "pareto_rank"])
def test_a_candidate_without_an_objective_is_left_out_at_any_rung(tmp_path: Path, rungs: str) -> None:
    driver = build_driver(tmp_path, f"search.promotion={rungs}")
    job = driver.ask()
    assert job is not None
    result = fake_result(job)
    good, poor, *_ = result.candidates
    blank = replace(poor, costs={})
    other = replace(poor, id="t0c9", scores={"search_val": {"agreement": 1.0}})
    driver.tell(job, replace(result, candidates=(good, blank, other)))
    with RunStore.read(tmp_path) as study:
        assert study.trial_table()["reason"].tolist() == ["candidates had no accuracy, effective_flops"]
    assert list(read_candidates(tmp_path)["id"]) == [good.id]
    job = driver.ask()
    assert job is not None
    driver.tell(job, replace(fake_result(job), candidates=(replace(good, id="t1c0", costs={}),)))
    with RunStore.read(tmp_path) as study:
        assert study.trial_table()["state"].tolist()[job.number] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "gp", "random"])
@pytest.mark.parametrize("promotion", ["always", "best_score", "pareto_rank"])
@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
def test_with_a_constant_objective_the_other_one_decides(tmp_path: Path, sampler: str, promotion: str) -> None:
    driver = build_driver(tmp_path, f"search.sampler={sampler}", f"search.promotion={promotion}", "search.trials=14")
    while (job := driver.ask()) is not None:
        result = fake_result(job)
        flat = [
            replace(candidate, scores={s: {"accuracy": 0.5} for s in candidate.scores})
            for candidate in result.candidates
        ]
        driver.tell(job, replace(result, candidates=tuple(flat)))
    rows = read_candidates(tmp_path)
    assert set(rows["accuracy"]) == {0.5}
    complete = rows[rows["complete"]]
    assert len(complete)
    # One point is left of a front: the cheapest.
    assert driver._archive.list_front()[0][2] == complete["effective_flops"].min()
    assert len(driver._archive.list_front()) == 1


def test_a_front_outside_the_reference_point_has_no_hypervolume_and_the_search_continues(tmp_path: Path) -> None:
    source = parse_spec(SPEC, "x", ["search.promotion=pareto_rank"])
    store = RunStore.create(tmp_path, RunInfo())
    sampler = OptunaSampler(store, "x", "tpe", 0, ["maximize", "minimize"], ["a", "b"])
    # No student is as good as the worst that counts.
    box = [replace(OBJECTIVES[0], bounds=(0.999, 1.0)), OBJECTIVES[1]]
    driver = Driver(store, open_space(source), source.spec.search, sampler, box, {})
    jobs = run_search(driver)
    assert len({job.number for job in jobs if job.base is None}) == 12
    assert driver._archive.hypervolume == 0.0
    assert len(driver._archive.list_front()) > 1
    close_store(driver)


@pytest.mark.parametrize("trials", [1, 2])
def test_a_search_of_very_few_trials_completes_one(tmp_path: Path, trials: int) -> None:
    driver = build_driver(tmp_path, f"search.trials={trials}", "search.promotion=pareto_rank")
    run_search(driver)
    complete = read_candidates(tmp_path)["complete"]
    assert complete.any()


def test_a_cancelled_trial_has_not_failed(tmp_path: Path) -> None:
    for _ in range(4):
        driver = build_driver(tmp_path)
        job = driver.ask()
        assert job is not None
        assert job.number == 0
        driver.close()
        close_store(driver)
    run_search(build_driver(tmp_path))
    assert count_states(tmp_path) == {"complete": 12}


# -- the answer to the sampler ----------------------------------------------------------------


@pytest.fixture
def sampler(tmp_path: Path) -> OptunaSampler:
    store = RunStore.create(tmp_path, RunInfo(name="x"))
    return OptunaSampler(store, "x", "random", 0, ["maximize", "minimize"], ["accuracy", "cost"])


def list_states(sampler: OptunaSampler) -> list[TrialState]:
    return [trial.state for trial in sampler._study.trials]


def test_the_outcome_of_a_trial_is_told_with_its_violations(sampler: OptunaSampler) -> None:
    feedback = SamplerFeedback(sampler)
    feedback.register_trial(0, "a", sampler.ask(0))
    assert feedback.has_trial("a")
    assert not feedback.has_trial("b")
    feedback.report_outcome(0, ([0.9, 4.0], {"bytes": 2.5}))
    (trial,) = sampler._study.trials
    assert trial.values == [0.9, 4.0]
    assert trial.constraints == {"bytes": 2.5}


@pytest.mark.parametrize("early", [True, False])
def test_a_duplicate_gets_the_outcome_of_the_original(sampler: OptunaSampler, early: bool) -> None:
    feedback = SamplerFeedback(sampler)
    feedback.register_trial(0, "a", sampler.ask(0))
    duplicate = sampler.ask(1)
    if early:
        feedback.answer_duplicate("a", duplicate)
        assert list_states(sampler) == [TrialState.RUNNING] * 2
    feedback.report_outcome(0, ([0.9, 4.0], {}))
    if not early:
        feedback.answer_duplicate("a", duplicate)
    assert [trial.values for trial in sampler._study.trials] == [[0.9, 4.0]] * 2


@pytest.mark.parametrize(
    ("state", "expected"),
    [(State.STOPPED, TrialState.PRUNED), (State.FAILED, TrialState.FAIL)],
)
def test_a_stopped_trial_counts_as_poor_and_a_failed_one_does_not_count(
    sampler: OptunaSampler, state: State, expected: TrialState
) -> None:
    feedback = SamplerFeedback(sampler)
    feedback.register_trial(0, "a", sampler.ask(0).number)
    feedback.report_outcome(0, state)
    assert list_states(sampler) == [expected]


def test_a_trial_that_the_sampler_does_not_wait_for_is_not_told(sampler: OptunaSampler) -> None:
    feedback = SamplerFeedback(sampler)
    feedback.register_trial(0, "a", None)
    feedback.report_outcome(0, ([0.9, 4.0], {}))
    assert list_states(sampler) == []
    # A later duplicate is answered at once.
    feedback.answer_duplicate("a", sampler.ask(1))
    assert list_states(sampler) == [TrialState.COMPLETE]


# -- the time budget --------------------------------------------------------------------------


def test_a_job_that_would_end_after_the_limit_at_the_median_speed_is_too_late() -> None:
    clock = [0.0]
    budget = TimeBudget(100.0, lambda: clock[0])
    assert not budget.is_too_late(1000)
    for seconds in (1.0, 2.0, 30.0):
        budget.record_job(1, seconds)
    clock[0] = 90.0
    assert not budget.is_too_late(5)
    assert budget.is_too_late(6)
    budget.record_job(0, 99.0)
    assert budget.is_too_late(6)


def test_a_trial_leaves_twice_the_predicted_time_of_later_stages_but_at_most_two_fifths_of_the_limit() -> None:
    clock = [0.0]
    budget = TimeBudget(100.0, lambda: clock[0])
    assert not budget.is_too_late(1, later_epochs=1000)
    budget.record_job(1, 1.0)
    clock[0] = 79.0
    assert not budget.is_too_late(1, later_epochs=10)
    assert budget.is_too_late(1, later_epochs=11)
    clock[0] = 59.0
    assert not budget.is_too_late(1, later_epochs=1000)
    assert budget.is_too_late(2, later_epochs=1000)


def test_work_that_would_barely_end_in_time_must_start_now() -> None:
    clock = [0.0]
    budget = TimeBudget(100.0, lambda: clock[0])
    assert not budget.must_start(1e12)
    budget.record_job(10, 5.0, cost=50.0)
    budget.record_job(10, 5.0, cost=50.0)
    # A tenth of a second for each unit of compute.
    assert not budget.must_start(100 / 0.1 / TIME_SAFETY_FACTOR)
    clock[0] = 1.0
    assert budget.must_start(100 / 0.1 / TIME_SAFETY_FACTOR)
    assert not budget.must_start(10.0)


def test_without_a_limit_no_job_is_too_late_and_none_must_start() -> None:
    budget = TimeBudget(None, lambda: 1e9)
    budget.record_job(1, 1.0, cost=1.0)
    assert not budget.is_too_late(1e9)
    assert not budget.must_start(1e9)


# -- log lines --------------------------------------------------------------------------------


def test_decisions_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="autocompress.engine")
    driver = build_driver(tmp_path, "search.promotion=pareto_rank", "search.trials=18")
    run_search(driver, at_most=30)
    close_store(driver)
    run_search(build_driver(tmp_path, "search.promotion=pareto_rank", "search.trials=18"))
    for decision in (
        "started, trains up to",
        "promoted, trains up to",
        "stopped early",
        "resumed after",
        "no job is left",
    ):
        assert decision in caplog.text
