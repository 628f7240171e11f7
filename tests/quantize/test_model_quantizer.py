import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from autocompress.quantize.model_quantizer import ErrorStatistics

pairs = st.lists(st.tuples(st.floats(-9, 9, width=32), st.floats(-9, 9, width=32)), min_size=1, max_size=20)


@settings(deadline=None)
@given(pairs, st.integers(0, 20))
def test_parts_add_up_to_the_whole(values: list[tuple[float, float]], cut: int) -> None:
    before, after = torch.tensor(values).T
    whole = ErrorStatistics().add(before, after).to_row()
    parts = ErrorStatistics()
    for part in (slice(None, cut), slice(cut, None)):
        if len(before[part]):
            parts.add(before[part], after[part])
    for name, value in whole.items():
        assert parts.to_row()[name] == (None if value is None else pytest.approx(value, rel=1e-3, abs=1e-6))


def test_it_is_what_numpy_computes() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=(5, 7)).astype(np.float32)
    after = before + rng.normal(scale=0.1, size=(5, 7)).astype(np.float32)
    row = ErrorStatistics().add(torch.from_numpy(before), torch.from_numpy(after)).to_row("output_")
    noise = np.mean((before - after) ** 2)
    assert row["output_mse"] == pytest.approx(noise, rel=1e-4)
    assert row["output_sqnr_db"] == pytest.approx(10 * np.log10(np.mean(before**2) / noise), rel=1e-4)
    cosine = np.sum(before * after) / np.linalg.norm(before) / np.linalg.norm(after)
    assert row["output_cosine"] == pytest.approx(cosine, rel=1e-4)


def test_what_did_not_change_has_no_noise_to_speak_of() -> None:
    for values in (torch.zeros(3), torch.ones(3)):
        assert ErrorStatistics().add(values, values).to_row() == {"mse": 0.0, "sqnr_db": None, "cosine": 1.0}
    assert ErrorStatistics().add(torch.ones(3), torch.zeros(3)).to_row()["cosine"] == 0.0


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_squares_beyond_single_precision_are_taken_in_double(size: float) -> None:
    row = ErrorStatistics().add(torch.full((4,), size), torch.full((4,), size / 2)).to_row()
    assert row["sqnr_db"] == pytest.approx(20 * math.log10(2), rel=1e-4)
    assert row["cosine"] == pytest.approx(1.0)
