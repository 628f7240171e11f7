import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from autocompress.config import CompressionConfig
from autocompress.engine.driver import HOPELESS, Driver
from autocompress.engine.limits import Price
from autocompress.engine.modes import MODES
from autocompress.engine.progress import Progress
from autocompress.engine.results import checked
from autocompress.engine.sampler import Proposer
from autocompress.engine.space import open_space
from autocompress.engine.spec import parse_spec
from autocompress.records import Cut, Job, State, TrialResult
from autocompress.study import Study
from tests.fakes import OBJECTIVES, fake_result

SPEC = """\
task: digits
search: {trials: 12, seed: 3, promotion: always}
student: {cnn: {width: {low: 4, high: 64}, depth: [1, 2]}}
distill: {none: {}, soft_target: {temperature: {low: 1, high: 10}}}
quantize: {none: {}, post_training: {weight_bits: [4, 8]}}
"""


CLIMB = ("search.promotion=pareto_rank", "search.trials=18")


def driver(
    folder: Path,
    *overrides: str,
    start: Sequence[dict[str, Any]] = (),
    seen: list[Progress] | None = None,
    price: Price | None = None,
) -> Driver:
    source = parse_spec(SPEC, "x", overrides)
    study = Study.open(folder) if (folder / "study.db").exists() else Study.create(folder, {"name": "x"})
    search = source.spec.search
    proposer = Proposer(study, "x", search.sampler, search.seed, ["maximize", "minimize"], ["accuracy", "log10 cost"])
    report = (lambda progress: None) if seen is None else seen.append
    return Driver(study, open_space(source), search, proposer, OBJECTIVES, {}, start, report, price)


def cheap(training: CompressionConfig, cuts: Sequence[Cut]) -> list[dict[str, float]]:
    """Return what the uncut student costs, as a real result would say."""
    candidate = heavy(Job(0, training, (Cut(),))).candidates[0]
    return [dict(candidate.costs)]


def finish(found: Driver, at_most: int = 1000, run: Callable[[Job], TrialResult] = fake_result) -> list[Job]:
    jobs = []
    while len(jobs) < at_most and (job := found.ask()) is not None:
        jobs.append(job)
        found.tell(job, run(job))
    return jobs


def heavy(job: Job) -> TrialResult:
    """Return a result whose students take time by their width."""
    result = fake_result(job)
    flops = 1e5 * float(job.training.student.values["width"]) ** 2  # type: ignore[arg-type]
    candidates = [replace(each, costs={**each.costs, "flops": flops, "layers": 1.0}) for each in result.candidates]
    return replace(result, candidates=tuple(candidates))


def close(found: Driver) -> None:
    found._study.close()


def table(folder: Path) -> Any:
    with Study.read(folder) as study:
        return study.candidates().drop(columns=["details"])


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


def poor(job: Job) -> TrialResult:
    """Return a result in which the widest student is worse than all others."""
    result = fake_result(job)
    if job.training.student.values["width"] != 64:
        return result
    worse = tuple(
        replace(each, scores={name: {**split, "accuracy": 0.12} for name, split in each.scores.items()})
        for each in result.candidates
    )
    return replace(result, candidates=worse)


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


# -- rungs ------------------------------------------------------------------------------------


def states(folder: Path) -> dict[str, int]:
    with Study.read(folder) as study:
        counted: dict[str, int] = study.trials()["state"].value_counts().to_dict()
    return counted


def whole_and_killed(folder: Path, overrides: Sequence[str], killed_after: int) -> None:
    """Search in one go, and killed with a job under way and resumed: the job comes again, and the table is the same."""
    finish(driver(folder / "whole", *overrides))
    first = driver(folder / "cut", *overrides)
    finish(first, at_most=killed_after)
    lost = first.ask()
    close(first)
    second = driver(folder / "cut", *overrides)
    again = second.ask()
    assert again == lost
    if again is not None:
        assert lost is not None
        assert again.paused == lost.paused
        second.tell(again, fake_result(again))
    finish(second)
    assert table(folder / "cut").equals(table(folder / "whole"))


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


# -- further cuts -----------------------------------------------------------------------------

FURTHER = (
    "prune.none={}",
    "prune.structured={pruning_ratio: [0.25, 0.5], recovery_epochs: 3}",
    "quantize.lsq={weight_bits: [3], activation_bits: [3], epochs: 2}",
    "search.promotion=always",
    "search.trials=6",
)


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


# -- modes ------------------------------------------------------------------------------------


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


# -- costs before training --------------------------------------------------------------------


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


@pytest.mark.parametrize("killed_after", [1, 4, 9, 17, 26])
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
