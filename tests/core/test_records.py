"""The records between driver, worker and store: defaults, comparison, stored names, pickling."""

import pickle
from dataclasses import FrozenInstanceError, replace

import pytest

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import BaseCheckpoint, Candidate, CompressionRecipe, Job, Role, State, TrialResult

TRAINING = CompressionConfig(Part.of("cnn", width=8), (Part("none"),), Part("adamw"), seed=3)
RECIPES = (CompressionRecipe(), CompressionRecipe(prune=Part.of("structured", pruning_ratio=0.5)))


def test_states_and_roles_keep_their_stored_names() -> None:
    assert [*State] == ["running", "paused", "complete", "stopped", "infeasible", "failed"]
    assert [*Role] == ["search", "baseline", "confirm"]
    assert State("stopped") is State.STOPPED
    assert f"{Role.CONFIRM}" == "confirm"


def test_a_job_trains_to_the_end_as_part_of_the_search_by_default() -> None:
    job = Job(0, TRAINING, RECIPES)
    assert (job.role, job.rung, job.until, job.base, job.paused) == (Role.SEARCH, None, None, None, b"")


def test_jobs_compare_by_what_they_ask_for_and_not_by_stored_bytes() -> None:
    job = Job(0, TRAINING, RECIPES, base=BaseCheckpoint("t0p0", None, 5))
    loaded = replace(job, paused=b"state", base=BaseCheckpoint("t0p0", None, 5, content=b"weights"))
    assert loaded == job
    assert replace(job, until=2) != job
    assert replace(job, base=BaseCheckpoint("t0p1", None, 5)) != job


def test_the_text_of_a_record_holds_no_bytes() -> None:
    base = BaseCheckpoint("t0p0", None, 5, content=b"weights")
    result = TrialResult(0, State.PAUSED, paused=b"training state")
    assert "weights" not in repr(Job(0, TRAINING, RECIPES, base=base, paused=b"training state"))
    assert "training state" not in repr(result)


def test_records_reach_another_process_unchanged() -> None:
    candidate = Candidate("t0c1", 0, TRAINING, 5, {"select_val": {"accuracy": 0.9}}, {"bytes": 10.0})
    result = TrialResult(0, State.COMPLETE, (candidate,), 1.5, checkpoints={"t0p0": b"weights"}, paused=b"state")
    assert pickle.loads(pickle.dumps(result)) == result
    job = Job(1, TRAINING, RECIPES, Role.BASELINE, paused=b"state")
    assert pickle.loads(pickle.dumps(job)).paused == b"state"


def test_records_are_frozen_and_recipes_can_be_keys() -> None:
    with pytest.raises(FrozenInstanceError):
        RECIPES[0].prune = None  # type: ignore[misc]
    assert {*RECIPES, CompressionRecipe()} == {*RECIPES}
