"""The choice of one candidate: what is asked, what is refused, what is said."""

import math
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from autocompress.analysis.pareto import full_fidelity
from autocompress.analysis.selection import select_candidate, select_where
from autocompress.core.precisions import Precisions
from autocompress.core.run_info import ObjectiveSpec, RunInfo, TargetInfo, TeacherInfo
from autocompress.errors import NoCandidateError, UnknownNameError, UsageError
from tests.report.factory import OBJECTIVES, Run, make_run


@pytest.fixture(scope="module")
def run() -> Run:
    return make_run(trials=20, cuts=12)


def small(**columns: Any) -> tuple[pd.DataFrame, RunInfo]:
    """Four candidates on a front of accuracy against effective FLOPs, and the description of their run."""
    rows = {
        "id": ["t0c0", "t0c1", "t1c0", "t1c1"],
        "role": "search",
        "epochs": 27,
        "effective_flops": [1e6, 1e5, 1e4, 1e3],
        "accuracy": [0.97, 0.96, 0.90, 0.50],
        "accuracy_test": [0.10, 0.20, 0.30, 0.99],
        "bytes": [400.0, 300.0, 200.0, 100.0],
    }
    size = ObjectiveSpec("bytes", "minimize", unit="B", kind="cost")
    info = RunInfo(
        objectives=OBJECTIVES,
        all_objectives=(*OBJECTIVES, size),
        teacher=TeacherInfo({"select_val": {"accuracy": 0.98}}, {"effective_flops": 1e8}),
        max_drop=0.02,
    )
    return pd.DataFrame(rows | columns), info


def with_search_score(info: RunInfo, accuracy: float) -> RunInfo:
    """The same run, with the teacher's accuracy on search_val known."""
    scores = {**info.teacher.scores, "search_val": {"accuracy": accuracy}}
    return replace(info, teacher=replace(info.teacher, scores=scores))


def test_without_arguments_the_cheapest_within_the_allowed_drop() -> None:
    table, info = small()
    found = select_candidate(table, info)
    assert found.id == "t0c1"
    assert found.reason == (
        "The cheapest candidate within 2.0 points of the teacher's accuracy (96.0% against 98.0%), "
        "with 1,000x fewer effective FLOPs."
    )


TARGET = TargetInfo("runtime", precisions=Precisions(((8, 8), (32, 32)), (4, 8, 32)))


def test_of_a_run_with_a_target_what_has_no_kernel_is_selected_only_if_asked_for() -> None:
    bits = {"quantize.x.weight_bits": [8, 3, 8, 8], "quantize.x.activation_bits": [8, 8, 8, 8]}
    table, info = small(**bits)
    on_target = replace(info, target=TARGET)
    # The candidate that would be chosen has 3-bit weights.
    assert select_candidate(table, info).id == "t0c1"
    assert select_candidate(table, on_target).id == "t0c0"
    assert select_candidate(table, on_target, knee=True).simulated == ""
    assert select_candidate(table, on_target, max={"effective_flops": 2e5}).id == "t1c0"
    allowed = select_candidate(table, on_target, simulated=True)
    assert (allowed.id, allowed.simulated) == ("t0c1", "3-bit weights")
    assert select_candidate(table, on_target, candidate="t0c1").simulated == "3-bit weights"


def test_a_better_and_cheaper_one_without_a_kernel_is_named_with_that_reason() -> None:
    bits = {"quantize.x.weight_bits": [8, 8, 8, 3], "quantize.x.activation_bits": [8, 8, 8, 8]}
    table, info = small(**bits, accuracy=[0.95, 0.90, 0.96, 0.97], bytes=[400.0, 300.0, 200.0, 300.0])
    found = select_candidate(table, replace(info, target=TARGET))
    assert found.id == "t1c0"
    (text,) = found.alternatives
    assert text.startswith("t1c1 (97.0%, 1 KFLOPs) is no more expensive")
    assert text.endswith("it has no kernel on the target runtime (3-bit weights); it has 300 B against 200 B (bytes)")


def test_of_two_equal_ones_the_smaller_is_selected() -> None:
    # 4-bit weights with 8-bit inputs have the effective FLOPs of the reverse.
    table, info = small(accuracy=[0.97, 0.97, 0.97, 0.5], effective_flops=[1e5, 1e5, 1e5, 1e3])
    assert select_candidate(table, info).id == "t1c0"
    assert not select_candidate(table, info).alternatives


def test_a_run_whose_candidates_are_all_simulated_says_so() -> None:
    table, info = small(**{"quantize.x.weight_bits": 3, "quantize.x.activation_bits": 8})
    with pytest.raises(NoCandidateError, match=r"kernels on the target runtime .*3-bit weights.*--simulated"):
        select_candidate(table, replace(info, target=TARGET))


def test_if_all_lose_too_much_the_cheapest_that_is_about_as_near_as_any() -> None:
    table, info = small()
    found = select_candidate(table, replace(info, max_drop=0.001))
    assert found.id == "t0c0"
    assert found.reason == (
        "No candidate is within 0.1 points of the teacher's accuracy: the best loses 1.0 point, and this is the "
        "cheapest within 0.1 points of it (97.0% against 98.0%), with 100x fewer effective FLOPs. "
        "Keep the teacher, unless what is saved is worth this loss."
    )
    assert not found.binding
    # On another split another may be nearer: what counts is the split where a candidate loses most.
    searched = table.assign(accuracy_search=table["accuracy"].where(table["id"] != "t0c0", 0.5))
    teacher = replace(info.teacher, scores={"select_val": {"accuracy": 0.98}, "search_val": {"accuracy": 0.98}})
    other = select_candidate(searched, replace(info, teacher=teacher, max_drop=0.001))
    assert other.id == "t0c1"
    assert "on both validation splits: the best loses 2.0 points" in other.reason


def test_a_candidate_that_saves_nothing_gives_way_to_one_that_does() -> None:
    # The best one is as large as the teacher, and the next one has fewer bytes alone.
    table, info = small(
        accuracy=[0.868, 0.867, 0.3, 0.2], effective_flops=[1e8] * 4, bytes=[800.0, 200.0, 800.0, 800.0]
    )
    info = replace(info, teacher=replace(info.teacher, costs={"effective_flops": 1e8, "bytes": 800.0}))
    found = select_candidate(table, info)
    assert found.id == "t0c1"
    assert found.reason.endswith("Keep the teacher, unless what is saved is worth this loss.")
    # A better score is worth something too.
    assert select_candidate(table.assign(accuracy=[0.99, 0.9, 0.3, 0.2]), info).id == "t0c0"
    # What the teacher costs may be unknown.
    unknown = replace(info, teacher=replace(info.teacher, costs={"effective_flops": 1e8}))
    assert select_candidate(table, unknown).id == "t0c0"


def test_where_nothing_is_saved_the_teacher_is_to_be_kept() -> None:
    table, info = small(accuracy=[0.97, 0.96, 0.3, 0.2], effective_flops=[1e8] * 4, bytes=[800.0] * 4)
    info = replace(info, teacher=replace(info.teacher, costs={"effective_flops": 1e8, "bytes": 800.0}))
    found = select_candidate(table, info)
    assert found.id == "t0c0"
    assert found.reason.endswith("Keep the teacher: no candidate costs less or scores better.")


def test_the_knee_on_request_and_without_a_teacher() -> None:
    table, info = small()
    assert select_candidate(table, info, knee=True).id == "t1c0"
    assert select_candidate(table, replace(info, teacher=TeacherInfo())).id == "t1c0"


def test_the_knee_keeps_the_limits() -> None:
    table, info = small()
    assert select_candidate(table, info, knee=True, min={"accuracy": 0.95}).id == "t0c1"


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ({"max": {"effective_flops": 2e4}}, "t1c0"),
        ({"max": {"effective_flops": 1e4}}, "t1c0"),
        ({"max": {"effective_flops": "10 KFLOPs"}}, "t1c0"),
        ({"min": {"accuracy": 0.95}}, "t0c1"),
        ({"min": {"accuracy": 0.95}, "prefer": "accuracy"}, "t0c0"),
        ({"max": {"bytes": 350}, "min": {"accuracy": 0.6}}, "t0c1"),
        ({"prefer": "bytes"}, "t1c1"),
        ({"prefer": "accuracy"}, "t0c0"),
        ({"candidate": "t1c1"}, "t1c1"),
    ],
)
def test_what_is_asked_is_what_is_chosen(asked: dict[str, Any], chosen: str) -> None:
    assert select_candidate(*small(), **asked).id == chosen


def test_the_reason_names_limits_and_how_many_kept_them() -> None:
    reason = select_candidate(*small(), max={"effective_flops": 2e5}, min={"accuracy": 0.8}).reason
    assert reason == ("The highest accuracy among the 2 candidates with effective_flops <= 200000 and accuracy >= 0.8.")
    assert select_candidate(*small(), prefer="bytes").reason == "The fewest bytes among all 4 candidates."
    assert (
        select_candidate(*small(), max={"bytes": 100}).reason
        == "The highest accuracy among one candidate with bytes <= 100."
    )


def test_limits_of_the_run_hold_unless_the_same_bound_is_given() -> None:
    table, info = small()
    info = replace(info, limits={"effective_flops": {"max": 5e4}})
    assert select_candidate(table, info, prefer="accuracy").id == "t1c0"
    assert select_candidate(table, info, min={"accuracy": 0.6}).id == "t1c0"
    assert select_candidate(table, info, max={"effective_flops": 1e9}).id == "t0c0"


def test_ties_go_to_the_cheaper_then_to_the_first_id() -> None:
    table, info = small(accuracy=0.9, effective_flops=[5.0, 4.0, 4.0, 9.0], id=["t0c0", "t0c10", "t0c9", "t1c0"])
    assert select_candidate(table, info, prefer="accuracy").id == "t0c9"


def test_a_lucky_score_on_one_validation_split_is_not_enough() -> None:
    table, info = small()
    info = with_search_score(info, 0.98)
    assert select_candidate(table.assign(accuracy_search=0.97), info).id == "t0c1"
    unlucky = table["accuracy"].where(table["id"] != "t0c1", 0.9)
    found = select_candidate(table.assign(accuracy_search=unlucky), info)
    assert found.id == "t0c0"
    assert "on both validation splits (96.0%" not in found.reason
    assert "on both validation splits" in found.reason
    # What is asked for by a limit is taken by its word.
    assert select_candidate(table.assign(accuracy_search=unlucky), info, min={"accuracy": 0.95}).id == "t0c1"


def test_the_test_split_is_never_looked_at() -> None:
    table, info = small()
    for value in (math.nan, 0.0, 1.0):
        assert select_candidate(table.assign(accuracy_test=value), info).id == select_candidate(table, info).id
    for asked in ({"max": {"accuracy_test": 1.0}}, {"prefer": "accuracy_test"}):
        with pytest.raises(UsageError, match="cannot be chosen by their scores on the test split"):
            select_candidate(table, info, **asked)


def test_a_filter_keeps_the_rule_and_leaves_out_candidates() -> None:
    table, info = small()
    free = select_candidate(table, info)
    picked = select_where(table, info, f"not id = {free.id!r}", prefer="accuracy")
    assert picked.id == select_candidate(table[table["id"] != free.id], info, prefer="accuracy").id
    assert picked.reason.endswith(f"Only candidates with not id = {free.id!r} were considered.")
    with pytest.raises(NoCandidateError, match="none of 4 candidates satisfies the filter: accuracy > 2"):
        select_where(table, info, "accuracy > 2")
    with pytest.raises(UsageError, match="'accuracy_test' is a test score"):
        select_where(table, info, "accuracy > 10% and accuracy_test > 0")
    with pytest.raises(UnknownNameError, match="did you mean 'accuracy'"):
        select_where(table, info, "acuracy > 2")


def test_only_fully_trained_finite_candidates_of_the_search_are_chosen() -> None:
    table, info = small(complete=[True, False, True, True], role=["confirm", "search", "search", "search"])
    assert select_candidate(table, info, prefer="accuracy").id == "t1c0"
    table, info = small(accuracy=[math.nan, math.inf, 0.9, 0.5])
    assert select_candidate(table, info, prefer="accuracy").id == "t1c0"


def test_a_dead_model_is_never_recommended() -> None:
    table, info = small(accuracy=[0.1, 0.1, 0.05, 0.0])
    with pytest.raises(
        NoCandidateError, match=r"better than the reference point: .*best accuracy is 10.0%, the ref.* point 10.0%"
    ):
        select_candidate(table, info)
    with pytest.raises(NoCandidateError):
        select_candidate(table, info, prefer="effective_flops")
    assert select_candidate(table, info, candidate="t1c1").id == "t1c1"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"max": {"effective_flops": 100}},
            "no candidate has effective_flops <= 100; the smallest is 1000 (t1c1)",
        ),
        ({"min": {"accuracy": 0.99}}, "no candidate has accuracy >= 0.99; the largest is 0.97 (t0c0)"),
        (
            {"max": {"effective_flops": 100}, "min": {"accuracy": 0.99}},
            "no candidate has accuracy >= 0.99; the largest is 0.97 (t0c0); "
            "none has effective_flops <= 100; the smallest is 1000 (t1c1)",
        ),
        (
            {"max": {"effective_flops": 9e4}, "min": {"accuracy": 0.95}},
            "no candidate has effective_flops <= 90000 and accuracy >= 0.95 together; "
            "the nearest is t1c0 (effective_flops 10000, accuracy 0.9)",
        ),
    ],
)
def test_nothing_satisfies_names_the_nearest_miss(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(NoCandidateError) as raised:
        select_candidate(*small(), **asked)
    assert str(raised.value) == message


def test_a_limit_on_a_column_that_was_never_measured_says_so() -> None:
    table, info = small(bytes=math.nan)
    with pytest.raises(NoCandidateError, match="no candidate has a finite bytes"):
        select_candidate(table, info, max={"bytes": 5})
    with pytest.raises(NoCandidateError, match="no candidate has a finite bytes"):
        select_candidate(table, info, prefer="bytes")


def test_limits_whose_columns_are_never_finite_together_say_so() -> None:
    table, info = small(bytes=[math.nan, math.nan, math.nan, 1.0], parameters=[5.0, 5.0, 5.0, math.nan])
    with pytest.raises(NoCandidateError, match="all of bytes, parameters"):
        select_candidate(table, info, max={"bytes": 5, "parameters": 9})


@pytest.mark.parametrize(
    ("asked", "error", "hint"),
    [
        ({"max": {"efective_flops": 1}}, UnknownNameError, "did you mean 'effective_flops'"),
        ({"min": {"acuracy": 0.5}}, UnknownNameError, "did you mean 'accuracy'"),
        ({"prefer": "acuracy"}, UnknownNameError, "did you mean 'accuracy'"),
        ({"candidate": "t0c7"}, UnknownNameError, "unknown candidate 't0c7'"),
        ({"knee": True, "prefer": "bytes"}, UsageError, "use either knee or prefer"),
        ({"candidate": "t0c0", "knee": True}, UsageError, "cannot be combined with limits"),
        ({"candidate": "t0c0", "prefer": "bytes"}, UsageError, "cannot be combined with limits"),
        ({"candidate": "t0c0", "max": {"bytes": 1}}, UsageError, "cannot be combined with limits"),
        ({"max": {"bytes": 1}, "min": {"bytes": 2}}, UsageError, "exclude each other: at least 2, at most 1"),
        ({"max": {"accuracy": 0.9}}, UsageError, "did you mean min accuracy=0.9 "),
        ({"min": {"bytes": 200}}, UsageError, "did you mean max bytes=200 "),
        ({"max": {"bytes": math.nan}}, UsageError, "not a finite number"),
        ({"max": {"bytes": "small"}}, UsageError, "'small' is no number such as"),
        ({"max": {"bytes": "5 ms"}}, UsageError, "'5 ms' is in ms, and bytes in B"),
    ],
)
def test_wrong_use_is_refused(asked: dict[str, Any], error: type[Exception], hint: str) -> None:
    with pytest.raises(error, match=hint):
        select_candidate(*small(), **asked)


def test_a_range_may_exclude_the_best() -> None:
    assert select_candidate(*small(), min={"bytes": 150}, max={"bytes": 350}).id == "t0c1"


def test_an_empty_run_has_no_candidate() -> None:
    _, info = small()
    with pytest.raises(NoCandidateError, match="no candidate yet"):
        select_candidate(pd.DataFrame(), info)
    with pytest.raises(UnknownNameError):
        select_candidate(pd.DataFrame(), info, candidate="t0c0")


def test_an_unknown_id_among_thousands_is_not_answered_with_all_of_them(run: Run) -> None:
    with pytest.raises(UnknownNameError) as raised:
        select_candidate(run.candidates, run.info, candidate="zzz")
    assert len(str(raised.value)) < 120


def test_neighbours_are_the_next_steps_along_the_front() -> None:
    cheaper, better = select_candidate(*small(), candidate="t0c1").neighbours
    assert (cheaper.kind, cheaper.id, better.kind, better.id) == ("cheaper", "t1c0", "better", "t0c0")
    assert cheaper.cost_ratio == pytest.approx(0.1)
    assert cheaper.score_change == pytest.approx(-0.06)
    assert cheaper.text == "t1c0 has 10x fewer effective FLOPs and loses 6.0 points of accuracy"
    assert better.text == "t0c0 gains 1.0 point of accuracy and has 10x more effective FLOPs"


def test_the_ends_of_the_front_have_one_neighbour() -> None:
    assert [each.kind for each in select_candidate(*small(), candidate="t1c1").neighbours] == ["better"]
    assert [each.kind for each in select_candidate(*small(), candidate="t0c0").neighbours] == ["cheaper"]


def test_a_dominated_candidate_sees_who_beats_it() -> None:
    table, info = small(accuracy=[0.97, 0.96, 0.96, 0.5])
    (cheaper, better) = select_candidate(table, info, candidate="t0c1").neighbours
    assert (cheaper.id, cheaper.score_change) == ("t1c0", 0.0)
    assert cheaper.text == "t1c0 has 10x fewer effective FLOPs at the same accuracy"
    assert better.id == "t0c0"


def test_a_minimised_score_is_picked_the_other_way_round() -> None:
    table, info = small(loss=[0.1, 0.2, 0.5, 2.0])
    loss = ObjectiveSpec("loss", "minimize", "nats", "score", (2.3, 0.0))
    teacher = TeacherInfo({"select_val": {"loss": 0.05}})
    info = replace(info, objectives=(loss, OBJECTIVES[1]), teacher=teacher, max_drop=0.16)
    found = select_candidate(table, info)
    assert found.id == "t0c1"
    assert found.neighbours[1].text.startswith("t0c0 gains 0.1 nats of loss")
    assert select_candidate(table, info, max={"effective_flops": 2e4}).id == "t1c0"


@pytest.mark.parametrize("bound", [3e3, 3e4, 3e5, 3e6])
def test_under_a_limit_nothing_feasible_is_better(run: Run, bound: float) -> None:
    found = select_candidate(run.candidates, run.info, max={"effective_flops": bound})
    rows = full_fidelity(run.candidates)
    rows = rows[rows["effective_flops"] <= bound]
    assert found.row["accuracy"] == rows["accuracy"].max()
    assert found.row["effective_flops"] == rows[rows["accuracy"] == rows["accuracy"].max()]["effective_flops"].min()


def test_a_pick_is_frozen_and_its_row_holds_plain_python_values() -> None:
    found = select_candidate(*small())
    with pytest.raises(AttributeError):
        found.id = "other"  # type: ignore[misc]
    assert {type(value) for value in found.row.values()} <= {str, int, float}


def both_splits() -> tuple[pd.DataFrame, RunInfo]:
    table, info = small(accuracy_search=[0.97, 0.97, 0.95, 0.50], accuracy=[0.97, 0.965, 0.97, 0.50])
    info = with_search_score(info, 0.98)
    return table, info


def test_a_cheaper_candidate_that_looks_as_good_says_why_it_was_not_chosen() -> None:
    table, info = both_splits()
    found = select_candidate(table, info)
    assert found.id == "t0c1"
    cheaper, better = found.neighbours
    assert cheaper.text.startswith(
        "t1c1 has 100x fewer effective FLOPs and loses 46.5 points of accuracy, "
        "but loses 48.0 points on the selection split"
    )
    assert better.text == (
        "t1c0 gains 0.5 points of accuracy and has 10x fewer effective FLOPs, but loses 3.0 points on the search "
        "split (95.0% against the teacher's 98.0%); at most 2.0 points are allowed"
    )
    assert found.binding == (
        "at most 2.0 points lost on the search split; without it, t1c0 (97.0%, 10 KFLOPs) would be chosen "
        "(95.0% on that split)",
    )
    # What was asked for otherwise needs no such excuse.
    assert "but loses" not in "".join(each.text for each in select_candidate(table, info, prefer="bytes").neighbours)


def test_limits_that_bind_are_told_with_what_they_cost() -> None:
    table, info = small()
    found = select_candidate(table, info, max={"effective_flops": 2e4, "bytes": 1e9})
    assert found.binding == ("effective_flops <= 20000; without it, t0c0 (97.0%, 1 MFLOPs) would be chosen",)
    assert select_candidate(table, info, max={"effective_flops": 1e9}).binding == ()


def test_a_pick_knows_who_is_tied_with_it_and_what_of_it_is_simulated(run: Run) -> None:
    found = select_candidate(run.candidates, run.info)
    assert found.ties is not None
    assert found.ties.method == "unpaired binomial test on 320 select_val examples"
    assert found.id not in found.ties.p
    assert set(found.ties.tied_ids) <= set(run.candidates["id"])
    bits = found.row["quantize.post_training.weight_bits"]
    assert (f"{bits:.0f}-bit weights" in found.simulated) == (bits not in (8, 32))
