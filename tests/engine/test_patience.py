from collections.abc import Sequence

import pytest

from autocompress.engine.patience import FEWEST_RESULTS, LEAST_GROWTH, Patience


def record(share: float | None, volumes: Sequence[float]) -> Patience:
    """Return the patience of a search with a result each second."""
    patience = Patience(share)
    for second, volume in enumerate(volumes, 1):
        patience.record(second, volume)
    return patience


def test_a_front_that_has_not_grown_for_the_share_has_converged() -> None:
    patience = record(0.5, [second / 12 for second in range(1, 13)] + [1.0] * 20)
    assert [patience.has_converged(elapsed) for elapsed in (12, 20, 23, 24, 32)] == [False, False, False, True, True]


@pytest.mark.parametrize(("growth", "expected"), [(0.5 * LEAST_GROWTH, True), (2 * LEAST_GROWTH, False)])
def test_a_small_growth_does_not_count(growth: float, expected: bool) -> None:
    assert record(0.25, [1.0] * 15 + [1.0 + growth] * 5).has_converged(20) is expected


def test_few_results_and_no_patience_end_nothing() -> None:
    assert not record(None, [1.0] * 100).has_converged(1000)
    assert not record(0.5, [1.0] * (FEWEST_RESULTS - 1)).has_converged(1000)
    # The first result is later than the share reaches back.
    assert not Patience(0.5).has_converged(0.0)
    assert not record(0.9, [1.0] * FEWEST_RESULTS).has_converged(9.0)
