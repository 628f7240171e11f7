"""The expression that selects rows: what it means, and that it cannot do anything else."""

import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from autocompress.analysis.query import filter_rows
from autocompress.errors import UnknownNameError, UsageError

TABLE = pd.DataFrame(
    {
        "id": ["a", "b", "c", "d"],
        "accuracy": [0.9, 0.95, 0.97, float("nan")],
        "effective_flops": [1e6, 2e6, 3e6, 4e6],
        "prune": ["none", "structured", "structured", None],
        "accuracy@language": [0.8, 0.9, 0.7, 0.6],
        "accuracy@language_test": [0.7, None, None, None],
        "student.cnn.width": [8, 16, 32, 64],
        "student.cnn.residual": pd.Series([True, False, None, None], dtype=object),
        "distill.dist.beta": pd.Series([1, 2.5, None, None], dtype=object),
        "details": [{"a": 1}, {}, {}, {}],
    }
)


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("effective_flops <= 2e6 and accuracy >= 0.95", "b"),
        ("accuracy < 0.92 or accuracy > 0.96", "ac"),
        ("effective_flops <= 2 MFLOPs and accuracy >= 95%", "b"),
        ("not (effective_flops <= 2000K)", "cd"),
        ("id == 'c' and prune != '3 KB'", "c"),
        ("not accuracy >= 0.95", "ad"),
        ("0.9 < accuracy <= 0.97", "bc"),
        ("prune == 'structured'", "bc"),
        ('prune != "structured"', "a"),
        ("accuracy != 0.9", "bc"),
        ("student.cnn.width >= 16 and (id == 'b' or id == 'd')", "bd"),
        ("effective_flops > -1", "abcd"),
        ("effective_flops > +1", "abcd"),
        ("student.cnn.residual == True", "a"),
        ("distill.dist.beta > 1", "b"),
        ("accuracy >= effective_flops", ""),
        ("accuracy@language >= 0.8 and accuracy >= 0.9", "ab"),
        ("accuracy@language <= accuracy", "abc"),
        ("accuracy@language_test > 0.5", "a"),
        ("1 < 2", "abcd"),
        ("  accuracy >= 0.97 ", "c"),
    ],
)
def test_the_rows_for_which_it_holds(expression: str, rows: str) -> None:
    assert "".join(filter_rows(TABLE, expression)["id"]) == rows


@pytest.mark.parametrize(
    ("expression", "piece"),
    [
        ("", "cannot read ''"),
        ("accuracy >=", "cannot read 'accuracy >='"),
        ("accuracy = 3", "cannot read"),
        ("accuracy > 0.9; import os", "cannot read"),
        ("a\0b", "cannot read"),
        ("(" * 500 + ")" * 500, "cannot read"),
        ("x" * 5000, "cannot read"),
        ("accuracy", "'accuracy' is not a comparison"),
        ("__import__('os').system('true')", r"'__import__\('os'\).system\('true'\)' is not a comparison"),
        ("open('x') == 1", r"'open\('x'\)' is neither a column"),
        ("accuracy + 1 > 1", r"'accuracy \+ 1' is neither"),
        ("accuracy > 9 ** 9", r"'9 \*\* 9' is neither"),
        ("accuracy > [x for x in (1, 2)]", "is neither a column"),
        ("(lambda: 1)() > 0", "is neither a column"),
        ("accuracy in (1, 2)", "compares by something else"),
        ("accuracy == None", "'None' is neither a column"),
        ("accuracy is 1", "compares by something else"),
        ("accuracy > -prune", "is neither a column"),
        ("accuracy > -'x'", "is neither a column"),
        ("accuracy > 1j", "'1j' is neither"),
        ("accuracy > b'x'", "is neither"),
        ("accuracy > 'high'", "compares the text 'high' with the number accuracy"),
        ("prune > 3", "compares the text prune with the number 3"),
        ("accuracy > 1" + "0" * 400, "is too large"),
        ("details == 1", "'details' holds neither numbers nor text"),
        ("accuracy if accuracy > 1 else 2", "is not a comparison"),
        ("f'{accuracy}' == 'x'", "is neither a column"),
        ("accuracy > 1 and 2", "'2' is not a comparison"),
    ],
)
def test_anything_else_is_refused_with_the_offending_piece(expression: str, piece: str) -> None:
    with pytest.raises(UsageError, match=piece):
        filter_rows(TABLE, expression)


@pytest.mark.parametrize("name", ["acuracy", "student.cnn.widht", "accuracy.__class__"])
def test_an_unknown_column_suggests_the_nearest(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean '(accuracy|student\.cnn\.width)'"):
        filter_rows(TABLE, f"{name} > 1")


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(st.text(max_size=60))
def test_no_text_does_anything_but_select_or_refuse(text: str) -> None:
    try:
        assert len(filter_rows(TABLE, text)) <= len(TABLE)
    except UsageError:
        pass
    else:
        assert any(sign in text for sign in "<>=")


def test_an_empty_table_stays_empty() -> None:
    assert filter_rows(TABLE.head(0), "accuracy > 0.5 and prune == 'none'").empty


@pytest.mark.parametrize("head", ["star rating", "is-big", "class", "x", "2nd"])
def test_a_column_whose_name_is_no_expression_is_read(head: str) -> None:
    table = pd.DataFrame(
        {f"accuracy@{head}": [0.9, 0.5], f"accuracy@{head} of all": [0.5, 0.9], "student": ["a-b", "c"]}
    )
    assert filter_rows(table, f"accuracy@{head} > 0.8 and student == 'a-b'").index.tolist() == [0]
    assert filter_rows(table, f"not accuracy@{head} of all < 0.8 or student == 'accuracy@{head}'").index.tolist() == [1]


def test_an_error_has_the_column_as_it_was_written() -> None:
    table = pd.DataFrame({"accuracy@star rating": [0.9], "": [1.0]})
    with pytest.raises(
        UsageError, match="'accuracy@star rating > 'a'' compares the text 'a' with the number accuracy@star"
    ):
        filter_rows(table, "accuracy@star rating > 'a'")
    with pytest.raises(UnknownNameError, match="accuracy@star rating"):
        filter_rows(table, "accuracy@star_rating > 1")
