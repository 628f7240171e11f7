import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from autocompress.quantize.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS, Grid, Quantizer, avoid_ties

QUANTIZERS = {f"weight_{name}": quantizer for name, quantizer in WEIGHT_QUANTIZERS.items()} | {
    f"activation_{name}": quantizer for name, quantizer in ACTIVATION_QUANTIZERS.items()
}
BITS = range(1, 9)

quantizers = st.sampled_from(sorted(QUANTIZERS)).map(QUANTIZERS.__getitem__)
bits = st.integers(1, 8)
magnitudes = st.floats(-30, 30, allow_subnormal=False)
vectors = st.lists(st.floats(-1, 1, width=32, allow_subnormal=False), min_size=1, max_size=40)


def fit_grid(quantizer: Quantizer, values: Tensor, width: int) -> Grid:
    return quantizer.fit(values.min(), values.max(), width)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    return torch.tensor(draw(vectors), dtype=torch.float32) * 10.0 ** draw(magnitudes)


@settings(deadline=None)
@given(quantizers, tensors(), bits)
def test_the_error_inside_the_range_is_at_most_half_a_step(quantizer: Quantizer, values: Tensor, width: int) -> None:
    grid = fit_grid(quantizer, values, width)
    error = (values.double() - quantizer.decode(quantizer.encode(values, grid), grid).double()).abs().max()
    assert math.isfinite(error)
    assert error <= grid.scale.double() * (0.5 + 1e-4)


@settings(deadline=None)
@given(quantizers, tensors(), bits)
def test_codes_keep_to_their_range_and_zero_is_exact(quantizer: Quantizer, values: Tensor, width: int) -> None:
    grid = fit_grid(quantizer, values, width)
    codes = quantizer.encode(torch.cat([values, values * 3, torch.tensor([math.inf, -math.inf, 3e38])]), grid)
    assert grid.high - grid.low == 2**width - 1
    assert grid.low <= int(codes.min()) <= int(codes.max()) <= grid.high
    assert codes.dtype == (torch.int8 if grid.low < 0 else torch.uint8)
    assert torch.finfo(torch.float32).tiny < float(grid.scale) < math.inf
    zero = torch.zeros(1)
    assert quantizer.decode(quantizer.encode(zero, grid), grid).item() == 0.0


@settings(deadline=None)
@given(quantizers, tensors(), bits)
def test_rounding_twice_changes_nothing(quantizer: Quantizer, values: Tensor, width: int) -> None:
    grid = fit_grid(quantizer, values, width)
    once = quantizer.encode(values, grid)
    assert torch.equal(once, quantizer.encode(quantizer.decode(once, grid), grid))


@settings(deadline=None)
@given(quantizers, tensors(), bits)
def test_a_larger_value_never_gets_a_smaller_code(quantizer: Quantizer, values: Tensor, width: int) -> None:
    codes = quantizer.encode(values.sort().values, fit_grid(quantizer, values, width)).int()
    assert bool((codes.diff() >= 0).all())


@settings(deadline=None)
@given(quantizers, tensors(), bits)
def test_a_whole_tensor_is_rounded_as_torch_rounds_it(quantizer: Quantizer, values: Tensor, width: int) -> None:
    grid = fit_grid(quantizer, values, width)
    ours = quantizer.decode(quantizer.encode(values, grid), grid)
    theirs = torch.fake_quantize_per_tensor_affine(values, grid.scale, grid.zero_point, grid.low, grid.high)
    assert torch.equal(ours, theirs)


@settings(deadline=None)
@given(st.sampled_from(sorted(WEIGHT_QUANTIZERS)), st.integers(0, 2**31), bits)
def test_channels_are_rounded_as_torch_rounds_them(scheme: str, seed: int, width: int) -> None:
    quantizer = WEIGHT_QUANTIZERS[scheme]
    weight = (
        torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(seed))
        * torch.tensor([1e-20, 1, 1e3, 0, 1e20])[:, None, None]
    )
    low, high = torch.aminmax(weight.flatten(1), dim=1)
    grid = quantizer.fit(low, high, width)
    assert grid.scale.shape == grid.zero_point.shape == (5,)
    ours = quantizer.decode(quantizer.encode(weight, grid), grid)
    zero_point = grid.zero_point.float()
    theirs = torch.fake_quantize_per_channel_affine(weight, grid.scale, zero_point, 0, grid.low, grid.high)
    assert torch.equal(ours, theirs)
    for channel in range(5):
        alone = quantizer.fit(low[channel], high[channel], width)
        assert torch.equal(alone.scale, grid.scale[channel])


@pytest.mark.parametrize("width", BITS)
@pytest.mark.parametrize("name", sorted(QUANTIZERS))
@pytest.mark.parametrize("value", [0.0, 0.1, -0.1, 1.0, 1e-38, -1e-38, 1e30, -1e30, 3.4e38])
@pytest.mark.parametrize("count", [1, 7])
def test_a_constant_tensor_stays_finite(name: str, value: float, count: int, width: int) -> None:
    quantizer = QUANTIZERS[name]
    values = torch.full((count,), value)
    grid = fit_grid(quantizer, values, width)
    rounded = quantizer.decode(quantizer.encode(values, grid), grid)
    assert bool(torch.isfinite(rounded).all())
    assert bool((rounded == rounded[0]).all())
    representable = width > 1 or "asymmetric" in name or ("activation" in name and value > 0)
    if value == 0.0 or (representable and 1e-30 < abs(value) <= 1e30):
        assert torch.equal(rounded, values)


@pytest.mark.parametrize("width", BITS)
def test_an_extreme_spread_stays_finite(width: int) -> None:
    values = torch.tensor([-1e30, -1.0, 0.0, 1e-30, 1e30])
    for quantizer in QUANTIZERS.values():
        grid = fit_grid(quantizer, values, width)
        rounded = quantizer.decode(quantizer.encode(values, grid), grid)
        assert bool(torch.isfinite(rounded).all())
        assert float((rounded - values).abs().max()) <= float(grid.scale) * 0.5001


def test_a_range_without_negative_values_gets_unsigned_codes_for_activations_only() -> None:
    low, high = torch.tensor(0.0), torch.tensor(2.55)
    activation, weight = (table["symmetric"].fit(low, high, 8) for table in (ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS))
    assert (activation.low, activation.high, int(activation.zero_point)) == (0, 255, 0)
    assert float(activation.scale) == pytest.approx(0.01)
    assert (weight.low, weight.high, int(weight.zero_point)) == (-128, 127, 0)


def test_the_ends_of_a_symmetric_range_are_exact_steps() -> None:
    quantizer = WEIGHT_QUANTIZERS["symmetric"]
    values = torch.tensor([-1.0, 1.0, 0.25])
    for width in range(2, 9):
        codes = quantizer.encode(values, fit_grid(quantizer, values, width))
        assert codes[:2].tolist() == [-(2 ** (width - 1) - 1), 2 ** (width - 1) - 1]


@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("scheme", sorted(ACTIVATION_QUANTIZERS))
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_discrete_values_are_rounded_alike_by_every_formula(scheme: str, width: int, levels: int) -> None:
    quantizer, generator = ACTIVATION_QUANTIZERS[scheme], torch.Generator().manual_seed(0)
    # Three tenths of the range lie below zero, as in standardized images: a tie at 255 steps.
    ranges = [(-0.3, 0.7), *torch.rand(30, 2, generator=generator).mul(torch.tensor([-1.0, 1.0])).tolist()]
    for low, high in ranges:
        values = torch.linspace(low, high, levels)
        grid = fit_grid(quantizer, values, width)
        moved = avoid_ties(grid, values)
        assert 1 <= float(moved.scale / grid.scale) < 1.04
        zero_point = moved.zero_point.float()
        codes = [
            values.div(moved.scale).round() + zero_point,
            (values.div(moved.scale) + zero_point).round(),
            (values * (1 / moved.scale) + zero_point).round(),
        ]
        first, *others = (code.clamp(moved.low, moved.high) for code in codes)
        assert all(torch.equal(first, other) for other in others)


def test_a_grid_without_ties_stays() -> None:
    grid = ACTIVATION_QUANTIZERS["asymmetric"].fit(torch.tensor(0.0), torch.tensor(255.0), 8)
    assert avoid_ties(grid, torch.arange(256.0)) == grid
    assert avoid_ties(grid, torch.zeros(0)) is grid


def test_every_more_bit_halves_the_step() -> None:
    values = torch.linspace(-1, 3, 101)
    for name, quantizer in QUANTIZERS.items():
        steps = [float(fit_grid(quantizer, values, width).scale) for width in range(2, 9)]
        assert all(0.3 < finer / coarser < 0.51 for coarser, finer in pairwise(steps)), name
