"""How sure a choice is, in words: who is tied with the pick, and what repeats say."""

from dataclasses import replace

import pandas as pd

from autocompress.analysis.confirmation import Confirmed, Estimate
from autocompress.analysis.selection import pick
from autocompress.analysis.significance import ties, unpaired
from autocompress.report.uncertainty import confidence, repeats
from tests.report.factory import OBJECTIVES, Run


def test_confidence_names_those_tied_with_the_pick(run: Run, front: pd.DataFrame) -> None:
    picked = pick(run.candidates, run.meta)
    told = confidence(front, run.meta, picked)
    assert told is not None
    expected = {
        name
        for name, share in zip(front["id"], front["accuracy"], strict=True)
        if unpaired(picked.row["accuracy"], share, 320) > 0.05
    }
    assert {row["id"] for row in told["rows"] if row["tied"]} <= expected
    assert picked.id in {row["id"] for row in told["rows"]}
    assert f"{len(expected) - 1} other candidates on the front are tied with it; the cheapest of them, " in told["text"]
    assert "On 320 select_val examples" in told["text"]


def test_confidence_of_a_lonely_pick(run: Run, front: pd.DataFrame) -> None:
    picked = pick(run.candidates, run.meta)
    alone = front[front["id"] == picked.id]
    told = confidence(alone, run.meta, replace(picked, ties=ties(alone, picked.row, run.meta)))
    assert told is not None
    assert told["text"].endswith("No other candidate on the front is statistically tied with it.")


def test_scores_that_are_no_share_of_examples_get_no_interval(run: Run, front: pd.DataFrame) -> None:
    f1 = {**OBJECTIVES[0], "name": "f1_macro"}
    for change in ({"objectives": [f1, OBJECTIVES[1]]}, {"splits": {}}):
        meta = {**run.meta, **change}
        assert confidence(front, meta, pick(run.candidates, meta)) is None
    assert confidence(front, run.meta, None) is None


def test_a_pick_behind_the_front_has_its_line_too(run: Run, front: pd.DataFrame) -> None:
    picked = pick(run.candidates, run.meta)
    told = confidence(front[front["id"] != picked.id], run.meta, picked)
    assert told is not None
    assert [row["cost"] for row in told["rows"]] == sorted(row["cost"] for row in told["rows"])
    assert picked.id in {row["id"] for row in told["rows"]}


def repeated(identity: str, searched: float, mean: float) -> Confirmed:
    found = Estimate(mean, mean - 0.01, mean + 0.01, (mean, mean))
    gap = Estimate(-0.004, -0.01, 0.002, (-0.004, -0.004))
    return Confirmed(identity, 1000.0, searched, found, replace(found, mean=mean - 0.004), gap, 1)


def test_repeats_say_how_lucky_the_search_was_and_what_the_pick_holds(run: Run, front: pd.DataFrame) -> None:
    picked = pick(run.candidates, run.meta)
    told = repeats([repeated(picked.id, 0.98, 0.96), repeated("t0c9", 0.9, 0.9)], front, run.meta, picked)
    assert told is not None
    assert told["text"] == (
        "2 candidates of the front trained again from scratch with 2 new seeds. On average their accuracy on "
        "select_val is 1.0 point worse than the search saw: the best of many is a little lucky. The pick holds "
        "95.6% [95.0%, 97.0%] on test."
    )
    assert [row["mark"] for row in told["rows"]] == [True, False]
    assert told["rows"][0]["gap"] == "-0.4 points"
    assert told["rows"][0]["seeds"] == "2 (1 failed)"
    assert told["test"].startswith("On test ")
    assert repeats([], front, run.meta, picked) is None
    upside_down = {**run.meta, "objectives": [{**OBJECTIVES[0], "direction": "minimize"}, OBJECTIVES[1]]}
    told = repeats([repeated(picked.id, 0.98, 0.96), repeated("t0c9", 0.9, 0.9)], front, upside_down, picked)
    assert told is not None
    assert "better than the search saw. The pick holds" in told["text"]
