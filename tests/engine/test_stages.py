"""The sequential baseline: architecture, pruning, quantization, each on the choice of the stage before."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Candidate, CompressionRecipe, Job
from autocompress.engine.refinement import SequentialRefinement

HALF, MORE = (Part.of("structured", pruning_ratio=ratio) for ratio in (0.5, 0.75))
EIGHT, FOUR = (Part.of("post_training", weight_bits=bits) for bits in (8, 4))
GRID = tuple(CompressionRecipe(prune, quantize) for prune in (None, HALF, MORE) for quantize in (None, EIGHT, FOUR))
NOTHING: NDArray[np.float64] = np.empty((0, 2))


def make_stages() -> SequentialRefinement:
    return SequentialRefinement(
        GRID,
        0.02,
        lambda candidate: np.array([1 - score(candidate), candidate.costs["flops"]]),
        score,
        1,
    )


def score(candidate: Candidate) -> float:
    return candidate.scores["search_val"]["accuracy"]


WHOLE = CompressionRecipe()


def candidate(width: int, accuracy: float, recipe: CompressionRecipe = WHOLE, name: str = "") -> Candidate:
    training = CompressionConfig(Part.of("cnn", width=width), (Part("none"),), Part.of("adamw", epochs=9), seed=width)
    config = replace(training, prune=recipe.prune, quantize=recipe.quantize)
    scores = {"search_val": {"accuracy": accuracy}}
    return Candidate(f"t{width}", width, config, 9, scores, {"flops": width**2.0}, checkpoint=name or f"w{width}")


def select_and_start(refinement: SequentialRefinement, number: int = 50) -> Job | None:
    job = refinement.select_job(NOTHING, [], number)
    if job is not None:
        refinement.record_start(job)
    return job


def test_no_refinement_runs_while_architectures_are_trained() -> None:
    refinement = make_stages()
    refinement.record_result(0, [candidate(8, 0.9)], 0.0)
    assert refinement.immediate_recipes == (CompressionRecipe(),)
    assert select_and_start(refinement) is None


def test_the_later_stages_count_their_epochs_and_one_for_each_step_that_trains_nothing() -> None:
    cut, recovered = (Part.of("structured", pruning_ratio=0.5, recovery_epochs=epochs) for epochs in (0, 7))
    trained = Part.of("qat", weight_bits=4, epochs=3)
    grid = [
        CompressionRecipe(prune, quantize) for prune in (None, cut, recovered) for quantize in (None, EIGHT, trained)
    ]
    refinement = SequentialRefinement(grid, 0.02, lambda candidate: np.zeros(2), score, 1)
    assert refinement.later_epochs == 1 + 7 + 1 + 3


def test_the_cheapest_that_loses_little_is_pruned_and_then_quantized() -> None:
    refinement = make_stages()
    for width, accuracy in ((32, 0.95), (16, 0.94), (8, 0.90)):
        refinement.record_result(width, [candidate(width, accuracy)], 0.0)
    refinement.end_trials()
    prunings = [select_and_start(refinement, 50), select_and_start(refinement, 51)]
    assert [job and job.recipes for job in prunings] == [(CompressionRecipe(HALF),), (CompressionRecipe(MORE),)]
    assert {job.base.checkpoint for job in prunings if job is not None and job.base is not None} == {"w16"}
    # Quantization waits for both prunings.
    refinement.record_result(
        50, [replace(candidate(16, 0.935, CompressionRecipe(HALF), "half"), costs={"flops": 100.0})], 0.0
    )
    assert select_and_start(refinement) is None
    refinement.record_result(
        51, [replace(candidate(16, 0.80, CompressionRecipe(MORE), "more"), costs={"flops": 20.0})], 0.0
    )
    quantizations = [select_and_start(refinement, 52), select_and_start(refinement, 53)]
    assert [job and job.recipes for job in quantizations] == [
        (CompressionRecipe(HALF, EIGHT),),
        (CompressionRecipe(HALF, FOUR),),
    ]
    assert {job.base.checkpoint for job in quantizations if job is not None and job.base is not None} == {"half"}
    assert select_and_start(refinement) is None


def test_the_unpruned_model_is_quantized_where_pruning_fails() -> None:
    refinement = make_stages()
    refinement.record_result(8, [candidate(8, 0.9)], 0.0)
    refinement.end_trials()
    for number in (50, 51):
        assert select_and_start(refinement, number) is not None
        refinement.record_result(number, [], 0.0)
    job = select_and_start(refinement)
    assert job is not None
    assert job.recipes == (CompressionRecipe(None, EIGHT),)
