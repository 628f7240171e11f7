from dataclasses import replace

import pytest

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Candidate
from autocompress.engine.scheduler.compute_budget import Spending
from autocompress.engine.scheduler.compute_cost import STEP_OVERHEAD, TEACHER_PASS, size_of

CONFIG = CompressionConfig(Part("cnn"), (Part("none"),), Part.of("adamw", batch_size=60))
# With one layer, a step's overhead is 7e6 / 60 for an example.
OVERHEAD = STEP_OVERHEAD / 60
SMALL = Candidate("t0c0", 0, CONFIG, 3, {}, {"flops": 2e6 - OVERHEAD, "layers": 1.0})
BIG = replace(SMALL, id="t1c0", trial=1, costs={"flops": 10e6 - OVERHEAD, "layers": 1.0})


def test_a_large_student_takes_half_of_what_all_others_did() -> None:
    spending = Spending()
    for trial, candidate in ((0, SMALL), (1, BIG), (2, SMALL)):
        spending.size(trial, candidate)
        spending.spend(trial, 1)
    # Ten for an epoch of the large one, two for one of a small one: it had ten, and wants twenty more.
    assert not spending.allows(1, 2)
    spending.spend(0, 27)
    assert not spending.allows(1, 2)
    spending.spend(2, 1)
    assert spending.allows(1, 2)
    assert spending.effort(1, 2) == pytest.approx(20e6)


def test_a_student_of_median_size_waits_for_nobody() -> None:
    spending = Spending()
    spending.size(0, SMALL)
    assert spending.allows(0, 1000)
    spending.size(1, BIG)
    assert spending.allows(0, 1000)


def test_a_small_student_is_not_free() -> None:
    tiny = replace(SMALL, costs={"flops": 0.0, "layers": 3.0})
    assert size_of(tiny) == pytest.approx(3 * STEP_OVERHEAD / 60)
    larger_steps = replace(tiny, config=replace(CONFIG, fit=Part.of("adamw", batch_size=600)))
    assert size_of(larger_steps) == pytest.approx(3 * STEP_OVERHEAD / 600)


def test_a_term_that_reads_the_teachers_layers_takes_its_time() -> None:
    """It runs the teacher at every step, which takes as long as some layers of a student."""
    reading = replace(SMALL, config=replace(CONFIG, distill=(Part("none"), Part("relational"))))
    assert size_of(reading) - size_of(SMALL) == pytest.approx(TEACHER_PASS * OVERHEAD)
    soft = replace(SMALL, config=replace(CONFIG, distill=(Part("soft_target"),)))
    assert size_of(soft) == size_of(SMALL)


def test_what_was_never_sized_waits_for_nobody() -> None:
    assert Spending().allows(3, 100)


def test_what_has_not_begun_may_take_as_much_as_all_others() -> None:
    spending = Spending()
    assert spending.affords(1e9)
    spending.size(0, SMALL)
    spending.spend(0, 10)
    assert spending.affords(19e6)
    assert not spending.affords(21e6)
