"""The corrected loss of a winner is unbiased where the observed one is lucky."""

from dataclasses import replace

import numpy as np
import pandas as pd

from autocompress.analysis.correction import estimate_corrected_loss
from autocompress.core.example_scores import ExampleScores
from autocompress.core.run_info import RunInfo
from tests.analysis.test_certification import make_run


def make_lucky_run(seed: int, candidates: int = 40, share: float = 0.05) -> tuple[pd.DataFrame, RunInfo]:
    """A run whose candidates all lose ``share`` of the examples, independently; the teacher loses none."""
    generator = np.random.default_rng(seed)
    table, info = make_run({f"t0c{n}": (0, 0) for n in range(candidates)}, max_drop=0.03)
    own = {split: (generator.random((candidates, 500)) >= share).astype(float) for split in info.splits}
    goal = {split: ExampleScores("bits", 500, np.ones(500)).pack() for split in info.splits}
    table["details"] = [
        {"examples": {split: ExampleScores("bits", 500, values[n]).pack() for split, values in own.items()}}
        for n in range(candidates)
    ]
    for split, suffix in (("search_val", "_search"), ("select_val", "")):
        table[f"accuracy{suffix}"] = own[split].mean(axis=1)
    scores = {split: {"accuracy": 1.0} for split in info.splits}
    return table, replace(info, teacher=replace(info.teacher, scores=scores, examples=goal))


def test_the_luck_of_the_winner_is_corrected() -> None:
    observed, corrected = [], []
    for seed in range(4):
        table, info = make_lucky_run(seed)
        estimate = estimate_corrected_loss(table, info, draws=40)
        assert estimate is not None
        assert estimate.low <= estimate.loss <= estimate.high
        corrected.append(estimate.loss)
        observed.append(1 - ((table["accuracy"] + table["accuracy_search"]) / 2).max())
    # Every candidate truly loses five points; the best of forty looks better by more than a point.
    assert np.mean(observed) < 0.04
    assert abs(np.mean(corrected) - 0.05) < 0.005


def test_without_a_choice_the_correction_changes_nothing() -> None:
    table, info = make_run({"t0c0": (4, 4)})
    estimate = estimate_corrected_loss(table, info)
    assert estimate is not None
    assert abs(estimate.loss - 0.008) < 0.0015


def test_what_cannot_be_corrected_is_none() -> None:
    table, info = make_run({"t0c0": (1, 1)})
    assert estimate_corrected_loss(table, RunInfo(objectives=info.objectives, max_drop=0.01)) is None
    table["details"] = [{}]
    assert estimate_corrected_loss(table, info) is None
