import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from autocompress.errors import CompressionError
from autocompress.quantize.activation_recorder import MinMaxObserver, Observer, ObserverConfig
from autocompress.quantize.observers import OBSERVERS, MovingAverageObserver, PercentileObserver

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
