"""The sentences of the page, word for word where a person reads a number."""

import math
from typing import Any

import pandas as pd
import pytest

from autocompress.analysis.selection import Pick, pick
from autocompress.report.summary import (
    convergence,
    honesty,
    lede,
    losses,
    pick_latency,
    split_scores,
    verdict,
)
from tests.report.factory import OBJECTIVES, Run


def chosen(accuracy: float, flops: float) -> Pick:
    return Pick("t1c1", {"accuracy": accuracy, "effective_flops": flops}, "")


META: dict[str, Any] = {
    "objectives": OBJECTIVES,
    "teacher": {"scores": {"select_val": {"accuracy": 0.981}}, "costs": {"effective_flops": 9.91e7}},
}


@pytest.mark.parametrize(
    ("accuracy", "flops", "sentence"),
    [
        (0.973, 1e6, "99.1x fewer effective FLOPs than the teacher for 0.8 points of accuracy."),
        (0.981, 1e6, "99.1x fewer effective FLOPs than the teacher at the same accuracy."),
        (0.984, 1e6, "99.1x fewer effective FLOPs than the teacher and a gain of 0.3 points of accuracy."),
        (0.971, 9.91e7, "As many effective FLOPs as the teacher for 1.0 point of accuracy."),
    ],
)
def test_the_verdict_compares_with_the_teacher(accuracy: float, flops: float, sentence: str) -> None:
    assert verdict(pd.DataFrame(), pd.DataFrame(), META, chosen(accuracy, flops)) == sentence


def test_without_a_teacher_the_verdict_states_the_numbers() -> None:
    meta = {**META, "teacher": None}
    assert verdict(pd.DataFrame(), pd.DataFrame(), meta, chosen(0.973, 1e6)) == "97.3% accuracy at 1 MFLOPs."


def test_without_a_pick_the_verdict_says_why(run: Run) -> None:
    failed = pd.DataFrame({"state": ["failed"] * 3, "reason": ["out of memory", "out of memory", "timed out"]})
    assert verdict(pd.DataFrame(), failed, META, None) == (
        "No trial produced a candidate, most often for this reason: out of memory."
    )
    assert verdict(run.candidates, run.trials, run.meta, None) == "No candidate can be recommended."
    assert verdict(pd.DataFrame(), pd.DataFrame(), META, None) == "Nothing has been searched yet."


def test_the_lede_counts_candidates_and_trials(run: Run) -> None:
    text = lede(run.candidates, run.trials, {**run.meta, "seconds": 250}, pick(run.candidates, run.meta))
    complete = (run.trials["state"] == "complete").sum()
    assert (
        f"out of {len(run.candidates)} candidates, cut from 19 trials ({complete} ran to the end) in 4 min 10 s" in text
    )
    assert lede(pd.DataFrame(), pd.DataFrame(), META, None) == "No trial has been run."


def trials(values: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"role": "search", "elapsed": range(1, len(values) + 1), "hypervolume": values})


def test_convergence_tells_whether_the_last_third_still_helped() -> None:
    flat = convergence(trials([0.5, 0.8, 0.9, 0.9, 0.9, 0.9]))
    assert "fills 90.0% of the declared box" in flat
    assert "came with trial 3 of 6; the last third of the trials added 0.0%: it has all but converged" in flat
    assert "more trials would probably still improve it" in convergence(trials([0.2, 0.3, 0.4, 0.5, 0.6, 0.9]))
    assert convergence(trials([0.5])) == ""
    assert convergence(pd.DataFrame()) == ""


def test_honesty_lists_machine_data_splits_states_and_simulation(run: Run) -> None:
    facts = dict(honesty(run.candidates, run.trials, run.meta))
    assert facts["Processor"] == "Intel Xeon Platinum 8481C, 2 cores"
    assert "torch 2.13.0" in facts["Versions"]
    assert facts["Data"] == "fingerprint 3f9a0c11d2e4"
    assert "select_val 320" in facts["Splits"]
    assert "search_val steers the search" in facts["Use of splits"]
    for state, count in run.trials["state"].value_counts().items():
        assert f"{count} {state}" in facts["Trials"]
    assert facts["Simulated"].endswith("their speed depends on a device that has one")
    assert facts["Seeds"].startswith("one: differences between single trainings include luck")


def test_honesty_admits_several_readings_of_the_test_split_and_several_seeds(run: Run) -> None:
    facts = dict(
        honesty(run.candidates.assign(seed=range(len(run.candidates))), run.trials, {**run.meta, "test_reads": 3})
    )
    assert facts["Use of splits"].endswith("test was read 3 times")
    assert "Seeds" not in facts


def test_honesty_of_a_run_that_knows_nothing_of_itself() -> None:
    facts = dict(honesty(pd.DataFrame(), pd.DataFrame(), {}))
    assert facts["Processor"].startswith("unknown")


def test_losses_count_reasons_the_most_frequent_first(run: Run) -> None:
    found = losses(run.trials)
    ended = run.trials[run.trials["state"].isin(["failed", "infeasible", "stopped"])]
    assert sum(line["count"] for line in found) == len(ended)
    assert [line["count"] for line in found] == sorted((line["count"] for line in found), reverse=True)
    assert losses(pd.DataFrame()) == []


@pytest.mark.parametrize(
    ("test", "sentence"),
    [
        (0.965, "On test the accuracy is 0.8 points lower than on select_val."),
        (0.983, "On test the accuracy is 1.0 point higher than on select_val."),
        (0.973, "From select_val to test nothing changes."),
        (math.nan, "The test split was not read for this candidate."),
    ],
)
def test_all_three_scores_are_shown_with_the_gap(test: float, sentence: str) -> None:
    rows, change = split_scores({"accuracy": 0.973, "accuracy_search": 0.98, "accuracy_test": test}, META)
    assert [row["split"] for row in rows] == ["search_val", "select_val", "test"]
    assert [row["ours"] for row in rows[:2]] == ["98.0%", "97.3%"]
    assert [row["teacher"] for row in rows] == ["–", "98.1%", "–"]
    assert change == sentence


@pytest.mark.parametrize(
    ("rows", "among"), [({"teacher": 0.5, "t0c1": 0.2}, True), ({"t0c1": 0.2, "t0c2": 0.3}, False)]
)
def test_a_teacher_that_could_not_be_timed_is_not_claimed(run: Run, rows: dict[str, float], among: bool) -> None:
    latency = {"batch": 1, "threads": 1, "processor": "a processor", "runtime": "1.0", "rows": rows}
    facts = dict(honesty(run.candidates, run.trials, {**run.meta, "latency": latency}))
    assert facts["Latency"].startswith("the median of 2 exported models")
    assert ("the teacher's among them" in facts["Latency"]) == among
    assert "Latency" not in dict(honesty(run.candidates, run.trials, run.meta))


def test_what_the_pick_took_is_said_beside_the_teacher_where_both_were_timed(run: Run) -> None:
    latency = {"batch": 1, "threads": 2, "processor": "a processor", "runtime": "1.0", "rows": {"t0c1": 0.2}}
    meta = {**run.meta, "latency": latency}
    assert pick_latency({"id": "t0c1", "latency_ms": 0.2}, meta) == (
        "Exported, it took 0.2 ms: at batch 1 with 2 threads by onnxruntime 1.0 on a processor."
    )
    teacher = {**meta["teacher"], "costs": {"latency_ms": 0.5}}
    assert ", the teacher 0.5 ms: " in pick_latency({"latency_ms": 0.2}, {**meta, "teacher": teacher})
    assert pick_latency({"latency_ms": float("nan")}, meta) == pick_latency({}, run.meta) == ""
