from collections.abc import Mapping, Sequence

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Candidate, Cut
from autocompress.engine.limits import CostLimits

TRAINING = CompressionConfig(Part("cnn"), (Part("none"),), Part("adamw"))
CUTS = (Cut(), Cut(quantize=Part("post_training")))


def candidate(accuracy: float, size: float) -> Candidate:
    return Candidate("t0c0", 0, TRAINING, 1, {"search_val": {"accuracy": accuracy}}, {"bytes": size})


def value(found: Candidate, name: str) -> float:
    return {**found.scores["search_val"], **found.costs}[name]


def price(training: CompressionConfig, cuts: Sequence[Cut]) -> list[Mapping[str, float]]:
    return [{"bytes": 100.0 / (1 + number)} for number, _ in enumerate(cuts)]


def test_a_training_breaks_a_limit_by_what_its_best_candidate_does() -> None:
    limits = CostLimits({"bytes": {"max": 50.0}, "accuracy": {"min": 0.9, "max": None}}, value, None)
    found = limits.measure_violations([candidate(0.8, 40.0), candidate(0.95, 70.0)])
    assert found == {"bytes max": -10.0, "accuracy min": 0.9 - 0.95}
    assert limits.measure_violations([candidate(0.8, 70.0)]) == {"bytes max": 20.0, "accuracy min": 0.9 - 0.8}


def test_a_limit_of_nothing_is_one() -> None:
    limits = CostLimits({"bytes": {"max": 0.0}}, value, None)
    assert limits.measure_violations([candidate(0.8, 3.0)]) == {"bytes max": 3.0}


def test_only_what_even_its_cheapest_cut_breaks_keeps_a_training_from_beginning() -> None:
    assert CostLimits({"bytes": {"max": 50.0}}, value, price).predict_violations(TRAINING, CUTS) == {}
    assert CostLimits({"bytes": {"max": 40.0}}, value, price).predict_violations(TRAINING, CUTS) == {"bytes max": 10.0}
    # The cheapest of all is not among them.
    assert CostLimits({"bytes": {"max": 50.0}}, value, price).predict_violations(TRAINING, CUTS[:1]) == {
        "bytes max": 50.0
    }


def test_what_was_refused_is_counted_and_the_least_of_each_cost_is_known() -> None:
    limits = CostLimits({"bytes": {"max": 40.0}}, value, price)
    for cuts in (CUTS[:1], CUTS, CUTS[:1]):
        limits.predict_violations(TRAINING, cuts)
    assert (limits.skipped_configs, limits.lowest_costs) == (3, {"bytes": 50.0})


def test_scores_and_what_has_no_price_are_known_after_training_only() -> None:
    assert CostLimits({"accuracy": {"max": 0.5}}, value, price).predict_violations(TRAINING, CUTS) == {}
    assert CostLimits({"bytes": {"max": 1.0}}, value, None).predict_violations(TRAINING, CUTS) == {}
    assert (
        CostLimits({"bytes": {"max": 1.0}}, value, lambda training, cuts: []).predict_violations(TRAINING, CUTS) == {}
    )
