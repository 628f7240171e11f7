import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from autocompress.core.method import Context
from autocompress.errors import CompressionError
from autocompress.quantize.model_quantizer import ErrorStatistics
from autocompress.quantize.post_training import PostTraining, PostTrainingConfig

pairs = st.lists(st.tuples(st.floats(-9, 9, width=32), st.floats(-9, 9, width=32)), min_size=1, max_size=20)


@settings(deadline=None)
@given(pairs, st.integers(0, 20))
def test_parts_add_up_to_the_whole(values: list[tuple[float, float]], cut: int) -> None:
    before, after = torch.tensor(values).T
    whole = ErrorStatistics().add(before, after).to_row()
    parts = ErrorStatistics()
    for part in (slice(None, cut), slice(cut, None)):
        if len(before[part]):
            parts.add(before[part], after[part])
    for name, value in whole.items():
        assert parts.to_row()[name] == (None if value is None else pytest.approx(value, rel=1e-3, abs=1e-6))


def test_it_is_what_numpy_computes() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=(5, 7)).astype(np.float32)
    after = before + rng.normal(scale=0.1, size=(5, 7)).astype(np.float32)
    row = ErrorStatistics().add(torch.from_numpy(before), torch.from_numpy(after)).to_row("output_")
    noise = np.mean((before - after) ** 2)
    assert row["output_mse"] == pytest.approx(noise, rel=1e-4)
    assert row["output_sqnr_db"] == pytest.approx(10 * np.log10(np.mean(before**2) / noise), rel=1e-4)
    cosine = np.sum(before * after) / np.linalg.norm(before) / np.linalg.norm(after)
    assert row["output_cosine"] == pytest.approx(cosine, rel=1e-4)


def test_what_did_not_change_has_no_noise_to_speak_of() -> None:
    for values in (torch.zeros(3), torch.ones(3)):
        assert ErrorStatistics().add(values, values).to_row() == {"mse": 0.0, "sqnr_db": None, "cosine": 1.0}
    assert ErrorStatistics().add(torch.ones(3), torch.zeros(3)).to_row()["cosine"] == 0.0


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_squares_beyond_single_precision_are_taken_in_double(size: float) -> None:
    row = ErrorStatistics().add(torch.full((4,), size), torch.full((4,), size / 2)).to_row()
    assert row["sqnr_db"] == pytest.approx(20 * math.log10(2), rel=1e-4)
    assert row["cosine"] == pytest.approx(1.0)


METHOD = PostTraining()


def config(**settings: Any) -> PostTrainingConfig:
    return PostTrainingConfig(**{"weight_bits": 3, "activation_bits": 32, "bias_correction": True} | settings)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    return nn.Sequential(*layers).eval()


def context(*batches: Tensor) -> Context:
    return Context((batches[0][:1],), tuple((batch,) for batch in batches))


def images() -> Tensor:
    return torch.rand(40, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def outputs(model: nn.Module, name: str, values: Tensor) -> Tensor:
    captured: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda *call: captured.append(call[-1]))
    with torch.no_grad():
        model(values)
    handle.remove()
    return captured[0].movedim(1, -1).flatten(0, -2) if captured[0].ndim > 2 else captured[0]


def test_pixels_are_no_ties_of_the_input_grid() -> None:
    # Sixteen steps, of which 4.8 lie below zero: the background would be code 76.5.
    pixels = torch.randint(17, (40, 2, 8, 8), generator=torch.Generator().manual_seed(2)) / 16 - 0.3
    scales = {}
    for kind, values in (("pixels", pixels), ("continuous", pixels + 1e-3 * images())):
        model, _ = METHOD.apply(net(), config(activation_bits=8), context(values))
        scale = model.get_buffer("0.input_quantizer.scale")
        steps = values.unique() / scale
        scales[kind] = float(scale) * 255 / float(values.max() - values.min())
        distance = float((steps - steps.floor() - 0.5).abs().min())
        assert (distance > 2e-4) is (kind == "pixels")
    assert scales["continuous"] == pytest.approx(1)
    assert 1.0001 < scales["pixels"] < 1.04


@pytest.mark.parametrize("settings", [{}, {"quantizer": "codebook"}, {"granularity": "per_group", "group_size": 5}])
def test_the_mean_of_every_output_channel_stays(settings: dict[str, Any]) -> None:
    model, values = net(), images()
    corrected, state = METHOD.apply(model, config(**settings), context(*values.split(20)))
    plain, _ = METHOD.apply(model, config(bias_correction=False, **settings), context(*values.split(20)))
    for name in ("0", "5"):
        exact = outputs(model, name, values).mean(0)
        torch.testing.assert_close(outputs(corrected, name, values).mean(0), exact, rtol=0, atol=1e-5)
        assert float((outputs(plain, name, values).mean(0) - exact).abs().max()) > 1e-3
    report = state.report["bias_correction"]
    assert report["uncorrected"] == ["2"]
    assert report["shifts"].keys() == {"0", "5"}
    moved = corrected.get_parameter("0.bias") - plain.get_parameter("0.bias")
    assert report["shifts"]["0"] == pytest.approx(float(moved.detach().abs().max()), rel=1e-4)


def test_inputs_that_are_rounded_too_leave_a_step_of_the_bias_grid() -> None:
    model, values = net(), images()
    errors = {}
    for corrects in (True, False):
        out, _ = METHOD.apply(model, config(activation_bits=4, bias_correction=corrects), context(values))
        errors[corrects] = float((outputs(out, "5", values) - outputs(model, "5", values)).mean(0).abs().max())
    assert errors[True] < 0.1 * errors[False]


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("quantizer", ["linear", "codebook", "power_of_two"])
def test_one_layer_gets_nearer_by_the_square_of_its_shift(bits: int, quantizer: str) -> None:
    torch.manual_seed(0)
    model, values = nn.Sequential(nn.Linear(8, 1)), torch.rand(30, 8)
    rows, shift = [], 0.0
    for corrects in (True, False):
        settings = config(weight_bits=bits, quantizer=quantizer, bias_correction=corrects)
        state = METHOD.apply(model, settings, context(values))[1]
        rows.append(state.report["layers"][0]["output_mse"])
        shift = state.report["bias_correction"]["shifts"]["0"] if corrects else shift
    assert rows[1] - rows[0] == pytest.approx(shift**2, rel=1e-2)


def test_a_layer_that_is_called_twice_is_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(self.a(self.a(x)))
            return out

    torch.manual_seed(0)
    model = Twice().eval()
    out, state = METHOD.apply(model, config(), context(torch.randn(9, 4)))
    assert state.report["bias_correction"]["uncorrected"] == ["a"]
    assert torch.equal(out.get_parameter("a.bias"), model.a.bias)


def test_the_model_itself_keeps_its_biases() -> None:
    model, values = net(), images()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    METHOD.apply(model, config(), context(values))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_without_calibration_batches_it_is_refused() -> None:
    with pytest.raises(CompressionError, match="bias_correction needs calibration batches"):
        METHOD.apply(net(), config(), Context((images()[:1],)))


def test_32_and_32_bits_correct_nothing() -> None:
    _, state = METHOD.apply(net(), config(weight_bits=32), Context((images()[:1],)))
    assert "bias_correction" not in state.report
