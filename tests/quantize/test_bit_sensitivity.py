"""What rounding one layer does to the outputs or the loss."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional as F

from autocompress.core.method import Context
from autocompress.errors import CompressionError
from autocompress.quantize.bit_sensitivity import (
    LayerSensitivity,
    LossIncrease,
    OutputDivergence,
    enforce_monotone_losses,
    measure_sensitivity,
)
from autocompress.quantize.model_quantizer import ModelQuantizer, fit_activation_grid
from autocompress.quantize.weight_coding import WeightCoding, encode_weight

WIDTHS = (2, 4, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(input=torch.relu(self.first(x)))


@pytest.fixture
def context() -> Context:
    generator = torch.Generator().manual_seed(3)
    batches = tuple((torch.randn(size, 5, generator=generator),) for size in (12, 4))
    targets = tuple({"label": torch.randint(4, (len(batch),), generator=generator)} for (batch,) in batches)
    return Context(
        (batches[0][0][:1],), batches, targets, lambda output, wanted: F.cross_entropy(output, wanted["label"])
    )


@pytest.fixture
def quantizer(context: Context) -> ModelQuantizer:
    torch.manual_seed(0)
    return ModelQuantizer(Net(), context)


def measure_layers(quantizer: ModelQuantizer, measure: OutputDivergence | LossIncrease) -> list[LayerSensitivity]:
    with torch.no_grad():
        weights = {
            name: {bits: encode_weight(layer.weight, WeightCoding(bits)) for bits in WIDTHS}
            for name, layer in quantizer.layers.items()
        }
        grid = {bits: fit_activation_grid((-3.0, 3.0), "asymmetric", bits) for bits in WIDTHS}
        return measure_sensitivity(quantizer, measure, weights, dict.fromkeys(quantizer.layers, grid))


@torch.no_grad()
def test_each_entry_is_what_a_copy_with_that_layer_rounded_measures(
    quantizer: ModelQuantizer, context: Context
) -> None:
    inputs = torch.cat([batch for (batch,) in context.calibration])
    labels = torch.cat([target["label"] for target in context.targets])
    exact = quantizer.model(inputs)
    rows = {
        name: measure_layers(quantizer, measure(quantizer))
        for name, measure in (("divergence", OutputDivergence), ("loss", LossIncrease))
    }
    for at, name in enumerate(("first", "second")):
        for bits in WIDTHS:
            alone = copy.deepcopy(quantizer.model)
            layer = alone.get_submodule(name)
            layer.weight = nn.Parameter(encode_weight(layer.weight, WeightCoding(bits)).dequantize())
            out = alone(inputs)
            before, after = exact.softmax(1), out.softmax(1)
            divergence = (before * (before / after).log()).sum(1).mean()
            loss = F.cross_entropy(out, labels) - F.cross_entropy(exact, labels)
            assert rows["divergence"][at].weights[bits] == pytest.approx(float(divergence), rel=1e-3, abs=1e-7)
            assert rows["loss"][at].weights[bits] == pytest.approx(float(loss), rel=1e-3, abs=1e-6)
        step = 6 / 3
        rounded = torch.relu(quantizer.model.first(inputs)) if name == "second" else inputs
        rounded = rounded.div(step).round().clamp(-2, 1).mul(step)
        hidden = rounded if name == "second" else torch.relu(quantizer.model.first(rounded))
        out = quantizer.model.second(hidden)
        loss = F.cross_entropy(out, labels) - F.cross_entropy(exact, labels)
        assert rows["loss"][at].inputs[2] == pytest.approx(float(loss), rel=1e-3, abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("measure", [OutputDivergence, LossIncrease])
def test_a_count_measures_the_first_examples(
    measure: type[OutputDivergence | LossIncrease], quantizer: ModelQuantizer, context: Context
) -> None:
    first = replace(context, calibration=context.calibration[:1], targets=context.targets[:1])
    size = len(context.calibration[0][0])
    few, alone, all_examples = (
        measure_layers(draft, measure(draft, count))
        for given, count in ((context, size), (first, None), (context, None))
        for draft in [ModelQuantizer(copy.deepcopy(quantizer.model), given)]
    )
    assert few == alone
    assert few != all_examples


def test_the_draft_computes_what_it_did_before(quantizer: ModelQuantizer, context: Context) -> None:
    before, outputs = copy.deepcopy(quantizer.model.state_dict()), quantizer.model(*context.calibration[0])
    measure_layers(quantizer, OutputDivergence(quantizer))
    assert quantizer.model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in quantizer.model.state_dict().items())
    assert torch.equal(quantizer.model(*context.calibration[0]), outputs)


@torch.no_grad()
def test_fewer_bits_diverge_more_and_nothing_diverges_less_than_not_at_all(quantizer: ModelQuantizer) -> None:
    measure = OutputDivergence(quantizer)
    assert measure() == pytest.approx(0.0, abs=1e-12)
    for row in measure_layers(quantizer, measure):
        for side in (row.weights, row.inputs):
            assert side[2] > side[4] > side[8] > 0


@given(st.dictionaries(st.sampled_from(range(2, 9)), st.floats(-1, 1, allow_subnormal=False), min_size=1))
def test_what_is_expected_never_falls_with_fewer_bits(losses: dict[int, float]) -> None:
    monotone = enforce_monotone_losses(losses)
    assert monotone.keys() == losses.keys()
    values = [monotone[bits] for bits in sorted(monotone)]
    assert values == sorted(values, reverse=True)
    assert all(monotone[bits] >= max(losses[bits], 0.0) for bits in losses)
    assert max(values) == max(0.0, *losses.values())


def test_rows_are_json() -> None:
    row = LayerSensitivity("a", {2: 0.5}, {8: 0.0})
    assert row.to_json() == {"name": "a", "weight_bits": {"2": 0.5}, "activation_bits": {"8": 0.0}}


def test_what_it_measures_with_must_be_there(context: Context) -> None:
    for missing in ({"loss": None}, {"targets": ()}, {"targets": context.targets[:1]}):
        with pytest.raises(CompressionError, match="need the loss on calibration batches"):
            LossIncrease(ModelQuantizer(Net(), replace(context, **missing)))
    with pytest.raises(CompressionError, match="need calibration batches"):
        OutputDivergence(ModelQuantizer(Net(), replace(context, calibration=())))


def test_a_loss_that_is_not_finite_is_refused_by_name(context: Context) -> None:
    quantizer = ModelQuantizer(Net(), replace(context, loss=lambda *_: torch.tensor(torch.nan)))
    with pytest.raises(CompressionError, match="layer 'first' at 2 bits: the sensitivity is nan"):
        measure_layers(quantizer, LossIncrease(quantizer))
