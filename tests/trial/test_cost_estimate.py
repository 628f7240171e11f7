from dataclasses import replace

import pytest

from autocompress.core.config import Part
from autocompress.core.records import CompressionRecipe
from autocompress.trial.runner import estimate_costs, run_trial
from tests.trial.test_runner import JOB, SETUP, TRAINING

LSQ = Part.of("lsq", weight_bits=2, activation_bits=2, epochs=1)
HALF = Part.of("structured", pruning_ratio=0.5, recovery_epochs=0)
FOUR = Part.of("post_training", weight_bits=4, activation_bits=4)


@pytest.mark.slow
def test_the_price_is_what_the_trained_candidate_costs() -> None:
    cuts = (
        CompressionRecipe(),
        CompressionRecipe(quantize=FOUR),
        CompressionRecipe(prune=HALF),
        CompressionRecipe(HALF, FOUR),
    )
    brief = replace(TRAINING, fit=Part.of("adamw", epochs=1))
    candidates = run_trial(replace(JOB, training=brief, recipes=cuts), SETUP).candidates
    expected = sorted(candidate.costs["effective_flops"] for candidate in candidates)
    prices = sorted(costs["effective_flops"] for costs in estimate_costs(SETUP, brief, cuts))
    assert prices == pytest.approx(expected)


def test_of_many_bit_widths_the_fewest_are_priced_without_training() -> None:
    actual = estimate_costs(SETUP, TRAINING, (CompressionRecipe(quantize=FOUR), CompressionRecipe(quantize=LSQ)))
    (alone,) = estimate_costs(SETUP, TRAINING, (CompressionRecipe(quantize=LSQ),))
    assert actual == [alone]
    (whole,) = estimate_costs(SETUP, TRAINING, (CompressionRecipe(),))
    assert alone["effective_flops"] == pytest.approx(whole["flops"] * 4 / 1024)


def test_what_cannot_be_cut_has_no_price() -> None:
    bad = Part.of("structured", pruning_ratio=0.5, criterion="no_such_criterion")
    assert estimate_costs(SETUP, TRAINING, (CompressionRecipe(prune=bad),)) == []
