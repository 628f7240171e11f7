import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from autocompress.errors import CompressionError
from autocompress.quantize.model_quantizer import fit_activation_grid
from autocompress.quantize.observers import (
    OBSERVERS,
    SMOOTHING,
    EntropyObserver,
    MinMaxObserver,
    MovingAverageObserver,
    MseObserver,
    Observer,
    ObserverConfig,
    PercentileObserver,
    bin_means,
    compute_divergence,
)
from autocompress.quantize.quantizers import ACTIVATION_QUANTIZERS

batches = st.lists(
    st.lists(st.floats(-100, 100, width=32, allow_subnormal=False), min_size=1, max_size=30), min_size=1, max_size=5
)


def watch(observer: Observer, tensors: list[list[float]]) -> tuple[float, float]:
    for values in tensors:
        observer.observe(torch.tensor(values, dtype=torch.float32))
    return observer.range()


@settings(deadline=None)
@given(batches)
def test_percentile_100_is_minmax(tensors: list[list[float]]) -> None:
    assert watch(PercentileObserver(100.0), tensors) == watch(MinMaxObserver(), tensors)


@settings(deadline=None)
@given(batches, st.floats(90, 100, allow_subnormal=False), st.floats(90, 100, allow_subnormal=False))
def test_a_lower_percentile_never_widens_the_range(tensors: list[list[float]], first: float, second: float) -> None:
    narrow = watch(PercentileObserver(min(first, second)), tensors)
    wide = watch(PercentileObserver(max(first, second)), tensors)
    assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]


def test_percentile_leaves_outliers_out() -> None:
    values = torch.linspace(-1, 1, 10_001)
    values[0], values[-1] = -1000.0, 1000.0
    observer = PercentileObserver(99.0)
    observer.observe(values)
    low, high = observer.range()
    assert low == pytest.approx(float(np.percentile(values.numpy(), 1)), abs=1e-3)
    assert high == pytest.approx(float(np.percentile(values.numpy(), 99)), abs=1e-3)


def test_percentile_of_a_large_tensor_is_taken_from_a_repeatable_sample() -> None:
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    ranges = []
    for _ in range(2):
        observer = PercentileObserver(99.0, keep=20_000)
        observer.observe(values)
        ranges.append(observer.range())
    assert ranges[0] == ranges[1]
    assert ranges[0][1] == pytest.approx(2.326, abs=0.15)


def test_percentile_does_not_hold_on_to_the_tensors_memory() -> None:
    values = torch.tensor([1.0, 2.0, 3.0])
    observer = PercentileObserver(100.0)
    observer.observe(values)
    values.fill_(9.0)
    assert observer.range() == (1.0, 3.0)


@pytest.mark.parametrize("name", sorted(OBSERVERS))
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "empty"),
        ([1.0, math.nan], "NaN or infinite"),
        ([math.inf, 0.0], "NaN or infinite"),
        ([-math.inf], "NaN or infinite"),
    ],
)
def test_values_without_a_range_are_refused(name: str, values: list[float], message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        OBSERVERS[name](ObserverConfig()).observe(torch.tensor(values))


@pytest.mark.parametrize("name", sorted(OBSERVERS))
def test_an_observer_that_saw_nothing_has_no_range(name: str) -> None:
    with pytest.raises(CompressionError, match="nothing was observed"):
        OBSERVERS[name](ObserverConfig()).range()


@settings(deadline=None)
@given(batches, st.floats(0, 1, allow_subnormal=False))
def test_a_moving_average_weighs_each_tensor_by_its_age(tensors: list[list[float]], momentum: float) -> None:
    observers = [MinMaxObserver() for _ in tensors]
    ranges = np.array([watch(one, [values]) for one, values in zip(observers, tensors, strict=True)])
    weights = np.array(
        [momentum ** (len(ranges) - 1 - age) * ((1 - momentum) if age else 1) for age in range(len(ranges))]
    )
    assert weights.sum() == pytest.approx(1)
    assert watch(MovingAverageObserver(momentum), tensors) == pytest.approx(tuple(weights @ ranges), rel=1e-6, abs=1e-6)


def test_a_moving_average_of_one_tensor_is_minmax() -> None:
    assert watch(MovingAverageObserver(), [[1.0, -3.0, 2.0]]) == (-3.0, 2.0)


@pytest.mark.parametrize("name", sorted(OBSERVERS))
@pytest.mark.parametrize("value", [0.0, 2.5, -2.5, 1e30, 1e-30])
@pytest.mark.parametrize("count", [1, 9])
def test_a_constant_has_a_range_that_holds_it_or_part_of_it(name: str, value: float, count: int) -> None:
    low, high = watch(OBSERVERS[name](ObserverConfig(bits=4)), [[value] * count])
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert min(value, 0.0) * (1 + 1e-6) <= low <= high <= max(value, 0.0) * (1 + 1e-6)


@pytest.mark.parametrize("name", sorted(OBSERVERS))
def test_every_observer_is_repeatable(name: str) -> None:
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    ranges = []
    for _ in range(2):
        observer = OBSERVERS[name](ObserverConfig(bits=4))
        for part in values.split(90_000):
            observer.observe(part)
        ranges.append(observer.range())
    assert ranges[0] == ranges[1]


SCHEMES = sorted(ACTIVATION_QUANTIZERS)


def observe_range(observer: Any, values: Tensor) -> tuple[float, float]:
    observer.observe(values)
    limits: tuple[float, float] = observer.range()
    return limits


def error(values: Tensor, limits: tuple[float, float], aim: ObserverConfig) -> float:
    quantizer, grid = ACTIVATION_QUANTIZERS[aim.scheme], fit_activation_grid(limits, aim.scheme, aim.bits)
    return float((quantizer.decode(quantizer.encode(values, grid), grid) - values).double().square().mean())


def draw_values(shape: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(4000, generator=generator)
    return {"normal": normal, "relu": normal.relu(), "tails": normal**3, "shifted": normal + 5}[shape]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", ["normal", "relu", "tails", "shifted"])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_mse_is_close_to_the_best_of_all_ranges(shape: str, bits: int, scheme: str) -> None:
    values, aim = draw_values(shape), ObserverConfig(bits, scheme)
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    shares = np.linspace(0.05, 1, 40)
    lows = low * shares if low < 0 else [0.0]
    every = [error(values, (float(a), float(b)), aim) for a in lows for b in high * shares]
    limits = error(values, observe_range(MseObserver(aim), values), aim)
    assert limits <= 1.1 * min(every)
    assert limits <= error(values, observe_range(MinMaxObserver(), values), aim) * (1 + 1e-6)


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.lists(st.floats(-1, 1, width=32, allow_subnormal=False), min_size=1, max_size=50),
    st.sampled_from([1e-20, 1.0, 1e30]),
    st.integers(2, 8),
    st.sampled_from(SCHEMES),
    st.sampled_from([MseObserver, EntropyObserver]),
)
def test_ranges_are_finite_and_lie_inside_what_was_seen(
    values: list[float], size: float, bits: int, scheme: str, kind: Any
) -> None:
    tensor = torch.tensor(values) * size
    low, high = observe_range(kind(ObserverConfig(bits, scheme)), tensor)
    assert min(float(tensor.min()), 0.0) <= low <= 0.0 <= high <= max(float(tensor.max()), 0.0)
    assert math.isfinite(error(tensor / size, (low / size, high / size), ObserverConfig(bits, scheme)))


def slow_divergence(counts: list[float], first: int, last: int, levels: int) -> float:
    """Follow the algorithm of the TensorRT talk bin by bin."""
    reference = [float(count) for count in counts[first:last]]
    reference[0] += sum(counts[:first])
    reference[-1] += sum(counts[last:])
    inside, candidate = counts[first:last], [0.0] * (last - first)
    edges = [level * len(inside) // levels for level in range(levels + 1)]
    for begin, end in pairwise(edges):
        filled = [index for index in range(begin, end) if inside[index] > 0]
        for index in filled:
            candidate[index] = sum(inside[begin:end]) / len(filled)

    def smooth(shares: list[float]) -> list[float]:
        total, size = sum(shares), len(shares)
        return [((s / total if total else 1 / size) + SMOOTHING / size) / (1 + SMOOTHING) for s in shares]

    return sum(p * math.log(p / q) for p, q in zip(smooth(reference), smooth(candidate), strict=True))


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(0, 30), min_size=4, max_size=60), st.data())
def test_the_divergence_is_the_one_computed_bin_by_bin(counts: list[int], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(counts) - 2))
    last = data.draw(st.integers(first + 1, len(counts)))
    levels = data.draw(st.integers(1, 16))
    fast = compute_divergence(np.array(counts, np.float64), first, last, levels)
    assert fast == pytest.approx(slow_divergence([float(c) for c in counts], first, last, levels), rel=1e-9, abs=1e-12)
    assert fast >= -1e-12


def test_a_histogram_loses_nothing_to_as_many_levels_as_bins() -> None:
    assert compute_divergence(np.array([3.0, 0.0, 5.0, 1.0]), 0, 4, 4) == pytest.approx(0.0, abs=1e-12)


def test_entropy_cuts_what_lies_far_out_and_keeps_what_does_not() -> None:
    bulk = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).relu()
    _, far = observe_range(EntropyObserver(ObserverConfig(bits=4)), torch.cat([bulk, torch.tensor([100.0])]))
    assert far < 10
    _, even = observe_range(EntropyObserver(ObserverConfig(bits=8)), torch.linspace(0, 1, 20_000))
    assert even == 1.0


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=50))
def test_a_summary_keeps_number_and_sum(values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float64)
    mean, count = bin_means(tensor, float(tensor.min()), float(tensor.max()))
    assert float(count.sum()) == len(values)
    assert float(mean @ count) == pytest.approx(float(tensor.sum()), abs=1e-9)
