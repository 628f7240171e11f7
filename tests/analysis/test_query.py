"""The filter that selects rows: what it means, what it refuses and where, and that it cannot do anything else."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from autocompress.analysis.query import FilterError, UnknownColumnError, filter_rows
from autocompress.errors import UnknownNameError, UsageError

#: Cases that the page must agree on, too: tests/report/test_browser.py.
SHARED = json.loads(Path(__file__).with_name("filter_cases.json").read_text(encoding="utf-8"))
TABLE = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in SHARED["columns"].items()})
TABLE = TABLE.astype({"accuracy": float, "effective_flops": float, "bytes": int})


@pytest.mark.parametrize("case", SHARED["cases"], ids=lambda case: case["filter"][:40])
def test_the_rows_for_which_it_holds_or_the_place_of_the_error(case: dict[str, Any]) -> None:
    if "rows" in case:
        assert filter_rows(TABLE, case["filter"]).index.tolist() == case["rows"]
        return
    with pytest.raises(FilterError) as caught:
        filter_rows(TABLE, case["filter"])
    assert str(caught.value) == f"filter, character {case['start'] + 1}: {case['error']}"
    assert (caught.value.start, caught.value.end) == (case["start"], case["end"])
    assert isinstance(caught.value, UnknownNameError) == case["error"].startswith("unknown column")


@pytest.mark.parametrize(
    ("expression", "piece"),
    [
        ("a\0b > 1", "unknown column"),
        ("(" * 500 + ")" * 500, "more than 50"),
        ("not " * 400 + "x", "more than 50"),
        ("x" * 5000, "more than 2,000 characters"),
        ("__import__('os').system('true')", r"before '\('"),
        ("open('x') == 1", r"before '\('"),
        ("accuracy > 9 ** 9", r"before '\*\*'"),
        ("(lambda: 1)() > 0", "before '1'"),
        ("accuracy in (1, 2)", "',' has no meaning"),
        ("accuracy == None", "unknown column 'None'"),
        ("accuracy > 1" + "0" * 400, "is too large"),
        ("details == 1", "'details' holds neither numbers nor text"),
    ],
)
def test_code_is_refused(expression: str, piece: str) -> None:
    with pytest.raises(UsageError, match=piece):
        filter_rows(TABLE.assign(details=[{"a": 1}] * len(TABLE)), expression)


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(st.text(max_size=60))
def test_no_text_does_anything_but_select_or_refuse(text: str) -> None:
    refused: FilterError | None = None
    try:
        assert len(filter_rows(TABLE, text)) <= len(TABLE)
    except FilterError as error:
        refused = error
    assert refused is None or 0 <= refused.start <= refused.end <= len(text)


def test_an_empty_table_stays_empty() -> None:
    assert filter_rows(TABLE.head(0), "accuracy > 0.5 and prune == 'none'").empty


def test_values_that_are_not_finite_satisfy_nothing() -> None:
    table = pd.DataFrame({"loss": [float("inf"), float("nan"), 1.0]})
    assert filter_rows(table, "loss >= 1 or loss != 0").index.tolist() == [2]


def test_a_word_is_not_looked_up_in_nested_values() -> None:
    table = TABLE.assign(config='{"student": "cnn"}')
    assert filter_rows(table, "student").empty


def test_the_place_is_shown_below_a_long_filter() -> None:
    text = "bytes > 1 or " * 20 + "acuracy > 1 or " + "bytes > 1 or " * 20 + "bytes > 1"
    with pytest.raises(UnknownColumnError) as caught:
        filter_rows(TABLE, text)
    first, second = caught.value.show_place(text).splitlines()
    assert len(first) == 76
    assert first[second.index("^") : second.rindex("^") + 1] == "acuracy"
