"""The min-max observer and the recorder of sampled activations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from autocompress.errors import CompressionError
from autocompress.quantize.observers import ActivationRecorder, MinMaxObserver, finite_min_max
from tests.quantize.test_observers import batches, watch


@settings(deadline=None)
@given(batches)
def test_minmax_spans_everything_seen(tensors: list[list[float]]) -> None:
    low, high = watch(MinMaxObserver(), tensors)
    flat = np.concatenate([np.array(values, np.float32) for values in tensors])
    assert (low, high) == (flat.min(), flat.max())


@pytest.mark.parametrize(
    ("values", "message"), [([], "empty"), ([1.0, math.nan], "NaN or infinite"), ([-math.inf], "NaN or infinite")]
)
def test_a_tensor_without_a_range_is_refused(values: list[float], message: str) -> None:
    for function in (finite_min_max, MinMaxObserver().observe, ActivationRecorder().observe):
        with pytest.raises(CompressionError, match=message):
            function(torch.tensor(values))


def test_the_ends_of_a_tensor_are_plain_numbers() -> None:
    assert finite_min_max(torch.tensor([[1.0, -2.5], [0.0, 3.0]], requires_grad=True)) == (-2.5, 3.0)


def test_nothing_observed_is_an_error() -> None:
    with pytest.raises(CompressionError, match="nothing was observed"):
        MinMaxObserver().range()
    for read in (ActivationRecorder().all_values, ActivationRecorder().min_max):
        with pytest.raises(CompressionError, match="nothing was observed"):
            read()


def test_a_small_tensor_is_stored_whole_and_as_a_copy() -> None:
    recorder, values = ActivationRecorder(keep=4), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    recorder.observe(values)
    values.fill_(9.0)
    recorder.observe(torch.tensor([5.0]))
    assert recorder.all_values().tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_large_tensor_is_sampled_repeatably_and_its_extremes_are_kept() -> None:
    values = torch.arange(10_000.0)
    samples = []
    for _ in range(2):
        recorder = ActivationRecorder(keep=50)
        recorder.observe(values)
        recorder.observe(values)
        samples.append(recorder.all_values())
        assert recorder.min_max() == (0.0, 9999.0)
    assert torch.equal(samples[0], samples[1])
    first, second = samples[0].split(50)
    assert not torch.equal(first, second)
    assert set(first.tolist()) <= set(values.tolist())
