"""Weights and inputs that break naive quantizers: a finite result, close to what it was, or an error with a name."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from autocompress.core.method import Context
from autocompress.errors import CompressionError
from autocompress.quantize.observers import OBSERVERS
from autocompress.quantize.post_training import PostTraining, PostTrainingConfig
from autocompress.quantize.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS, Grid, broadcast_parameter
from autocompress.quantize.weight_coding import (
    GRANULARITIES,
    QUANTIZER_NAMES,
    WEIGHT_OBSERVERS,
    WeightCoding,
    encode_weight,
)

METHOD = PostTraining()
SPREAD = torch.linspace(-1, 1, 12)
TENSORS = {
    "zeros": torch.zeros(3, 4),
    "constant": torch.full((3, 4), 0.3),
    "negative constant": torch.full((3, 4), -0.3),
    "one element": torch.full((1, 1), 0.7),
    "one that is not zero": torch.eye(3, 4) * 0.1,
    "dead channel": torch.cat([SPREAD.view(3, 4)[:2], torch.zeros(1, 4)]),
    "tiny": SPREAD.view(3, 4) * 1e-30,
    "huge": SPREAD.view(3, 4) * 1e30,
    "tiny beside huge": torch.tensor([1e-30, 1.0, 1e30, -1.0]).repeat(3, 1),
    "empty": torch.zeros(3, 0),
    "nan": torch.tensor([[math.nan, 1.0]]),
    "infinite": torch.tensor([[1.0, math.inf]]),
    "negative infinite": torch.tensor([[-math.inf, 1.0]]),
}
BROKEN = {"empty", "nan", "infinite", "negative infinite"}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def layer(weight: Tensor) -> nn.Module:
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0]))
    model[0].weight = nn.Parameter(weight.clone())
    nn.init.zeros_(model[0].bias)
    return model.eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_weights_of_every_kind_through_every_quantizer() -> None:
    seen = {"finite": 0, "refused": 0}
    kinds = [
        (quantizer, scheme, granularity, observer)
        for quantizer, granularity, observer in product(QUANTIZER_NAMES, GRANULARITIES, WEIGHT_OBSERVERS)
        for scheme in (WEIGHT_QUANTIZERS if quantizer == "linear" else ["symmetric"])
    ]
    for (name, weight), kind, bits in product(TENSORS.items(), kinds, (2, 5, 8)):
        quantizer, scheme, granularity, observer = kind
        model = layer(weight)
        inputs = torch.full((4, weight.shape[1]), 0.5)
        config = PostTrainingConfig(
            weight_bits=bits,
            activation_bits=8,
            quantizer=quantizer,
            weight_scheme=scheme,
            granularity=granularity,
            group_size=3,
            weight_observer=observer,
        )
        context = Context((inputs[:1],), ((inputs,),))
        if name in BROKEN:
            with pytest.raises(CompressionError, match=r"layer '0', weight: .*(empty|NaN or infinite)"):
                METHOD.apply(model, config, context)
            seen["refused"] += 1
            continue
        quantized, state = METHOD.apply(model, config, context)
        after = quantized[0].weight.detach()
        assert bool(after.isfinite().all()), (name, kind, bits)
        assert bool(quantized(inputs).isfinite().all()), (name, kind, bits)
        assert all(math.isfinite(value) for value in state.report["layers"][0].values() if isinstance(value, float))
        # No value leaves the range, and zero (what pruning left) stays zero.
        assert float(after.abs().max()) <= 1.34 * float(weight.abs().max()), (name, kind, bits)
        if quantizer != "codebook":
            assert bool((after[weight == 0] == 0).all()), (name, kind, bits)
        seen["finite"] += 1
    print(f"weights: {seen['finite']} finite, {seen['refused']} refused by name")
    assert sum(seen.values()) >= 500


def test_the_error_is_at_most_half_a_step_of_every_grid_and_table() -> None:
    cases = 0
    kinds = product(("linear", "power_of_two"), WEIGHT_QUANTIZERS, GRANULARITIES, range(1, 9))
    for (name, weight), (quantizer, scheme, granularity, bits) in product(TENSORS.items(), list(kinds)):
        if name in BROKEN or (quantizer == "power_of_two" and bits == 1):
            continue
        quantized = encode_weight(weight, WeightCoding(bits, quantizer, scheme, granularity, 3))
        scale = broadcast_parameter(quantized.code_map.scale.double(), weight, quantized.code_map.group)
        # A table's scale is its largest power of two, to which the largest weight is nearest.
        assert bool(((quantized.dequantize().double() - weight.double()).abs() <= scale * 0.5001).all()), (
            name,
            quantizer,
        )
        assert isinstance(quantized.code_map, Grid) == (quantizer == "linear")
        cases += 1
    print(f"half a step: {cases} cases")
    assert cases >= 500


def test_one_bit_of_a_power_of_two_is_refused() -> None:
    with pytest.raises(CompressionError, match="powers of two need 2 bits"):
        encode_weight(torch.ones(2, 2), WeightCoding(1, "power_of_two"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_inputs_of_every_kind_through_every_observer() -> None:
    seen = {"finite": 0, "refused": 0}
    for (name, inputs), observer, scheme, bits in product(
        TENSORS.items(), OBSERVERS, ACTIVATION_QUANTIZERS, (2, 4, 6, 8)
    ):
        model = layer(torch.eye(max(inputs.shape[1], 1))[:, : inputs.shape[1]])
        config = PostTrainingConfig(
            weight_bits=32,
            activation_bits=bits,
            observer=observer,
            activation_scheme=scheme,
            bias_correction=False,
        )
        context = Context((torch.zeros(1, inputs.shape[1]),), ((inputs,),))
        if name in BROKEN:
            with pytest.raises(CompressionError, match=r"layer '0', (input|weight): .*(empty|NaN or infinite)"):
                METHOD.apply(model, config, context)
            seen["refused"] += 1
            continue
        quantized, _ = METHOD.apply(model, config, context)
        out = quantized(inputs).detach()
        assert bool(out.isfinite().all()), (name, observer, scheme, bits)
        step = float(quantized[0].input_quantizer.scale)
        if observer == "minmax":
            assert float((out - inputs).abs().max()) <= step * 0.5001
        seen["finite"] += 1
    print(f"inputs: {seen['finite']} finite, {seen['refused']} refused by name")
    assert sum(seen.values()) >= 500
