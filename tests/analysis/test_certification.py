"""What the stored examples certify, and which candidate is selected by it."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from autocompress.analysis.certification import (
    PairedLoss,
    certify_loss,
    count_needed_without_loss,
    list_promise_notices,
    read_loss,
    select_certified,
    select_guaranteed,
    smallest_certifiable_loss,
)
from autocompress.analysis.selection import select_candidate
from autocompress.core.example_scores import ExampleScores
from autocompress.core.run_info import ObjectiveSpec, RunInfo, TeacherInfo
from autocompress.errors import NoCandidateError, UsageError

ACCURACY = ObjectiveSpec("accuracy", "maximize", bounds=(0.1, 1.0))
BYTES = ObjectiveSpec("bytes", "minimize", "B", "cost", (1e6, 10.0))
SIZES = {"search_val": 500, "select_val": 500}


def score_bits(size: int, wrong: int, start: int = 0) -> NDArray[np.float64]:
    """Scores of a split with ``wrong`` wrong examples, from ``start`` on."""
    bits = np.ones(size)
    bits[start : start + wrong] = 0.0
    return bits


def make_run(wrong: Mapping[str, tuple[int, int]], **info: Any) -> tuple[pd.DataFrame, RunInfo]:
    """A run whose teacher errs on 10 examples of each split, and whose candidates err on some more.

    Args:
        wrong: Id to the number of further errors on search_val and select_val; the first one costs the most.
        info: Changes of the description.
    """
    splits = dict(zip(SIZES, range(2), strict=True))
    teacher = {name: score_bits(size, 10) for name, size in SIZES.items()}
    rows = []
    for position, (identity, errors) in enumerate(wrong.items()):
        own = {name: score_bits(SIZES[name], 10 + errors[index]) for name, index in splits.items()}
        row: dict[str, Any] = {"id": identity, "role": "search", "complete": True, "bytes": 1000.0 / 2**position}
        row |= {"accuracy_search": own["search_val"].mean(), "accuracy": own["select_val"].mean()}
        row["details"] = {"examples": {name: ExampleScores("bits", len(v), v).pack() for name, v in own.items()}}
        rows.append(row)
    teacher_info = TeacherInfo(
        {name: {"accuracy": float(values.mean())} for name, values in teacher.items()},
        {"bytes": 1e6},
        examples={name: ExampleScores("bits", len(values), values).pack() for name, values in teacher.items()},
    )
    described = RunInfo(objectives=(ACCURACY, BYTES), teacher=teacher_info, max_drop=0.01, confidence=0.9, splits=SIZES)
    return pd.DataFrame(rows), replace(described, **info)


FRONT = {"t0c0": (0, 0), "t0c1": (1, 2), "t0c2": (4, 5), "t0c3": (20, 20)}


def test_both_validation_splits_are_pooled() -> None:
    table, info = make_run(FRONT)
    loss = read_loss(table.iloc[2].to_dict(), info)
    assert loss is not None
    assert (loss.kind, loss.examples, loss.observed) == ("bits", 1000, pytest.approx(0.009))
    # Nine losses and no gain: the bound is Clopper and Pearson's.
    assert loss.upper_bound(0.9) == pytest.approx(1 - binom_low(9, 1000), abs=1e-4)


def binom_low(losses: int, examples: int) -> float:
    """The share of successes for which at most ``losses`` failures have the probability 0.1, by bisection."""
    low, high = 0.5, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if binom.cdf(losses, examples, 1 - middle) <= 0.1 else (low, middle)
        if binom.cdf(losses, examples, 1 - middle) > 0.1:
            high = middle
    return high


def test_the_cheapest_certified_candidate_is_selected() -> None:
    table, info = make_run(FRONT)
    picked = select_candidate(table, info)
    # t0c2 loses 0.9 points observed, within the allowed point, but its bound is above it.
    assert picked.id == "t0c1"
    assert picked.certificate is not None
    assert picked.certificate.is_promise_certified
    assert picked.certificate.examples == 1000
    assert picked.reason.startswith(
        "The cheapest candidate certified to lose at most 1.0 point of accuracy against the teacher, at 90% confidence"
    )
    assert [text for text in picked.binding if text.startswith("90% confidence; by the observed loss, t0c2")]
    cheaper = next(near for near in picked.neighbours if near.kind == "cheaper")
    assert "is certified for 1.4 points of loss only; at most 1.0 point is allowed" in cheaper.text


def test_without_a_certified_candidate_the_smallest_bound_is_selected_and_said() -> None:
    table, info = make_run({"t0c0": (3, 4), "t0c1": (2, 2), "t0c2": (4, 5)}, max_drop=0.002)
    picked = select_candidate(table, info)
    assert picked.id == "t0c1"
    assert "No candidate is certified to lose at most 0.2 points" in picked.reason
    assert picked.reason.endswith("Keep the teacher, unless what is saved is worth this loss.")
    assert picked.certificate is not None
    assert not picked.certificate.is_promise_certified
    assert "No number of examples would certify it" in picked.certificate.describe(ACCURACY)


def test_of_bounds_that_differ_by_chance_the_cheapest_candidate_is_selected() -> None:
    """One more loss of 1,000 examples is a tenth of a point, and one and a half points are allowed."""
    losses = {"t0c0": (8, 8), "t0c1": (8, 9), "t0c2": (20, 20)}
    table, info = make_run(losses, max_drop=0.015)
    assert select_candidate(table, info).id == "t0c1"
    table, info = make_run({**losses, "t0c1": (10, 10)}, max_drop=0.015)
    assert select_candidate(table, info).id == "t0c0"


def test_the_certificate_names_promise_bound_confidence_and_examples_needed() -> None:
    loss = PairedLoss("bits", 0.0, 216, np.zeros(216))
    text = certify_loss(loss, 0.005, 0.9, ["select_val"]).describe(ACCURACY)
    assert text == (
        "Certified: at most 1.1 points of accuracy lost, at 90% confidence on 216 select_val examples (observed: 0.0 "
        "points; exact paired test). Not certified: at most 0.5 points. About 460 examples would be needed."
    )
    kept = certify_loss(loss, 0.02, 0.9, ["select_val"]).describe(ACCURACY)
    assert kept.startswith("Promised: at most 2.0 points lost. Certified: at most 1.1 points")
    assert kept.endswith("about 114 examples would do.")


def test_examples_needed_certify_the_promise_at_the_observed_rates() -> None:
    losses = np.zeros(300)
    losses[:3], losses[3:5] = 1.0, -1.0
    needed = PairedLoss("bits", 1 / 300, 300, losses).count_needed(0.01, 0.9)
    assert needed is not None
    assert needed > 300
    larger = np.zeros(needed)
    larger[: round(needed / 100)], larger[-round(needed / 150) :] = 1.0, -1.0
    assert PairedLoss("bits", float(larger.mean()), needed, larger).upper_bound(0.9) <= 0.0101
    assert PairedLoss("bits", 0.02, 300, losses).count_needed(0.01, 0.9) is None


def test_the_smallest_certifiable_loss_is_that_of_a_candidate_without_differences() -> None:
    loss = PairedLoss("bits", 0.0, 216, np.zeros(216))
    assert loss.upper_bound(0.9) == pytest.approx(smallest_certifiable_loss(216, 0.9), abs=1e-6)
    assert count_needed_without_loss(0.005, 0.9) == 460
    assert smallest_certifiable_loss(460, 0.9) <= 0.005 < smallest_certifiable_loss(459, 0.9)


def test_shares_and_replicates_are_paired_too() -> None:
    generator = np.random.default_rng(0)
    teacher = generator.random(400)
    own = (teacher - 0.02 + 0.1 * generator.standard_normal(400)).clip(0, 1)
    table, info = make_run({"t0c0": (0, 0)})
    shares = {"search_val": table["details"][0]["examples"]["search_val"]}
    shares["select_val"] = ExampleScores("shares", 400, own).pack()
    examples = {**info.teacher.examples, "select_val": ExampleScores("shares", 400, teacher).pack()}
    info = replace(info, teacher=replace(info.teacher, examples=examples))
    row = {**table.iloc[0].to_dict(), "details": {"examples": shares}}
    loss = read_loss(row, info)
    assert loss is not None
    assert (loss.kind, loss.examples) == ("shares", 900)
    assert loss.observed == pytest.approx((teacher - own).sum() / 900, abs=1e-6)
    # The mean of 1,000 draws: its bound is close to that of the examples themselves.
    draws = generator.integers(0, 400, (1000, 400))
    replicates = {
        name: ExampleScores("replicates", 400, values[draws].mean(1)).pack()
        for name, values in (("own", own), ("teacher", teacher))
    }
    info = replace(info, teacher=replace(info.teacher, examples={"select_val": replicates["teacher"]}))
    scores = {"select_val": {"accuracy": float(teacher.mean())}}
    info = replace(info, teacher=replace(info.teacher, scores=scores))
    row |= {"details": {"examples": {"select_val": replicates["own"]}}, "accuracy": float(own.mean())}
    resampled = read_loss(row, info, ["select_val"])
    assert resampled is not None
    assert resampled.observed == pytest.approx((teacher - own).mean())
    own_loss = PairedLoss("shares", float((teacher - own).mean()), 400, teacher - own)
    assert resampled.upper_bound(0.9) == pytest.approx(own_loss.upper_bound(0.9), rel=0.1)
    error = float((teacher - own).std()) / 20
    assert own_loss.observed < own_loss.upper_bound(0.9, is_guaranteed=True) < own_loss.observed + 4 * error


def test_a_minimized_score_loses_what_it_gains() -> None:
    rmse = ObjectiveSpec("rmse", "minimize", bounds=(2.0, 0.0))
    replicates = ExampleScores("replicates", 90, np.full(50, 0.9)).pack()
    teacher = TeacherInfo(
        {"test": {"rmse": 0.8}}, examples={"test": ExampleScores("replicates", 90, np.full(50, 0.8)).pack()}
    )
    row = {"rmse_test": 0.9, "details": {"examples": {"test": replicates}}}
    loss = read_loss(row, RunInfo(objectives=(rmse, BYTES), teacher=teacher), ["test"])
    assert loss is not None
    assert loss.observed == pytest.approx(0.1)
    assert loss.interval() == (pytest.approx(0.1, abs=1e-6), pytest.approx(0.1, abs=1e-6))


def test_the_interval_has_a_bound_of_half_the_error_on_each_side() -> None:
    losses = np.zeros(1000)
    losses[:40], losses[40:60] = 1.0, -1.0
    loss = PairedLoss("bits", 0.02, 1000, losses)
    low, high = loss.interval()
    spread = 1.96 * math.sqrt(0.06 - 0.02**2) / math.sqrt(1000)
    assert (low, high) == (pytest.approx(0.02 - spread, abs=1.5e-3), pytest.approx(0.02 + spread, abs=1.5e-3))


@pytest.mark.parametrize("change", [{"teacher": TeacherInfo({"select_val": {"accuracy": 0.98}})}, {"confidence": None}])
def test_a_run_of_an_earlier_version_is_selected_by_its_observed_loss(change: dict[str, Any]) -> None:
    table, info = make_run(FRONT, **change)
    picked = select_candidate(table, info)
    assert picked.id == "t0c2", "the observed loss of both splits is within a point"
    assert picked.certificate is None
    assert "the observed loss on each validation split counts, and nothing is certified" in picked.rule
    cause = "pick.confidence is null" if "confidence" in change else "of an earlier version"
    assert cause in picked.rule


def test_candidates_without_examples_are_not_certified() -> None:
    table, info = make_run(FRONT)
    table.at[1, "details"] = {}
    selected = select_certified(table, info, 0.01, 0.9)
    assert selected is not None
    assert selected[0]["id"] == "t0c0"


def test_a_guarantee_stops_at_the_first_test_that_fails() -> None:
    # t0c1 loses too much on select_val, so t0c2 is never tested, although it would pass.
    table, info = make_run({"t0c0": (0, 0), "t0c1": (1, 9), "t0c2": (2, 0), "t0c3": (20, 20)})
    found = select_guaranteed(table, info, 0.01, 0.9)
    assert found is not None
    assert found.row is not None
    assert (found.row["id"], found.tested) == ("t0c0", 2)
    picked = select_candidate(table, info, guarantee=0.9)
    assert picked.id == "t0c0"
    assert picked.certificate is not None
    assert (picked.certificate.examples, picked.certificate.splits) == (500, ("select_val",))


def test_the_order_of_a_guarantee_depends_on_search_val_only() -> None:
    # By select_val, t0c1 dominates; by search_val, it is dominated and so is no part of the sequence.
    table, info = make_run({"t0c0": (0, 0), "t0c1": (6, 0), "t0c2": (3, 0)})
    found = select_guaranteed(table, info, 0.01, 0.9)
    assert found is not None
    assert found.row is not None
    assert (found.row["id"], found.first, found.tested) == ("t0c2", "t0c0", 2)


def test_a_guarantee_that_fails_says_what_would_be_needed() -> None:
    table, info = make_run({"t0c0": (0, 0), "t0c1": (20, 20)}, max_drop=0.001)
    with pytest.raises(NoCandidateError, match="About 2,302 examples would be needed"):
        select_candidate(table, info, guarantee=0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guarantee": 1.5}, "between 0.5 and 1"),
        ({"guarantee": 0.9, "knee": True}, "cannot be combined"),
        ({"guarantee": 0.9, "candidate": "t0c0"}, "cannot be combined"),
    ],
)
def test_a_guarantee_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        select_candidate(*make_run(FRONT), **options)


def test_a_guarantee_without_stored_examples_is_refused() -> None:
    table, info = make_run(FRONT, teacher=TeacherInfo({"select_val": {"accuracy": 0.98}}))
    with pytest.raises(NoCandidateError, match="earlier version"):
        select_candidate(table, info, guarantee=0.9)


def test_the_family_of_guaranteed_candidates_is_wrong_at_most_at_its_level() -> None:
    """Thirty candidates whose true loss exceeds the allowed one: hardly any sequence certifies one of them."""
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(150):
        errors = {f"t0c{n}": (2 + n, int(generator.binomial(490, 0.0101))) for n in range(30)}
        found = select_guaranteed(*make_run(errors), 0.01, 0.9)
        assert found is not None
        wrong += found.row is not None
    assert wrong <= binom.ppf(0.999, 150, 0.1)


def test_what_no_candidate_can_prove_is_said_before_the_search() -> None:
    assert list_promise_notices(ACCURACY, 432, 0.01, 0.9) == ()
    (notice,) = list_promise_notices(ACCURACY, 432, 0.005, 0.9)
    assert "the smallest certifiable loss is 0.53 points, and at least 460 examples are needed for 0.5 points" in notice
    assert list_promise_notices(ACCURACY, 432, 0.005, None) == ()
    assert "compared on 10 validation groups; with" in list_promise_notices(ACCURACY, 10, 0.01, 0.9, "groups")[0]
    few, none = list_promise_notices(ACCURACY, 20, 0.0, 0.9)
    assert "20 validation examples; with fewer than 30" in few
    assert "by any number of examples" in none
    assert list_promise_notices(ObjectiveSpec("rmse", "minimize"), 432, 0.005, 0.9) == ()


def test_the_student_without_distillation_is_selected_where_it_is_as_good() -> None:
    table, info = make_run({"t0c0": (0, 0), "t0c1": (2, 2), "t9c0": (1, 1)})
    # It costs the same as the student with distillation.
    table["bytes"] = [1000.0, 500.0, 500.0]
    table["role"] = ["search", "search", "baseline"]
    info = replace(info, baselines={"t9c0": "t0c1 without distillation"})
    assert select_candidate(table, info).id == "t9c0"
    worse, info = make_run({"t0c0": (0, 0), "t0c1": (1, 1), "t9c0": (2, 2)}, baselines=info.baselines)
    worse = worse.assign(bytes=table["bytes"], role=table["role"])
    picked = select_candidate(worse, info)
    assert picked.id == "t0c1"
    assert picked.alternatives == (
        "t0c1 without distillation: t9c0 (97.6%, 500 B), which loses 0.2 points of accuracy",
    )


def test_a_baseline_that_dominates_but_is_not_certified_says_why() -> None:
    table, info = make_run({"t0c0": (0, 0), "t0c1": (1, 3), "t9c0": (20, 2)})
    table["bytes"] = [1000.0, 500.0, 500.0]
    table["role"] = ["search", "search", "baseline"]
    picked = select_candidate(table, replace(info, baselines={"t9c0": "t0c1 without distillation"}))
    assert picked.id == "t0c1"
    (text,) = picked.alternatives
    assert text.startswith("t0c1 without distillation: t9c0 (97.6%, 500 B); its loss is certified for 2.9 points only")


def test_a_dominating_candidate_that_is_not_certified_says_why() -> None:
    table, info = make_run({"t0c0": (0, 0), "t0c1": (1, 3), "t0c2": (20, 2)})
    (text,) = select_candidate(table, info).alternatives
    assert text.startswith("t0c2 (97.6%, 250 B) is no more expensive and at least as good on the selection split; its ")
    (asked,) = select_candidate(table, info, candidate="t0c1").alternatives
    assert "certified for 2.9 points only" in asked
