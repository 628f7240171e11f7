from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from autocompress.core.run_info import RunInfo
from autocompress.errors import UsageError
from autocompress.report.comparison import RunTables
from autocompress.report.figure_data import hypervolume_data
from autocompress.report.figures import hypervolume_figure
from autocompress.report.page import render_page
from autocompress.report.reference import compare_with_reference, reference_data, reference_of
from tests.report.factory import Run
from tests.report.test_comparison import tables


def slower(run: Run, name: str = "random", by: float = 3.0, less: float = 0.9) -> RunTables:
    result = tables(run, name)
    trials = result.trials.assign(
        elapsed=result.trials["elapsed"] * by, hypervolume=result.trials["hypervolume"] * less
    )
    return replace(result, trials=trials)


def test_what_is_drawn_of_another_run_is_kept_whole(run: Run) -> None:
    retained = reference_of(tables(run), slower(run))
    assert retained.name == "random"
    theirs = hypervolume_data(slower(run).trials)
    result = reference_data(RunInfo(reference=retained))
    pd.testing.assert_frame_equal(result, theirs.astype(float), check_exact=False, atol=1e-3)
    assert reference_data(RunInfo()).empty


def test_the_figure_has_a_dashed_line_for_it_beside_the_runs_own(run: Run) -> None:
    info = replace(run.info, reference=reference_of(tables(run), slower(run, "<b>dice</b>")))
    own, _, theirs, over_time = hypervolume_figure(run.trials, info).data
    assert (own.name, theirs.name) == ("this search", "&lt;b&gt;dice&lt;/b&gt;")
    assert theirs.line.dash == "dash"
    assert max(over_time.x) == pytest.approx(3 * hypervolume_data(run.trials)["seconds"].max(), rel=1e-3)
    assert max(theirs.y) == pytest.approx(0.9 * max(own.y), rel=1e-4)


def test_the_page_says_which_was_there_sooner(run: Run, tmp_path: Path) -> None:
    info = replace(run.info, reference=reference_of(tables(run), slower(run)))
    sentence = compare_with_reference(run.trials, info)
    assert sentence.startswith("The reference run random reached 0.")
    assert "; this search reached that value after " in sentence
    assert sentence in render_page(tmp_path, run.candidates, run.trials, info)
    ahead = replace(run.info, reference=reference_of(tables(run), slower(run, by=0.5, less=1.05)))
    assert ", and the value of this search after " in compare_with_reference(run.trials, ahead)
    assert compare_with_reference(run.trials, run.info) == ""
    assert compare_with_reference(pd.DataFrame(), info) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: replace(run.info, task="mnist1d"), "differ in their task"),
        (
            lambda run: replace(
                run.info, objectives=[replace(item, bounds=(0.5, 0.75)) for item in run.info.objectives]
            ),
            "have different reference points .* autocompress compare computes both with one reference point",
        ),
    ],
)
def test_runs_that_do_not_compare_are_refused(
    run: Run, change: Callable[[Run], dict[str, object]], message: str
) -> None:
    other = replace(tables(run, "other"), info=change(run))
    with pytest.raises(UsageError, match=message):
        reference_of(tables(run), other)


def test_a_run_of_which_nothing_is_known_is_refused(run: Run) -> None:
    other = tables(run, "other")
    other = replace(other, trials=other.trials.assign(hypervolume=float("nan")))
    with pytest.raises(UsageError, match="other has no hypervolume yet"):
        reference_of(tables(run), other)
