import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from autocompress.analysis.pareto import compute_hypervolume, full_fidelity, pareto_front
from autocompress.core.run_info import EnvironmentInfo
from autocompress.errors import UsageError
from autocompress.report.comparison import RunTables, compare_runs
from autocompress.report.comparison_page import (
    column_headings,
    fronts_figure,
    summarize_comparison,
    table_cells,
    volumes_figure,
    write_comparison,
)
from tests.report.factory import Run


def tables(run: Run, name: str = "ours", mode: str = "amortized", better: float = 0.0) -> RunTables:
    candidates = run.candidates.assign(accuracy=run.candidates["accuracy"] - better)
    return RunTables(name, candidates, run.trials.assign(further=False), replace(run.info, mode=mode))


def test_both_runs_are_measured_in_the_box_of_the_first(run: Run) -> None:
    ours = tables(run)
    theirs = tables(run, "theirs", "sampled", better=0.05)
    boxes = [replace(item, bounds=(0.0, 5.0)) if item.kind == "score" else item for item in run.info.objectives]
    result = compare_runs([ours, replace(theirs, info=replace(theirs.info, objectives=boxes))])
    for compared, item in zip(result.runs, (ours, theirs), strict=True):
        front = pareto_front(full_fidelity(item.candidates), run.info.objectives)
        assert compared.hypervolume == pytest.approx(compute_hypervolume(front, run.info.objectives))
        assert len(compared.front) == len(front)
        assert compared.curve[-1][1] == pytest.approx(compared.hypervolume)
        volumes = [volume for _, volume in compared.curve]
        assert volumes == sorted(volumes)
    assert result.runs[0].hypervolume > result.runs[1].hypervolume


def test_scores_are_compared_at_shares_of_the_teachers_cost(run: Run) -> None:
    result = compare_runs([tables(run), tables(run, "theirs", better=0.05)])
    whole = run.info.teacher.costs["effective_flops"]
    full = full_fidelity(run.candidates)
    cheap = full[full["effective_flops"] <= whole * 0.1]
    assert result.runs[0].at_shares[0] == pytest.approx(cheap["accuracy"].max())


@pytest.mark.slow
def test_half_of_the_runs_of_a_kind_attain_what_lies_between_them(run: Run) -> None:
    members = [tables(run, f"r{index}", better=0.02 * index) for index in range(3)]
    result = compare_runs([*members, tables(run, "other", "sampled")])
    assert set(result.attained) == {"amortized"}
    # Three fronts that lie over each other: half of them attain the one in the middle.
    assert dict(result.attained["amortized"]) == pytest.approx(dict(result.runs[1].front))


@pytest.mark.slow
def test_the_verdict_says_who_came_farthest_and_how_soon(run: Run) -> None:
    result = compare_runs([tables(run, "theirs", better=0.05), tables(run)])
    assert re.match(
        r"ours has the largest hypervolume \(0\.\d{4}\); it reached that of theirs \(", summarize_comparison(result)
    )
    same = compare_runs([tables(run), tables(run, "same")])
    assert summarize_comparison(same).endswith(").")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "another"}, "differ in their task"),
        ({"environment": EnvironmentInfo(data="else")}, "different data or splits"),
        ({"objectives": []}, "has the objectives"),
    ],
)
def test_runs_that_do_not_compare_are_refused(run: Run, change: dict[str, object], message: str) -> None:
    other = tables(run, "other")
    with pytest.raises(UsageError, match=message):
        compare_runs([tables(run), replace(other, info=replace(other.info, **change))])


def test_one_run_or_an_empty_one_is_refused(run: Run) -> None:
    with pytest.raises(UsageError, match="two runs"):
        compare_runs([tables(run)])
    with pytest.raises(UsageError, match="has no candidates to compare"):
        compare_runs([tables(run), replace(tables(run, "empty"), candidates=pd.DataFrame())])


def test_the_page_holds_every_run_and_escapes_their_names(run: Run, tmp_path: Path) -> None:
    result = compare_runs([tables(run, "<script>alert(1)</script>"), tables(run, "theirs", better=0.05)])
    page = write_comparison(tmp_path / "compare.html", result).read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "theirs" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert [len(row) for row in table_cells(result)] == [len(column_headings(result))] * 2
    drawn = json.loads(str(fronts_figure(result).to_json()))["data"]
    assert [len(trace["x"]) for trace in drawn[:2]] == [len(item.front) for item in result.runs]
    assert len(volumes_figure(result).data) == 2
