import pytest

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Candidate, State, TrialResult
from autocompress.engine.result_validation import validate_result

NAMES = ("accuracy", "bytes")


def candidate(number: int, accuracy: object = 0.9, size: object = 10.0) -> Candidate:
    training = CompressionConfig(Part("cnn"), (Part("none"),), Part("adamw"))
    scores = {"search_val": {} if accuracy is None else {"accuracy": accuracy}}
    return Candidate(f"t0c{number}", 0, training, 1, scores, {} if size is None else {"bytes": size})  # type: ignore[dict-item, arg-type]


def test_what_is_sound_goes_through_as_it_is() -> None:
    result = TrialResult(0, State.COMPLETE, (candidate(0), candidate(1)))
    assert validate_result(result, NAMES) is result


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), "0.9", [0.9]])
def test_a_number_that_is_none_costs_its_candidate_alone(bad: object) -> None:
    found = validate_result(
        TrialResult(0, State.COMPLETE, (candidate(0), candidate(1, bad), candidate(2, 0.9, bad))), NAMES
    )
    assert [each.id for each in found.candidates] == ["t0c0"]
    assert found.state is State.COMPLETE
    assert found.reason == "2 candidates had scores that are not finite"


def test_what_is_missing_is_named() -> None:
    result = TrialResult(0, State.COMPLETE, (candidate(0, None), candidate(1, size=None)), reason="one cut failed")
    found = validate_result(result, NAMES)
    assert found.state is State.FAILED
    assert found.candidates == ()
    assert found.reason == "one cut failed; candidates had no accuracy, bytes"
