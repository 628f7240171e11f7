"""Incomplete runs: the page shows what is known."""

import errno
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import autocompress
from autocompress.analysis.pareto import full_fidelity
from autocompress.analysis.selection import Pick, select_candidate
from autocompress.core import atomic
from autocompress.core.run_info import RunInfo
from autocompress.errors import NoCandidateError, StorageError
from autocompress.export import adaptation, candidate, cascade, front_latency, switchable
from autocompress.export.adaptation import AdaptOptions, adapt_run
from autocompress.export.switchable import join_artifacts
from autocompress.report.page import write_page
from autocompress.store.run_store import RunStore
from tests.report.factory import Run


def page_of(candidates: pd.DataFrame, run: Run, folder: Path, picked: Pick | None, **changes: Any) -> str:
    path = write_page(folder / "report.html", candidates, run.trials, replace(run.info, **changes), picked)
    return path.read_text(encoding="utf-8")


def chosen(candidates: pd.DataFrame, info: RunInfo) -> Pick | None:
    try:
        return select_candidate(candidates, info)
    except NoCandidateError:
        return None


@pytest.mark.slow
def test_one_candidate_is_the_front_the_knee_and_the_pick(run: Run, front: pd.DataFrame, tmp_path: Path) -> None:
    alone = run.candidates[run.candidates["id"] == front["id"].iloc[0]]
    picked = select_candidate(alone, run.info)
    source = page_of(alone, run, tmp_path, picked)
    assert f"Candidate {picked.id} was selected from 1 candidate" in source
    assert "No other front candidate is statistically tied with it." in source


@pytest.mark.slow
def test_candidates_that_tie_in_everything_are_all_shown(run: Run, front: pd.DataFrame, tmp_path: Path) -> None:
    one = front.iloc[[3]]
    same = pd.concat([one.assign(id=f"t9c{number}") for number in range(5)], ignore_index=True)
    picked = select_candidate(same, run.info)
    assert picked.id == "t9c0"
    assert picked.ties is not None
    assert picked.ties.tied_ids == ("t9c1", "t9c2", "t9c3", "t9c4")
    source = page_of(same, run, tmp_path, picked)
    assert "4 other front candidates are statistically tied with it." in source


def test_missing_metrics_leave_a_page_without_them(run: Run, tmp_path: Path) -> None:
    bare = run.candidates.drop(columns=["accuracy_search", "accuracy_test", "bytes", "agreement", "kl", "details"])
    bare = bare.assign(loss=np.nan)
    source = page_of(bare, run, tmp_path, chosen(bare, run.info))
    assert "The test split was not read for this candidate." in source
    assert "nan" not in source.partition('id="plotly-source"')[0].lower().replace("nan-", "").split()


def test_candidates_without_a_finite_objective_are_said_to_be_not_measured(run: Run, tmp_path: Path) -> None:
    broken = run.candidates.assign(accuracy=np.nan)
    assert chosen(broken, run.info) is None
    source = page_of(broken, run, tmp_path, None)
    assert "not measured" in source
    assert "No candidate can be recommended." in source


def test_only_trainings_that_were_stopped_early_give_a_page(run: Run, tmp_path: Path) -> None:
    early = run.candidates.drop(full_fidelity(run.candidates).index).assign(complete=False)
    early = early if len(early) else run.candidates.assign(complete=False)
    assert chosen(early, run.info) is None
    assert "No candidate can be recommended." in page_of(early, run, tmp_path, None)


@pytest.mark.slow
def test_a_run_that_was_moved_is_read_reported_and_exported(small_run: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(small_run, tmp_path / "elsewhere" / "renamed"))
    front = autocompress.load(moved)
    assert "autocompress export elsewhere/renamed --candidate" in front.report().read_text(encoding="utf-8")
    assert str(tmp_path) not in (moved / "report.html").read_text(encoding="utf-8")
    assert (front.export(verify=False) / "model.onnx").is_file()


def test_a_run_in_a_folder_that_takes_no_files_is_read_and_reported_elsewhere(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    def refused(path: Any, *arguments: Any, **named: Any) -> sqlite3.Connection:
        if Path(path).parent == small_run:
            raise sqlite3.OperationalError("attempt to write a readonly database")
        return connect(path, *arguments, **named)

    whole = autocompress.load(small_run)
    monkeypatch.setattr("sqlite3.connect", refused)
    front = autocompress.load(small_run)
    pd.testing.assert_frame_equal(front.candidates, whole.candidates)
    assert front.report(tmp_path / "out") == tmp_path / "out" / "report.html"
    assert (tmp_path / "out" / "candidates.parquet").is_file()
    with pytest.raises(StorageError, match="check that the folder can be written"):
        RunStore.open(small_run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        lambda run: autocompress.load(run).export(),
        lambda run: autocompress.load(run).cascade(),
        lambda run: autocompress.load(run).bench(),
        lambda run: adapt_run(run, "t0c0", [], AdaptOptions()),
        lambda run: join_artifacts([run / "one", run / "other"], run / "joined"),
    ],
    ids=["export", "cascade", "bench", "adapt", "join"],
)
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    small_run: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[[Path], object]
) -> None:
    def refuse(*_: object) -> tuple[int, str]:
        raise OSError(errno.EROFS, "Read-only file system")

    def work(*_: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(atomic, "create_temporary", refuse)
    for module, name in (
        (candidate, "rebuild_candidate"),
        (cascade, "rebuild_candidate"),
        (front_latency, "_start_latency"),
        (adaptation, "_read_data"),
        (switchable, "read_tensors"),
    ):
        monkeypatch.setattr(module, name, work)
    with pytest.raises(StorageError, match="cannot be written"):
        command(small_run)
