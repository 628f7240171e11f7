import io
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pandas as pd
import pytest
from rich.console import Console

from autocompress.api import Front
from autocompress.cli.doctor import Check
from autocompress.cli.output import print_checks, print_failures, status_rows


def make_front(folder: Path) -> Front:
    trials = pd.DataFrame(
        {
            "role": ["search"] * 4,
            "state": ["failed", "failed", "failed", "completed"],
            "reason": ["diverged", "out of memory", "out of memory", ""],
        }
    )
    return cast(Front, SimpleNamespace(trials=trials, folder=folder))


def test_failures_are_printed_most_frequent_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_failures(make_front(tmp_path))
    assert capsys.readouterr().out.splitlines() == ["  2 failed: out of memory", "  1 failed: diverged"]


def test_trials_are_counted_by_role_state_and_reason(tmp_path: Path) -> None:
    rows = status_rows(make_front(tmp_path))
    assert {"role": "search", "state": "failed", "reason": "out of memory", "trials": 2} in rows
    assert sum(cast(int, row["trials"]) for row in rows) == 4


@pytest.mark.parametrize(("state", "ready"), [("ok", True), ("warning", True), ("broken", False)])
def test_only_a_broken_check_prevents_a_search(state: str, ready: bool, capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    checks = [Check("memory", state, "8 GB", "free some"), Check("torch", "ok", "2.0", "")]
    assert print_checks(checks, Console(file=stream, width=80)) is ready
    assert stream.getvalue().count("fix: free some") == 1
    assert ("ready to search" in capsys.readouterr().out) is ready
