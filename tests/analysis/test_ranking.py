import math
from dataclasses import replace

import pandas as pd
import pytest

from autocompress.analysis.selection import best_of, find_neighbours, row_at, select_rankable
from autocompress.errors import NoCandidateError
from tests.analysis.test_selection import small
from tests.report.factory import OBJECTIVES

ACCURACY, FLOPS = OBJECTIVES


def test_a_candidate_without_scores_has_no_neighbours() -> None:
    table, info = small(accuracy=[math.nan, 0.96, 0.90, 0.50])
    assert find_neighbours(table, info, table.iloc[0].to_dict()) == ()


def test_neighbours_keep_the_limits_of_the_run_or_those_that_are_given() -> None:
    table, info = small()
    row = table.iloc[1].to_dict()
    assert [each.id for each in find_neighbours(table, info, row)] == ["t1c0", "t0c0"]
    info = replace(info, limits={"effective_flops": {"max": 2e5}})
    assert [each.id for each in find_neighbours(table, info, row)] == ["t1c0"]
    assert [each.id for each in find_neighbours(table, info, row, {})] == ["t1c0", "t0c0"]


def test_only_what_is_trained_finite_and_better_than_the_reference_may_rank() -> None:
    table, _ = small(accuracy=[0.97, math.nan, ACCURACY.bounds[0], 0.5], complete=[True, True, True, False])
    assert list(select_rankable(table, OBJECTIVES)["id"]) == ["t0c0"]
    with pytest.raises(NoCandidateError, match="no candidate yet"):
        select_rankable(table.head(0), OBJECTIVES)


def test_of_equals_the_cheaper_one_is_best_then_the_smaller_and_then_the_first() -> None:
    table, _ = small(accuracy=[0.9, 0.9, 0.5, 0.9], effective_flops=[1e6, 1e4, 1e3, 1e4])
    assert best_of(table, ACCURACY, OBJECTIVES)["id"] == "t1c1"
    assert best_of(table.assign(bytes=100.0), ACCURACY, OBJECTIVES)["id"] == "t0c1"
    assert best_of(table.drop(columns="bytes"), ACCURACY, OBJECTIVES)["id"] == "t0c1"
    assert best_of(table, FLOPS, OBJECTIVES)["id"] == "t1c0"
    with pytest.raises(NoCandidateError, match="finite accuracy"):
        best_of(small(accuracy=math.nan)[0], ACCURACY, OBJECTIVES)


def test_a_row_holds_plain_values() -> None:
    table = pd.DataFrame({"id": ["a"], "cost": [1.5], "number": [3]})
    assert row_at(table, 0) == {"id": "a", "cost": 1.5, "number": 3}
    assert [type(value) for value in row_at(table, 0).values()] == [str, float, int]
