"""Packed scores of examples come back as they were."""

import numpy as np
import pytest

from autocompress.core.example_scores import ExampleScores


@pytest.mark.parametrize("size", [1, 7, 8, 9, 1000])
def test_bits_come_back_exactly(size: int) -> None:
    bits = np.random.default_rng(size).integers(0, 2, size).astype(float)
    loaded = ExampleScores.unpack(ExampleScores("bits", size, bits).pack())
    assert loaded is not None
    assert (loaded.kind, loaded.examples) == ("bits", size)
    np.testing.assert_array_equal(loaded.values, bits)


@pytest.mark.parametrize("kind", ["shares", "replicates"])
def test_other_values_have_single_precision(kind: str) -> None:
    values = np.random.default_rng(0).random(200)
    loaded = ExampleScores.unpack(ExampleScores(kind, 900, values).pack())  # type: ignore[arg-type]
    assert loaded is not None
    assert (loaded.kind, loaded.examples) == (kind, 900)
    np.testing.assert_allclose(loaded.values, values, rtol=1e-6)


@pytest.mark.parametrize("text", [None, "", float("nan"), "sketches:5:AAAA"])
def test_what_is_missing_or_of_a_later_version_is_nothing(text: object) -> None:
    assert ExampleScores.unpack(text) is None


def test_replicates_vary_less_than_examples_by_the_root_of_their_number() -> None:
    examples = np.random.default_rng(0).random(400)
    means = np.random.default_rng(1).choice(examples, (4000, 400)).mean(1)
    deviation = ExampleScores("shares", 400, examples).deviation
    assert ExampleScores("replicates", 400, means).deviation == pytest.approx(deviation, rel=0.05)
