from dataclasses import replace

import pytest

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Base, Cut, Job
from autocompress.engine.segments import Segments

PRUNE = Part.of("structured", pruning_ratio=0.5, recovery_epochs=6)
LSQ = Part.of("lsq", epochs=4)
CUTS = (Cut(), *(Cut(quantize=Part.of("post_training", weight_bits=bits)) for bits in range(2, 9)))


def whole(epochs: int) -> Job:
    return Job(3, CompressionConfig(Part("cnn"), (Part("none"),), Part.of("adamw", epochs=epochs)), CUTS)


@pytest.mark.parametrize("rungs", [0, 1, 2])
@pytest.mark.parametrize("epochs", [1, 2, 9, 30])
def test_the_segments_of_a_training_make_up_the_whole(rungs: int, epochs: int) -> None:
    segments, job = Segments(rungs, CUTS), whole(epochs)
    steps = segments.steps(job.training)
    assert len(steps) <= rungs
    parts = [segments.of(job, rung) for rung in range(len(steps) + 1)]
    assert [part.until for part in parts] == [*steps, None]
    assert sum(segments.epochs(part) for part in parts) == epochs
    assert segments.left(parts[0]) == epochs
    assert segments.left(parts[-1]) == segments.epochs(parts[-1])
    # All cuts are made at the end, some on the way.
    assert parts[-1].cuts == CUTS
    assert all(0 < len(part.cuts) < len(CUTS) for part in parts[:-1])


def test_a_training_that_never_pauses_is_at_no_rung() -> None:
    assert Segments(0, CUTS).of(whole(30), 0).rung is None
    assert Segments(2, CUTS).of(whole(1), 0).rung is None


def test_a_further_cut_takes_its_own_epochs_and_not_what_was_done_before() -> None:
    base = Base("t2p0", None, 30)
    job = replace(whole(30), base=base, cuts=(Cut(PRUNE), Cut(PRUNE, LSQ)))
    # Pruned once for both, and one of them trains under the rounding.
    assert Segments(2, CUTS).epochs(job) == 6 + 4
    again = replace(job, base=replace(base, prune=PRUNE), cuts=(Cut(PRUNE, LSQ),))
    assert Segments(2, CUTS).epochs(again) == 4
