from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Cut
from autocompress.engine.scheduler.compute_cost import OUTPUT, STEP_OVERHEAD, epochs_of, epochs_of_fit, size_at

COSTS = {"flops": 1e6, "layers": 10.0, "activations": 0.0}


def training(*terms: str, batch_size: int = 64) -> CompressionConfig:
    fit = Part.of("adamw", batch_size=batch_size, epochs=12)
    return CompressionConfig(Part("cnn"), tuple(Part(term) for term in terms), fit)


def test_small_students_are_not_free() -> None:
    """A step starts kernels for each layer, however little they have to do."""
    assert size_at({**COSTS, "flops": 0.0}, training("none")) == STEP_OVERHEAD * 10 / 64
    assert size_at(COSTS, training("none")) - size_at({**COSTS, "flops": 0.0}, training("none")) == 1e6


def test_outputs_take_time_on_their_way_through_memory() -> None:
    assert size_at({**COSTS, "activations": 100.0}, training("none")) == size_at(COSTS, training("none")) + 100 * OUTPUT


def test_large_batches_take_fewer_steps() -> None:
    assert size_at(COSTS, training("none", batch_size=8)) > size_at(COSTS, training("none", batch_size=64))


def test_a_term_that_reads_the_teachers_layers_runs_the_teacher_too() -> None:
    on_logits = size_at(COSTS, training("soft_target"))
    assert on_logits == size_at(COSTS, training("none"))
    assert size_at(COSTS, training("relational", "soft_target")) > 1.5 * on_logits


def test_layers_that_were_not_counted_are_taken_for_a_few() -> None:
    assert 0 < size_at({"flops": 0.0}, training("none")) < 10 * size_at({**COSTS, "flops": 0.0}, training("none"))


def test_epochs_are_those_of_the_fit_and_of_what_trains_in_a_cut() -> None:
    assert epochs_of_fit(training("none").fit) == 12
    assert epochs_of(Cut()) == 0
    assert epochs_of(Cut(Part.of("structured", recovery_epochs=3), Part.of("lsq", epochs=5))) == 8
