"""Uncertainty of the choice in sentences: ties with the pick, and repeats."""

from dataclasses import replace

import pandas as pd

from autocompress.analysis.confirmation import ConfirmedCandidate, Estimate
from autocompress.analysis.selection import select_candidate
from autocompress.analysis.significance import find_ties, unpaired_p_value
from autocompress.report.uncertainty import pick_confidence, repeats_content
from tests.report.factory import OBJECTIVES, Run


def test_confidence_names_those_tied_with_the_pick(run: Run, front: pd.DataFrame) -> None:
    picked = select_candidate(run.candidates, run.info)
    summary = pick_confidence(front, run.info, picked)
    assert summary is not None
    expected = {
        name
        for name, share in zip(front["id"], front["accuracy"], strict=True)
        if unpaired_p_value(picked.row["accuracy"], share, 320) > 0.05
    }
    assert {row["id"] for row in summary["rows"] if row["tied"]} <= expected | {picked.id}
    assert picked.id in {row["id"] for row in summary["rows"]}
    assert (
        f"{len(expected - {picked.id})} other front candidates are statistically tied with it; the cheapest, "
        in summary["text"]
    )
    assert "On the 320 examples of the selection split" in summary["text"]


def test_confidence_of_a_lonely_pick(run: Run, front: pd.DataFrame) -> None:
    picked = select_candidate(run.candidates, run.info)
    alone = front[front["id"] == picked.id]
    summary = pick_confidence(alone, run.info, replace(picked, ties=find_ties(alone, picked.row, run.info)))
    assert summary is not None
    assert summary["text"].endswith("No other front candidate is statistically tied with it.")


def test_scores_that_are_no_share_of_examples_get_no_interval(run: Run, front: pd.DataFrame) -> None:
    f1 = replace(OBJECTIVES[0], name="f1_macro")
    for change in ({"objectives": [f1, OBJECTIVES[1]]}, {"splits": {}}):
        info = replace(run.info, **change)
        assert pick_confidence(front, info, select_candidate(run.candidates, info)) is None
    assert pick_confidence(front, run.info, None) is None


def test_a_pick_behind_the_front_has_its_line_too(run: Run, front: pd.DataFrame) -> None:
    picked = select_candidate(run.candidates, run.info)
    summary = pick_confidence(front[front["id"] != picked.id], run.info, picked)
    assert summary is not None
    assert [row["cost"] for row in summary["rows"]] == sorted(row["cost"] for row in summary["rows"])
    assert picked.id in {row["id"] for row in summary["rows"]}


def repeated(identity: str, searched: float, mean: float) -> ConfirmedCandidate:
    result = Estimate(mean, mean - 0.01, mean + 0.01, (mean, mean))
    gap = Estimate(-0.004, -0.01, 0.002, (-0.004, -0.004))
    return ConfirmedCandidate(identity, 1000.0, searched, result, replace(result, mean=mean - 0.004), gap, 1)


def test_repeats_say_how_lucky_the_search_was_and_what_the_pick_holds(run: Run, front: pd.DataFrame) -> None:
    picked = select_candidate(run.candidates, run.info)
    summary = repeats_content([repeated(picked.id, 0.98, 0.96), repeated("t0c9", 0.9, 0.9)], front, run.info, picked)
    assert summary is not None
    assert summary["text"] == (
        "2 candidates of the front repeated from scratch with 2 new seeds. On average, their accuracy on the selection "
        "split is 1.0 point worse than in the search: the best of many candidates is partly lucky. The pick has "
        "95.6% [95.0%, 97.0%] on the test split."
    )
    assert [row["mark"] for row in summary["rows"]] == [True, False]
    assert summary["rows"][0]["gap"] == "-0.4 points"
    assert summary["rows"][0]["seeds"] == "2 (1 failed)"
    assert summary["test"].startswith("On the test split, ")
    assert repeats_content([], front, run.info, picked) is None
    upside_down = replace(run.info, objectives=[replace(OBJECTIVES[0], direction="minimize"), OBJECTIVES[1]])
    summary = repeats_content([repeated(picked.id, 0.98, 0.96), repeated("t0c9", 0.9, 0.9)], front, upside_down, picked)
    assert summary is not None
    assert "better than in the search. The pick has" in summary["text"]
