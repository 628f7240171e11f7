"""The index of several runs: its folders, its groups, and its pages."""

from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.analysis.selection import select_candidate
from autocompress.report.comparison import RunTables
from autocompress.report.site import INDEX, SiteRun, group_comparable, name_folders, write_index
from tests.report.factory import Run


def tables(run: Run, name: str, **changes: object) -> RunTables:
    info = replace(run.info, **changes) if changes else run.info
    return RunTables(name, run.candidates, run.trials.assign(further=False), info)


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["a", "b"], ["a", "b"]),
        (["x/a", "y/a"], ["x-a", "y-a"]),
        (["x/a", "x-a", "x\\a"], ["x-a", "x-a-2", "x-a-3"]),
        ([".."], ["run"]),
    ],
)
def test_every_run_has_a_folder_inside_of_the_site(names: list[str], folders: list[str]) -> None:
    assert name_folders(names) == folders


def test_runs_of_one_task_and_its_data_are_a_group(run: Run) -> None:
    other = tables(run, "c", task="another")
    empty = replace(tables(run, "d"), candidates=run.candidates.iloc[:0])
    groups = group_comparable([empty, tables(run, "a"), other, tables(run, "b")])
    assert [[one.name for one in group] for group in groups] == [["a", "b"]]


def test_the_index_links_every_page_and_says_each_result(run: Run, tmp_path: Path) -> None:
    picked = select_candidate(run.candidates, run.info)
    runs = [
        SiteRun(tables(run, "a <b>"), "a b", picked),
        SiteRun(tables(run, "other", task="another"), "other", None),
        SiteRun(tables(run, "c"), "c", picked),
    ]
    index = write_index(tmp_path, runs)
    text = index.read_text()
    assert index == tmp_path / INDEX
    assert '<a href="a%20b/report.html">a &lt;b&gt;</a>' in text
    assert text.count("report.html") == 3
    assert f"<td>{picked.id}</td>" in text
    assert (tmp_path / "compare-1.html").is_file()
    assert not (tmp_path / "compare-2.html").exists()
    assert "a &lt;b&gt;, c</a>" in text
    # The page runs no script and loads nothing.
    assert "<script" not in text
    assert "http://" not in text
    assert "https://" not in text
