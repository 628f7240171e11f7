"""Learning curves as the page shows them."""

import json
from typing import Any

from autocompress.report.exploration import explore_trials
from autocompress.report.trial_data import find_rungs
from tests.report.factory import Run


def test_trials_are_shown_with_their_states_and_rungs(run: Run) -> None:
    content: dict[str, Any] = {}
    figures = json.loads(explore_trials(content, run.candidates, run.trials, run.info)["curves"])
    # The made-up candidates of a trial have one rung or the end only, so there are no curves of scores.
    assert list(figures) == list(content["curve_titles"]) == ["loss"]
    assert "stopped early" in content["curves_text"]
    assert "(the rungs)" in content["curves_text"]
    shapes = figures["loss"]["layout"]["shapes"]
    rungs = find_rungs(run.candidates)
    assert [shape["x0"] for shape in shapes] == rungs
    assert [shape["label"]["text"] for shape in shapes] == [f"rung {number + 1}" for number in range(len(rungs))]
    assert len(content["rungs"]) == len(rungs) + 1


def test_without_trials_there_are_no_curves(run: Run) -> None:
    content: dict[str, Any] = {}
    assert explore_trials(content, run.candidates, run.trials.head(0), run.info) == {}
    assert content["has_curves"] is False
    assert content["timeline"] == ""


def test_the_timeline_has_a_row_for_each_worker(run: Run) -> None:
    content: dict[str, Any] = {}
    figure = json.loads(explore_trials(content, run.candidates, run.trials, run.info)["timeline"])
    assert figure["layout"]["yaxis"]["categoryarray"] == ["2", "1"]
    assert "The 2 workers had work for" in content["timeline"]
    assert len(content["stopped"]) == (run.trials["state"] == "stopped").sum()
    shown = sum(len(trace["y"]) for trace in figure["data"])
    assert shown == run.trials["segments"].map(len).sum()
