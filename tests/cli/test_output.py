import io
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pandas as pd
import pytest
from rich.console import Console

from autocompress.api import Front
from autocompress.cli.doctor import Check
from autocompress.cli.output import _format_bits, front_table, plain_table, print_checks, print_failures, status_rows
from tests.fakes import OBJECTIVES


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


@pytest.mark.parametrize(
    ("layers", "settings", "text"),
    [
        ([], [None, None], "32/32"),
        ([], [8.0, 4.0], "8/4"),
        ([{"weight_bits": 4, "activation_bits": 8}] * 2, [3.0, 8.0], "4/8"),
        ([{"weight_bits": 2, "activation_bits": 8}, {"weight_bits": 8, "activation_bits": 8}], [None, None], "2–8/8"),
    ],
)
def test_the_bits_of_layers_are_shown_before_the_setting(
    layers: list[dict[str, int]], settings: list[float | None], text: str
) -> None:
    assert _format_bits(layers, settings) == text


def test_progressive_pruning_shows_the_last_accepted_ratio() -> None:
    path = [
        {"pruning_ratio": 0.0, "kept": True},
        {"pruning_ratio": 0.3, "kept": True},
        {"pruning_ratio": 0.6, "kept": False},
    ]
    row = {
        "id": "t0c0",
        "accuracy": 0.9,
        "effective_flops": 1000.0,
        "student": "cnn",
        "distill": "none",
        "prune": "progressive",
        "prune.progressive.pruning_ratio": 0.8,
        "quantize": "none",
        "details": {"prune": {"path": path}},
    }
    table = front_table(pd.DataFrame([row]), OBJECTIVES, "t0c0")
    cells = [list(column.cells) for column in table.columns]
    assert ["30%"] in cells
    assert ["32/32"] in cells


def test_a_narrow_terminal_leaves_out_whole_columns_and_names_them() -> None:
    row = {
        "id": "t0c0",
        "accuracy": 0.9,
        "effective_flops": 1e3,
        "accuracy_test": 0.9,
        "student": "cnn",
        "distill": "kl",
    }
    table = pd.DataFrame([{**row, "prune": "none", "quantize": "none"}])
    headings = {
        width: [str(column.header) for column in front_table(table, OBJECTIVES, width=width).columns]
        for width in (None, 10, 48, 60)
    }
    score, cost = "accuracy", "effective FLOPs"
    assert headings[None] == ["", "candidate", score, cost, "on test", "student", "distilled", "pruned", "bits w/a"]
    assert headings[60] == ["", "candidate", score, cost, "on test", "bits w/a"]
    assert headings[48] == ["", "candidate", score, cost, "on test"]
    assert headings[10] == ["", "candidate", score, cost]
    caption = front_table(table, OBJECTIVES, width=60).caption
    assert caption == "left out on 60 columns: pruned, student, distilled"


def test_a_plain_table_has_one_row_per_input_row() -> None:
    assert plain_table(["a", "b"], [["1", "2"]]).row_count == 1
