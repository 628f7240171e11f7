import pytest

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Candidate, State, TrialResult
from autocompress.engine.result_validation import validate_result

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
