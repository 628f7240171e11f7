import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from autocompress.errors import CompressionError
from autocompress.quantize.lookup_quantizers import (
    LARGEST_EXPONENTS,
    build_power_of_two_levels,
    cluster_values,
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


places = st.lists(st.floats(-100, 100, width=32, allow_subnormal=False), min_size=1, max_size=9)


def inertia(values: Tensor, weights: Tensor, centres: Tensor) -> float:
    distance = (values.double()[:, None] - centres).square().min(1).values
    return float((weights.double() * distance).sum())


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4, 8, 16, 64])
@pytest.mark.parametrize("shape", ["normal", "laplace", "uniform", "two_peaks"])
def test_it_is_as_good_as_kmeans_of_sklearn(shape: str, count: int) -> None:
    rng = np.random.default_rng(0)
    drawn = {
        "normal": rng.normal(size=2000),
        "laplace": rng.laplace(size=2000),
        "uniform": rng.uniform(size=2000),
        "two_peaks": np.concatenate([rng.normal(-5, 0.1, 1900), rng.normal(5, 1, 100)]),
    }[shape]
    values = torch.from_numpy(drawn)
    ours = inertia(values, torch.ones(2000), cluster_values(values, torch.ones(2000), count))
    theirs = KMeans(count, n_init=5, random_state=0).fit(drawn[:, None]).inertia_
    assert ours <= 1.03 * theirs


@settings(deadline=None, max_examples=60)
@given(places, st.integers(1, 4))
def test_a_few_values_are_split_in_the_best_of_all_ways(values: list[float], count: int) -> None:
    line = torch.tensor(values, dtype=torch.float32).sort().values
    weights = torch.ones(len(line))
    centres = cluster_values(line, weights, count)
    assert 1 <= len(centres) <= count
    assert bool((centres.diff() > 0).all())
    best = min(
        sum(float((part.double() - part.double().mean()).square().sum()) for part in parts if len(part))
        for cuts in itertools.combinations_with_replacement(range(len(line) + 1), count - 1)
        for parts in [[line[a:b] for a, b in itertools.pairwise((0, *cuts, len(line)))]]
    )
    assert inertia(line, weights, centres) == pytest.approx(best, rel=1e-6, abs=1e-6)


@settings(deadline=None)
@given(places)
def test_values_that_take_few_places_are_their_own_centres(values: list[float]) -> None:
    line = torch.tensor(values, dtype=torch.float32)
    assert torch.equal(cluster_values(line, torch.ones(len(line)), 9), line.double().unique())


def test_a_heavier_value_draws_its_centre() -> None:
    values = torch.tensor([0.0, 1.0, 10.0])
    assert cluster_values(values, torch.tensor([1.0, 3.0, 1.0]), 2).tolist() == [0.75, 10.0]


def test_the_order_of_values_does_not_matter() -> None:
    values = torch.randn(500, generator=torch.Generator().manual_seed(0))
    shuffled = values[torch.randperm(500, generator=torch.Generator().manual_seed(1))]
    ones = torch.ones(500)
    assert torch.equal(cluster_values(values, ones, 8), cluster_values(values, ones, 8))
    assert torch.equal(cluster_values(values, ones, 8), cluster_values(shuffled, ones, 8))
