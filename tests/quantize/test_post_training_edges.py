"""Models that share, skip or hold nothing, values that are not finite, notes of another model."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.core.method import Context, MethodState
from autocompress.errors import CompressionError
from autocompress.quantize.folding import fold_batch_norm
from tests.quantize.nets import Plain, unsettle
from tests.quantize.rounding import METHOD, WIDTHS, config, context


def test_an_untraceable_model_keeps_its_normalization_and_says_so() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.conv(x))
            return x if x.sum() > 0 else -x

    model = unsettle(Branching())
    quantized, state = METHOD.apply(model, config(), context(torch.randn(8, 1, 5, 5)))
    assert "cannot be traced" in state.report["batch_norm"]["reason"]
    assert state.report["batch_norm"]["left"] == ["norm"]
    fresh = METHOD.restore(Branching(), config(), state)
    fresh.load_state_dict(quantized.state_dict())
    values = torch.randn(4, 1, 5, 5)
    assert torch.equal(fresh(values), quantized(values))


def test_a_layer_called_twice_and_a_shared_weight_are_quantized_soundly() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.twice, self.out = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.out(self.twice(self.twice(self.embed(tokens))).relu())

    model = Tied().eval()
    tokens = torch.randint(7, (16, 5), generator=torch.Generator().manual_seed(0))
    quantized, state = METHOD.apply(model, config(2, 8), Context((tokens[:1],), ((tokens,),)))
    assert model.out.weight is model.embed.weight
    assert not torch.equal(quantized.get_parameter("out.weight"), model.embed.weight)
    assert torch.equal(quantized.get_parameter("embed.weight"), quantized.get_parameter("out.weight"))
    fresh = METHOD.restore(Tied(), config(2, 8), state)
    fresh.load_state_dict(quantized.state_dict())
    assert torch.equal(fresh(tokens), quantized(tokens))


def test_layers_that_are_never_called_stay_as_they_were() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.unused, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(x).mean(1))

    model = Attention().eval()
    values = torch.randn(8, 5, 8)
    quantized, state = METHOD.apply(model, config(8, 8), context(values))
    projections = [f"block.self_attn.{name}_proj" for name in ("k", "out", "q", "v")]
    assert sorted(state.bits) == ["block.linear1", "block.linear2", *projections, "head"]
    assert state.report["float_layers"] == ["unused"]
    with torch.inference_mode():
        assert 0 < float((quantized(values) - model(values)).abs().max()) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("part", ["weight", "bias"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(
    trained: nn.Module, calibration: Context, value: float, part: str
) -> None:
    broken = fold_batch_norm(trained, calibration.example)
    with torch.no_grad():
        broken.get_parameter(f"convs.2.{part}").view(-1)[0] = value
    for bits in (8, 32):
        with pytest.raises(CompressionError, match=rf"layer 'convs\.2', {part}: .*NaN or infinite"):
            METHOD.apply(broken, config(bits, 8), calibration)


def test_activations_that_are_not_finite_are_refused_by_name(trained: nn.Module, data: tuple[Tensor, ...]) -> None:
    images = data[0][:8].clone()
    images[3, 0, 0, 0] = math.nan
    with pytest.raises(CompressionError, match=r"layer 'convs\.0', input"):
        METHOD.apply(trained, config(), context(images))
    overflowing = nn.Sequential(nn.Conv1d(2, 2, 1), nn.Flatten(), nn.Tanh())
    nn.init.constant_(overflowing[0].weight, 1e30)
    with pytest.raises(CompressionError, match=r"layer '0', output"):
        METHOD.apply(overflowing, config(), context(torch.full((1, 2, 3), 1e30)))


def test_an_empty_weight_and_an_empty_batch_are_refused_by_name() -> None:
    with pytest.warns(UserWarning, match="zero-element"):
        empty = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 3))
    with pytest.raises(CompressionError, match="layer '0', weight: an empty tensor"):
        METHOD.apply(empty, config(), context(torch.randn(2, 4)))
    with pytest.raises(CompressionError, match="layer '0', input: an empty tensor"):
        METHOD.apply(nn.Sequential(nn.Linear(4, 2)), config(), context(torch.randn(0, 4)))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("value", [0.0, 0.3, -0.3, 1e30, 1e-30])
def test_constant_weights_and_inputs_come_out_finite(bits: int, value: float) -> None:
    for scheme in ("symmetric", "asymmetric"):
        model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 3))
        for parameter in model.parameters():
            nn.init.constant_(parameter, value if abs(value) < 1e20 else value / 1e15)
        settings = config(bits, bits, weight_scheme=scheme, activation_scheme=scheme)
        inputs = torch.full((4, 1), value if abs(value) < 1e20 else 1.0)
        quantized, state = METHOD.apply(model.eval(), settings, context(inputs))
        assert bool(torch.isfinite(quantized(inputs)).all())
        assert all(math.isfinite(row["mse"]) and row["cosine"] == pytest.approx(1) for row in state.report["layers"])
        # Weights and inputs are exact; the bias lies on the grid of their products.
        torch.testing.assert_close(quantized(inputs), model(inputs), rtol=1e-3, atol=0)


def test_models_that_hold_nothing_to_quantize_are_refused(calibration: Context) -> None:
    for model in (nn.Sequential(nn.ReLU()), nn.Sequential(nn.Embedding(3, 3, max_norm=1.0))):
        with pytest.raises(CompressionError, match="nothing to quantize"):
            METHOD.apply(model, config(8, 32), calibration)


def test_a_quantized_or_parametrized_model_is_refused(trained: nn.Module, calibration: Context) -> None:
    quantized, _ = METHOD.apply(trained, config(), calibration)
    with pytest.raises(CompressionError, match=r"layer 'convs\.0' is quantized already"):
        METHOD.apply(quantized, config(), calibration)
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))
    with pytest.raises(CompressionError, match="layer '0' computes its weight"):
        METHOD.apply(normed, config(), context(torch.randn(2, 4)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": 9, "high": 511},
        {"high": 300},
        {"zero_point": -1},
        {"scale": 0.0},
        {"scale": math.nan},
        {"scale": math.inf},
    ],
)
def test_a_history_with_an_impossible_grid_is_refused(
    trained: nn.Module, calibration: Context, wrong: dict[str, Any]
) -> None:
    _, state = METHOD.apply(trained, config(), calibration)
    history = copy.deepcopy(state.history)
    history["layers"][1]["input"] |= wrong
    with pytest.raises(CompressionError, match="cannot be quantized to"):
        METHOD.restore(Plain(), config(), MethodState(history=history, tensors=state.tensors))


def test_a_history_of_another_model_is_refused(trained: nn.Module, calibration: Context) -> None:
    settings = config()
    _, state = METHOD.apply(trained, settings, calibration)
    unlike = [
        (Plain(width=4), state, "layer 'convs.0' has another shape"),
        (nn.Sequential(nn.Linear(2, 2)), state, "no layer 'convs.0'"),
        (Plain(), MethodState(), "does not fit"),
        (Plain(), MethodState(history=state.history), "does not fit"),
        (Plain(), MethodState(history={"folded": [], "layers": [{"name": "absent"}]}), "does not fit"),
        (Plain(), MethodState(history={"folded": [], "layers": 3}), "does not fit"),
    ]
    for model, wrong, message in unlike:
        with pytest.raises(CompressionError, match=message):
            METHOD.restore(model, settings, wrong)


@pytest.mark.slow
def test_cuts_that_share_notes_are_bit_for_bit_those_that_do_not(trained: nn.Module, calibration: Context) -> None:
    folded = fold_batch_norm(trained, calibration.example)
    sharing = replace(calibration, shared={})
    alone = {}
    for corrects in (False, True):
        for weights in (32, 8, 4, 2):
            for activations in (32, 8, 3):
                for observer in ("minmax", "mse"):
                    settings = config(weights, activations, observer=observer, bias_correction=corrects)
                    alone[settings] = METHOD.apply(folded, settings, calibration)
    # Twice over, so that every one of them is made from what another one left.
    for settings in [*alone, *reversed(alone)]:
        model, state = METHOD.apply(folded, settings, sharing)
        expected, whole = alone[settings]
        assert state.history == whole.history
        assert state.report == whole.report
        assert state.bits == whole.bits
        assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in state.tensors.items())
        ours, theirs = model.state_dict(), expected.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert sharing.shared
