from random import Random

import numpy as np
import pytest

from autocompress.engine.initial_design import FixedTrial
from autocompress.engine.sampler.encoding import Encoding, MutationTrial
from autocompress.engine.space import Space
from tests.engine.test_space import space

TEXT = (
    "student: {cnn: {width: {low: 4, high: 64}, depth: [1, 2], block: [plain, residual, separable]}}\n"
    "distill: {none: {}, soft_target: {temperature: {low: 2, high: 8}}, relational: {}}\n"
    "fit: {adamw: {learning_rate: {low: 1e-3, high: 1e-1, log: true}}}"
)


def encode(searched: Space, **changes: object) -> np.ndarray:
    values = {"student.cnn.width": 16, "student.cnn.depth": 1, "student.cnn.block": "plain", "distill": "none"}
    return np.concatenate(
        Encoding(searched).encode_trial(
            searched.suggest_config(FixedTrial({**values, **changes}), with_compression=False)[0]
        )
    )  # type: ignore[dict-item]


def distance(searched: Space, **changes: object) -> float:
    return float(np.linalg.norm(encode(searched, **changes) - encode(searched)))


@pytest.mark.parametrize("seed", range(20))
def test_sampler_values_give_the_same_config(seed: int) -> None:
    searched = space(TEXT)
    config, _ = searched.suggest_config(MutationTrial({}, Random(seed)), with_compression=False)
    assert (
        searched.suggest_config(FixedTrial(Encoding(searched).sampler_values(config)), with_compression=False)[0]
        == config
    )


def test_wide_ranges_are_logarithmic_and_names_one_hot() -> None:
    searched = space(TEXT)
    assert distance(searched, **{"student.cnn.width": 32}) == pytest.approx(
        distance(searched, **{"student.cnn.width": 8})
    )
    assert distance(searched, **{"student.cnn.block": "residual"}) == pytest.approx(1.0)
    assert distance(searched, **{"student.cnn.block": "separable"}) == pytest.approx(1.0)
    assert distance(searched, **{"student.cnn.depth": 2}) == pytest.approx(1.0)
    assert distance(searched, **{"distill.relational": True}) == pytest.approx(1.0)


def test_coordinates_of_a_hyperparameter_are_one_group() -> None:
    groups = Encoding(space(TEXT)).groups
    # Width, depth and learning rate are numbers; blocks and terms are one-hot.
    assert groups.tolist() == [0, 1, 2, 2, 2, 3, 3, 4, 5, 5, 6]
    assert len(groups) == len(encode(space(TEXT)))


def test_inactive_hyperparameter_has_the_middle_coordinate() -> None:
    searched = space(TEXT)
    middle = distance(searched, **{"distill": "soft_target", "distill.soft_target.temperature": 5.0})
    end = distance(searched, **{"distill": "soft_target", "distill.soft_target.temperature": 8.0})
    assert middle == pytest.approx(1.0)
    assert end == pytest.approx(np.hypot(1.0, 0.5))


def test_fixed_hyperparameters_have_no_coordinates() -> None:
    searched = space(
        "student: {cnn: {width: 8}}\ndistill: {none: {}}\nquantize: {post_training: {weight_bits: [4, 8]}}"
    )
    assert not Encoding(searched).dimensions


def test_required_term_has_no_flag_but_its_hyperparameters_have_coordinates() -> None:
    searched = space(
        "student: {cnn: {width: 8}}\ndistill: {none: , relational: {angle_weight: {low: 1, high: 4}, required: true}}"
    )
    assert set(Encoding(searched).dimensions) == {"distill.relational.angle_weight"}
    config, _ = searched.suggest_config(FixedTrial({"distill.relational.angle_weight": 4.0}), with_compression=False)
    assert Encoding(searched).sampler_values(config) == {"distill.relational.angle_weight": 4.0}


def test_mutations_of_a_parent_outside_of_the_space_lie_inside() -> None:
    searched = space(TEXT)
    teacher = {
        "student.cnn.width": 100,
        "student.cnn.depth": 5,
        "student.cnn.block": "dense",
        "distill": "none",
        "fit.adamw.learning_rate": 1e-5,
    }
    for seed in range(30):
        config, _ = searched.suggest_config(MutationTrial(teacher, Random(seed)), with_compression=False)
        values = config.student.values
        assert 4 <= int(values["width"]) <= 64
        assert values["depth"] in (1, 2)
        assert values["block"] in ("plain", "residual", "separable")
        assert 1e-3 <= float(config.fit.values["learning_rate"]) <= 1e-1
