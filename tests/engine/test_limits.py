from collections.abc import Mapping, Sequence

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Candidate, CompressionRecipe
from autocompress.engine.archive import CostLimits

TRAINING = CompressionConfig(Part("cnn"), (Part("none"),), Part("adamw"))
RECIPES = (CompressionRecipe(), CompressionRecipe(quantize=Part("post_training")))


def candidate(accuracy: float, size: float) -> Candidate:
    return Candidate("t0c0", 0, TRAINING, 1, {"search_val": {"accuracy": accuracy}}, {"bytes": size})


def value(measured: Candidate, name: str) -> float:
    return {**measured.scores["search_val"], **measured.costs}[name]


def price(training: CompressionConfig, recipes: Sequence[CompressionRecipe]) -> list[Mapping[str, float]]:
    return [{"bytes": 100.0 / (1 + number)} for number, _ in enumerate(recipes)]


def test_the_violation_of_a_trial_is_that_of_its_best_candidate() -> None:
    limits = CostLimits({"bytes": {"max": 50.0}, "accuracy": {"min": 0.9, "max": None}}, value, None)
    violations = limits.measure_violations([candidate(0.8, 40.0), candidate(0.95, 70.0)])
    assert violations == {"bytes max": -10.0, "accuracy min": 0.9 - 0.95}
    assert limits.measure_violations([candidate(0.8, 70.0)]) == {"bytes max": 20.0, "accuracy min": 0.9 - 0.8}


def test_a_limit_of_zero_is_a_limit() -> None:
    limits = CostLimits({"bytes": {"max": 0.0}}, value, None)
    assert limits.measure_violations([candidate(0.8, 3.0)]) == {"bytes max": 3.0}


def test_a_configuration_is_skipped_only_if_its_cheapest_recipe_violates_a_limit() -> None:
    assert CostLimits({"bytes": {"max": 50.0}}, value, price).predict_violations(TRAINING, RECIPES) == {}
    assert CostLimits({"bytes": {"max": 40.0}}, value, price).predict_violations(TRAINING, RECIPES) == {
        "bytes max": 10.0
    }
    # The cheapest recipe is not among these.
    assert CostLimits({"bytes": {"max": 50.0}}, value, price).predict_violations(TRAINING, RECIPES[:1]) == {
        "bytes max": 50.0
    }


def test_skipped_configurations_are_counted_and_the_lowest_costs_are_kept() -> None:
    limits = CostLimits({"bytes": {"max": 40.0}}, value, price)
    for recipes in (RECIPES[:1], RECIPES, RECIPES[:1]):
        limits.predict_violations(TRAINING, recipes)
    assert (limits.skipped_configs, limits.lowest_costs) == (3, {"bytes": 50.0})


def test_scores_and_unknown_costs_are_limited_after_training_only() -> None:
    assert CostLimits({"accuracy": {"max": 0.5}}, value, price).predict_violations(TRAINING, RECIPES) == {}
    assert CostLimits({"bytes": {"max": 1.0}}, value, None).predict_violations(TRAINING, RECIPES) == {}
    assert (
        CostLimits({"bytes": {"max": 1.0}}, value, lambda training, recipes: []).predict_violations(TRAINING, RECIPES)
        == {}
    )
