import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from autocompress.quantize.fake_quantize import (
    FakeQuantize,
    attach_input_quantizer,
    attach_output_quantizer,
    replace_quantizers,
)
from autocompress.quantize.quantizers import ACTIVATION_QUANTIZERS, Grid


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
