"""Warm starts: which trials of an earlier run a search takes over, and what it makes of them."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import cast

import pytest

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Candidate, Job, TrialResult
from autocompress.core.run_info import ObjectiveSpec
from autocompress.core.task import Task
from autocompress.engine.archive import Archive, Progress
from autocompress.engine.driver import Driver
from autocompress.engine.repeats import Repeats
from autocompress.engine.runner import Plan, add_warm_start
from autocompress.engine.sampler.acquisition import EarlierTrial
from autocompress.engine.scheduler.compute_cost import candidate_epoch_cost
from autocompress.engine.space import open_space
from autocompress.engine.spec import parse_spec
from autocompress.engine.warm_start import (
    FILE,
    WarmStart,
    find_front,
    load_warm_start,
    read_warm_start,
    write_warm_start,
)
from autocompress.errors import RunFolderError, UsageError
from autocompress.store.run_store import RunStore
from tests.engine.driving import (
    EARLY_STOPPING,
    REFINEMENTS,
    SPEC,
    build_driver,
    close_store,
    estimate_costs,
    fake_costly_result,
    run_search,
)
from tests.fakes import OBJECTIVES

#: A space in which scores depend on more than the width.
WIDE = ("search.promotion=pareto_rank", "search.sampler=surrogate", "search.trials=40")

SURROGATE = (*EARLY_STOPPING, "search.sampler=surrogate", "search.trials=12")
SMALL = {"student.cnn.width": 8, "student.cnn.depth": 1, "distill": "none"}
TASK = cast(Task, SimpleNamespace(name="digits", heads={"label": 10}))


def _run_noisy(job: Job) -> TrialResult:
    """Return a result whose score depends on the learning rate and the seed, as that of a real trial does."""
    result = fake_costly_result(job)
    rate = float(job.training.fit.values["learning_rate"])  # type: ignore[arg-type]
    noise = Random(job.training.seed).gauss(0.0, 0.01)
    change = noise - 0.1 * abs(math.log10(rate / 5e-3))
    candidates = [
        replace(
            candidate,
            scores={name: {"accuracy": split["accuracy"] + change} for name, split in candidate.scores.items()},
        )
        for candidate in result.candidates
    ]
    return replace(result, candidates=tuple(candidates))


def list_compute(
    folder: Path, earlier: Sequence[EarlierTrial], seed: int
) -> tuple[list[tuple[float, float]], tuple[EarlierTrial, ...]]:
    """Search with mock trials; return compute cost and hypervolume after each job, and the trials for a warm start."""
    overrides = (*WIDE, f"search.seed={seed}", "fit={adamw: {learning_rate: {low: 1e-3, high: 2e-2}}}")
    driver = build_driver(folder, *overrides, start=[SMALL], price=estimate_costs, earlier=earlier)
    history, spent = [], 0.0
    while (job := driver.ask()) is not None:
        result = _run_noisy(job)
        spent += driver._scheduler.count_job_epochs(job) * candidate_epoch_cost(result.candidates[0])
        driver.tell(job, result)
        history.append((spent, driver._archive.hypervolume))
    info = driver._store.run_info()
    driver._store.update_run_info(replace(info, task="digits", heads={"label": 10}, objectives=OBJECTIVES))
    close_store(driver)
    return history, read(folder, *overrides).trials


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    # With this seed, some trials stop at their first rung.
    driver = build_driver(folder, *SURROGATE, "search.seed=1", start=[SMALL], price=estimate_costs)
    run_search(driver, run=fake_costly_result)
    info = driver._store.run_info()
    driver._store.update_run_info(replace(info, task="digits", heads={"label": 10}, objectives=OBJECTIVES))
    close_store(driver)
    return folder


def read(folder: Path, *overrides: str, objectives: tuple[ObjectiveSpec, ...] = OBJECTIVES) -> WarmStart:
    return read_warm_start(folder, open_space(parse_spec(SPEC, "x", overrides)), TASK, objectives)


def test_all_trials_of_the_same_space_are_taken_with_their_rungs(earlier: Path) -> None:
    start = read(earlier)
    assert start.notice == f"the search starts from 12 of 12 trials of {earlier}"
    assert {len(trial.rungs) for trial in start.trials} == {1, 3}
    complete = [trial.rungs[-1] for trial in start.trials if trial.rungs[-1][0].complete]
    # Every compression recipe of a complete trial is kept, so that its effect is known.
    assert {len(rung) for rung in complete} == {3}
    on_front = [trial for trial in start.trials if trial.is_on_front]
    assert 0 < len(on_front) < 12
    assert all(trial.rungs[-1][0].complete for trial in on_front)


def test_another_space_takes_what_it_has_and_says_what_it_lacks(earlier: Path) -> None:
    wider = read(earlier, "student.cnn.width={low: 16, high: 128}", "quantize.post_training.weight_bits=[8]")
    assert len(wider.trials) == 12
    assert {len(trial.rungs[-1]) for trial in wider.trials if trial.rungs[-1][0].complete} == {2}
    with pytest.raises(UsageError, match=r"12 with fit.adamw, which is not in this search space"):
        read(earlier, "fit={sgd: {}}")
    with pytest.raises(UsageError, match=r"12 with 15 epochs, and not 5"):
        read(earlier, "fit={adamw: {epochs: 5}}")
    some = read(earlier, "distill={none: {}}")
    left = 12 - len(some.trials)
    assert 0 < left < 12
    text = f"starts from {12 - left} of 12 trials of {earlier}; not taken: {left} with distill.soft_target, which"
    assert text in some.notice


def test_task_heads_and_objectives_must_agree(earlier: Path) -> None:
    space = open_space(parse_spec(SPEC, "x"))
    other = cast(Task, SimpleNamespace(name="mnist1d", heads={"label": 10}))
    with pytest.raises(UsageError, match="was a search of the task 'digits', and this is one of 'mnist1d'"):
        read_warm_start(earlier, space, other, OBJECTIVES)
    with pytest.raises(UsageError, match="heads"):
        read_warm_start(earlier, space, cast(Task, SimpleNamespace(name="digits", heads={"label": 3})), OBJECTIVES)
    with pytest.raises(UsageError, match="has not measured rmse"):
        read(earlier, objectives=(replace(OBJECTIVES[0], name="rmse"), OBJECTIVES[1]))


def test_the_run_folder_keeps_what_it_was_started_from(earlier: Path, tmp_path: Path) -> None:
    start = read(earlier)
    assert load_warm_start(tmp_path) is None
    write_warm_start(tmp_path, start)
    loaded = load_warm_start(tmp_path)
    assert loaded is not None
    assert loaded.notice == start.notice
    # The number of a trial has no meaning in another run.
    known = [[[replace(one, trial=-1) for one in rung] for rung in trial.rungs] for trial in start.trials]
    assert [[list(rung) for rung in trial.rungs] for trial in loaded.trials] == known
    empty = json.loads((tmp_path / FILE).read_text())
    empty["trials"][0]["candidates"] = [[]]
    for content in ('{"notice": "", "trials": [{"training": 3}]}', json.dumps(empty), "[" * 10_000, "{}"):
        (tmp_path / FILE).write_text(content)
        with pytest.raises(RunFolderError, match=r"warm_start\.json is damaged .*remove it"):
            load_warm_start(tmp_path)
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).symlink_to("elsewhere")
    with pytest.raises(RunFolderError, match=r"warm_start\.json cannot be read"):
        load_warm_start(tmp_path)


def test_a_search_without_surrogate_and_a_run_that_was_begun_without_are_refused(earlier: Path, tmp_path: Path) -> None:
    source = parse_spec(SPEC, "x", ["search.sampler=tpe"])
    plan = Plan(source, open_space(source), TASK, None, None, OBJECTIVES, None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="needs the sampler `surrogate`"):
        add_warm_start(plan, earlier, tmp_path)
    assert add_warm_start(plan, None, tmp_path) is plan
    with pytest.raises(UsageError, match="was not started from an earlier run"):
        add_warm_start(plan, earlier, earlier)


def test_the_earlier_front_is_repeated_first_with_its_seeds(earlier: Path, tmp_path: Path) -> None:
    start, seen = read(earlier), list[Progress]()
    driver = build_driver(
        tmp_path, *SURROGATE, "search.seed=9", start=[SMALL], price=estimate_costs, seen=seen, earlier=start.trials
    )
    jobs = run_search(driver, at_most=20, run=fake_costly_result)
    close_store(driver)
    seeds = {trial.rungs[0][0].config.training for trial in start.trials if trial.is_on_front}
    repeated = [job for job in jobs if job.training in seeds]
    assert repeated
    # They come before all others, each up to its end at once.
    assert jobs[: len(repeated)] == repeated
    assert [job.rung for job in repeated] == [0, 1, 2] * (len(repeated) // 3)
    with RunStore.read(earlier) as store:
        final = store.trial_table()["hypervolume"].max()
    # One report before each job, and one after it: what is left out adds little.
    assert seen[2 * len(repeated) - 1].hypervolume >= 0.995 * final


def test_a_resumed_search_repeats_nothing_twice(earlier: Path, tmp_path: Path) -> None:
    start = read(earlier)

    def build(folder: Path) -> Driver:
        return build_driver(
            folder, *SURROGATE, "search.seed=9", start=[SMALL], price=estimate_costs, earlier=start.trials
        )

    whole = run_search(build(tmp_path / "whole"), at_most=12, run=fake_costly_result)
    first = build(tmp_path / "cut")
    jobs = run_search(first, at_most=5, run=fake_costly_result)
    close_store(first)
    jobs += run_search(build(tmp_path / "cut"), at_most=7, run=fake_costly_result)
    assert jobs == whole


def test_compression_steps_of_the_earlier_front_are_repeated_on_their_checkpoints(tmp_path: Path) -> None:
    def build(folder: Path, earlier: Sequence[EarlierTrial] = ()) -> Driver:
        overrides = (*REFINEMENTS, "search.sampler=surrogate", "search.trials=4")
        return build_driver(folder, *overrides, start=[SMALL], price=estimate_costs, earlier=earlier)

    first = build(tmp_path / "first")
    run_search(first, run=fake_costly_result)
    info = first._store.run_info()
    first._store.update_run_info(replace(info, task="digits", heads={"label": 10}, objectives=OBJECTIVES))
    close_store(first)
    start = read(tmp_path / "first", *REFINEMENTS)
    jobs = run_search(build(tmp_path / "second", start.trials), at_most=6, run=fake_costly_result)
    refined = [job for job in jobs if job.base is not None]
    assert refined
    trained = {job.training for job in jobs if job.base is None}
    assert {job.training for job in refined} <= trained <= {trial.rungs[0][0].config.training for trial in start.trials}


def test_a_repeat_in_a_smaller_space_is_moved_into_it(earlier: Path) -> None:
    start, space = read(earlier), open_space(parse_spec(SPEC, "x", ["student.cnn.width={low: 16, high: 20}"]))
    archive = Archive(OBJECTIVES)
    repeats = Repeats(start.trials, space, lambda recipe: [], archive.normalize_all)
    widths = {int(repeat.training.student.values["width"]) for repeat in repeats}  # type: ignore[arg-type]
    assert widths
    assert widths <= set(range(16, 21))
    first = next(iter(repeats))
    assert repeats.find_seed(replace(first.training, seed=1)) == first.training.seed
    assert repeats.find_seed(replace(first.training, fit=Part.of("adamw", epochs=3))) is None
    repeats.remove(first)
    assert first not in repeats


def _change_seed(trial: EarlierTrial) -> EarlierTrial:
    rungs = [
        tuple(replace(candidate, config=replace(candidate.config, seed=1)) for candidate in rung)
        for rung in trial.rungs
    ]
    return replace(trial, rungs=tuple(rungs))


def test_few_trials_that_make_up_the_front_are_repeated(earlier: Path) -> None:
    start = read(earlier)
    archive, space = Archive(OBJECTIVES), open_space(parse_spec(SPEC, "x"))
    on_front = [trial for trial in start.trials if trial.is_on_front]
    # The same trial again with another seed, which adds nothing, and costs more.
    copies = [_change_seed(trial) for trial in on_front]
    repeats = Repeats([*copies, *on_front], space, lambda recipe: [], archive.normalize_all)
    assert 0 < len(repeats) <= len(on_front)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_warm_start_reaches_the_earlier_front_in_a_third_of_the_compute_cost(tmp_path: Path) -> None:
    ratios = []
    # The ratio of one seed varies from .1 to .9.
    for seed in range(3, 13):
        cold, trials = list_compute(tmp_path / f"cold{seed}", (), seed)
        warm, _ = list_compute(tmp_path / f"warm{seed}", trials, seed + 100)
        final = cold[-1][1]
        needed, before = (next(cost for cost, volume in run if volume >= 0.999 * final) for run in (warm, cold))
        ratios.append(needed / before)
    assert statistics.median(ratios) <= 1 / 3, ratios


def test_the_front_is_that_of_the_split() -> None:
    objectives = [ObjectiveSpec("accuracy", "maximize", kind="score"), ObjectiveSpec("bytes", "minimize", kind="cost")]

    def build(number: int, searched: float, selected: float, size: float) -> Candidate:
        config = CompressionConfig(Part.of("cnn", width=8 + number), (Part("none"),), Part("adamw"))
        scores = {"search_val": {"accuracy": searched}, "select_val": {"accuracy": selected}}
        return Candidate(f"t{number}c0", number, config, 1, scores, {"bytes": size})

    # The larger one is better on the second split alone.
    small, large = build(0, 0.9, 0.8, 10.0), build(1, 0.9, 0.95, 20.0)
    assert find_front([[small], [large]], objectives) == {small.config.training}
    assert find_front([[small], [large]], objectives, "select_val") == {small.config.training, large.config.training}
