"""CSV and JSON twins: numbers survive, formulas do not, files are whole or untouched."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st

from autocompress.errors import StorageError
from autocompress.report import data_files as tables
from autocompress.report.data_files import to_csv, to_json, to_parquet, write_tables
from tests.report.factory import HOSTILE, Run, make_run


def parse(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def test_five_files_are_written_and_hold_every_row(run: Run, front: pd.DataFrame, tmp_path: Path) -> None:
    paths = write_tables(tmp_path / "new", run.candidates, run.trials, front)
    assert [path.name for path in paths] == [
        "candidates.csv",
        "trials.csv",
        "front.csv",
        "front.json",
        "candidates.parquet",
    ]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in paths)
    back = pd.read_csv(paths[0])
    assert back["id"].tolist() == run.candidates["id"].tolist()
    # Some versions of pandas read the last digit another way.
    assert back["accuracy"].tolist() == pytest.approx(run.candidates["accuracy"].tolist(), rel=1e-15)
    assert len(pd.read_csv(paths[1])) == len(run.trials)
    assert pd.read_csv(paths[2])["effective_flops"].tolist() == front["effective_flops"].tolist()


def test_parquet_holds_every_row_and_column_with_its_type(tmp_path: Path) -> None:
    run = make_run(8, 8, hostile=True)
    size = len(run.candidates)
    table = run.candidates.assign(mixed=([1, "a", None, True] * size)[:size], tags=[[1, "\ud800"]] * size)
    (tmp_path / "candidates.parquet").write_bytes(to_parquet(table))
    back = pd.read_parquet(tmp_path / "candidates.parquet")
    assert list(back.columns) == list(table.columns)
    assert back["id"].tolist() == table["id"].tolist()
    for column in table.columns:
        if pd.api.types.is_numeric_dtype(table[column]):
            pd.testing.assert_series_equal(back[column], table[column], check_index=False)
    assert back["mixed"].tolist()[:2] == ["1", '"a"']
    assert pd.isna(back["mixed"][2])
    assert json.loads(back["details"][0]) == table["details"][0]
    assert pd.read_parquet(io.BytesIO(to_parquet(pd.DataFrame()))).empty


def test_json_keeps_details_opens_configs_and_has_null_for_missing(front: pd.DataFrame) -> None:
    rows = json.loads(to_json(front.assign(accuracy_test=np.nan, agreement=np.inf)))
    assert [row["id"] for row in rows] == front["id"].tolist()
    assert rows[0]["config"]["seed"] == 7
    assert rows[0]["accuracy_test"] is None
    assert rows[0]["agreement"] is None
    assert rows[0]["details"] == front["details"].iloc[0]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_text_that_a_spreadsheet_would_run_is_quoted(text: str) -> None:
    assert parse(to_csv(pd.DataFrame({"name": [text]})))[1] == [f"'{text}"]
    assert parse(to_csv(pd.DataFrame({text: [1]})))[0] == [f"'{text}"]


def test_numbers_of_a_config_that_no_float_can_hold_become_null() -> None:
    table = pd.DataFrame({"config": ['{"fit": {"adamw": {"lr": 1e400, "epochs": 2}}}']})
    assert json.loads(to_json(table)) == [{"config": {"fit": {"adamw": {"lr": None, "epochs": 2}}}}]


def test_numbers_stay_numbers() -> None:
    table = pd.DataFrame({"value": [-0.5, 8.0, math.nan, 1e20], "flag": [True, False, True, False]})
    assert parse(to_csv(table))[1:] == [["-0.5", "True"], ["8", "False"], ["", "True"], ["1e+20", "False"]]


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_no_cell_of_any_text_starts_a_formula_and_all_text_survives(texts: list[str]) -> None:
    rows = parse(to_csv(pd.DataFrame({"name": pd.Series(texts, dtype=object)})))[1:]
    for cells, text in zip(rows, texts, strict=True):
        cell = cells[0] if cells else ""
        assert cell.removeprefix("'") == text.removeprefix("'")
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))


def test_hostile_names_are_harmless(tmp_path: Path) -> None:
    run = make_run(6, 4, hostile=True)
    path = write_tables(tmp_path, run.candidates, run.trials, run.candidates.head(1))[0]
    assert "'" + HOSTILE[1] in {cell for row in parse(path.read_text(encoding="utf-8")) for cell in row}


def test_a_lone_surrogate_is_spelled_out(tmp_path: Path) -> None:
    table = pd.DataFrame({"name": pd.Series(["\ud800"], dtype=object)})
    path = write_tables(tmp_path, table, table, table)[0]
    assert "\\ud800" in path.read_text(encoding="utf-8")


def test_empty_tables_are_written(tmp_path: Path) -> None:
    empty = pd.DataFrame()
    write_tables(tmp_path, empty, empty, empty)
    assert json.loads((tmp_path / "front.json").read_text()) == []


def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pd.DataFrame({"id": ["new"]})
    (tmp_path / "candidates.csv").write_text("old")

    def full(path: Path, data: bytes) -> None:
        raise StorageError("no space left")

    monkeypatch.setattr(tables, "write_atomic", full)
    with pytest.raises(StorageError):
        write_tables(tmp_path, table, table, table)
    assert [path.name for path in tmp_path.iterdir()] == ["candidates.csv"]
    assert (tmp_path / "candidates.csv").read_text() == "old"
