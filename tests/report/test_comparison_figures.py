from dataclasses import replace

import pytest

from autocompress.report.comparison import Comparison, RunTables, compare_runs
from autocompress.report.comparison_page import fronts_figure, volumes_figure
from tests.report.factory import Run


@pytest.fixture(scope="module")
def comparison(run: Run) -> Comparison:
    trials = run.trials.assign(further=False)
    return compare_runs([RunTables(name, run.candidates, trials, run.info) for name in ("<b>a", "b")])


def test_fronts_show_each_run_and_the_median_of_a_mode(comparison: Comparison) -> None:
    figure = fronts_figure(comparison)
    assert [trace.name for trace in figure.data[:2]] == ["&lt;b&gt;a", "b"]
    assert len(figure.data) == 2 + len(comparison.attained)
    assert list(figure.data[0].x) == [cost for cost, _ in comparison.runs[0].front]
    assert figure.layout.xaxis.type == "log"


def test_the_better_end_of_the_score_is_on_top(comparison: Comparison) -> None:
    falling = replace(comparison, score=replace(comparison.score, direction="minimize"))
    assert fronts_figure(comparison).layout.yaxis.autorange is True
    assert fronts_figure(falling).layout.yaxis.autorange == "reversed"


def test_volumes_extend_to_the_end_of_each_run(comparison: Comparison) -> None:
    for trace, run in zip(volumes_figure(comparison).data, comparison.runs, strict=True):
        assert trace.x[-1] == run.seconds
        assert trace.y[-1] == trace.y[-2] == run.curve[-1][1]
