from dataclasses import replace

import pytest

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Candidate, CompressionRecipe
from autocompress.engine.scheduler.compute_cost import (
    FLOPS_PER_OUTPUT,
    STEP_OVERHEAD,
    TEACHER_PASS_LAYERS,
    candidate_epoch_cost,
    count_fit_epochs,
    count_recipe_epochs,
    estimate_epoch_cost,
)

CONFIG = CompressionConfig(Part("cnn"), (Part("none"),), Part.of("adamw", batch_size=60))
# With one layer, a step's overhead is 7e6 / 60 for an example.
OVERHEAD = STEP_OVERHEAD / 60
SMALL = Candidate("t0c0", 0, CONFIG, 3, {}, {"flops": 2e6 - OVERHEAD, "layers": 1.0})
COSTS = {"flops": 1e6, "layers": 10.0, "activations": 0.0}


def training(*terms: str, batch_size: int = 64) -> CompressionConfig:
    fit = Part.of("adamw", batch_size=batch_size, epochs=12)
    return CompressionConfig(Part("cnn"), tuple(Part(term) for term in terms), fit)


def test_small_students_are_not_free() -> None:
    """A step starts kernels for each layer, however little they have to do."""
    assert estimate_epoch_cost({**COSTS, "flops": 0.0}, training("none")) == STEP_OVERHEAD * 10 / 64
    assert (
        estimate_epoch_cost(COSTS, training("none")) - estimate_epoch_cost({**COSTS, "flops": 0.0}, training("none"))
        == 1e6
    )


def test_a_model_of_embeddings_alone_is_not_free_either() -> None:
    assert estimate_epoch_cost({"flops": 0.0, "activations": 0.0, "layers": 0.0}, training("none")) > 0


def test_the_outputs_of_layers_cost_memory_traffic() -> None:
    assert (
        estimate_epoch_cost({**COSTS, "activations": 100.0}, training("none"))
        == estimate_epoch_cost(COSTS, training("none")) + 100 * FLOPS_PER_OUTPUT
    )


def test_large_batches_take_fewer_steps() -> None:
    assert estimate_epoch_cost(COSTS, training("none", batch_size=8)) > estimate_epoch_cost(
        COSTS, training("none", batch_size=64)
    )


def test_a_term_that_reads_the_teachers_layers_costs_more_than_one_on_logits() -> None:
    on_logits = estimate_epoch_cost(COSTS, training("soft_target"))
    assert on_logits == estimate_epoch_cost(COSTS, training("none"))
    assert estimate_epoch_cost(COSTS, training("relational", "soft_target")) > 1.5 * on_logits


def test_a_default_number_of_layers_is_assumed_where_they_were_not_counted() -> None:
    assert (
        0
        < estimate_epoch_cost({"flops": 0.0}, training("none"))
        < 10 * estimate_epoch_cost({**COSTS, "flops": 0.0}, training("none"))
    )


def test_epochs_are_those_of_the_fit_and_of_steps_that_train() -> None:
    assert count_fit_epochs(training("none").fit) == 12
    assert count_recipe_epochs(CompressionRecipe()) == 0
    assert (
        count_recipe_epochs(CompressionRecipe(Part.of("structured", recovery_epochs=3), Part.of("lsq", epochs=5))) == 8
    )


def test_the_overhead_of_a_step_is_shared_by_its_batch() -> None:
    tiny = replace(SMALL, costs={"flops": 0.0, "layers": 3.0})
    assert candidate_epoch_cost(tiny) == pytest.approx(3 * STEP_OVERHEAD / 60)
    larger_steps = replace(tiny, config=replace(CONFIG, fit=Part.of("adamw", batch_size=600)))
    assert candidate_epoch_cost(larger_steps) == pytest.approx(3 * STEP_OVERHEAD / 600)


def test_a_term_that_reads_the_teachers_layers_costs_a_teacher_pass() -> None:
    """It runs the teacher at every step, which takes as long as some layers of a student."""
    reading = replace(SMALL, config=replace(CONFIG, distill=(Part("none"), Part("relational"))))
    difference = candidate_epoch_cost(reading) - candidate_epoch_cost(SMALL)
    assert difference == pytest.approx(TEACHER_PASS_LAYERS * OVERHEAD)
    soft = replace(SMALL, config=replace(CONFIG, distill=(Part("soft_target"),)))
    assert candidate_epoch_cost(soft) == candidate_epoch_cost(SMALL)
