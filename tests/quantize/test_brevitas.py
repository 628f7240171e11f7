"""Weights and gradients against another implementation, where it is installed."""

import warnings

import pytest
import torch

from autocompress.quantize.ste import lsq_quantize
from autocompress.quantize.weight_coding import WeightCoding, encode_weight

pytest.importorskip("brevitas", reason="brevitas is an optional oracle")


@pytest.fixture(autouse=True)
def quiet() -> None:
    warnings.simplefilter("ignore")


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_weights_are_rounded_as_brevitas_rounds_them(bits: int, granularity: str) -> None:
    from brevitas.nn import QuantConv2d
    from brevitas.quant import Int8WeightPerChannelFloat, Int8WeightPerTensorFloat

    kinds = {"per_tensor": Int8WeightPerTensorFloat, "per_channel": Int8WeightPerChannelFloat}
    torch.manual_seed(bits)
    layer = QuantConv2d(3, 5, 3, weight_quant=kinds[granularity], weight_bit_width=bits).eval()
    theirs = layer.quant_weight()
    ours = encode_weight(layer.weight, WeightCoding(bits, granularity=granularity))
    torch.testing.assert_close(ours.code_map.scale, theirs.scale.detach().flatten().squeeze(), rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.dequantize(), theirs.value.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gradients_of_weights_and_steps_are_those_of_brevitas(bits: int) -> None:
    from brevitas.core.function_wrapper import Identity, RoundSte, TensorClamp
    from brevitas.core.quant.int_base import IntQuant

    torch.manual_seed(bits)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    step = torch.rand(5, 1) * 0.5 + 0.1
    share = torch.rand(5, 64) * 2.4 - 1.2
    values = share * step * high
    # Between an end and half a step beyond it, brevitas clamps after rounding and passes the gradient on.
    near = (values / step - high).clamp(min=0).lt(0.5) & (values / step - low).clamp(max=0).gt(-0.5)
    values = torch.where(near, values.clamp(low * step * 0.999, high * step * 0.999), values)
    oracle = IntQuant(
        narrow_range=False,
        signed=True,
        float_to_int_impl=RoundSte(),
        tensor_clamp_impl=TensorClamp(),
        input_view_impl=Identity(),
    )
    results = []
    weigh = torch.randn(5, 64)
    for rounded in (
        lambda v, s: lsq_quantize(v, s, torch.ones_like(s), low, high),
        lambda v, s: oracle(s, torch.tensor(0.0), torch.tensor(float(bits)), v),
    ):
        v, s = values.clone().requires_grad_(), step.clone().requires_grad_()
        out = rounded(v, s)
        (out * weigh).sum().backward()
        results.append((out.detach(), v.grad, s.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
