import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Candidate, State, TrialResult
from autocompress.engine.archive import Archive, validate_result
from tests.fakes import OBJECTIVES

CONFIG = CompressionConfig(Part("cnn"), (Part("none"),), Part("adamw"))
POINTS = st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.9, 0.95]), st.sampled_from([1e2, 1e3, 1e4, 1e5])), max_size=12)


def candidates(points: list[tuple[float, float]], start: int = 0) -> list[Candidate]:
    return [
        Candidate(f"t{start + i}c0", i, CONFIG, 1, {"search_val": {"accuracy": score}}, {"effective_flops": cost})
        for i, (score, cost) in enumerate(points)
    ]


@settings(deadline=None)
@given(POINTS, POINTS)
def test_the_front_equals_brute_force_however_the_candidates_arrive(
    first: list[tuple[float, float]], second: list[tuple[float, float]]
) -> None:
    archive = Archive(OBJECTIVES)
    archive.add(candidates(first))
    archive.add(candidates(second, start=100))
    points = set(first + second)
    expected = {p for p in points if not any(q[0] >= p[0] and q[1] <= p[1] and q != p for q in points)}
    assert {(score, cost) for _, score, cost in archive.list_front()} == expected
    assert len(archive.list_front()) == len(expected)


def test_hypervolume_by_hand() -> None:
    archive = Archive(OBJECTIVES)
    assert archive.hypervolume == 0.0
    # Accuracy halfway up the box, cost halfway along its logarithm: a quarter of the box.
    archive.add(candidates([(0.55, 1e4)]))
    assert archive.hypervolume == pytest.approx(0.25)
    archive.add(candidates([(0.55, 1e4)], start=5))
    assert archive.hypervolume == pytest.approx(0.25)
    archive.add(candidates([(1.0, 1e5)], start=9))
    assert archive.hypervolume == pytest.approx(0.25 + 0.25 * 0.5)


def test_the_sampler_sees_costs_as_logarithms() -> None:
    archive = Archive(OBJECTIVES)
    assert archive.sampler_values(candidates([(0.5, 1e4)])[0]) == pytest.approx([0.5, 4.0])
    assert np.isfinite(archive.sampler_values(candidates([(0.5, 0.0)])[0])).all()


NAMES = ("accuracy", "bytes")


def candidate(number: int, accuracy: object = 0.9, size: object = 10.0) -> Candidate:
    training = CompressionConfig(Part("cnn"), (Part("none"),), Part("adamw"))
    scores = {"search_val": {} if accuracy is None else {"accuracy": accuracy}}
    return Candidate(f"t0c{number}", 0, training, 1, scores, {} if size is None else {"bytes": size})  # type: ignore[dict-item, arg-type]


def test_a_valid_result_is_returned_unchanged() -> None:
    result = TrialResult(0, State.COMPLETE, (candidate(0), candidate(1)))
    assert validate_result(result, NAMES) is result


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), "0.9", [0.9]])
def test_an_invalid_value_removes_its_candidate_alone(bad: object) -> None:
    validated = validate_result(
        TrialResult(0, State.COMPLETE, (candidate(0), candidate(1, bad), candidate(2, 0.9, bad))), NAMES
    )
    assert [candidate.id for candidate in validated.candidates] == ["t0c0"]
    assert validated.state is State.COMPLETE
    assert validated.reason == "2 candidates had scores that are not finite"


def test_missing_objectives_are_named() -> None:
    result = TrialResult(0, State.COMPLETE, (candidate(0, None), candidate(1, size=None)), reason="one recipe failed")
    validated = validate_result(result, NAMES)
    assert validated.state is State.FAILED
    assert validated.candidates == ()
    assert validated.reason == "one recipe failed; candidates had no accuracy, bytes"
