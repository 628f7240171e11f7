import pandas as pd
import pytest

from autocompress.analysis.levels import select_levels
from tests.fakes import OBJECTIVES

FRONT = pd.DataFrame(
    {
        "id": ["a", "b", "c", "d", "e", "f"],
        "accuracy": [0.5, 0.6, 0.7, 0.8, 0.9, 0.95],
        "effective_flops": [1e1, 1.1e1, 1e3, 2e3, 1e5, 1.1e5],
    }
)


def test_best_recommended_and_cheapest_come_first_and_others_are_spread() -> None:
    assert select_levels(FRONT, OBJECTIVES, 1, "d") == ["f"]
    assert select_levels(FRONT, OBJECTIVES, 2, "d") == ["d", "f"]
    assert select_levels(FRONT, OBJECTIVES, 3, "d") == ["a", "d", "f"]
    # Between 2e3 and 1e5 there is nothing that is far from both; next to 1e1 is nothing new.
    assert select_levels(FRONT, OBJECTIVES, 4, "d") == ["a", "c", "d", "f"]
    assert select_levels(FRONT, OBJECTIVES, 3) == ["a", "c", "f"]


@pytest.mark.parametrize("count", [6, 9])
def test_a_small_front_is_taken_as_a_whole(count: int) -> None:
    assert select_levels(FRONT, OBJECTIVES, count) == list("abcdef")


def test_a_dearer_row_that_is_no_better_is_left_out() -> None:
    # Such rows are on a front of three objectives.
    table = pd.concat([FRONT, pd.DataFrame({"id": ["g"], "accuracy": [0.75], "effective_flops": [1e4]})])
    assert select_levels(table, OBJECTIVES, 9) == list("abcdef")
    assert "g" in select_levels(table, OBJECTIVES, 9, "g")
