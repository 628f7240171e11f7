"""What rounding after training does to weights, inputs, outputs and biases."""

import copy
import json
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.core.method import Context, LayerBits, MethodState
from autocompress.core.registry import QUANTIZE
from autocompress.errors import CompressionError, KnobError
from autocompress.quantize.fake_quantize import LARGEST_EXACT_CODE, FakeQuantize, widen_codes
from autocompress.quantize.folding import fold_batch_norm
from autocompress.quantize.observers import MinMaxObserver, PercentileObserver
from autocompress.quantize.post_training import (
    BITS,
    BitSettings,
    InputSettings,
    PostTraining,
    PostTrainingConfig,
    WeightSettings,
)
from autocompress.quantize.weight_coding import WeightCoding
from tests.quantize.nets import Plain, accuracy
from tests.quantize.rounding import METHOD, WIDTHS, config, context, weight_error


def test_it_is_registered_under_its_name() -> None:
    assert isinstance(QUANTIZE.get("post_training"), PostTraining)
    assert QUANTIZE.get("post_training").name == "post_training"


@pytest.mark.parametrize(
    "bad", [{"weight_bits": 1}, {"activation_bits": 9}, {"observer": "guess"}, {"percentile": 89.0}]
)
def test_a_setting_outside_its_range_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(KnobError, match=next(iter(bad))):
        PostTrainingConfig.of(bad)


def test_only_32_and_32_bits_change_nothing() -> None:
    assert METHOD.is_identity(config(32, 32))
    assert not any(METHOD.is_identity(config(*bits)) for bits in [(8, 32), (32, 8), (8, 8)])


@pytest.mark.slow
def test_eight_bits_keep_the_accuracy(
    trained: nn.Module, calibration: Context, data: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    before = accuracy(trained, data[2], data[3])
    quantized, _ = METHOD.apply(trained, config(), calibration)
    assert before > 0.9
    assert abs(accuracy(quantized, data[2], data[3]) - before) <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_every_bit_less_costs_every_layer(
    trained: nn.Module, calibration: Context, scheme: str, granularity: str
) -> None:
    reports = [
        METHOD.apply(trained, config(bits, 8, weight_scheme=scheme, granularity=granularity), calibration)[1].report
        for bits in WIDTHS
    ]
    for coarse, fine in pairwise(reports):
        for row, better in zip(coarse["layers"], fine["layers"], strict=True):
            assert row["name"] == better["name"]
            assert row["mse"] > better["mse"]
            assert row["sqnr_db"] < better["sqnr_db"]
    assert all(row["cosine"] > 0.9999 for row in reports[-1]["layers"])


@pytest.mark.parametrize("bits", [4, 8])
def test_a_scale_per_channel_is_closer_than_one_per_tensor(trained: nn.Module, calibration: Context, bits: int) -> None:
    errors = {
        name: weight_error(METHOD.apply(trained, config(bits, 32, granularity=name), calibration)[1])
        for name in ("per_channel", "per_tensor")
    }
    assert errors["per_channel"] < errors["per_tensor"]


def test_the_error_report_holds_what_was_done_to_the_weights(trained: nn.Module, calibration: Context) -> None:
    quantized, state = METHOD.apply(trained, config(3, 5), calibration)
    folded = dict(fold_batch_norm(trained, calibration.example).named_parameters())
    assert [row["name"] for row in state.report["layers"]] == [*(f"convs.{i}" for i in range(4)), "head"]
    for row in state.report["layers"]:
        before, after = folded[f"{row['name']}.weight"], quantized.get_parameter(f"{row['name']}.weight")
        mse = F.mse_loss(after, before).item()
        assert row["mse"] == pytest.approx(mse, rel=1e-4)
        assert row["sqnr_db"] == pytest.approx(10 * math.log10(before.square().mean().item() / mse), rel=1e-4)
        assert row["cosine"] == pytest.approx(
            F.cosine_similarity(before.flatten(), after.flatten(), 0).item(), rel=1e-4
        )
        assert (row["weight_bits"], row["activation_bits"]) == (3, 5)
    assert state.bits == dict.fromkeys((row["name"] for row in state.report["layers"]), LayerBits(3, 5))
    assert len(state.report["batch_norm"]["folded"]) == 4
    assert state.report["float_layers"] == []
    json.dumps([state.history, state.report], allow_nan=False)


def test_a_percentile_narrows_the_ranges_of_inputs(trained: nn.Module, calibration: Context) -> None:
    def scales(**settings: Any) -> list[float]:
        _, state = METHOD.apply(trained, config(**settings), calibration)
        return [entry["input"]["scale"] for entry in state.history["layers"]]

    wide, narrow = scales(), scales(observer="percentile", percentile=99.0)
    assert scales(observer="percentile", percentile=100.0) == wide
    assert all(a <= b for a, b in zip(narrow, wide, strict=True))
    assert sum(a < 0.9 * b for a, b in zip(narrow, wide, strict=True)) >= 3


def test_ranges_span_every_batch_and_come_from_the_float_model(
    trained: nn.Module, data: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    images = data[0][:96]
    whole = METHOD.apply(trained, config(2, 4), context(images))[1]
    batched = METHOD.apply(trained, config(2, 4), context(*images.split(32)))[1]
    finer = METHOD.apply(trained, config(8, 4), context(images))[1]
    for one, two, three in zip(*(state.history["layers"] for state in (whole, batched, finer)), strict=True):
        assert one["input"]["scale"] == pytest.approx(two["input"]["scale"], rel=1e-5)
        assert one["input"] == three["input"]


class Residual(nn.Module):
    """A stem and a block beside a shortcut."""

    def __init__(self, relu: bool = True) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3)
        self.pool, self.head, self.relu = nn.MaxPool2d(2), nn.Linear(6, 3), relu

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x)) if self.relu else F.silu(self.stem(x))
        y = self.second(self.pool(F.relu(self.first(x))))
        return self.head((F.max_pool2d(x[..., 3:-3, 3:-3], 1)[..., : y.shape[-2], : y.shape[-1]] + y).mean((2, 3)))


def test_outputs_that_no_next_layer_rounds_are_rounded_to_8_bits() -> None:
    batch = torch.randn(16, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    for relu in (True, False):
        model = Residual(relu).eval()
        quantized, state = METHOD.apply(model, config(4, 4), context(batch))
        outputs = {entry["name"]: entry["output"] for entry in state.history["layers"]}
        # "first" feeds a ReLU, a maximum and then a quantized layer; the logits stay as they are.
        assert outputs["first"] is None
        assert outputs["head"] is None
        # "stem" feeds a sum too: after a ReLU its negative values need no codes.
        assert outputs["stem"]["bits"] == outputs["second"]["bits"] == 8
        assert (outputs["stem"]["zero_point"] == 0) == relu
        assert outputs["second"]["zero_point"] > 0
        with torch.inference_mode():
            after = quantized.get_submodule("second")(torch.randn(2, 6, 5, 5))
        steps = after / outputs["second"]["scale"]
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
        fresh = METHOD.restore(Residual(relu), config(4, 4), state)
        fresh.load_state_dict(quantized.state_dict())
        assert torch.equal(fresh(batch), quantized(batch))


@pytest.mark.parametrize("bits", [(8, 32), (32, 8)])
def test_outputs_stay_where_no_integer_kernel_can_run(bits: tuple[int, int]) -> None:
    _, state = METHOD.apply(Residual(), config(*bits), context(torch.randn(4, 1, 12, 12)))
    assert all(entry["output"] is None for entry in state.history["layers"])


def test_outputs_of_an_untraceable_model_and_of_logits_stay_as_they_are() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return x.mean() if x.sum() > 0 else -x.mean()

    for model in (Branching(), nn.Sequential(nn.Conv2d(1, 3, 3)), nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU())):
        _, state = METHOD.apply(model, config(), context(torch.randn(4, 1, 5, 5)))
        assert state.history["layers"][0]["output"] is None


@pytest.mark.parametrize(("weights", "activations"), [(8, 8), (2, 2), (3, 7)])
def test_biases_lie_on_the_grid_of_the_products(
    trained: nn.Module, calibration: Context, weights: int, activations: int
) -> None:
    quantized, state = METHOD.apply(trained, config(weights, activations), calibration)
    folded = fold_batch_norm(trained, calibration.example)
    for entry in state.history["layers"]:
        name = entry["name"]
        saved = [state.tensors[f"{name}.weight_{part}"] for part in ("codes", "scale", "zero_point")]
        bias, before = (model.get_parameter(f"{name}.bias").double() for model in (quantized, folded))
        wide, scale, zero_point = widen_codes(*saved, before, torch.tensor(entry["input"]["scale"]))
        step = scale.double() * entry["input"]["scale"]
        torch.testing.assert_close(bias / step, (bias / step).round(), rtol=0, atol=1e-2)
        assert bool(((bias - before).abs() <= step * 0.51).all())
        assert int((wide.int() - zero_point.int().flatten()[0]).abs().max()) > LARGEST_EXACT_CODE // 2


def test_inputs_after_a_relu_spend_no_code_on_negative_values(trained: nn.Module, calibration: Context) -> None:
    for scheme in ("symmetric", "asymmetric"):
        _, state = METHOD.apply(trained, config(8, 6, activation_scheme=scheme), calibration)
        for entry in state.history["layers"]:
            assert (entry["input"]["low"], entry["input"]["high"], entry["input"]["zero_point"]) == (0, 63, 0)
    signed, _ = METHOD.apply(trained, config(activation_scheme="symmetric"), context(torch.randn(8, 1, 8, 8)))
    quantizer = signed.get_submodule("convs.0.input_quantizer")
    assert (quantizer.low, quantizer.high) == (-128, 127)


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "activations"), [(8, 8), (3, 5), (4, 32), (32, 4), (32, 32)])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_a_fresh_model_is_restored_bit_for_bit(
    trained: nn.Module,
    calibration: Context,
    data: tuple[Tensor, Tensor, Tensor, Tensor],
    weights: int,
    activations: int,
    granularity: str,
    scheme: str,
) -> None:
    settings = config(weights, activations, granularity=granularity, weight_scheme=scheme, activation_scheme=scheme)
    quantized, state = METHOD.apply(trained, settings, calibration)
    saved = MethodState(history=json.loads(json.dumps(state.history)), tensors=state.tensors)
    fresh = METHOD.restore(Plain(), settings, saved)
    assert not any(module.training for module in fresh.modules())
    rest = {name: value for name, value in quantized.state_dict().items() if name not in state.history["restored"]}
    missing, unexpected = fresh.load_state_dict(rest, strict=False)
    assert sorted(missing) == sorted(state.history["restored"])
    assert unexpected == []
    with torch.inference_mode():
        assert torch.equal(fresh(data[2]), quantized(data[2]))
    fresh.load_state_dict(quantized.state_dict())


def test_codes_and_scales_give_the_weights_and_keep_to_their_bits(trained: nn.Module, calibration: Context) -> None:
    for scheme, dtype in (("symmetric", torch.int8), ("asymmetric", torch.uint8)):
        quantized, state = METHOD.apply(trained, config(3, 32, weight_scheme=scheme), calibration)
        for name in state.bits:
            codes, scale = state.tensors[f"{name}.weight_codes"], state.tensors[f"{name}.weight_scale"]
            zero_point = state.tensors[f"{name}.weight_zero_point"]
            assert codes.dtype == dtype
            assert scale.shape == zero_point.shape == codes.shape[:1]
            assert int(codes.max()) - int(codes.min()) < 2**3
            axes = [-1, *[1] * (codes.ndim - 1)]
            assert torch.equal(
                (codes.float() - zero_point.view(axes)) * scale.view(axes), quantized.get_parameter(f"{name}.weight")
            )


def test_weights_alone_need_no_calibration_and_leave_inputs_alone(trained: nn.Module, calibration: Context) -> None:
    quantized, state = METHOD.apply(trained, config(4, 32), Context(calibration.example))
    assert not any(isinstance(module, FakeQuantize) for module in quantized.modules())
    assert all(entry["input"] is None for entry in state.history["layers"])
    with pytest.raises(CompressionError, match="calibration batches"):
        METHOD.apply(trained, config(4, 8), Context(calibration.example))


def test_activations_alone_leave_weights_alone(trained: nn.Module, calibration: Context) -> None:
    quantized, state = METHOD.apply(trained, config(32, 4), calibration)
    folded = fold_batch_norm(trained, calibration.example)
    assert all(torch.equal(quantized.get_parameter(n), p) for n, p in folded.named_parameters())
    assert state.tensors == {}
    assert all(row["mse"] == 0 and row["sqnr_db"] is None and row["cosine"] == 1 for row in state.report["layers"])


def test_the_model_itself_is_left_alone_and_no_hook_stays(trained: nn.Module, calibration: Context) -> None:
    trained.train()
    before = copy.deepcopy(trained.state_dict())
    quantized, _ = METHOD.apply(trained, config(4, 4), calibration)
    assert trained.training
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    trained.eval()
    hooked = {name for name, module in quantized.named_modules() if module._forward_hooks}
    assert hooked == {"convs.3"}
    assert not any(module.training for module in quantized.modules())
    assert type(quantized.get_submodule("convs.0")) is nn.Conv2d


def test_the_calibration_split_is_passed_once_for_inputs_and_once_for_outputs(
    trained: nn.Module, data: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    passes: list[int] = []
    folded = fold_batch_norm(trained, (data[0][:1],))
    folded.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    METHOD.apply(folded, config(), context(*data[0][:96].split(32)))
    assert passes == [32, 32, 32] * 2
    passes.clear()
    # The error report looks at one batch.
    METHOD.apply(folded, config(32, 8), context(*data[0][:96].split(32)))
    assert passes == [32, 32, 32, 32]


@dataclass(frozen=True)
class Combined(BitSettings, WeightSettings, InputSettings):
    """Settings of a method that combines all of them, as every method does."""


def test_the_names_of_the_stored_fields_stay() -> None:
    # They are YAML keys and enter the fingerprints of stored configs.
    assert set(Combined().to_dict()) == {
        "weight_bits",
        "activation_bits",
        "weight_scheme",
        "granularity",
        "group_size",
        "weight_observer",
        "activation_scheme",
        "observer",
        "percentile",
    }


def test_settings_read_back_equal() -> None:
    settings = Combined(weight_bits=3, granularity="per_group", group_size=16, observer="percentile", percentile=95.0)
    assert Combined.of(settings.to_dict()) == settings
    assert Combined.of({}) == Combined()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 32])
def test_bit_widths_that_have_a_grid_are_accepted(bits: int) -> None:
    assert BITS.accepts(bits)
    assert BitSettings(weight_bits=bits, activation_bits=bits).weight_bits == bits


@pytest.mark.parametrize(
    "values",
    [
        {"weight_bits": 1},
        {"activation_bits": 16},
        {"granularity": "per_row"},
        {"group_size": 1},
        {"weight_scheme": "skewed"},
        {"activation_scheme": "skewed"},
        {"weight_observer": "entropy"},
        {"percentile": 89.0},
        {"percentile": 100.5},
    ],
)
def test_values_outside_their_range_are_refused_by_name(values: dict[str, int | float | str]) -> None:
    with pytest.raises(KnobError, match=rf"{next(iter(values))} = .* is outside"):
        Combined.of(values)


def test_the_percentile_reaches_the_observer() -> None:
    values = torch.arange(101.0)
    observer = InputSettings(observer="percentile", percentile=90.0).build_observer(8)
    assert isinstance(observer, PercentileObserver)
    observer.observe(values)
    assert observer.range() == (10.0, 90.0)


def test_each_layer_has_an_observer_of_its_own() -> None:
    settings = InputSettings()
    first, second = settings.build_observer(8), settings.build_observer(8)
    assert isinstance(first, MinMaxObserver)
    assert first is not second


def test_the_coding_of_a_weight_has_every_setting() -> None:
    settings = WeightSettings(weight_scheme="asymmetric", granularity="per_group", group_size=16, weight_observer="mse")
    assert settings.weight_coding(4) == WeightCoding(
        bits=4, quantizer="linear", scheme="asymmetric", granularity="per_group", group_size=16, observer="mse"
    )
