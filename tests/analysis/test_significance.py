"""Who is tied: the tests against scipy's, and which one is used."""

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, ttest_rel

from autocompress.analysis.significance import (
    find_ties,
    paired_p_value,
    unpack_correct,
    unpaired_p_value,
    wilson_interval,
)
from autocompress.core.run_info import RunInfo
from tests.report.factory import OBJECTIVES

META = RunInfo(objectives=OBJECTIVES, splits={"select_val": 320})


def packed(bits: np.ndarray) -> str:
    return f"{len(bits)}:{base64.b64encode(np.packbits(bits).tobytes()).decode()}"


@pytest.mark.parametrize(("hits", "examples"), [(90, 100), (0, 40), (40, 40), (317, 320)])
def test_the_interval_is_wilsons(hits: int, examples: int) -> None:
    expected = binomtest(hits, examples).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits / examples, examples) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (6, 0), (3, 9), (40, 61), (700, 800)])
def test_one_head_is_mcnemars_exact_test(better: int, worse: int) -> None:
    one, other = np.zeros((2000, 1), dtype=bool), np.zeros((2000, 1), dtype=bool)
    one[:better] = True
    other[better : better + worse] = True
    one[1600:] = other[1600:] = True
    expected = binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert paired_p_value(one, other) == pytest.approx(expected, rel=1e-9)


def test_several_heads_are_compared_by_their_mean() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random((2000, 3)) < 0.9, rng.random((2000, 3)) < 0.88
    # With so many examples Student's distribution is the normal one.
    assert paired_p_value(one, other) == pytest.approx(ttest_rel(one.mean(1), other.mean(1)).pvalue, rel=0.1)
    assert paired_p_value(one, one) == 1.0
    assert paired_p_value(np.ones((5, 2), dtype=bool), np.zeros((5, 2), dtype=bool)) == 0.0


def test_unpaired_ties_are_what_chance_explains() -> None:
    assert unpaired_p_value(0.97, 0.97, 320) > 0.05
    assert unpaired_p_value(0.97, 0.95, 320) > 0.05
    assert unpaired_p_value(0.97, 0.90, 320) < 0.05
    assert unpaired_p_value(0.97, 0.95, 100_000) < 0.05
    assert unpaired_p_value(1.0, 1.0, 10) == 1.0
    assert unpaired_p_value(1.0, 0.0, 10) == 0.0


def rows(*bits: np.ndarray | None) -> pd.DataFrame:
    details = [{} if each is None else {"right": {"label": packed(each)}} for each in bits]
    shares = [0.9 if each is None else float(each.mean()) for each in bits]
    return pd.DataFrame({"id": [f"t{n}c0" for n in range(len(bits))], "accuracy": shares, "details": details})


def test_a_paired_test_tells_apart_what_an_unpaired_one_cannot() -> None:
    one = np.arange(320) >= 10
    other = one & (np.arange(320) < 312)
    table = rows(one, other, one)
    found = find_ties(table, table.iloc[0].to_dict(), META)
    assert found is not None
    assert found.method == "McNemar's exact test on the same 320 select_val examples"
    assert found.tied_ids == ("t2c0",)
    unknown = rows(one, None, one).assign(accuracy=table["accuracy"])
    found = find_ties(unknown, unknown.iloc[0].to_dict(), META)
    assert found is not None
    assert found.method == "unpaired binomial test on 320 select_val examples"
    assert found.tied_ids == ("t1c0", "t2c0")


def test_a_score_that_is_no_share_of_examples_has_no_test() -> None:
    table = rows(np.ones(8, dtype=bool), np.ones(8, dtype=bool))
    row = table.iloc[0].to_dict()
    assert (
        find_ties(table, row, replace(META, objectives=[replace(OBJECTIVES[0], name="f1_macro"), OBJECTIVES[1]]))
        is None
    )
    assert find_ties(rows(None, None), row, replace(META, splits={})) is None


@pytest.mark.parametrize("details", [None, {}, {"right": {}}, {"right": {"other": "1:gA=="}}])
def test_without_a_record_nobody_is_right_or_wrong(details: Any) -> None:
    assert unpack_correct(details, "label") is None


def test_one_head_of_several_is_read_alone() -> None:
    bits = np.array([True, False, True])
    details = {"right": {"language": packed(bits), "kind": packed(~bits)}}
    assert unpack_correct(details, "kind").ravel().tolist() == [False, True, False]  # type: ignore[union-attr]
    assert unpack_correct(details).shape == (3, 2)  # type: ignore[union-attr]
