import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import BaseCheckpoint, Candidate, CompressionRecipe, Job, Role, State
from autocompress.errors import RunFolderError, StorageError
from autocompress.store.parts import PartTable
from autocompress.store.schema import (
    CANDIDATE_COLUMNS,
    DATABASE,
    SCHEMA,
    CandidateRows,
    StoredTrial,
    acquire_lock,
    candidate_from_row,
    candidate_row,
    existing_run_error,
    job_row,
    open_database,
    require_run,
    seal_of,
    trial_from_row,
)

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.one_of(st.integers(-9, 99), NUMBERS, st.booleans(), st.text(max_size=5))
PARTS = st.builds(
    lambda name, values: Part.of(name, **values),
    st.sampled_from(["one", "two"]),
    st.dictionaries(st.sampled_from(["width", "ratio"]), VALUES),
)
MAYBE = st.none() | PARTS
TRAININGS = st.builds(CompressionConfig, PARTS, st.tuples(PARTS), PARTS, seed=st.integers(0, 2**31))
CHECKPOINTS = st.builds("t{}p{}".format, st.integers(0, 9999), st.integers(0, 9))
JOBS = st.builds(
    Job,
    st.integers(0, 10**6),
    TRAININGS,
    st.lists(st.builds(CompressionRecipe, MAYBE, MAYBE), max_size=3).map(tuple),
    st.sampled_from(Role),
    st.none() | st.integers(0, 2),
    st.none() | st.integers(1, 99),
    st.none() | st.builds(BaseCheckpoint, CHECKPOINTS, MAYBE, st.integers(0, 99)),
)
METRICS = st.dictionaries(st.sampled_from(["accuracy", "f1"]), NUMBERS)
CANDIDATES = st.builds(
    Candidate,
    st.text(max_size=9),
    st.integers(0, 10**6),
    TRAININGS,
    st.integers(0, 99),
    st.dictionaries(st.sampled_from(["search_val", "select_val"]), METRICS),
    METRICS,
    st.dictionaries(st.text(max_size=3), VALUES),
    st.text(max_size=9),
    st.booleans(),
)


@contextmanager
def open_parts() -> Iterator[PartTable]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.create_function("seal_of", -1, seal_of, deterministic=True)
        connection.executescript(SCHEMA)
        yield PartTable(connection)


def flat_row(candidate: Candidate) -> dict[str, Any]:
    return flat_rows(candidate)[0]


def flat_rows(*candidates: Candidate) -> list[dict[str, Any]]:
    with open_parts() as parts:
        rows = [dict(zip(CANDIDATE_COLUMNS, candidate_row(candidate, parts), strict=True)) for candidate in candidates]
        parts.write_new_parts()
        table = CandidateRows(parts)
        return [table.flatten("search", row) for row in rows]


@settings(deadline=None)
@given(JOBS, st.sampled_from(State))
def test_a_job_comes_back_from_its_row(job: Job, state: State) -> None:
    with open_parts() as parts:
        told = {"optuna": 3, "attempts": 1, "seconds": None, "elapsed": 2.5, "reason": "its worker died"}
        row = {**job_row(job, parts), "state": state.value, **told}
        parts.write_new_parts()
        assert trial_from_row(row, parts) == StoredTrial(job, state, 3, 1, None, 2.5, "its worker died")


@settings(deadline=None)
@given(CANDIDATES)
def test_a_candidate_comes_back_from_its_row(candidate: Candidate) -> None:
    with open_parts() as parts:
        row = dict(zip(CANDIDATE_COLUMNS, candidate_row(candidate, parts), strict=True))
        parts.write_new_parts()
        assert candidate_from_row(row, parts) == candidate


def test_the_table_has_a_column_for_each_knob_score_and_cost() -> None:
    config = CompressionConfig(
        Part.of("cnn", width=8), (Part.of("soft_target", temperature=4.0), Part("hint")), Part("adamw"), seed=3
    )
    scores = {"search_val": {"accuracy": 0.7}, "select_val": {"accuracy": 0.8}, "test": {"accuracy": 0.9}}
    candidate = Candidate("t1c2", 1, config, 9, scores, {"flops": 5.0}, {"note": "x"})
    row = flat_row(candidate)
    expected: dict[str, Any] = {
        "id": "t1c2",
        "trial": 1,
        "role": "search",
        "epochs": 9,
        "complete": True,
        "seed": 3,
        "student": "cnn",
        "student.cnn.width": 8,
        "fit": "adamw",
        "prune": "none",
        "quantize": "none",
        "distill": "soft_target + hint",
        "distill.soft_target.temperature": 4.0,
        "accuracy": 0.8,
        "accuracy_search": 0.7,
        "accuracy_test": 0.9,
        "flops": 5.0,
        "details": {"note": "x"},
    }
    assert json.loads(row.pop("config")) == config.to_json()
    assert row == expected


@settings(deadline=None)
@given(st.lists(CANDIDATES, min_size=1, max_size=4))
def test_rows_that_share_parts_have_the_whole_config(candidates: list[Candidate]) -> None:
    rows = flat_rows(*candidates, *candidates)
    assert [row["config"] for row in rows] == [json.dumps(each.config.to_json()) for each in [*candidates, *candidates]]
    assert rows == [flat_row(candidate) for candidate in candidates] * 2


def test_a_list_of_settings_is_a_value_that_tables_can_group_by() -> None:
    config = CompressionConfig(Part.of("cnn", widths=[8, [4, 2]]), (Part("none"),), Part("adamw"), seed=3)
    row = flat_row(Candidate("t0c0", 0, config, 1, {}, {}))
    assert row["student.cnn.widths"] == (8, (4, 2))
    assert pd.Series([row["student.cnn.widths"]] * 2).nunique() == 1


@pytest.mark.parametrize("other", [("a", 1.0), ("a", "1"), ("a1",), ("a", 1, None), ("b", 1)])
def test_a_seal_tells_values_and_their_kinds_apart(other: tuple[Any, ...]) -> None:
    assert seal_of("a", 1) != seal_of(*other)


def test_a_database_is_durable_and_computes_seals(tmp_path: Path) -> None:
    connection = open_database(tmp_path / DATABASE)
    try:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("SELECT seal_of('a', 1)").fetchone() == (seal_of("a", 1),)
    finally:
        connection.close()


def test_files_that_cannot_be_opened_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot open"):
        open_database(tmp_path / "missing" / DATABASE)
    (tmp_path / DATABASE).write_bytes(b"plain text " * 200)
    with pytest.raises(RunFolderError, match="is not a study"):
        open_database(tmp_path / DATABASE)


def test_a_folder_needs_a_store(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="does not exist"):
        require_run(tmp_path / "missing")
    with pytest.raises(RunFolderError, match="is not a run folder"):
        require_run(tmp_path)
    (tmp_path / DATABASE).touch()
    require_run(tmp_path)
    assert "--resume" in str(existing_run_error(tmp_path))


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    lock = acquire_lock(tmp_path)
    assert (tmp_path / ".driver").read_text() == str(os.getpid())
    with pytest.raises(RunFolderError, match=f"in use by process {os.getpid()}"):
        acquire_lock(tmp_path)
    lock.release()
    acquire_lock(tmp_path).release()
