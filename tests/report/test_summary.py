"""The sentences of the page, word for word where a person reads a number."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from autocompress.analysis.selection import Pick, select_candidate
from autocompress.core.example_scores import ExampleScores
from autocompress.core.run_info import LatencyInfo, RunInfo, TeacherInfo
from autocompress.errors import UsageError
from autocompress.report.comparison import RunTables
from autocompress.report.figure_data import hypervolume_data
from autocompress.report.figures import hypervolume_figure
from autocompress.report.page import render_page
from autocompress.report.summary import (
    compare_with_reference,
    count_unfinished_trials,
    describe_convergence,
    list_conditions,
    pick_latency,
    reference_data,
    reference_of,
    split_scores,
    summarize_result,
    summarize_search,
)
from tests.report.factory import OBJECTIVES, Run
from tests.report.test_comparison import tables


def chosen(accuracy: float, flops: float) -> Pick:
    return Pick("t1c1", {"accuracy": accuracy, "effective_flops": flops}, "")


META = RunInfo(
    objectives=OBJECTIVES, teacher=TeacherInfo({"select_val": {"accuracy": 0.981}}, {"effective_flops": 9.91e7})
)


@pytest.mark.parametrize(
    ("accuracy", "flops", "sentence"),
    [
        (
            0.973,
            1e6,
            "99.1x fewer effective FLOPs than the teacher; loses 0.8 points of accuracy on",
        ),
        (0.981, 1e6, "99.1x fewer effective FLOPs than the teacher; the same accuracy on"),
        (
            0.984,
            1e6,
            "99.1x fewer effective FLOPs than the teacher; gains 0.3 points of accuracy on",
        ),
        (0.971, 9.91e7, "As many effective FLOPs as the teacher; loses 1.0 point of accuracy on"),
    ],
)
def test_the_verdict_compares_with_the_teacher(accuracy: float, flops: float, sentence: str) -> None:
    expected = f"{sentence} the selection split; the test split was not read."
    assert summarize_result(pd.DataFrame(), pd.DataFrame(), META, chosen(accuracy, flops)) == expected


def make_tested_run(lost: int, gained: int, **row: float) -> tuple[RunInfo, Pick]:
    """A run whose teacher errs on 5 of 400 test examples, and its pick, which loses some and gains some of these."""
    goal = np.ones(400)
    goal[-5:] = 0.0
    own = goal.copy()
    own[:lost], own[395 : 395 + gained] = 0.0, 1.0
    teacher = replace(
        META.teacher,
        scores={**META.teacher.scores, "test": {"accuracy": float(goal.mean())}},
        examples={"test": ExampleScores("bits", 400, goal).pack()},
        costs={**META.teacher.costs, "latency_ms": 9.8, "bytes": 31_100.0},
    )
    details = {"examples": {"test": ExampleScores("bits", 400, own).pack()}}
    picked = chosen(0.99, 1e6)
    tested = {**picked.row, "accuracy_test": float(own.mean()), "details": details, **row}
    return replace(META, teacher=teacher), replace(picked, row=tested)


@pytest.mark.parametrize(
    ("lost", "gained", "sentence"),
    [
        (4, 0, r"loses 1.0 point of accuracy on test \[-?0\.\d, 2\.5\]"),
        (0, 5, r"gains 1.2 points of accuracy on test \[0\.\d, 2\.9\]"),
        (2, 2, r"loses no accuracy on test \[-1\.\d, 1\.\d\]"),
    ],
)
def test_the_verdict_tells_the_loss_on_test_with_its_interval(lost: int, gained: int, sentence: str) -> None:
    info, picked = make_tested_run(lost, gained)
    text = summarize_result(pd.DataFrame(), pd.DataFrame(), info, picked)
    assert re.fullmatch(rf"99.1x fewer effective FLOPs than the teacher; {sentence}\.", text), text


def test_scores_of_splits_have_intervals() -> None:
    info, picked = make_tested_run(4, 0)
    rows, change = split_scores(picked.row, info)
    low, high = binomtest(391, 400).proportion_ci(0.95, method="wilson")
    assert rows[2]["ours"] == f"97.8% [{low:.1%}, {high:.1%}]"
    assert "Against the teacher, it loses 1.0 point of accuracy on test [" in change


def test_measured_speed_and_size_replace_a_counted_cost() -> None:
    info, picked = make_tested_run(4, 0, latency_ms=2.0, bytes=100.0)
    text = summarize_result(pd.DataFrame(), pd.DataFrame(), info, picked)
    assert text.startswith("4.9x faster and 311x smaller than the teacher; loses 1.0 point of accuracy on test [")
    info, picked = make_tested_run(4, 0, latency_ms=19.6, bytes=100.0)
    assert summarize_result(pd.DataFrame(), pd.DataFrame(), info, picked).startswith("2x slower and 311x smaller")


def test_without_a_teacher_the_verdict_states_the_numbers() -> None:
    info = replace(META, teacher=TeacherInfo())
    assert summarize_result(pd.DataFrame(), pd.DataFrame(), info, chosen(0.973, 1e6)) == "97.3% accuracy at 1 MFLOPs."


def test_without_a_pick_the_verdict_says_why(run: Run) -> None:
    failed = pd.DataFrame({"state": ["failed"] * 3, "reason": ["out of memory", "out of memory", "timed out"]})
    assert summarize_result(pd.DataFrame(), failed, META, None) == (
        "No trial produced a candidate; the most frequent reason: out of memory."
    )
    assert summarize_result(run.candidates, run.trials, run.info, None) == "No candidate can be recommended."
    assert summarize_result(pd.DataFrame(), pd.DataFrame(), META, None) == "The search has no results yet."


def test_the_lede_counts_candidates_and_trials(run: Run) -> None:
    text = summarize_search(
        run.candidates, run.trials, replace(run.info, seconds=250), select_candidate(run.candidates, run.info)
    )
    complete = (run.trials["state"] == "complete").sum()
    assert (
        f"from {len(run.candidates)} candidates, made from 19 trials ({complete} ran to the end) in 4 min 10 s" in text
    )
    assert summarize_search(pd.DataFrame(), pd.DataFrame(), META, None) == "No trial has run yet."


def trials(values: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"role": "search", "elapsed": range(1, len(values) + 1), "hypervolume": values})


def test_convergence_tells_whether_the_last_third_still_helped() -> None:
    flat = describe_convergence(trials([0.5, 0.8, 0.9, 0.9, 0.9, 0.9]))
    assert flat == (
        "Normalized hypervolume: 0.900. It improved by 0.0% in the last third of the trials; the last improvement was "
        "trial 3 of 6."
    )
    growing = describe_convergence(trials([0.2, 0.3, 0.4, 0.5, 0.6, 0.9]))
    assert "It improved by 44.4% in the last third of the trials; the last improvement was trial 6 of 6." in growing
    assert describe_convergence(trials([0.5])) == ""
    assert describe_convergence(pd.DataFrame()) == ""


def test_honesty_lists_machine_data_splits_states_and_simulation(run: Run) -> None:
    facts = dict(list_conditions(run.candidates, run.trials, run.info))
    assert facts["Processor"] == "Intel Xeon Platinum 8481C, 2 cores"
    assert "torch 2.13.0" in facts["Versions"]
    assert facts["Data"] == "fingerprint 3f9a0c11d2e4"
    assert "select_val 320" in facts["Splits"]
    assert "search_val for the search" in facts["Use of splits"]
    for state, count in run.trials["state"].value_counts().items():
        assert f"{count} {state}" in facts["Trials"]
    assert facts["Simulated"].endswith("their scores are exact, a speed-up needs hardware with such a kernel")
    assert facts["Seeds"].startswith("one: differences between single trials include chance")


def test_honesty_admits_several_readings_of_the_test_split_and_several_seeds(run: Run) -> None:
    facts = dict(
        list_conditions(
            run.candidates.assign(seed=range(len(run.candidates))), run.trials, replace(run.info, test_reads=3)
        )
    )
    assert facts["Use of splits"].endswith("test was read 3 times")
    assert "Seeds" not in facts


def test_honesty_of_a_run_that_knows_nothing_of_itself() -> None:
    facts = dict(list_conditions(pd.DataFrame(), pd.DataFrame(), RunInfo()))
    assert facts["Processor"].startswith("unknown")


def test_losses_count_reasons_the_most_frequent_first(run: Run) -> None:
    result = count_unfinished_trials(run.trials)
    ended = run.trials[run.trials["state"].isin(["failed", "infeasible", "stopped"])]
    assert sum(line["count"] for line in result) == len(ended)
    assert [line["count"] for line in result] == sorted((line["count"] for line in result), reverse=True)
    assert count_unfinished_trials(pd.DataFrame()) == []


@pytest.mark.parametrize(
    ("test", "sentence"),
    [
        (0.965, "On the test split, the accuracy is 0.8 points lower than on select_val."),
        (0.983, "On the test split, the accuracy is 1.0 point higher than on select_val."),
        (0.973, "The scores on select_val and test are equal."),
        (0.97304, "The scores on select_val and test are equal."),
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
    latency = LatencyInfo(1, 1, "a processor", "1.0", rows)
    facts = dict(list_conditions(run.candidates, run.trials, replace(run.info, latency=latency)))
    assert facts["Latency"].startswith("2 exported models")
    assert ("including the teacher" in facts["Latency"]) == among
    assert "Latency" not in dict(list_conditions(run.candidates, run.trials, run.info))


def test_what_the_pick_took_is_said_beside_the_teacher_where_both_were_timed(run: Run) -> None:
    latency = LatencyInfo(1, 2, "a processor", "1.0", {"t0c1": 0.2})
    info = replace(run.info, latency=latency)
    assert pick_latency({"id": "t0c1", "latency_ms": 0.2}, info) == (
        "Measured latency of the exported model: 0.2 ms (at batch 1 with 2 threads by onnxruntime 1.0 on a processor)."
    )
    predicted = pick_latency({"latency_ms": 0.2, "latency_source": "predicted", "float_latency_ms": 0.196}, info)
    assert predicted.startswith("Predicted latency of the exported model: 0.2 ms")
    assert "floating point" not in predicted
    slower = pick_latency({"latency_ms": 0.2, "latency_source": "measured", "float_latency_ms": 0.1}, info)
    assert "In floating point (model_float.onnx) it takes 0.1 ms" in slower
    teacher = replace(info.teacher, costs={"latency_ms": 0.5})
    assert ", teacher 0.5 ms (" in pick_latency({"latency_ms": 0.2}, replace(info, teacher=teacher))
    assert pick_latency({"latency_ms": float("nan")}, info) == pick_latency({}, run.info) == ""


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
