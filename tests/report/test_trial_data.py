"""Learning curves and rungs of trials."""

import pandas as pd

from autocompress.report.trial_data import (
    MAX_CURVES,
    MAX_EPOCHS,
    find_rungs,
    read_loss_curves,
    read_score_curves,
    read_timeline,
    tabulate_rungs,
    tabulate_stopped,
)
from tests.report.factory import Run, make_run


def test_curves_are_grouped_by_the_state_of_their_trials(run: Run) -> None:
    curves = read_loss_curves(run.candidates, run.trials)
    states = run.trials[run.trials["role"] == "search"].set_index("number")["state"]
    for state in ("complete", "stopped"):
        assert {curve.trial for curve in curves.groups[state]} == set(states.index[states == state])
    assert all(len(curve.epochs) == 27 for curve in curves.groups["complete"])
    assert curves.rungs == find_rungs(run.candidates)
    assert curves.shown == curves.total


def test_scores_are_those_of_the_least_compressed_candidate(run: Run) -> None:
    curves = read_score_curves(run.candidates, run.trials, run.info)
    (curve,) = [curve for curve in curves.groups["complete"] if curve.trial == 0]
    own = run.candidates.set_index("id").loc["t0c0"]
    assert (list(curve.epochs), list(curve.values)) == ([27], [own["accuracy_search"]])


def test_a_trial_has_a_point_at_each_rung_and_the_end() -> None:
    rows = [
        {"id": f"t0r{epochs}c{index}", "trial": 0, "role": "search", "epochs": epochs, "complete": epochs == 9,
         "prune": "none", "quantize": method, "accuracy_search": score}
        for epochs in (1, 3, 9)
        for index, (method, score) in enumerate([("post_training", 0.1), ("none", epochs / 10)])
    ]  # fmt: skip
    trials = pd.DataFrame({"number": [0, 1, 2], "role": "search", "state": ["complete", "failed", "stopped"]})
    losses = [{"epoch": epoch, "loss": 1 / epoch} for epoch in range(1, 10)]
    trials["curve"] = [losses, [], losses[:1]]
    info = make_run(2, 2).info
    (curve,) = read_score_curves(pd.DataFrame(rows), trials, info).groups["complete"]
    assert (list(curve.epochs), list(curve.values)) == ([1, 3, 9], [0.1, 0.3, 0.9])
    table = tabulate_rungs(pd.DataFrame(rows), trials, info)
    assert [(row["epochs"], row["stopped"], row["failed"]) for row in table] == [
        ("1", "1", "1"),
        ("3", "0", "0"),
        ("9", "0", "0"),
    ]
    assert [row["score"] for row in table] == ["10.0%", "30.0%", "90.0%"]
    # A trial that compresses the checkpoint of another has candidates at the end only, and passes no rung.
    rows.append({**rows[-1], "id": "t3c0", "trial": 3, "accuracy_search": 0.5})
    further = {"number": 3, "role": "search", "state": "complete", "curve": [], "further": True}
    trials = pd.concat([trials.assign(further=False), pd.DataFrame([further])], ignore_index=True)
    assert tabulate_rungs(pd.DataFrame(rows), trials, info) == table


def test_large_runs_have_a_bounded_number_of_points() -> None:
    losses = [{"epoch": epoch, "loss": 1.0} for epoch in range(1, 1001)]
    count = 3 * MAX_CURVES
    trials = pd.DataFrame({"number": range(count), "role": "search", "state": "complete", "curve": [losses] * count})
    curves = read_loss_curves(pd.DataFrame(), trials)
    assert curves.shown == MAX_CURVES
    assert curves.total == count
    assert all(len(curve.epochs) == MAX_EPOCHS for curve in curves.groups["complete"])
    assert curves.groups["complete"][0].epochs[-1] == 1000


def test_a_timeline_has_a_bar_for_each_part_of_a_trial() -> None:
    trials = pd.DataFrame({"number": [0, 1, 2], "state": ["complete", "stopped", "complete"]})
    trials["further"] = [False, False, True]
    trials["segments"] = [
        [{"worker": 1, "start": 0.0, "end": 4.0}, {"worker": 2, "start": 5.0, "end": 10.0}],
        [{"worker": 2, "start": 0.0, "end": 5.0}],
        [{"worker": 1, "start": 4.0, "end": 6.0}],
    ]
    timeline = read_timeline(trials)
    assert timeline is not None
    bars = {state: [bar.trial for bar in group] for state, group in timeline.groups.items() if group}
    assert bars == {"complete": [0, 0], "stopped": [1], "refinement": [2]}
    assert (timeline.workers, timeline.busy) == (2, 0.8)
    # A run of an earlier version has stored none.
    assert read_timeline(trials.drop(columns="segments")) is None
    assert read_timeline(trials.assign(segments=[[], [], []])) is None


def test_each_stopped_trial_has_its_reason(run: Run) -> None:
    rows = tabulate_stopped(run.candidates, run.trials, run.info)
    stopped = run.trials[run.trials["state"] == "stopped"]
    assert [row["trial"] for row in rows] == [str(number) for number in stopped["number"]]
    assert [row["epochs"] for row in rows] == [str(len(curve)) for curve in stopped["curve"]]
    assert [row["reason"] for row in rows] == [reason or "–" for reason in stopped["reason"]]
    assert all(row["score"].endswith("%") for row in rows)
