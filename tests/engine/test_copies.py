"""Copies of an earlier front: when a warm start takes trials over with their weights, and what they are worth."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest

import autocompress
from autocompress.core.config import CompressionConfig
from autocompress.core.run_info import EnvironmentInfo, RunInfo, TeacherInfo
from autocompress.engine.copies import find_difference
from autocompress.front import Front
from autocompress.store.run_store import RunStore
from autocompress.store.schema import StoredTrial
from tests.conftest import SMALL_SEARCH

#: A search of one trial, with other seeds.
AGAIN = [*SMALL_SEARCH, "search.trials=1", "search.seed=5"]


def search_again(earlier: Path, runs: Path, *overrides: str) -> Front:
    return autocompress.search("digits", runs=runs, name="again", overrides=[*AGAIN, *overrides], warm_start=earlier)


def read_search(folder: Path) -> list[StoredTrial]:
    with RunStore.read(folder) as store:
        return [trial for trial in store.read_trials() if trial.job.role == "search"]


def list_copied(trials: Sequence[StoredTrial]) -> set[CompressionConfig]:
    return {trial.job.training for trial in trials if trial.is_copied}


def find_notice(front: Front, text: str) -> str:
    (notice,) = [notice for notice in front.info.notices if text in notice]
    return notice


@pytest.fixture(scope="module")
def again(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Front:
    return search_again(small_run, tmp_path_factory.mktemp("again"))


def test_the_whole_earlier_front_is_there_before_the_first_trial(small_run: Path, again: Front) -> None:
    trials = read_search(again.folder)
    copied = list_copied(trials)
    assert 0 < len(copied) <= 3
    final = set(autocompress.load(small_run).to_pandas()["trial"])
    assert {trial.job.training for trial in read_search(small_run) if trial.job.number in final} <= copied
    assert find_notice(again, "copied").startswith(f"copied with weights from the front of {small_run}: {len(copied)} ")
    # The budget of one trial is left to the search.
    assert len({trial.job.training for trial in trials} - copied) == 1
    tables = [front.trials[front.trials["role"] == "search"] for front in (autocompress.load(small_run), again)]
    before, after = tables[0]["hypervolume"].max(), tables[1].loc[tables[1]["elapsed"] == 0, "hypervolume"].max()
    assert after == pytest.approx(before)
    # A copy took no worker any time.
    assert not any(tables[1].loc[tables[1]["elapsed"] == 0, "segments"])


def test_a_copy_is_a_candidate_like_any_other(small_run: Path, again: Front) -> None:
    copied = again.candidates[
        again.candidates["trial"].isin([t.job.number for t in read_search(again.folder) if t.is_copied])
    ]
    earlier = autocompress.load(small_run).candidates
    # Scores and costs are those of the earlier run, under a number of this one.
    known = set(earlier.loc[earlier["complete"], ["accuracy", "bytes"]].itertuples(index=False, name=None))
    assert set(copied.loc[copied["complete"], ["accuracy", "bytes"]].itertuples(index=False, name=None)) <= known
    # Its weights are in the new folder.
    assert again.export(copied.loc[copied["complete"], "id"].iloc[0], verify=True).exists()


def test_a_resumed_search_copies_nothing_twice(small_run: Path, again: Front) -> None:
    before = read_search(again.folder)
    overrides = [*SMALL_SEARCH, "search.trials=2", "search.seed=5"]
    more = autocompress.search("digits", runs=again.folder.parent, name="again", overrides=overrides, resume=True)
    after = read_search(more.folder)
    assert after[: len(before)] == before
    # One more trial, which the raised budget allows.
    trained = [{trial.job.training for trial in trials} - list_copied(trials) for trials in (before, after)]
    assert [len(trainings) for trainings in trained] == [1, 2]


def test_a_trial_without_weights_or_outside_the_space_is_trained(small_run: Path, tmp_path: Path) -> None:
    damaged = copytree(small_run, tmp_path / "damaged")
    for path in (damaged / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    front = search_again(damaged, tmp_path)
    assert not list_copied(read_search(front.folder))
    assert ": 0 trials of " in find_notice(front, "copied with weights")


def test_what_differs_is_named() -> None:
    environment = EnvironmentInfo(data="abc", versions={"torch": "2.9", "autocompress": "1.0"})
    teacher = TeacherInfo({"search_val": {"accuracy": 0.9}, "test": {"accuracy": 0.8}}, {"bytes": 10.0})
    info = RunInfo(setup={"task": "digits", "split_seed": 0}, environment=environment, teacher=teacher)
    untested = replace(teacher, scores={"search_val": {"accuracy": 0.9}})
    assert not find_difference(replace(info, teacher=untested), info)
    assert find_difference(info, replace(info, environment=replace(environment, data="abd"))) == "its data differ"
    assert find_difference(info, replace(info, setup={"task": "digits", "split_seed": 1})) == "its split_seed differs"
    assert find_difference(info, replace(info, setup={"task": "digits"})) == "its split_seed differs"
    older = replace(environment, versions={"torch": "2.8", "autocompress": "1.0"})
    assert find_difference(info, replace(info, environment=older)) == "it was made with torch 2.8, and this is 2.9"
    weaker = TeacherInfo({"search_val": {"accuracy": 0.7}}, {"bytes": 10.0})
    assert find_difference(info, replace(info, teacher=weaker)) == "its teacher differs"
    # Runs of early versions do not know their data.
    unknown = replace(info, environment=replace(environment, data=""))
    assert find_difference(unknown, unknown) == "its data differ"
