"""Numbers as a person reads them."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from autocompress.core.formatting import (
    compare_costs,
    format_count,
    format_difference,
    format_duration,
    format_factor,
    format_plural,
    format_value,
    is_finite,
    is_share,
    label_column,
)
from autocompress.core.run_info import ObjectiveSpec

ACCURACY = ObjectiveSpec("accuracy", "maximize")
LOSS = ObjectiveSpec("loss", "minimize", "nats")
LATENCY = ObjectiveSpec("latency", "minimize", "ms", "cost")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1_234_567, "FLOPs", "1.23 MFLOPs"),
        (14_300, "B", "14.3 KB"),
        (312, "B", "312 B"),
        (999.7, "", "1 K"),
        (999_999, "", "1 M"),
        (1e18, "BOPs", "1,000 PBOPs"),
        (0, "B", "0 B"),
        (-2500, "", "-2.5 K"),
        (0.00123, "", "0.00123"),
        (math.nan, "B", "–"),
        (math.inf, "B", "–"),
        (None, "B", "–"),
    ],
)
def test_human(value: float | None, unit: str, text: str) -> None:
    assert format_count(value, unit) == text


@given(st.floats(1, 1e17))
def test_human_never_writes_four_digits_before_a_prefix(value: float) -> None:
    digits = format_count(value).split()[0]
    assert len(digits.replace(".", "")) <= 3
    assert float(digits) < 1000


def test_show_writes_shares_in_percent_and_the_rest_with_their_unit() -> None:
    assert format_value(0.9741, ACCURACY) == "97.4%"
    assert format_value(0.0512, LOSS) == "0.0512 nats"
    assert format_value(12_345.0, replace(LATENCY, name="bytes", unit="B")) == "12.3 KB"
    assert format_value(1.5, LATENCY) == "1.5 ms"
    assert format_value(math.nan, ACCURACY) == format_value(None, LOSS) == "–"
    assert is_share(ACCURACY)
    assert not is_share(LOSS)


def test_gap_drops_the_sign_and_counts_points() -> None:
    assert format_difference(-0.008, ACCURACY) == "0.8 points"
    assert format_difference(0.01, ACCURACY) == "1.0 point"
    assert format_difference(-0.25, LOSS) == "0.25 nats"


@pytest.mark.parametrize(
    ("ours", "theirs", "name", "text"),
    [
        (1e6, 9.91e7, "effective_flops", "99.1x fewer effective FLOPs"),
        (3.0, 2.0, "bytes", "1.5x more bytes"),
        (1.0, 2.0, "latency_ms", "2x less latency"),
        (5, 5, "bytes", "as many bytes"),
        (1000, 1001, "latency", "as much latency"),
        (0, 0, "bytes", "as many bytes"),
        (0, 5, "bytes", "infinitely fewer bytes"),
        (math.nan, 5, "bytes", "bytes that cannot be compared"),
    ],
)
def test_compare(ours: float, theirs: float, name: str, text: str) -> None:
    assert compare_costs(ours, theirs, name) == text


def test_small_words() -> None:
    assert [format_duration(value) for value in (4.2, 59.97, 250, 7500, None)] == [
        "4.2 s",
        "1 min 0 s",
        "4 min 10 s",
        "2 h 5 min",
        "–",
    ]
    assert (
        format_plural(1, "candidate"),
        format_plural(3000, "candidate"),
        format_plural(0, "branch", "branches"),
    ) == (
        "1 candidate",
        "3,000 candidates",
        "0 branches",
    )
    assert (format_factor(209_202.4), format_factor(1e9), format_factor(99.13)) == ("209,202x", "1e+09x", "99.1x")
    assert (label_column("f1_macro"), label_column("peak_memory")) == ("macro F1", "peak memory")
    assert [is_finite(value) for value in (1, 1.5, True, math.nan, "1", None)] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_a_number_that_no_float_can_hold_is_not_finite() -> None:
    assert [is_finite(value) for value in (1, 0.5, 10**300)] == [True] * 3
    assert not any(is_finite(value) for value in (10**400, -(10**400), math.inf, math.nan, True, "1", None))
