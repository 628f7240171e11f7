"""Robust accuracy as an objective: a search over three objectives, its front and its page."""

import csv
from pathlib import Path

import pytest

import autocompress
from tests.conftest import SMALL_SEARCH


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_front_over_three_objectives_holds_accurate_and_robust_candidates(small_run: Path, tmp_path: Path) -> None:
    # The teacher of the small run is in the cache.
    overrides = [
        *SMALL_SEARCH,
        "search.trials=2",
        "fit.adamw.epochs=3",
        "objectives=[accuracy, pgd_accuracy, effective_flops]",
        "distill={soft_target: {alpha: 0.9}, robust: {epsilon: 0.3, steps: 1}}",
        "prune={none: }",
        "quantize.post_training.weight_bits=[8]",
    ]
    front = autocompress.search("digits", runs=tmp_path, name="robust", overrides=overrides)
    rows = front.to_pandas()
    names = [objective.name for objective in front.info.objectives]
    assert names == ["accuracy", "pgd_accuracy", "effective_flops"]
    # Every candidate of the front is measured under the attack on all three splits.
    for suffix in ("_search", "", "_test"):
        assert (rows[f"pgd_accuracy{suffix}"] <= rows[f"accuracy{suffix}"]).all()
    # No candidate is as good as another one in all three: the ones on the front by two objectives are on it, too.
    # The baseline without distillation is no candidate of the search.
    every = front.candidates[front.candidates["complete"] & (front.candidates["role"] == "search")]
    assert every["pgd_accuracy"].max() == rows["pgd_accuracy"].max()
    assert every["accuracy"].max() == rows["accuracy"].max()
    assert every["effective_flops"].min() == rows["effective_flops"].min()
    assert front.info.teacher.scores["test"]["pgd_accuracy"] < front.info.teacher.scores["test"]["accuracy"]
    assert "accuracy under PGD" in front.page()
    header = next(csv.reader((front.folder / "front.csv").read_text().splitlines()))
    assert {"accuracy", "pgd_accuracy", "pgd_accuracy_test"} <= {*header}
    limit = float(rows["pgd_accuracy"].max())
    assert front.pick(min={"pgd_accuracy": limit}).row["pgd_accuracy"] >= limit
