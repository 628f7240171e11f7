"""Quantization-aware training with the straight-through estimator: how ranges follow weights and activations."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from autocompress.core.registry import QUANTIZE
from autocompress.errors import KnobError
from autocompress.quantize.observers import MinMaxObserver
from autocompress.quantize.post_training import PostTraining, PostTrainingConfig
from autocompress.quantize.qat import QAT, QATConfig, QATInputQuantizer, QATRounding, QATWeightQuantizer
from autocompress.quantize.quantization_aware import RangeRecorder, WeightParametrization
from autocompress.quantize.weight_coding import WeightCoding
from tests.quantize.nets import Plain, accuracy, digits
from tests.quantize.tuning import Digits, context, mean_and_error, train_model


@pytest.fixture(scope="module")
def data() -> Digits:
    return digits()


def record_range(*values: float) -> RangeRecorder:
    recorder = RangeRecorder(MinMaxObserver())
    recorder.observe(torch.tensor(values))
    return recorder


def test_ranges_follow_the_batches_in_training_mode_alone() -> None:
    module = QATInputQuantizer(record_range(0.0, 1.0), "asymmetric", 8)
    first = module.grid.scale.clone()
    for _ in range(300):
        module.eval()(torch.tensor([0.0, 3.0]))
    assert torch.equal(module.grid.scale, first)
    for _ in range(300):
        module.train()(torch.tensor([0.0, 3.0]))
    expected = (3 - 2 * 0.99**300) / 255
    assert float(module.grid.scale) == pytest.approx(expected, rel=1e-5)


def test_the_share_that_the_observer_cut_off_stays_cut_off() -> None:
    class Half(MinMaxObserver):
        def range(self) -> tuple[float, float]:
            low, high = super().range()
            return low, high / 2

    recorder = RangeRecorder(Half())
    recorder.observe(torch.tensor([0.0, 4.0]))
    module = QATInputQuantizer(recorder, "asymmetric", 2).train()
    module(torch.tensor([0.0, 4.0]))
    assert float(module.grid.scale) == pytest.approx(2 / 3)


def test_scales_follow_the_weights() -> None:
    weight = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    module = WeightParametrization(weight, WeightCoding(4), QATRounding())
    assert torch.allclose(module(3 * weight), 3 * module(weight))


@pytest.mark.slow
def test_qat_recovers_what_rounding_took(data: Digits, record_property: Callable[[str, object], None]) -> None:
    gains = []
    for seed in range(3):
        model = train_model(Plain, data, seed)
        settings = PostTrainingConfig(weight_bits=3, activation_bits=3, observer="mse", bias_correction=False)
        rounded, _ = PostTraining().apply(model, settings, context(data))
        tuned, _ = QAT().apply(
            model, QATConfig(weight_bits=3, activation_bits=3, epochs=3, learning_rate=5e-3), context(data)
        )
        gains.append(accuracy(tuned, data[2], data[3]) - accuracy(rounded, data[2], data[3]))
    record_property("gain", mean_and_error(gains))
    assert mean_and_error(gains)[0] > 0.05


def test_the_input_is_left_alone() -> None:
    values: Tensor = torch.tensor([0.123, 0.5])
    QATInputQuantizer(record_range(0.0, 1.0), "asymmetric", 2).train()(values)
    assert values.tolist() == pytest.approx([0.123, 0.5])


def test_the_scale_of_a_row_covers_its_share_of_the_range() -> None:
    module = QATWeightQuantizer(torch.tensor([1.0, 0.5]), bits=3)
    blocks = torch.tensor([[-3.0, 1.5, 0.0], [-3.0, 1.5, 0.0]])
    # 3 bits: the largest magnitude has code 3.
    scale = module.compute_scale(blocks)
    assert scale.shape == (2, 1)
    assert scale[0] == 2 * scale[1]
    rounded = module(blocks)
    codes = rounded / scale
    assert torch.allclose(codes, codes.round())
    assert float(rounded[1].abs().max()) < float(rounded[0].abs().max())
    assert set(module.state_dict()) == {"share"}


def test_settings_are_those_of_the_registered_method() -> None:
    assert isinstance(QUANTIZE.get("qat"), QAT)
    assert QAT().is_identity(QATConfig(weight_bits=32, activation_bits=32))
    assert not QAT().is_identity(QATConfig(weight_bits=32, activation_bits=8))
    with pytest.raises(KnobError, match=r"quantize\.qat\.epochs"):
        QATConfig.of({"epochs": 0})
