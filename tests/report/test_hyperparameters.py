"""The table of importance, and the front as lines."""

from typing import Any

import numpy as np
import pandas as pd

from autocompress.analysis.importance import analyze_importance
from autocompress.analysis.selection import select_candidate
from autocompress.core.run_info import RunInfo
from autocompress.report.hyperparameters import (
    MAX_LINES,
    Importance,
    parallel_coordinates,
    summarize_importance,
)
from tests.report.factory import OBJECTIVES, Run


def compute_importance(table: pd.DataFrame, info: RunInfo) -> Importance | None:
    return summarize_importance(analyze_importance(table, info), info)


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


def test_the_most_important_comes_first_and_a_training_explains_no_cost() -> None:
    table, info = make_table()
    result = compute_importance(table, info)
    assert result is not None
    assert (result["trials"], result["count"], result["interactions"]) == (60, 60, [])
    rows = {row["column"]: row for row in result["rows"]}
    assert set(list(rows)[:2]) == {"student.cnn.width", "quantize.post_training.weight_bits"}
    assert rows["quantize.post_training.weight_bits"]["name"] == "weight bits (post_training)"
    assert rows["student.cnn.width"]["cost_range"].startswith("[")
    assert all(row["cost"] is None for column, row in rows.items() if column.startswith("fit."))
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
