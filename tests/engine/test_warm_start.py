"""Warm starts: which trials of an earlier run a search takes over, and what it makes of them."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from autocompress.core.run_info import ObjectiveSpec
from autocompress.core.task import Task
from autocompress.engine.archive import Progress
from autocompress.engine.runner import Plan, add_warm_start
from autocompress.engine.space import open_space
from autocompress.engine.spec import parse_spec
from autocompress.engine.warm_start import FILE, WarmStart, load_warm_start, read_warm_start, write_warm_start
from autocompress.errors import RunFolderError, UsageError
from tests.engine.driving import (
    EARLY_STOPPING,
    SPEC,
    build_driver,
    close_store,
    estimate_costs,
    fake_costly_result,
    run_search,
)
from tests.fakes import OBJECTIVES

SURROGATE = (*EARLY_STOPPING, "search.sampler=surrogate", "search.trials=12")
SMALL = {"student.cnn.width": 8, "student.cnn.depth": 1, "distill": "none"}
TASK = cast(Task, SimpleNamespace(name="digits", heads={"label": 10}))


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    driver = build_driver(folder, *SURROGATE, start=[SMALL], price=estimate_costs)
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
    (tmp_path / FILE).write_text('{"notice": "", "trials": [{"training": 3}]}')
    with pytest.raises(RunFolderError, match="is damaged"):
        load_warm_start(tmp_path)


def test_a_search_without_surrogate_and_a_run_that_was_begun_without_are_refused(earlier: Path, tmp_path: Path) -> None:
    source = parse_spec(SPEC, "x", ["search.sampler=tpe"])
    plan = Plan(source, open_space(source), TASK, None, None, OBJECTIVES, None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="needs the sampler `surrogate`"):
        add_warm_start(plan, earlier, tmp_path)
    assert add_warm_start(plan, None, tmp_path) is plan
    with pytest.raises(UsageError, match="was not started from an earlier run"):
        add_warm_start(plan, earlier, earlier)


@pytest.mark.slow
def test_a_warm_start_reaches_the_earlier_front_in_half_of_the_jobs(earlier: Path, tmp_path: Path) -> None:
    def list_hypervolumes(folder: Path, start: WarmStart | None, seed: int) -> list[float]:
        seen: list[Progress] = []
        driver = build_driver(
            folder,
            *(*SURROGATE, f"search.seed={seed}"),
            start=[SMALL],
            price=estimate_costs,
            seen=seen,
            earlier=() if start is None else start.trials,
        )
        run_search(driver, at_most=34, run=fake_costly_result)
        close_store(driver)
        # One report before each job, and one after it.
        return [progress.hypervolume for progress in seen[1::2]]

    cold = list_hypervolumes(tmp_path / "cold", None, 3)
    warm = list_hypervolumes(tmp_path / "warm", read(earlier), 9)
    target = 0.999 * max(cold)
    needed, before = (next(job for job, volume in enumerate(run) if volume >= target) + 1 for run in (warm, cold))
    assert needed <= before / 2
