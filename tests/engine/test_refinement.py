from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import BaseCheckpoint, Candidate, CompressionRecipe, Job
from autocompress.engine.archive import Archive
from autocompress.engine.refinement import Refinement, RefinementStep, split_recipes
from tests.fakes import OBJECTIVES

HALF = Part.of("structured", pruning_ratio=0.5, recovery_epochs=3)
FREE = Part.of("structured", pruning_ratio=0.25, recovery_epochs=0)
EIGHT = Part.of("post_training", weight_bits=8, activation_bits=8)
LSQ = Part.of("lsq", weight_bits=2, activation_bits=4, epochs=2)
GRID = tuple(CompressionRecipe(prune, quantize) for prune in (None, HALF, FREE) for quantize in (None, EIGHT, LSQ))
COST = "effective_flops"
ARCHIVE = Archive(OBJECTIVES)


def training(number: int) -> CompressionConfig:
    return CompressionConfig(
        Part.of("cnn", width=8 + number), (Part("none"),), Part.of("adamw", epochs=10), seed=number
    )


def candidate(trial: int, checkpoint: str, recipe: CompressionRecipe, score: float, cost: float) -> Candidate:
    config = replace(training(trial), prune=recipe.prune, quantize=recipe.quantize)
    scores = {"search_val": {"accuracy": score}}
    name = f"t{trial}c{abs(hash(recipe)) % 10**6}"
    return Candidate(name, trial, config, 10, scores, {"effective_flops": cost}, checkpoint=checkpoint)


def unpruned_candidates(trial: int, score: float, cost: float) -> list[Candidate]:
    name = f"t{trial}p0"
    return [
        candidate(trial, name, CompressionRecipe(), score, cost),
        candidate(trial, name, CompressionRecipe(None, EIGHT), score - 0.01, cost / 16),
    ]


def make_refinement(share: float = 10.0) -> Refinement:
    refinement = Refinement(GRID, share, ARCHIVE.normalize)
    refinement.record_training(10)
    return refinement


def select_job(refinement: Refinement, candidates: list[Candidate]) -> Job | None:
    archive = Archive(OBJECTIVES)
    archive.add(candidates)
    front, owners = archive.front_points()
    return refinement.select_job(front, owners, 99)


def test_recipes_that_train_nothing_are_immediate_and_the_others_become_steps() -> None:
    immediate, steps = split_recipes(GRID)
    assert immediate == [
        CompressionRecipe(),
        CompressionRecipe(None, EIGHT),
        CompressionRecipe(FREE),
        CompressionRecipe(FREE, EIGHT),
    ]
    assert steps == [RefinementStep(HALF, None, 3.0), RefinementStep(None, LSQ, 2.0)]


def test_each_step_is_tried_once_on_the_checkpoint_with_most_of_the_front() -> None:
    refinement = make_refinement()
    points = [*unpruned_candidates(0, 0.9, 1e4), candidate(1, "t1p0", CompressionRecipe(), 0.95, 1e5)]
    refinement.record_result(0, points, 0.01)
    first = select_job(refinement, points)
    assert first is not None
    assert first.base is not None
    assert (first.number, first.base.checkpoint) == (99, "t0p0")
    assert first.recipes == (CompressionRecipe(HALF), CompressionRecipe(HALF, EIGHT))
    assert first.training == training(0)
    refinement.record_start(first)
    second = select_job(refinement, points)
    assert second is not None
    assert second.recipes == (CompressionRecipe(None, LSQ),)
    refinement.record_start(second)
    # No result is known yet, so no gain can be predicted.
    assert select_job(refinement, points) is None


def refinement_with_history(drop: float) -> tuple[Refinement, list[Candidate]]:
    """Both steps were run on trial 0: pruning halves the cost and loses ``drop``, LSQ ruins it."""
    refinement = make_refinement()
    points = unpruned_candidates(0, 0.9, 1e4)
    points += [
        candidate(0, "t5p0", CompressionRecipe(HALF), 0.9 - drop, 5e3),
        candidate(0, "t5p0", CompressionRecipe(HALF, EIGHT), 0.9 - drop, 312),
    ]
    points += [candidate(0, "t0p0", CompressionRecipe(None, LSQ), 0.1, 78)]
    refinement.record_result(0, points, 0.01)
    for job in (
        Job(5, training(0), (CompressionRecipe(HALF),), base=_base("t0p0")),
        Job(6, training(0), (CompressionRecipe(None, LSQ),), base=_base("t0p0")),
    ):
        refinement.record_start(job)
    return refinement, points


def _base(name: str) -> BaseCheckpoint:
    return BaseCheckpoint(name, None, 10)


def test_a_step_that_helped_one_checkpoint_is_selected_for_another() -> None:
    refinement, points = refinement_with_history(0.01)
    points += unpruned_candidates(1, 0.95, 4e4)
    refinement.record_result(1, points[-2:], 0.01)
    job = select_job(refinement, points)
    assert job is not None
    assert job.base is not None
    assert (job.base.checkpoint, job.recipes[0]) == ("t1p0", CompressionRecipe(HALF))


def test_a_step_that_ruined_one_checkpoint_is_not_selected_for_another() -> None:
    refinement, points = refinement_with_history(0.6)
    points += unpruned_candidates(1, 0.95, 4e4)
    refinement.record_result(1, points[-2:], 0.01)
    assert select_job(refinement, points) is None


def test_refinements_keep_to_their_share_of_the_epochs() -> None:
    refinement = make_refinement(share=0.4)
    points = unpruned_candidates(0, 0.9, 1e4)
    refinement.record_result(0, points, 0.01)
    count = 0
    while (job := select_job(refinement, points)) is not None:
        refinement.record_start(job)
        count += 1
    # Three epochs of four, and then two more: the first that goes over is the last.
    assert count == 2
    assert make_refinement(share=0.0).select_job(np.ones((1, 2)), ["t0p0"], 0) is None


def test_a_pruned_model_is_only_quantized() -> None:
    refinement, points = refinement_with_history(0.01)
    jobs = []
    while (job := select_job(refinement, points)) is not None and len(jobs) < 9:
        refinement.record_start(job)
        jobs.append(job)
    assert all((job.base is not None and job.base.prune is None) or job.recipes[0].prune == HALF for job in jobs)


def test_candidates_of_incomplete_trials_are_not_refined() -> None:
    refinement = make_refinement()
    partial = [replace(measured, complete=False, checkpoint="") for measured in unpruned_candidates(0, 0.9, 1e4)]
    refinement.record_result(0, partial, 0.01)
    front: NDArray[np.float64] = np.array([[0.2, 0.2]])
    assert refinement.select_job(front, ["t0p0"], 1) is None


def test_trials_come_first_where_they_add_more_for_their_epochs() -> None:
    refinement, points = refinement_with_history(0.01)
    points += unpruned_candidates(1, 0.95, 4e4)
    # A very large gain per epoch: no refinement is predicted to add as much.
    refinement.record_result(1, points[-2:], 10.0)
    assert select_job(refinement, points) is None
    refinement.end_trials()
    assert select_job(refinement, points) is not None


def refinement_with_costs(saving: float) -> Refinement:
    """Return a refinement over two settings of one method, the second of which saves more."""
    other = Part.of("structured", pruning_ratio=0.75, recovery_epochs=3)
    grid = tuple(CompressionRecipe(prune) for prune in (None, HALF, other))
    refinement = Refinement(grid, 10.0, ARCHIVE.normalize, lambda training, recipes: [{"effective_flops": saving}])
    refinement.record_training(10)
    return refinement


def test_another_setting_of_a_method_is_selected_where_its_saving_is_worth_it() -> None:
    for price, expected in ((1e2, 0.75), (9e3, None)):
        refinement = refinement_with_costs(price)
        points = [candidate(0, "t0p0", CompressionRecipe(), 0.9, 1e4)]
        refinement.record_result(0, points, 0.01)
        first = select_job(refinement, points)
        assert first is not None
        assert first.recipes == (CompressionRecipe(HALF),)
        refinement.record_start(first)
        points.append(candidate(0, "t99p0", CompressionRecipe(HALF), 0.89, 5e3))
        refinement.record_result(99, points[-1:], 0.01)
        refinement.end_trials()
        # The step that ran has lost a point of accuracy; the other one is predicted to lose no less.
        second = select_job(refinement, points)
        assert (second is None) == (expected is None)
        if second is not None and second.recipes[0].prune is not None:
            assert second.recipes[0].prune.values["pruning_ratio"] == expected


def test_cached_gains_change_no_selection() -> None:
    draw = np.random.default_rng(0)
    refinement, points = refinement_with_history(0.02)
    chosen = 0
    for trial in range(1, 40):
        # Ever larger and better, so that many of them are on the front.
        new = unpruned_candidates(trial, 0.55 + trial / 100 + float(draw.uniform(0, 0.01)), 10 ** (3 + trial / 20))
        points += new
        refinement.record_result(trial, new, 0.0)
        select_job(refinement, points)
        remembered = select_job(refinement, points)
        refinement._gains, refinement._gains_key = {}, ()
        assert select_job(refinement, points) == remembered
        if remembered is not None:
            chosen += 1
            refinement.record_start(remembered)
            cost = new[0].costs[COST] / 2
            less = candidate(
                trial, f"t{trial}p1", CompressionRecipe(HALF), 0.55 + trial / 100 - float(draw.uniform(0, 0.04)), cost
            )
            refinement.record_result(100 + trial, [less], 0.0)
            points.append(less)
    assert chosen > 5
