from random import Random

import numpy as np
import pytest

from autocompress.engine.initial_design import FixedTrial
from autocompress.engine.sampler.encoding import Encoding
from autocompress.engine.sampler.proposals import RandomTrial
from autocompress.engine.space import Space
from tests.engine.test_space import space

TEXT = (
    "student: {cnn: {width: {low: 4, high: 64}, depth: [1, 2], block: [plain, residual, separable]}}\n"
    "distill: {none: {}, soft_target: {temperature: {low: 2, high: 8}}, relational: {}}\n"
    "fit: {adamw: {learning_rate: {low: 1e-3, high: 1e-1, log: true}}}"
)


def near(found: Space, **changes: object) -> np.ndarray:
    values = {"student.cnn.width": 16, "student.cnn.depth": 1, "student.cnn.block": "plain", "distill": "none"}
    return np.concatenate(
        Encoding(found).encode_trial(found.suggest_config(FixedTrial({**values, **changes}), with_compression=False)[0])
    )  # type: ignore[dict-item]


def apart(found: Space, **changes: object) -> float:
    return float(np.linalg.norm(near(found, **changes) - near(found)))


@pytest.mark.parametrize("seed", range(20))
def test_values_give_the_training_they_were_read_from(seed: int) -> None:
    found = space(TEXT)
    training, _ = found.suggest_config(RandomTrial({}, Random(seed)), with_compression=False)
    assert (
        found.suggest_config(FixedTrial(Encoding(found).sampler_values(training)), with_compression=False)[0]
        == training
    )


def test_wide_ranges_are_compared_by_ratios_and_names_by_being_equal() -> None:
    found = space(TEXT)
    assert apart(found, **{"student.cnn.width": 32}) == pytest.approx(apart(found, **{"student.cnn.width": 8}))
    assert apart(found, **{"student.cnn.block": "residual"}) == pytest.approx(1.0)
    assert apart(found, **{"student.cnn.block": "separable"}) == pytest.approx(1.0)
    assert apart(found, **{"student.cnn.depth": 2}) == pytest.approx(1.0)
    assert apart(found, **{"distill.relational": True}) == pytest.approx(1.0)


def test_what_does_not_apply_lies_in_the_middle() -> None:
    found = space(TEXT)
    middle = apart(found, **{"distill": "soft_target", "distill.soft_target.temperature": 5.0})
    end = apart(found, **{"distill": "soft_target", "distill.soft_target.temperature": 8.0})
    assert middle == pytest.approx(1.0)
    assert end == pytest.approx(np.hypot(1.0, 0.5))


def test_only_what_is_searched_has_coordinates() -> None:
    found = space("student: {cnn: {width: 8}}\ndistill: {none: {}}\nquantize: {post_training: {weight_bits: [4, 8]}}")
    assert not Encoding(found).dimensions
