from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Candidate, Cut, Job, State
from autocompress.engine.climbing import Climb
from autocompress.engine.scheduler.promotion import ParetoRank
from autocompress.store.schema import StoredTrial
from tests.fakes import fake_result

FIT = Part.of("adamw", epochs=27)


def whole(number: int, width: int) -> Job:
    return Job(number, CompressionConfig(Part.of("cnn", width=width), (Part("none"),), FIT, seed=number), (Cut(),))


def normalised(candidates: Sequence[Candidate]) -> np.ndarray:
    costs = [np.log10(each.costs["effective_flops"]) / 8 for each in candidates]
    return np.column_stack([[1 - each.scores["search_val"]["accuracy"] for each in candidates], costs])


def climb(sure: Part | None = None) -> Climb:
    return Climb(ParetoRank(), 2, (Cut(),), 0, normalised, sure)


def up(found: Climb, job: Job) -> None:
    candidates = fake_result(job).candidates
    found.note(job, candidates)
    if job.until is not None:
        found.pause(job, candidates)


def test_a_training_climbs_segment_by_segment() -> None:
    found = climb()
    found.enter(whole(0, 8))
    up(found, found.segments.of(found.trainings[0], 0))
    job = found.promoted()
    assert job is not None
    assert (job.rung, job.until, found.segments.left(job)) == (1, 9, 24)
    assert found.ups == {0: job}
    found.go_on(job)
    assert not found.ups
    up(found, job)
    last = found.promoted()
    assert last is not None
    assert (last.until, found.segments.left(last)) == (None, 18)


def test_the_one_that_always_ends_waits_for_the_others_or_for_the_time() -> None:
    found = climb(Part.of("cnn", width=64))
    for number, width in enumerate((64, 4, 4)):
        found.enter(whole(number, width))
        job = found.segments.of(found.trainings[number], 0)
        weighed = [replace(each, costs={**each.costs, "flops": 1e5 * width}) for each in fake_result(job).candidates]
        found.note(job, weighed)
        found.pause(job, weighed)
    assert found.owed(lambda effort: False) is None
    asked: list[float] = []
    owed = found.owed(lambda effort: bool(asked.append(effort)) or True)
    assert owed is not None
    assert owed.number == 0
    assert asked[0] > found.spending.effort(1, 24) * 2


def test_without_such_a_student_nothing_is_owed() -> None:
    found = climb()
    found.enter(whole(0, 64))
    up(found, found.segments.of(found.trainings[0], 0))
    assert found.owed(lambda effort: True) is None


def test_rungs_below_are_found_again_in_the_store() -> None:
    found = climb()
    found.enter(whole(0, 8))
    segments = [found.segments.of(found.trainings[0], rung) for rung in range(2)]
    candidates = [each for job in segments for each in fake_result(job).candidates]
    stored = StoredTrial(segments[1], State.PAUSED, None, 1, 1.0, 1.0)
    assert [(epochs, len(cut)) for epochs, cut in found.passed(stored, candidates)] == [(3, 1)]
