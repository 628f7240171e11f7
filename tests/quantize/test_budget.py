from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from autocompress.errors import CompressionError
from autocompress.quantize.budget import SOLVERS, solve_exactly, solve_greedily

CHOICE = st.tuples(st.integers(0, 30), st.floats(-5, 5, allow_subnormal=False))
ROWS = st.lists(st.lists(CHOICE, min_size=1, max_size=4), min_size=1, max_size=5)


def total(rows: Any, chosen: Any) -> tuple[int, float]:
    picked = [row[at] for row, at in zip(rows, chosen, strict=True)]
    return sum(cost for cost, _ in picked), sum(loss for _, loss in picked)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(ROWS, st.integers(0, 150))
def test_exact_is_what_trying_all_gives(rows: Any, budget: int) -> None:
    every = [total(rows, chosen) for chosen in product(*(range(len(row)) for row in rows))]
    fitting = [loss for cost, loss in every if cost <= budget]
    if not fitting:
        for solve in SOLVERS.values():
            with pytest.raises(CompressionError, match="more than the budget"):
                solve(rows, budget)
        return
    cost, loss = total(rows, solve_exactly(rows, budget))
    assert cost <= budget
    assert loss == pytest.approx(min(fitting), abs=1e-9)
    cost, greedy = total(rows, solve_greedily(rows, budget))
    assert cost <= budget
    assert greedy >= loss - 1e-9


def test_costs_beyond_float_precision_are_kept_apart() -> None:
    large = 2**60
    rows = [[(large, 1.0), (large + 1, 0.0)]]
    assert solve_exactly(rows, large) == [0]
    assert solve_exactly(rows, large + 1) == [1]


def test_a_deep_network_takes_no_time() -> None:
    rows = [
        [(macs * bits**2, (layer % 7 + 1) / 4**bits) for bits in range(2, 9)]
        for layer, macs in enumerate([147_456, 36_864, 73_728, 9_216, 18_432] * 10)
    ]
    budget = sum(row[2][0] for row in rows)
    cost, loss = total(rows, solve_exactly(rows, budget))
    assert cost <= budget
    assert loss <= total(rows, solve_greedily(rows, budget))[1]
    assert loss < sum(row[2][1] for row in rows)
