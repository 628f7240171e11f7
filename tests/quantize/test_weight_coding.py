import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.nn import functional as F

from autocompress.errors import CompressionError
from autocompress.measure.tensor_storage import pack_codes, unpack_codes
from autocompress.quantize.lookup_quantizers import LookupTable
from autocompress.quantize.quantizers import WEIGHT_QUANTIZERS
from autocompress.quantize.weight_coding import (
    GRANULARITIES,
    QUANTIZER_NAMES,
    WEIGHT_OBSERVERS,
    QuantizedWeight,
    WeightCoding,
    encode_weight,
    join_blocks,
    load_weight,
    split_blocks,
)

EVERY = [
    WeightCoding(4, quantizer, scheme, granularity, 5, observer)
    for quantizer, scheme, granularity, observer in product(
        QUANTIZER_NAMES, WEIGHT_QUANTIZERS, GRANULARITIES, WEIGHT_OBSERVERS
    )
]
codings = st.builds(lambda coding, bits: replace(coding, bits=bits), st.sampled_from(EVERY), st.integers(1, 8))
shapes = st.sampled_from([(1, 1), (1, 7), (3, 1), (4, 12), (2, 3, 3), (4, 2, 3, 3), (3, 1, 1, 1)])


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    shape = torch.Size(draw(shapes))
    kind = draw(st.sampled_from(["normal", "zeros", "constant", "one_large", "pruned"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = {
        "normal": lambda: torch.randn(shape, generator=generator),
        "zeros": lambda: torch.zeros(shape),
        "constant": lambda: torch.full(shape, draw(st.sampled_from([-1.0, 0.3]))),
        "one_large": lambda: torch.randn(shape, generator=generator).index_fill_(0, torch.tensor([0]), 50.0),
        "pruned": lambda: torch.randn(shape, generator=generator).relu(),
    }[kind]()
    return weight * draw(st.sampled_from([1e-30, 1e-3, 1.0, 1e30]))


def fits(coding: WeightCoding) -> bool:
    return coding.quantizer != "power_of_two" or coding.bits > 1


def reload(quantized: QuantizedWeight, shape: torch.Size) -> QuantizedWeight:
    return load_weight("a", quantized.to_json(), shape, quantized.to_tensors("a"))


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(weights(), codings)
def test_every_weight_has_codes_that_keep_to_their_bits_and_come_back_exactly(
    weight: Tensor, coding: WeightCoding
) -> None:
    if not fits(coding):
        with pytest.raises(CompressionError, match="2 bits"):
            encode_weight(weight, coding)
        return
    before = weight.clone()
    quantized = encode_weight(weight, coding)
    values = quantized.dequantize()
    assert torch.equal(weight, before)
    assert quantized.codes.shape == values.shape == weight.shape
    assert bool(values.isfinite().all())
    # Zero is worth a code in every quantizer, so that what was pruned stays pruned.
    assert not values[weight == 0].any()
    codes = quantized.codes
    lowest = -(2 ** (coding.bits - 1)) if codes.dtype == torch.int8 else 0
    packed = pack_codes(codes, coding.bits, lowest)
    assert packed.numel() == math.ceil(codes.numel() * coding.bits / 8)
    back = unpack_codes(packed, coding.bits, tuple(codes.shape), lowest, codes.dtype)
    assert torch.equal(back, codes)
    assert torch.equal(reload(replace(quantized, codes=back), weight.shape).dequantize(), values)
    again = encode_weight(weight, coding)
    assert torch.equal(again.codes, codes)
    assert torch.equal(again.dequantize(), values)


@pytest.mark.parametrize("coding", [WeightCoding(16), WeightCoding(16, "codebook", granularity="per_group")])
def test_16_bits_are_float16_values_whatever_the_grid(coding: WeightCoding) -> None:
    weight = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    quantized = encode_weight(weight, coding)
    assert not quantized.is_integer
    assert torch.equal(quantized.dequantize(), weight.half().float())
    assert sum(tensor.nbytes for tensor in quantized.to_tensors("a").values()) == 2 * weight.numel()
    assert torch.equal(reload(quantized, weight.shape).dequantize(), quantized.dequantize())
    with pytest.raises(CompressionError, match=r"layer 'a' needs \[4, 11\] float16 weights"):
        reload(quantized, torch.Size((4, 11)))


def test_values_beyond_float16_are_refused() -> None:
    with pytest.raises(CompressionError, match="float16 ends at 65504, and the weight has a value of 70000"):
        encode_weight(torch.tensor([[1.0, -7e4]]), WeightCoding(16))


@settings(deadline=None)
@given(weights(), codings)
def test_searching_a_clipping_never_leaves_more_error(weight: Tensor, coding: WeightCoding) -> None:
    if not fits(coding):
        return
    errors = {}
    for observer in WEIGHT_OBSERVERS:
        rounded = encode_weight(weight, replace(coding, observer=observer)).dequantize()
        errors[observer] = float((rounded.double() - weight.double()).square().sum())
    assert errors["mse"] <= errors["minmax"] * (1 + 1e-3)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("scheme", sorted(WEIGHT_QUANTIZERS))
def test_a_clipping_that_was_searched_leaves_much_less_error(scheme: str, bits: int) -> None:
    weight = torch.randn(8, 400, generator=torch.Generator().manual_seed(0))
    errors = [
        float(
            (encode_weight(weight, WeightCoding(bits, scheme=scheme, observer=name)).dequantize() - weight)
            .square()
            .mean()
        )
        for name in WEIGHT_OBSERVERS
    ]
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("quantizer", QUANTIZER_NAMES)
def test_smaller_parts_with_a_scale_each_are_closer(quantizer: str) -> None:
    generator = torch.Generator().manual_seed(0)
    size = torch.logspace(-2, 1, 8)[:, None] * torch.logspace(-1, 1, 64)
    weight = torch.randn(8, 64, generator=generator) * size
    # What is small counts as much as what is large.
    errors = [
        float(
            (
                encode_weight(weight, WeightCoding(4, quantizer, granularity=name, group_size=8)).dequantize() / size
                - weight / size
            )
            .square()
            .mean()
        )
        for name in GRANULARITIES
    ]
    assert errors[2] < errors[1] < errors[0]


@pytest.mark.slow
def test_bits_that_grow_leave_less_error() -> None:
    weight = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    for coding in EVERY:
        widths = range(2, 7) if coding.quantizer == "power_of_two" else range(1, 9)
        errors = [
            float((encode_weight(weight, replace(coding, bits=bits)).dequantize() - weight).square().mean())
            for bits in widths
        ]
        assert errors == sorted(errors, reverse=True), coding


def test_a_codebook_beats_even_steps_of_the_same_bits() -> None:
    weight = torch.randn(8, 500, generator=torch.Generator().manual_seed(0))
    for bits in (2, 3, 4):
        by_table, by_grid = (
            float(
                (
                    encode_weight(
                        weight, WeightCoding(bits, name, granularity="per_tensor", observer="mse")
                    ).dequantize()
                    - weight
                )
                .square()
                .mean()
            )
            for name in ("codebook", "linear")
        )
        assert by_table < by_grid


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 100])
def test_the_last_group_of_a_channel_may_be_shorter(size: int) -> None:
    weight = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))
    coding = WeightCoding(4, granularity="per_group", group_size=size)
    quantized = encode_weight(weight, coding)
    assert quantized.code_map.scale.shape == (3, math.ceil(6 / size))
    for channel, row in enumerate(weight.flatten(1)):
        for at, group in enumerate(row.split(size)):
            # A shorter group is filled up with zeros.
            whole = F.pad(group[None], (0, size - len(group)))
            alone = encode_weight(whole, WeightCoding(4, granularity="per_tensor"))
            assert torch.equal(quantized.code_map.scale[channel, at], alone.code_map.scale)
            got = quantized.dequantize().flatten(1)[channel, at * size : (at + 1) * size]
            assert torch.equal(got, alone.dequantize()[0, : len(group)])
    assert torch.equal(join_blocks(split_blocks(weight, coding), weight.shape, coding), weight)


def test_only_even_steps_for_a_tensor_or_channels_are_for_integer_kernels() -> None:
    weight = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    for coding in EVERY:
        quantized = encode_weight(weight, coding)
        assert quantized.is_integer == coding.is_integer
        assert quantized.is_integer == (coding.quantizer == "linear" and coding.granularity != "per_group")
        parts = {name.removeprefix("a.weight_") for name in quantized.to_tensors("a")}
        assert parts == {"codes", "scale", "levels" if isinstance(quantized.code_map, LookupTable) else "zero_point"}


@pytest.mark.parametrize(
    ("coding", "part", "wrong", "message"),
    [
        (WeightCoding(4), "codes", torch.zeros(4, 9, dtype=torch.int8), "another shape"),
        (WeightCoding(4), "scale", torch.ones(3), r"has \[3\] scales"),
        (WeightCoding(4), "zero_point", torch.zeros(3, dtype=torch.int32), "zero points"),
        (WeightCoding(4, granularity="per_group", group_size=4), "scale", torch.ones(4, 2), "scales"),
        (WeightCoding(4, "codebook"), "levels", torch.ones(2), "beyond its table"),
        (WeightCoding(4, "codebook"), "levels", torch.ones(4, 4), "beyond its table"),
        (WeightCoding(4, "power_of_two"), "codes", torch.zeros(4, 10, dtype=torch.int8), "beyond its table"),
    ],
)
def test_tensors_that_do_not_fit_each_other_are_refused(
    coding: WeightCoding, part: str, wrong: Any, message: str
) -> None:
    weight = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    quantized = encode_weight(weight, coding)
    with pytest.raises(CompressionError, match=f"layer 'a' .*{message}"):
        load_weight("a", quantized.to_json(), weight.shape, quantized.to_tensors("a") | {f"a.weight_{part}": wrong})
