import pytest
import torch
from hypothesis import given, settings, strategies as st

from autocompress.errors import CompressionError
from autocompress.quantize.lookup_quantizers import (
    LARGEST_EXPONENTS,
    build_power_of_two_levels,
    fit_codebook,
    fit_power_of_two_table,
)

reaches = st.floats(2.0**-40, 2.0**40, width=32)


@pytest.mark.parametrize(
    ("bits", "levels"),
    [
        (2, [-1, 0, 1]),
        (3, [-1, -0.5, -0.25, 0, 0.25, 0.5, 1]),
        (4, [-1, -0.5, -0.25, -0.125, -0.0625, -0.03125, -0.015625, 0, 0.015625, 0.03125, 0.0625, 0.125, 0.25, 0.5, 1]),
    ],
)
def test_levels_are_a_sign_and_an_exponent(bits: int, levels: list[float]) -> None:
    assert build_power_of_two_levels(bits).tolist() == levels


@pytest.mark.parametrize("bits", range(2, 9))
def test_levels_fit_their_bits_and_stop_where_float32_no_longer_tells(bits: int) -> None:
    levels = build_power_of_two_levels(bits)
    assert len(levels) <= 2**bits
    assert len(levels) == 2 * min(2 ** (bits - 1) - 1, LARGEST_EXPONENTS) + 1
    assert torch.equal(levels, -levels.flip(0))


def test_one_bit_is_too_few() -> None:
    with pytest.raises(CompressionError, match="powers of two need 2 bits"):
        fit_power_of_two_table(torch.tensor(1.0), 1)


@pytest.mark.parametrize(("reach", "scale"), [(1.0, 1.0), (0.7, 0.5), (0.75, 1.0), (3.0, 4.0), (2.9, 2.0), (0.0, 1.0)])
def test_the_largest_power_is_the_nearest(reach: float, scale: float) -> None:
    assert fit_power_of_two_table(torch.tensor(reach), 4).scale.item() == scale


def test_hand_values() -> None:
    table = fit_power_of_two_table(torch.tensor(1.0), bits=4)
    values = torch.tensor([1.0, 0.8, 0.7, 0.3, -0.3, -0.1, 0.005, 0.0, 5.0])
    assert table.decode(table.encode(values)).tolist() == [1.0, 1.0, 0.5, 0.25, -0.25, -0.125, 0.0, 0.0, 1.0]


@settings(deadline=None)
@given(reaches, st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30), st.integers(2, 8))
def test_values_become_powers_of_two_that_are_the_nearest(reach: float, shares: list[float], bits: int) -> None:
    table = fit_power_of_two_table(torch.tensor(reach), bits)
    values = torch.tensor(shares) * reach
    rounded = table.decode(table.encode(values))
    every = (table.levels * table.scale).double()
    nearest = (values.double()[:, None] - every).abs().min(1).values
    assert torch.equal((rounded.double() - values.double()).abs(), nearest)
    assert float(nearest.max()) <= float(table.scale) / 2
    fraction, _ = torch.frexp(rounded[rounded != 0].abs())
    assert bool((fraction == 0.5).all())


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 8), st.floats(0, 0.9))
def test_a_codebook_keeps_to_its_bits_and_pruned_weights_at_zero(seed: int, bits: int, sparsity: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 20, generator=generator)
    weight[torch.rand(6, 20, generator=generator) < sparsity] = 0
    table = fit_codebook(weight, torch.tensor(1.0), 0, bits)
    codes = table.encode(weight)
    assert int(codes.max()) < len(table.levels) <= 2**bits
    rounded = table.decode(codes)
    assert not rounded[weight == 0].any()
    assert float((rounded - weight).square().sum()) <= float(weight.square().sum()) * (1 + 1e-6)


def test_a_codebook_holds_few_values_exactly() -> None:
    weight = torch.tensor([[0.5, -0.25], [0.0, 0.5]])
    table = fit_codebook(weight, torch.tensor(1.0), 0, 2)
    assert torch.equal(table.decode(table.encode(weight)), weight)
    assert table.levels.tolist() == [-0.25, 0.0, 0.5]
