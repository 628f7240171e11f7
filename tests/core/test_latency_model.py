import json

import pytest

from autocompress.core.latency_model import LatencyModel, LayerWork

MODEL = LatencyModel(0.01, ((32, 32, (1e-3, 1e-6, 1e-5, 0.0)), (8, 8, (2e-3, 1e-7, 1e-5, 0.0))))


def test_a_run_costs_its_constant_and_the_work_of_each_layer() -> None:
    layer = LayerWork(10_000, 100, 50)
    assert MODEL.predict([]) == 0.01
    assert MODEL.predict([layer]) == pytest.approx(0.01 + 1e-3 + 1e-2 + 1e-3)
    assert MODEL.predict([layer, layer]) == pytest.approx(0.01 + 2 * 0.012)


def test_integers_count_only_where_they_are_faster() -> None:
    large, small = LayerWork(100_000, 0, 0, (8, 8)), LayerWork(100, 0, 0, (8, 8))
    assert MODEL.predict([large]) == pytest.approx(0.01 + 2e-3 + 1e-2)
    # In floating point, as it will be exported.
    assert MODEL.predict([small]) == pytest.approx(0.01 + 1e-3 + 1e-4)


def test_a_model_survives_a_round_trip() -> None:
    assert LatencyModel.from_json(json.loads(json.dumps(MODEL.to_json()))) == MODEL
