"""Importance of hyperparameters against an analysis of variance, and the front as lines."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import f_oneway

from autocompress.analysis.selection import select_candidate
from autocompress.core.run_info import RunInfo
from autocompress.report.hyperparameters import (
    MAX_LINES,
    compute_importance,
    epsilon_squared,
    parallel_coordinates,
    varying_columns,
)
from tests.report.factory import OBJECTIVES, Run


def test_what_is_explained_is_what_analysis_of_variance_says() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 4, 200)
    values = groups * 0.7 + rng.normal(size=200)
    statistic = f_oneway(*(values[groups == item] for item in range(4))).statistic
    # Epsilon squared by the F statistic with 3 and 196 degrees of freedom.
    assert epsilon_squared(groups, values) == pytest.approx((statistic - 1) * 3 / (statistic * 3 + 196), rel=1e-9)


def test_groups_of_chance_explain_nothing_on_average() -> None:
    rng = np.random.default_rng(1)
    result = [epsilon_squared(rng.integers(0, 5, 60), rng.normal(size=60)) for _ in range(200)]
    assert np.mean(result) < 0.04
    assert epsilon_squared(np.arange(9), rng.normal(size=9)) == 0.0
    assert epsilon_squared(np.zeros(9, dtype=int), rng.normal(size=9)) == 0.0
    assert epsilon_squared(rng.integers(0, 2, 9), np.ones(9)) == 0.0


def make_table(count: int = 60) -> tuple[pd.DataFrame, dict[str, Any]]:
    rng = np.random.default_rng(2)
    width, bits = rng.uniform(4, 64, count), rng.choice([2, 4, 8], count)
    table = pd.DataFrame(
        {
            "id": [f"t{row}c0" for row in range(count)],
            "role": "search",
            "complete": True,
            "student.cnn.width": width,
            "quantize.post_training.weight_bits": bits,
            "fit.adamw.learning_rate": rng.uniform(0, 1, count),
            "fit.adamw.epochs": 9,
            "accuracy": 0.5 + bits / 20 + rng.normal(0, 0.01, count),
            "effective_flops": 1000 * width,
        }
    )
    return table, RunInfo(objectives=OBJECTIVES)


def test_the_knob_that_matters_comes_first_and_constant_ones_are_left_out() -> None:
    table, info = make_table()
    result = compute_importance(table, info)
    assert result is not None
    rows = {row["column"]: row for row in result["rows"]}
    assert rows["quantize.post_training.weight_bits"]["score"] > 0.9
    assert rows["quantize.post_training.weight_bits"]["cost"] < 0.1
    assert rows["student.cnn.width"]["cost"] > 0.85
    assert rows["student.cnn.width"]["score"] < 0.1
    assert "fit.adamw.epochs" not in varying_columns(table)
    assert compute_importance(table.head(5), info) is None
    assert compute_importance(table.assign(accuracy=np.nan), info) is None


def test_the_front_is_a_line_for_each_candidate_up_to_a_number(run: Run, front: pd.DataFrame) -> None:
    picked = select_candidate(run.candidates, run.info)
    importance = compute_importance(run.candidates, run.info)
    result = parallel_coordinates(front, run.info, importance, picked)
    assert result is not None
    assert [line["pick"] for line in result["lines"]].count(True) == (picked.id in set(front["id"]))
    assert {line["id"] for line in result["lines"]} <= set(front["id"])
    assert all(line["path"].startswith("M") for line in result["lines"])
    many = pd.concat([front.assign(id=[f"{name}x{turn}" for name in front["id"]]) for turn in range(30)])
    crowded = parallel_coordinates(many, run.info, importance, None)
    assert crowded is not None
    assert len(crowded["lines"]) <= MAX_LINES + 1
    assert parallel_coordinates(front.head(1), run.info, importance, picked) is None
    assert parallel_coordinates(front, run.info, None, picked) is None
