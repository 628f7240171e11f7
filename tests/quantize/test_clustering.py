import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from autocompress.quantize.clustering import cluster_values

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
