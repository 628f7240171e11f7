import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from autocompress.analysis.pareto import full_fidelity, hypervolume, pareto_front
from autocompress.errors import UsageError
from autocompress.report.comparison import RunTables, compare_runs
from autocompress.report.comparison_figures import fronts_figure, volumes_figure
from autocompress.report.comparison_page import columns, rows, verdict, write_comparison
from tests.report.factory import Run


def tables(run: Run, name: str = "ours", mode: str = "amortized", better: float = 0.0) -> RunTables:
    candidates = run.candidates.assign(accuracy=run.candidates["accuracy"] - better)
    return RunTables(name, candidates, run.trials.assign(further=False), {**run.meta, "mode": mode})


def test_both_runs_are_measured_in_the_box_of_the_first(run: Run) -> None:
    ours = tables(run)
    theirs = tables(run, "theirs", "sampled", better=0.05)
    boxes = [{**each, "box": [0.0, 5.0]} if each["kind"] == "score" else each for each in run.meta["objectives"]]
    found = compare_runs([ours, replace(theirs, meta={**theirs.meta, "objectives": boxes})])
    for compared, each in zip(found.runs, (ours, theirs), strict=True):
        front = pareto_front(full_fidelity(each.candidates), run.meta["objectives"])
        assert compared.hypervolume == pytest.approx(hypervolume(front, run.meta["objectives"]))
        assert len(compared.front) == len(front)
        assert compared.curve[-1][1] == pytest.approx(compared.hypervolume)
        volumes = [volume for _, volume in compared.curve]
        assert volumes == sorted(volumes)
    assert found.runs[0].hypervolume > found.runs[1].hypervolume


def test_scores_are_compared_at_shares_of_the_teachers_cost(run: Run) -> None:
    found = compare_runs([tables(run), tables(run, "theirs", better=0.05)])
    whole = run.meta["teacher"]["costs"]["effective_flops"]
    full = full_fidelity(run.candidates)
    cheap = full[full["effective_flops"] <= whole * 0.1]
    assert found.runs[0].at_shares[0] == pytest.approx(cheap["accuracy"].max())


def test_half_of_the_runs_of_a_kind_attain_what_lies_between_them(run: Run) -> None:
    members = [tables(run, f"r{index}", better=0.02 * index) for index in range(3)]
    found = compare_runs([*members, tables(run, "other", "sampled")])
    assert set(found.attained) == {"amortized"}
    # Three fronts that lie over each other: half of them attain the one in the middle.
    assert dict(found.attained["amortized"]) == pytest.approx(dict(found.runs[1].front))


def test_the_verdict_says_who_came_farthest_and_how_soon(run: Run) -> None:
    found = compare_runs([tables(run, "theirs", better=0.05), tables(run)])
    assert re.match(r"ours dominates the most \(0\.\d{4} of the box\); it had passed theirs's", verdict(found))
    same = compare_runs([tables(run), tables(run, "twin")])
    assert verdict(same).endswith("of the box).")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "another"}, "differ in their task"),
        ({"environment": {"data": "else"}}, "different data or splits"),
        ({"objectives": []}, "has the objectives"),
    ],
)
def test_runs_that_do_not_compare_are_refused(run: Run, change: dict[str, object], message: str) -> None:
    other = tables(run, "other")
    with pytest.raises(UsageError, match=message):
        compare_runs([tables(run), replace(other, meta={**other.meta, **change})])


def test_one_run_or_an_empty_one_is_refused(run: Run) -> None:
    with pytest.raises(UsageError, match="two runs"):
        compare_runs([tables(run)])
    with pytest.raises(UsageError, match="holds no candidates"):
        compare_runs([tables(run), replace(tables(run, "empty"), candidates=pd.DataFrame())])


def test_the_page_holds_every_run_and_escapes_their_names(run: Run, tmp_path: Path) -> None:
    found = compare_runs([tables(run, "<script>alert(1)</script>"), tables(run, "theirs", better=0.05)])
    page = write_comparison(tmp_path / "compare.html", found).read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "theirs" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert [len(row) for row in rows(found)] == [len(columns(found))] * 2
    drawn = json.loads(str(fronts_figure(found).to_json()))["data"]
    assert [len(trace["x"]) for trace in drawn[:2]] == [len(each.front) for each in found.runs]
    assert len(volumes_figure(found).data) == 2
