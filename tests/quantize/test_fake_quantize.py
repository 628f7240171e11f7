import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from autocompress.quantize.fake_quantize import (
    LARGEST_EXACT_CODE,
    FakeQuantize,
    attach_input_quantizer,
    attach_output_quantizer,
    quantize_bias,
    replace_quantizers,
    round_bias,
    widen_codes,
)
from autocompress.quantize.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS, Grid, LinearQuantizer


def quantizer(low: float, high: float, bits: int = 4, scheme: str = "asymmetric") -> FakeQuantize:
    grid = ACTIVATION_QUANTIZERS[scheme].fit(torch.tensor(low), torch.tensor(high), bits)
    return FakeQuantize(grid, bits)


@settings(deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_subnormal=False), min_size=1, max_size=30),
    st.floats(-10, 0, allow_subnormal=False),
    st.floats(0, 10, allow_subnormal=False),
    st.integers(2, 8),
    st.sampled_from(sorted(ACTIVATION_QUANTIZERS)),
)
def test_rounding_divides_as_onnx_does(values: list[float], low: float, high: float, bits: int, scheme: str) -> None:
    module = quantizer(low, high, bits, scheme)
    tensor = torch.tensor(values)
    scale, zero_point = np.float32(module.scale.item()), int(module.zero_point)
    with np.errstate(over="ignore"):
        steps = np.rint(tensor.numpy() / scale)
    expected = (np.clip(steps + zero_point, module.low, module.high) - zero_point).astype(np.float32) * scale
    assert np.array_equal(module(tensor).numpy(), expected)
    with torch.no_grad():
        assert np.array_equal(module(tensor.clone().requires_grad_()).numpy(), expected)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 8), st.sampled_from(sorted(ACTIVATION_QUANTIZERS)))
def test_with_gradients_torch_rounds_and_agrees_off_the_ties(seed: int, bits: int, scheme: str) -> None:
    module = quantizer(-1.5, 2.0, bits, scheme)
    tensor = torch.randn(200, generator=torch.Generator().manual_seed(seed)) * 2
    fraction = (tensor.double() / module.scale.double()).frac().abs()
    clear = tensor[(fraction - 0.5).abs() > 1e-4]
    assert len(clear) > 150
    assert torch.equal(module(clear.clone().requires_grad_()).detach(), module(clear))


def test_gradients_pass_inside_the_range_and_stop_outside() -> None:
    values = torch.tensor([-5.0, -0.3, 0.4, 5.0], requires_grad=True)
    quantizer(-1.0, 1.0)(values).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_the_input_itself_is_left_alone() -> None:
    values = torch.tensor([0.123, 7.0])
    quantizer(0.0, 1.0)(values)
    assert values.tolist() == pytest.approx([0.123, 7.0])


def test_half_precision_is_rounded_in_single_precision() -> None:
    values = torch.linspace(0, 255, 256).to(torch.bfloat16)
    rounded = quantizer(0.0, 255.0, bits=8)(values)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, values)


def test_a_layer_rounds_its_input_however_it_is_called() -> None:
    layer = nn.Linear(3, 2)
    values = torch.randn(4, 3)
    plain = copy.deepcopy(layer)
    attach_input_quantizer(layer, quantizer(-1.0, 1.0, bits=2))
    expected = plain(layer.get_submodule("input_quantizer")(values))
    assert torch.equal(layer(values), expected)
    assert torch.equal(layer(input=values), expected)
    assert not torch.equal(layer(values), plain(values))
    assert isinstance(layer, nn.Linear)


def test_copies_round_with_their_own_quantizer() -> None:
    layer = nn.Linear(1, 1)
    attach_input_quantizer(layer, quantizer(-1.0, 1.0, bits=2))
    for duplicate in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        duplicate.input_quantizer.scale.fill_(100.0)
        ones = torch.ones(1, 1)
        assert torch.equal(duplicate(ones), duplicate.bias[None])
        assert not torch.equal(layer(ones), layer.bias[None])


def test_the_grid_travels_in_the_state_dict() -> None:
    layer, other = nn.Linear(1, 1), nn.Linear(1, 1)
    attach_input_quantizer(layer, quantizer(-1.0, 1.0))
    attach_input_quantizer(other, quantizer(0.0, 5.0))
    other.load_state_dict(layer.state_dict())
    values = torch.linspace(-2, 2, 9)[:, None]
    assert torch.equal(layer(values), other(values))


def test_a_layer_rounds_its_output() -> None:
    layer = nn.Linear(3, 2)
    values = torch.randn(4, 3)
    expected = quantizer(0.0, 0.5, bits=3)(layer(values).detach())
    attach_output_quantizer(layer, quantizer(0.0, 0.5, bits=3))
    assert torch.equal(copy.deepcopy(layer)(values).detach(), expected)
    assert set(dict(layer.named_children())) == {"output_quantizer"}


def test_quantizers_can_be_swapped_for_others() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    values = torch.randn(4, 3)
    before = model(values)
    attach_input_quantizer(model[0], quantizer(0.0, 0.1, bits=2))
    attach_output_quantizer(model[0], quantizer(0.0, 0.1, bits=2))
    attach_input_quantizer(model[1], quantizer(0.0, 0.1, bits=2))
    assert not torch.equal(model(values), before)
    replaced: list[FakeQuantize] = []
    replace_quantizers(model, lambda module: replaced.append(module) or nn.Identity())
    assert torch.equal(model(values), before)
    assert len(replaced) == 3


def test_the_repr_tells_bits_scale_and_zero_point() -> None:
    grid = Grid(torch.tensor(0.5), torch.tensor(3, dtype=torch.int32), 0, 15)
    assert repr(FakeQuantize(grid, 4)) == "FakeQuantize(bits=4, scale=0.5, zero_point=3)"


def values(codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    return LinearQuantizer().decode(codes, Grid(scale, zero_point, 0, 255))


@settings(deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(2, 8),
    st.sampled_from(sorted(WEIGHT_QUANTIZERS)),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1.0, 0.6]),
)
def test_wider_codes_stand_for_the_same_weights(
    seed: int, bits: int, scheme: str, per_channel: bool, with_bias: bool, covered: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 3, 3, generator=generator) * torch.tensor([1.0, 0.0, 1e-3, 5.0])[:, None, None]
    low, high = torch.aminmax(weight.flatten(1), dim=1) if per_channel else torch.aminmax(weight)
    quantizer = WEIGHT_QUANTIZERS[scheme]
    # Clipped negative values take the code -128, which has no positive counterpart.
    grid = quantizer.fit(low * covered, high * covered, bits)
    codes = quantizer.encode(weight, grid)
    bias = torch.randn(4, generator=generator) if with_bias else None
    wide, scale, zero_point = widen_codes(codes, grid.scale, grid.zero_point, bias, torch.tensor(0.01))
    assert scale.shape == zero_point.shape == grid.scale.shape
    assert wide.dtype == zero_point.dtype
    assert wide.dtype == torch.uint8 or int(wide.int().abs().max()) <= LARGEST_EXACT_CODE
    torch.testing.assert_close(values(wide, scale, zero_point), quantizer.decode(codes, grid), rtol=1e-6, atol=0)
    if (bits, scheme) != (8, "asymmetric"):
        middle, widest = (0, LARGEST_EXACT_CODE) if wide.dtype == torch.int8 else (128, 127)
        assert bool((zero_point == middle).all())
        reach = (wide.int() - middle).abs().flatten(1).amax(1)
        assert all(int(r) == 0 or int(r) > widest // 2 for r in (reach if per_channel else reach.amax()[None]))


def test_the_lowest_code_stays_as_it_is() -> None:
    codes, scale, zero_point = torch.tensor([[-128, 127]], dtype=torch.int8), torch.tensor([0.5]), torch.tensor([0])
    wide, same, still = widen_codes(codes, scale, zero_point, None, None)
    assert (wide.dtype, wide.tolist(), same.tolist(), still.tolist()) == (torch.uint8, [[0, 255]], [0.5], [128])


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 8))
def test_no_pair_of_products_of_int8_codes_leaves_16_bits(seed: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 6, generator=generator)
    grid = WEIGHT_QUANTIZERS["symmetric"].fit(*torch.aminmax(weight, dim=1), bits)
    wide, _, _ = widen_codes(LinearQuantizer().encode(weight, grid), grid.scale, grid.zero_point, None, None)
    assert (wide.dtype == torch.int8) == (bits < 8)
    if bits < 8:
        assert int((255 * wide.int()).unfold(1, 2, 1).sum(-1).abs().max()) < 2**15


def test_a_bias_too_large_for_int32_makes_the_weights_step_larger() -> None:
    codes = torch.tensor([[127, -64], [127, 3]], dtype=torch.int8)
    scale, zero_point = torch.tensor([1e-20, 1.0]), torch.tensor([0, 0])
    bias = torch.tensor([1.0, 1.0])
    wide, finer, _ = widen_codes(codes, scale, zero_point, bias, torch.tensor(0.1))
    steps, step = quantize_bias(bias, finer, torch.tensor(0.1))
    assert int(steps.abs().max()) <= 2**30
    torch.testing.assert_close(steps * step, bias)
    assert wide.tolist() == [[128, 128], [255, 131]]


def test_a_channel_of_zeros_keeps_its_bias() -> None:
    codes, scale, zero_point = torch.zeros(2, 5, dtype=torch.int8), torch.ones(2), torch.zeros(2, dtype=torch.int32)
    bias = torch.tensor([0.123456, 0.0])
    rounded = round_bias(codes, scale, zero_point, bias, torch.tensor(0.5))
    torch.testing.assert_close(rounded, bias, rtol=1e-6, atol=0)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_a_bias_comes_back_within_half_a_step(seed: int, per_channel: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    bias = torch.randn(6, generator=generator)
    weight_scale = torch.rand(6, generator=generator) * 1e-2 + 1e-4 if per_channel else torch.tensor(1e-3)
    input_scale = torch.tensor(0.02)
    codes, scale = quantize_bias(bias, weight_scale, input_scale)
    assert codes.dtype == torch.int32
    assert scale.shape == weight_scale.shape
    rounded = codes * scale.double()
    assert bool(((rounded - bias).abs() <= scale.double() * 0.5 * (1 + 1e-6)).all())
    again, _ = quantize_bias(rounded.float(), weight_scale, input_scale)
    assert torch.equal(again, codes)


def test_bias_grid_survives_vanishing_scales() -> None:
    codes, scale = quantize_bias(torch.zeros(1), torch.tensor([2.0**-100]), torch.tensor(2.0**-100))
    assert codes.tolist() == [0]
    assert float(scale) == pytest.approx(torch.finfo(torch.float32).tiny)
