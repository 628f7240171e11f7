"""Which candidates are confirmed, and what their repeats come to."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from autocompress.analysis.confirmation import (
    evaluate_test_front,
    select_for_confirmation,
    summarize_repeats,
    without_repeats,
)
from autocompress.core.run_info import RunInfo
from tests.report.factory import OBJECTIVES

META = RunInfo(objectives=OBJECTIVES)


def config(width: int, seed: int) -> str:
    return json.dumps({"student": {"cnn": {"width": width}}, "prune": None, "seed": seed})


def row(identity: str, role: str, width: int, accuracy: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    known = {"id": identity, "role": role, "complete": True, "effective_flops": 100.0 * width, "accuracy": accuracy}
    return {**known, "config": config(width, seed), "details": {}, "accuracy_test": accuracy - 0.01, **more}


def front(count: int) -> pd.DataFrame:
    return pd.DataFrame([row(f"t{n}c0", "search", n, 0.5 + n / 100) for n in range(1, count + 1)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("picked", "count", "expected"),
    [
        ("t3c0", 1, ["t3c0"]),
        ("t3c0", 4, ["t3c0", "t2c0", "t4c0", "t1c0"]),
        ("t1c0", 3, ["t1c0", "t2c0", "t3c0"]),
        ("t6c0", 3, ["t6c0", "t5c0", "t4c0"]),
        ("t3c0", 99, ["t3c0", "t2c0", "t4c0", "t1c0", "t5c0", "t6c0"]),
    ],
)
def test_the_pick_comes_first_then_its_neighbours_by_turns(picked: str, count: int, expected: list[str]) -> None:
    assert select_for_confirmation(front(6), META, picked, count) == expected


def test_a_pick_behind_the_front_stands_where_its_cost_does() -> None:
    table = pd.concat([front(4), pd.DataFrame([row("t9c9", "search", 3, 0.529)])], ignore_index=True)
    assert select_for_confirmation(table, META, "t9c9", 3) == ["t9c9", "t3c0", "t4c0"]


def test_a_recommended_baseline_is_repeated_like_any_other() -> None:
    repeated = [row("t9c0", "baseline", 30, 0.6), row("t10c0", "confirm", 30, 0.58, seed=1)]
    table = pd.concat([front(2), pd.DataFrame(repeated)], ignore_index=True)
    (found,) = summarize_repeats(table, pd.DataFrame(), META)
    assert (found.id, found.searched, found.select_val.mean) == ("t9c0", 0.6, 0.58)


def test_limits_of_the_run_hold_for_what_is_confirmed() -> None:
    assert select_for_confirmation(front(6), replace(META, limits={"effective_flops": {"max": 300}}), "t3c0", 9) == [
        "t3c0",
        "t2c0",
        "t1c0",
    ]


def repeats(means: list[float], examples: int = 400, draws: int = 500) -> list[dict[str, Any]]:
    rows = []
    for seed, mean in enumerate(means):
        # The same for every seed, as seeds are scored on the same draws of the examples.
        rng = np.random.default_rng(3)
        found = {split: rng.binomial(examples, mean, draws) / examples for split in ("select_val", "test")}
        replicates = {split: values.tolist() for split, values in found.items()}
        rows.append(row(f"t5{seed}c0", "confirm", 3, mean, 70 + seed, details={"replicates": replicates}))
    return rows


def test_repeats_are_found_by_their_config_and_give_means_with_intervals() -> None:
    table = pd.concat([front(4), pd.DataFrame(repeats([0.60, 0.64, 0.62]))], ignore_index=True)
    (found,) = summarize_repeats(table, pd.DataFrame(), replace(META, confirmed={"t3c0": 5}))
    assert (found.id, found.failed, found.searched) == ("t3c0", 2, 0.53)
    assert found.select_val.values == (0.60, 0.64, 0.62)
    assert found.select_val.mean == pytest.approx(0.62)
    assert found.test.mean == pytest.approx(0.61)
    assert found.gap.mean == pytest.approx(-0.01)
    assert found.gap.low < 0 < found.gap.high
    assert list(without_repeats(table)["id"]) == [f"t{n}c0" for n in range(1, 5)]
    assert summarize_repeats(front(4), pd.DataFrame(), META) == []


def test_the_interval_holds_the_spread_of_seeds_and_of_examples() -> None:
    def width(means: list[float], examples: int) -> float:
        table = pd.concat([front(4), pd.DataFrame(repeats(means, examples))], ignore_index=True)
        found = summarize_repeats(table, pd.DataFrame(), META)[0].select_val
        return found.high - found.low

    # Seeds that agree say nothing new of the examples: 2 x 1.96 standard errors of one.
    assert width([0.6, 0.6, 0.6], 400) == pytest.approx(2 * 1.96 * np.sqrt(0.24 / 400), rel=0.15)
    assert width([0.5, 0.6, 0.7], 400) > 1.5 * width([0.6, 0.6, 0.6], 400)
    assert width([0.5, 0.6, 0.7], 100_000) > 0.1


def test_without_draws_there_is_a_mean_and_no_interval() -> None:
    bare = [{**each, "details": {}} for each in repeats([0.6, 0.7])]
    (found,) = summarize_repeats(pd.concat([front(4), pd.DataFrame(bare)], ignore_index=True), pd.DataFrame(), META)
    assert found.test.mean == pytest.approx(0.64)
    assert np.isnan(found.test.low)


def test_on_test_the_front_splits_into_what_holds_and_what_beats_nothing() -> None:
    table = front(4).assign(accuracy_test=[0.5, 0.7, 0.6, 0.9])
    found = evaluate_test_front(table, META)
    assert found is not None
    # The third costs more than the second and scores less.
    assert found.optimistic == ("t1c0", "t2c0", "t4c0")
    assert found.pessimistic == ("t1c0", "t3c0", "t4c0")
    again = pd.concat([front(4), pd.DataFrame(repeats([0.8, 0.8]))], ignore_index=True)
    repeated = summarize_repeats(again, pd.DataFrame(), META)
    after = evaluate_test_front(table, META, repeated)
    assert after is not None
    assert after.optimistic == ("t1c0", "t2c0", "t3c0", "t4c0")
    assert evaluate_test_front(table.drop(columns="accuracy_test"), META) is None
    assert evaluate_test_front(table.assign(accuracy_test=np.nan), META) is None
