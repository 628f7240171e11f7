import moocore
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from autocompress.core.registry import PROMOTION_RULES
from autocompress.engine.scheduler.promotion import Always, BestScore, ParetoRank, PromotionRule

NUMBER = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1), st.just(float("nan")))
SETS = st.dictionaries(
    st.integers(0, 30), st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=5).map(np.array), max_size=12
)


def points(**rows: list[tuple[float, float]]) -> dict[int, NDArray[np.float64]]:
    return {int(name[1:]): np.array(values) for name, values in rows.items()}


def select_by_definition(sets: dict[int, NDArray[np.float64]], places: int) -> set[int]:
    """The same rule without any shortcut."""
    rows = [(trial, row) for trial, values in sets.items() for row in values if np.isfinite(row).all()]
    if not rows:
        return set()
    ranks = {}
    left, rank = list(range(len(rows))), 0
    while left:
        front = [
            i
            for i in left
            if not any((rows[j][1] <= rows[i][1]).all() and (rows[j][1] < rows[i][1]).any() for j in left)
        ]
        ranks.update(dict.fromkeys(front, rank))
        left, rank = [i for i in left if i not in front], rank + 1

    def exclusive(trial: int, level: int) -> float:
        volumes = []
        for others in (False, True):
            remaining = [r for i, (t, r) in enumerate(rows) if ranks[i] == level and not (others and t == trial)]
            volumes.append(moocore.hypervolume(np.array(remaining), ref=np.ones(2)) if remaining else 0.0)
        return volumes[0] - volumes[1]

    best = {trial: min(ranks[i] for i, (t, _) in enumerate(rows) if t == trial) for trial, _ in rows}
    order = sorted(best, key=lambda trial: (best[trial], -exclusive(trial, best[trial]), trial))
    return set(order[: max(1, -(-len(order) // 3))])


@pytest.mark.slow
@settings(deadline=None, max_examples=80)
@given(SETS)
def test_the_best_third_by_rank_and_exclusive_hypervolume_is_promoted(sets: dict[int, NDArray[np.float64]]) -> None:
    promoted = ParetoRank().select_promotions(sets, 0)
    assert select_by_definition(sets, 0) <= promoted <= set(sets)
    # Besides, at most the best trial in each objective.
    assert len(promoted - select_by_definition(sets, 0)) <= 2


@pytest.mark.slow
@settings(deadline=None, max_examples=80)
@given(st.lists(st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=4).map(np.array), min_size=1, max_size=16))
def test_a_boundary_updated_by_new_trials_is_that_of_all_trials(arrivals: list[NDArray[np.float64]]) -> None:
    boundary, here = None, {}
    for trial, rows in enumerate(arrivals):
        boundary = None if boundary is None else boundary.with_trial(rows)
        here[trial] = rows
        boundary = boundary or ParetoRank().find_boundary(here)
        assert boundary.top_trials == ParetoRank().select_promotions(here, 0)


def test_a_new_trial_behind_the_boundary_leaves_it_as_it_is() -> None:
    here = {trial: np.array([[0.1 + trial / 100, 0.1 + trial / 100]]) for trial in range(7)}
    boundary = ParetoRank().find_boundary(here)
    assert boundary.top_trials == {0, 1, 2}
    behind = boundary.with_trial(np.array([[0.5, 0.5], [0.9, 0.2]]))
    assert behind is not None
    assert behind.top_trials == {0, 1, 2}
    # At the boundary, better than it in one objective, or with one promotion more than trials in the order.
    assert boundary.with_trial(boundary.boundary_points) is None
    assert boundary.with_trial(np.array([[0.9, 0.0]])) is None
    assert behind.with_trial(np.array([[0.5, 0.5]])) is not None
    assert behind.with_trial(np.array([[0.5, 0.5]])).with_trial(np.array([[0.5, 0.5]])) is None  # type: ignore[union-attr]


def test_a_small_student_is_promoted_though_its_score_is_the_lowest() -> None:
    sets = points(t0=[(0.05, 0.9)], t1=[(0.06, 0.92)], t2=[(0.07, 0.95)], t3=[(0.4, 0.1)])
    assert 3 in ParetoRank().select_promotions(sets, 0)
    assert BestScore().select_promotions(sets, 0) == {0, 1}


def test_a_trial_is_ranked_by_its_best_candidate() -> None:
    sets = points(t0=[(0.9, 0.9), (0.1, 0.1)], t1=[(0.5, 0.5)], t2=[(0.6, 0.6)])
    assert ParetoRank().select_promotions(sets, 0) == {0}


def test_the_best_trial_in_one_objective_is_promoted_if_it_is_better_than_the_reference_point() -> None:
    best = [(0.1 + i / 100, 0.1 + i / 100) for i in range(6)]
    sets = {trial: np.array([row]) for trial, row in enumerate(best)}
    sets[7] = np.array([(0.8, 0.05)])
    sets[8] = np.array([(1.0, 0.01)])
    promoted = ParetoRank().select_promotions(sets, 0)
    assert 7 in promoted
    assert {0, 7, 8} >= promoted


@pytest.mark.parametrize("rule", [ParetoRank(), BestScore(), Always()], ids=lambda rule: rule.name)
def test_unusual_points_have_a_defined_result(rule: PromotionRule) -> None:
    nan = float("nan")
    assert rule.select_promotions({}, 0) == frozenset()
    no_finite_points = points(t0=[(nan, nan)], t1=[(0.5, 0.5)], t2=[(nan, 0.1)])
    assert 1 in rule.select_promotions(no_finite_points, 0)
    constant = points(t0=[(0.5, 0.5)], t1=[(0.5, 0.5)], t2=[(0.5, 0.5)])
    assert 0 in rule.select_promotions(constant, 0)


def test_trials_without_finite_points_never_rank() -> None:
    no_finite_points = points(t0=[(float("nan"), 0.1)], t1=[(0.9, 0.9)])
    assert ParetoRank().select_promotions(no_finite_points, 0) == {1}


def test_rules_are_found_by_name() -> None:
    assert PROMOTION_RULES.get("pareto_rank")().name == "pareto_rank"
