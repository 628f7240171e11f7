"""Listings as the command line prints them, and their cache."""

from pathlib import Path

import pytest
from rich.console import Console

from autocompress.cli import listing
from autocompress.cli.catalogue import LISTINGS
from autocompress.cli.listing import CACHE, listing_table, print_listing, read_listing


def test_rows_of_hyperparameters_do_not_repeat_their_method() -> None:
    rows = [row for row in LISTINGS["methods"]() if row["method"] == "soft_target"]
    console = Console(width=200)
    with console.capture() as capture:
        console.print(listing_table(rows))
    assert capture.get().count("soft_target") == 1
    assert {row["hyperparameter"] for row in rows} >= {"", "temperature", "alpha"}


@pytest.mark.parametrize("kind", LISTINGS)
def test_a_terminal_of_80_columns_breaks_no_word(kind: str) -> None:
    rows = LISTINGS[kind]()
    if kind == "spaces":
        # Paths have any length.
        rows = [{**row, "file": "x.yaml"} for row in rows]
    # Other tests register tasks of their own, whose names have any length.
    rows = [row for row in rows if not any(str(text).endswith("_tests") for text in row.values())]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(listing_table(rows, 80))
    lines = capture.get().splitlines()
    words = {word for line in lines for word in line.split()}
    assert all(len(line) <= 80 for line in lines)
    missing = {word for row in rows for name, text in row.items() for word in text.split()} - words
    assert {word for word in missing if word not in {row.get("section") for row in rows}} <= {
        row.get("method", "") for row in rows
    }


def test_rows_in_a_pipe_end_without_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    rows = LISTINGS["methods"]()
    print_listing(rows)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows) + 1
    assert [line for line in lines if line != line.rstrip()] == []


def test_rows_are_read_from_the_cache_until_a_source_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    calls: list[int] = []

    def make_listings() -> dict[str, list[dict[str, str]]]:
        calls.append(1)
        return {"modes": [{"mode": f"made {len(calls)} times", "meaning": ""}]}

    monkeypatch.setattr(listing, "_make_listings", make_listings)
    made = [read_listing("modes")[0]["mode"] for _ in range(2)]
    assert made == ["made 1 times"] * 2
    (path,) = (tmp_path / CACHE).iterdir()
    # Another program may have written anything.
    for content in ("", "[1]", '{"modes": [{"mode": 3}]}', "{}"):
        path.write_text(content)
        before = len(calls)
        assert read_listing("modes")[0]["mode"] == f"made {before + 1} times"
    monkeypatch.setattr(listing, "_list_sources", lambda: iter([("another.py", 1, 2)]))
    before = len(calls)
    assert read_listing("modes")[0]["mode"] == f"made {before + 1} times"
    assert len(list((tmp_path / CACHE).iterdir())) == 1


def test_a_cache_that_cannot_be_used_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / CACHE).write_text("no folder")
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    monkeypatch.setattr(listing, "_make_listings", lambda: {"modes": [{"mode": "made"}]})
    assert read_listing("modes") == [{"mode": "made"}]
