from dataclasses import replace

import pytest

from autocompress.report.comparison import SHARES, Comparison, RunTables, compare_runs
from autocompress.report.comparison_page import (
    column_headings,
    comparison_rows,
    summarize_comparison,
    table_cells,
)
from tests.report.factory import Run


@pytest.fixture(scope="module")
def comparison(run: Run) -> Comparison:
    trials = run.trials.assign(further=False)
    return compare_runs([RunTables(name, run.candidates, trials, run.info) for name in ("a", "b")])


def test_a_score_that_no_candidate_reaches_is_a_dash(comparison: Comparison) -> None:
    first = replace(comparison.runs[0], at_shares=tuple(None for _ in SHARES))
    cells = table_cells(replace(comparison, runs=[first, comparison.runs[1]]))
    assert cells[0][4 : 4 + len(SHARES)] == ["–"] * len(SHARES)
    assert cells[0][:4] == ["a", first.kind, f"{first.hypervolume:.4f}", str(len(first.front))]
    assert len(column_headings(comparison)) == len(cells[0])


def test_programs_read_numbers(comparison: Comparison) -> None:
    first = replace(comparison.runs[0], at_shares=(None, *comparison.runs[0].at_shares[1:]))
    row = comparison_rows(replace(comparison, runs=[first, comparison.runs[1]]))[0]
    assert row["hypervolume"] == first.hypervolume
    assert row["front"] == len(first.front)
    assert row["accuracy_at_0.1"] is None
    assert row["accuracy_at_0.01"] == first.at_shares[1]
    assert row["seconds"] == first.seconds


def test_the_summary_names_the_larger_hypervolume_and_when_it_passed(comparison: Comparison) -> None:
    first, second = comparison.runs
    small = replace(first, hypervolume=0.25, curve=[(1.0, 0.25)])
    large = replace(second, hypervolume=0.5, curve=[(1.0, 0.1), (30.0, 0.5)])
    text = summarize_comparison(replace(comparison, runs=[small, large]))
    assert text.startswith("b has the largest hypervolume (0.5000); it reached that of a (0.2500) after 30")
    equal = replace(comparison, runs=[small, replace(small, name="b")])
    assert summarize_comparison(equal) == "a has the largest hypervolume (0.2500)."
