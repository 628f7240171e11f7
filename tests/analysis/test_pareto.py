"""Dominance, hypervolume and knee against brute force, hand-worked numbers and invariants."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from autocompress.analysis.pareto import (
    compute_hypervolume,
    find_knee,
    full_fidelity,
    is_dominated,
    is_feasible,
    natural_key,
    normalize_values,
    pareto_front,
    primary_objectives,
    sort_by_cost,
)
from autocompress.core.run_info import ObjectiveSpec
from autocompress.errors import NoCandidateError, UnknownNameError, UsageError

ACCURACY = ObjectiveSpec("accuracy", "maximize", bounds=(0.0, 1.0))
FLOPS = ObjectiveSpec("flops", "minimize", "FLOPs", "cost", (1e6, 1e2))
BYTES = ObjectiveSpec("bytes", "minimize", "B", "cost", (1e6, 1e2))
TWO = [ACCURACY, FLOPS]

# Few distinct values, so that ties and duplicates are the rule and not the exception.
VALUES = st.sampled_from([0.0, 1.0, 2.0, 3.0, -1.0, math.nan, math.inf, -math.inf])
TABLES = st.integers(1, 3).flatmap(
    lambda width: st.tuples(
        st.lists(st.lists(VALUES, min_size=width, max_size=width), max_size=12),
        st.lists(st.sampled_from(["maximize", "minimize"]), min_size=width, max_size=width),
    )
)


def table(*points: tuple[float, float], **columns: object) -> pd.DataFrame:
    """Candidates from (flops, accuracy) pairs, with ids a, b, c, ..."""
    return pd.DataFrame(
        {
            "id": [chr(ord("a") + place) for place in range(len(points))],
            "role": "search",
            "flops": [float(point[0]) for point in points],
            "accuracy": [float(point[1]) for point in points],
            **columns,
        }
    )


def beaten_by_brute_force(rows: list[list[float]], directions: list[str]) -> list[bool]:
    signs = [-1.0 if direction == "maximize" else 1.0 for direction in directions]
    costs = [[value * sign for value, sign in zip(row, signs, strict=True)] for row in rows]
    finite = [all(map(math.isfinite, row)) for row in costs]

    def beats(one: list[float], other: list[float]) -> bool:
        pairs = list(zip(one, other, strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    return [
        not finite[place] or any(finite[rival] and beats(costs[rival], row) for rival in range(len(costs)))
        for place, row in enumerate(costs)
    ]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(TABLES)
def test_dominated_equals_brute_force(case: tuple[list[list[float]], list[str]]) -> None:
    rows, directions = case
    values = np.array(rows, dtype=float).reshape(len(rows), len(directions))
    assert is_dominated(values, directions).tolist() == beaten_by_brute_force(rows, directions)


@settings(max_examples=60, deadline=None)
@given(TABLES, st.randoms())
def test_dominance_does_not_depend_on_the_order_of_rows(case: tuple[list[list[float]], list[str]], random) -> None:
    rows, directions = case
    order = list(range(len(rows)))
    random.shuffle(order)
    values = np.array(rows, dtype=float).reshape(len(rows), len(directions))
    assert is_dominated(values[order], directions).tolist() == is_dominated(values, directions)[order].tolist()


def test_duplicates_of_a_front_point_all_stay() -> None:
    front = pareto_front(table((10, 0.9), (10, 0.9), (20, 0.8)), TWO)
    assert front["id"].tolist() == ["a", "b"]


def test_a_point_equal_in_one_and_worse_in_the_other_is_dominated() -> None:
    assert is_dominated([[0.9, 10], [0.9, 20]], ["maximize", "minimize"]).tolist() == [False, True]


def test_an_infinitely_good_value_does_not_wipe_the_front() -> None:
    front = pareto_front(table((10, 0.9), (20, math.inf), (-math.inf, 0.1), (5, math.nan)), TWO)
    assert front["id"].tolist() == ["a"]


def test_an_empty_table_has_an_empty_front() -> None:
    assert len(pareto_front(table(), TWO)) == 0
    assert is_dominated(np.empty((0, 2)), ["maximize", "minimize"]).tolist() == []


def test_the_front_holds_only_feasible_rows_of_the_search() -> None:
    rows = table((10, 0.9), (5, 0.8), (1, 0.7), role=["search", "baseline", "search"])
    assert pareto_front(rows, TWO)["id"].tolist() == ["c", "a"]
    assert pareto_front(rows, TWO, {"accuracy": {"min": 0.8}})["id"].tolist() == ["a"]


def test_the_front_is_sorted_by_cost() -> None:
    assert pareto_front(table((30, 0.9), (10, 0.5), (20, 0.7)), TWO)["id"].tolist() == ["b", "c", "a"]


def test_ties_sort_by_score_then_by_the_number_in_the_id() -> None:
    rows = table((1, 0.5), (1, 0.9), (1, 0.5)).assign(id=["t2c10", "t9c0", "t2c9"])
    assert sort_by_cost(rows, TWO)["id"].tolist() == ["t9c0", "t2c9", "t2c10"]
    assert natural_key("t2c9") < natural_key("t2c10") < natural_key("t10c0")


def test_three_objectives_keep_what_two_would_drop() -> None:
    rows = table((10, 0.9), (20, 0.9), bytes=[5.0, 1.0])
    assert pareto_front(rows, TWO)["id"].tolist() == ["a"]
    assert pareto_front(rows, [*TWO, BYTES])["id"].tolist() == ["a", "b"]


def test_full_fidelity_keeps_what_was_trained_to_its_end() -> None:
    rows = table((1, 0.5), (2, 0.6), (3, 0.7), complete=[False, True, True], role=["search", "search", "baseline"])
    assert full_fidelity(rows)["id"].tolist() == ["b"]


def test_feasible_includes_the_bounds_and_excludes_what_is_not_finite() -> None:
    rows = table((10, 0.9), (11, 0.9), (math.nan, 0.9), (-math.inf, 0.9))
    assert is_feasible(rows, {"flops": {"max": 10}}).tolist() == [True, False, False, False]
    assert is_feasible(rows, {}).all()


@pytest.mark.parametrize(
    ("limits", "error", "hint"),
    [
        ({"flosp": {"max": 1}}, UnknownNameError, "did you mean 'flops'"),
        ({"flops": {"most": 1}}, UsageError, "'max' or 'min'"),
    ],
)
def test_feasible_refuses(limits: dict[str, dict[str, float]], error: type[Exception], hint: str) -> None:
    with pytest.raises(error, match=hint):
        is_feasible(table((1, 1)), limits)


@pytest.mark.parametrize("call", [lambda: is_dominated([[1.0]], ["up"]), lambda: is_dominated([[1.0]], [])])
def test_dominated_refuses_unknown_or_missing_directions(call) -> None:
    with pytest.raises(UsageError):
        call()


def test_a_front_needs_an_objective() -> None:
    with pytest.raises(UsageError, match="at least one objective"):
        pareto_front(table((1, 1)), [])


# -- normalise and hypervolume ----------------------------------------------------------------


def test_normalise_maps_the_box_to_one_and_zero() -> None:
    assert normalize_values([0.1, 1.0, 0.55], [0.1, 1.0]).tolist() == pytest.approx([1.0, 0.0, 0.5])
    assert normalize_values([1e6, 1e4, 1e2], [1e6, 1e2], log=True).tolist() == pytest.approx([1.0, 0.5, 0.0])


def test_normalise_clips_and_marks_what_is_not_finite() -> None:
    scaled = normalize_values([1e9, 1.0, 0.0, -5.0, math.nan, math.inf], [1e6, 1e2], log=True)
    assert scaled[:3].tolist() == [1.0, 0.0, 0.0]
    assert np.isnan(scaled[3:]).all()
    assert normalize_values([2.0], [0.0, 1.0], clip=False).tolist() == [-1.0]


@pytest.mark.parametrize("box", [[1.0, 1.0], [math.inf, 0.0], [math.nan, 1.0]])
def test_normalise_refuses_an_empty_or_infinite_box(box: list[float]) -> None:
    with pytest.raises(UsageError, match="two different finite values"):
        normalize_values([1.0], box)
    with pytest.raises(UsageError, match="above 0"):
        normalize_values([1.0], [10.0, 0.0], log=True)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        # FLOPs 1e4 is half of the four decades of the box, so each point spans a rectangle of known sides.
        ([(1e4, 0.5)], 0.5 * 0.5),
        ([(1e2, 1.0)], 1.0),
        ([(1e6, 1.0)], 0.0),
        ([(1e3, 0.2), (1e5, 0.8)], 0.75 * 0.2 + 0.25 * (0.8 - 0.2)),
        ([(1e3, 0.2), (1e5, 0.8), (1e5, 0.8), (1e5, 0.1)], 0.75 * 0.2 + 0.25 * 0.6),
        # Better than the ideal or worse than the reference counts as far as the box reaches.
        ([(1.0, 0.5), (1e9, 1.0)], 0.5),
        ([(math.nan, 1.0), (1e4, math.inf)], 0.0),
        ([], 0.0),
    ],
)
def test_hypervolume_by_hand(points: list[tuple[float, float]], expected: float) -> None:
    assert compute_hypervolume(table(*points), TWO) == pytest.approx(expected)


def test_hypervolume_of_three_objectives_by_hand() -> None:
    rows = table((1e4, 0.5), bytes=[1e3])
    assert compute_hypervolume(rows, [*TWO, BYTES]) == pytest.approx(0.5 * 0.5 * 0.75)


POINTS = st.lists(st.tuples(st.floats(1e2, 1e6), st.floats(0, 1)), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(POINTS, st.tuples(st.floats(1e2, 1e6), st.floats(0, 1)))
def test_hypervolume_is_a_share_and_never_falls_when_a_point_is_added(points, extra) -> None:
    before, after = compute_hypervolume(table(*points), TWO), compute_hypervolume(table(*points, extra), TWO)
    assert 0.0 <= before <= after + 1e-12 <= 1.0 + 1e-9


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(POINTS)
def test_dominated_points_add_no_hypervolume(points) -> None:
    rows = table(*points)
    assert compute_hypervolume(pareto_front(rows, TWO), TWO) == pytest.approx(compute_hypervolume(rows, TWO))


# -- knee -------------------------------------------------------------------------------------


def test_the_knee_is_the_point_that_bulges_most() -> None:
    # On the line from (1e2, 0.2) to (1e6, 1.0) the middle would score 0.6; c scores 0.9 there, b lies on the line.
    assert find_knee(table((1e2, 0.2), (1e3, 0.4), (1e4, 0.9), (1e6, 1.0)), TWO) == "c"


def test_one_point_is_its_own_knee() -> None:
    assert find_knee(table((1e4, 0.5)), TWO) == "a"


def test_of_two_points_the_nearer_to_the_ideal_is_the_knee() -> None:
    assert find_knee(table((1e2, 0.2), (1e6, 0.9)), TWO) == "a"
    assert find_knee(table((1e2, 0.2), (1e3, 0.9)), TWO) == "b"


def test_a_tie_between_two_points_goes_to_the_cheaper() -> None:
    assert find_knee(table((1e4, 0.75), (1e3, 0.5)), TWO) == "b"


def test_a_front_that_bulges_away_has_its_knee_at_an_end() -> None:
    assert find_knee(table((1e2, 0.5), (1e4, 0.55), (1e6, 0.9)), TWO) == "a"


def test_duplicates_of_the_knee_give_the_first_id() -> None:
    assert find_knee(table((1e2, 0.2), (1e4, 0.9), (1e4, 0.9), (1e6, 1.0)), TWO) == "b"


def test_a_cost_of_zero_does_not_hide_the_knee() -> None:
    assert find_knee(table((0.0, 0.1), (1e3, 0.9), (1e6, 1.0)), TWO) == "b"


def test_an_empty_front_has_no_knee() -> None:
    with pytest.raises(NoCandidateError, match="empty front"):
        find_knee(table(), TWO)


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.floats(1e2, 1e6), st.floats(0, 1)), min_size=1, max_size=10))
def test_no_point_of_the_front_bulges_more_than_the_knee(points) -> None:
    front = pareto_front(table(*points), TWO)
    found = find_knee(front, TWO)
    spots = {
        name: (math.log10(cost) / 4, score)
        for name, cost, score in zip(front["id"], front["flops"], front["accuracy"], strict=True)
    }
    (left, low), (right, high) = spots[front["id"].iloc[0]], spots[front["id"].iloc[-1]]
    length = math.hypot(right - left, high - low) or 1.0
    # Twice the area of the triangle over the line from end to end, divided by its length.
    bulge = {
        name: ((right - left) * (score - low) - (cost - left) * (high - low)) / length
        for name, (cost, score) in spots.items()
    }
    assert bulge[found] == pytest.approx(max(bulge.values()), abs=1e-8)


def test_axes_are_the_first_cost_and_the_first_score() -> None:
    assert primary_objectives([FLOPS, ACCURACY, BYTES]) == (FLOPS, ACCURACY)
    loss = replace(ACCURACY, name="loss", direction="minimize")
    assert primary_objectives([ACCURACY, loss]) == (loss, ACCURACY)
    assert primary_objectives([ACCURACY]) == (ACCURACY, ACCURACY)
