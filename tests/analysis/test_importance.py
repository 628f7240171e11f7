"""Importance against known functions of the hyperparameters."""

import numpy as np
import pandas as pd
import pytest

from autocompress.analysis.importance import MAX_GRID, ImportanceAnalysis, analyze_importance, varying_columns
from autocompress.core.run_info import ObjectiveSpec, RunInfo

OBJECTIVES = (
    ObjectiveSpec("accuracy", "maximize", "", "score", (0.0, 1.0)),
    ObjectiveSpec("effective_flops", "minimize", "FLOPs", "cost", (1e8, 1e2)),
)
INFO = RunInfo(objectives=OBJECTIVES)
WIDTH, RATE, BITS = "student.cnn.width", "fit.adamw.learning_rate", "quantize.post_training.weight_bits"


def make_table(trials: int = 40, candidates: int = 3, noise: float = 0.0) -> pd.DataFrame:
    """Trials of random width and learning rate, each with candidates of random bits; the score is filled in later."""
    random = np.random.default_rng(2)
    count = trials * candidates
    table = pd.DataFrame(
        {
            "id": [f"t{row // candidates}c{row % candidates}" for row in range(count)],
            "trial": np.arange(count) // candidates,
            "role": "search",
            "complete": True,
            WIDTH: np.repeat(random.uniform(0, 1, trials), candidates),
            RATE: np.repeat(random.uniform(0, 1, trials), candidates),
            "fit.adamw.epochs": 9,
            BITS: random.choice([2.0, 4.0, 8.0], count),
        }
    )
    return table.assign(
        accuracy=noise * random.normal(size=count), effective_flops=10 ** (2 + 3 * table[WIDTH]) * table[BITS]
    )


def analyze(table: pd.DataFrame) -> ImportanceAnalysis:
    result = analyze_importance(table, INFO)
    assert result is not None
    return result


def test_shares_of_an_additive_function_are_those_of_its_terms() -> None:
    table = make_table(trials=80)
    # Standardized terms with weights 3, 2 and 0: shares 9/13, 4/13 and 0.
    terms = [(table[name] - table[name].mean()) / table[name].std() for name in (WIDTH, BITS)]
    result = analyze(table.assign(accuracy=3 * terms[0] + 2 * terms[1]))
    assert result.score[WIDTH].value == pytest.approx(9 / 13, abs=0.12)
    assert result.score[BITS].value == pytest.approx(4 / 13, abs=0.1)
    assert result.score[RATE].value < 0.02
    assert result.score[WIDTH].low <= result.score[WIDTH].value <= result.score[WIDTH].high
    assert result.interactions == ()
    assert (result.trials, result.candidates) == (80, 240)


def test_costs_are_explained_by_what_changes_them() -> None:
    # The learning rate is the width in disguise, as where one search tried few of both.
    table = make_table()
    result = analyze(table.assign(**{RATE: table[WIDTH], "accuracy": table[BITS] / 10}))
    assert set(result.cost) == {WIDTH, BITS}
    assert result.cost[WIDTH].value > 0.5


def test_partial_dependence_is_the_function_with_an_interval() -> None:
    table = make_table(trials=60)
    table["prune"] = np.where(table[RATE] < 0.5, "none", "structured")
    table["prune.structured.pruning_ratio"] = np.where(table["prune"] == "none", None, 0.5)
    result = analyze(table.assign(accuracy=0.5 + table[BITS] / 20)).dependence
    bits = result[BITS]
    assert bits.values == sorted(set(table[BITS]))
    assert bits.mean == pytest.approx([0.5 + value / 20 for value in bits.values], abs=0.03)
    assert all(low <= mean <= high for low, mean, high in zip(bits.low, bits.mean, bits.high, strict=True))
    assert len(result[WIDTH].values) == MAX_GRID
    assert np.ptp(result[WIDTH].mean) < 0.03
    assert set(result["prune"].values) == {"none", "structured"}
    assert analyze(table.assign(accuracy=0.5)).dependence == {}


def test_noise_explains_nothing() -> None:
    result = analyze(make_table(noise=1.0))
    assert max(share.value for share in result.score.values()) < 0.1
    assert result.interactions == ()


def test_candidates_of_one_trial_do_not_make_its_settings_matter() -> None:
    # Trials differ by chance alone, and their many candidates repeat the difference.
    table = make_table(trials=40, candidates=10)
    chance = np.random.default_rng(0).normal(size=40)[table["trial"]]
    result = analyze(table.assign(accuracy=chance))
    assert max(result.score[WIDTH].value, result.score[RATE].value) < 0.2


def test_an_interaction_is_named() -> None:
    table = make_table(trials=100)
    sides = np.sign(table[WIDTH] - 0.5) * np.sign(table[RATE] - 0.5)
    result = analyze(table.assign(accuracy=sides))
    ((one, other, share),) = result.interactions
    assert {one, other} == {WIDTH, RATE}
    assert share.value > 0.5


def test_few_trials_leave_compression_alone() -> None:
    table = make_table(trials=4, candidates=10)
    result = analyze(table.assign(accuracy=table[BITS] + 10 * table[WIDTH]))
    assert set(result.score) == {BITS}
    assert result.score[BITS].value < 0.5


def test_constant_columns_and_too_few_candidates_are_left_out() -> None:
    table = make_table()
    assert "fit.adamw.epochs" not in varying_columns(table)
    assert analyze_importance(table.head(5), INFO) is None
    assert analyze_importance(table.assign(accuracy=np.nan), INFO) is None
    assert set(analyze(table).score.values()) == {type(analyze(table).score[WIDTH])()}


def test_a_hyperparameter_of_another_method_is_missing() -> None:
    table = make_table(trials=80)
    table["prune"] = np.where(table[BITS] == 2, "none", "structured")
    table["prune.structured.pruning_ratio"] = np.where(table["prune"] == "none", None, table[RATE].round(2))
    result = analyze(table.assign(accuracy=np.where(table["prune"] == "none", 0.0, table[WIDTH])))
    assert result.score["prune.structured.pruning_ratio"].value < 0.1
    assert result.score[WIDTH].value > 0.2
