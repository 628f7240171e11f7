from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Candidate, Cut, Job
from autocompress.engine.archive import Archive
from autocompress.engine.refinement import Move, Refinement, divided
from tests.fakes import OBJECTIVES

HALF = Part.of("structured", pruning_ratio=0.5, recovery_epochs=3)
FREE = Part.of("structured", pruning_ratio=0.25, recovery_epochs=0)
EIGHT = Part.of("post_training", weight_bits=8, activation_bits=8)
LSQ = Part.of("lsq", weight_bits=2, activation_bits=4, epochs=2)
GRID = tuple(Cut(prune, quantize) for prune in (None, HALF, FREE) for quantize in (None, EIGHT, LSQ))
COST = "effective_flops"
ARCHIVE = Archive(OBJECTIVES)


def training(number: int) -> CompressionConfig:
    return CompressionConfig(
        Part.of("cnn", width=8 + number), (Part("none"),), Part.of("adamw", epochs=10), seed=number
    )


def candidate(trial: int, checkpoint: str, cut: Cut, score: float, cost: float) -> Candidate:
    config = replace(training(trial), prune=cut.prune, quantize=cut.quantize)
    scores = {"search_val": {"accuracy": score}}
    name = f"t{trial}c{abs(hash(cut)) % 10**6}"
    return Candidate(name, trial, config, 10, scores, {"effective_flops": cost}, checkpoint=checkpoint)


def whole(trial: int, score: float, cost: float) -> list[Candidate]:
    name = f"t{trial}p0"
    return [
        candidate(trial, name, Cut(), score, cost),
        candidate(trial, name, Cut(None, EIGHT), score - 0.01, cost / 16),
    ]


def refinement(share: float = 10.0) -> Refinement:
    found = Refinement(GRID, share, ARCHIVE.normalised)
    found.train(10)
    return found


def ask(found: Refinement, candidates: list[Candidate]) -> Job | None:
    archive = Archive(OBJECTIVES)
    archive.add(candidates)
    front, owners = archive.normalised_front()
    return found.next(front, owners, 99)


def test_what_trains_nothing_is_cut_at_once_and_the_rest_becomes_moves() -> None:
    cheap, moves = divided(GRID)
    assert cheap == [Cut(), Cut(None, EIGHT), Cut(FREE), Cut(FREE, EIGHT)]
    assert moves == [Move(HALF, None, 3.0), Move(None, LSQ, 2.0)]


def test_each_move_is_tried_once_where_most_of_the_front_comes_from() -> None:
    found = refinement()
    points = [*whole(0, 0.9, 1e4), candidate(1, "t1p0", Cut(), 0.95, 1e5)]
    found.add(0, points, 0.01)
    first = ask(found, points)
    assert first is not None
    assert first.base is not None
    assert (first.number, first.base.checkpoint) == (99, "t0p0")
    assert first.cuts == (Cut(HALF), Cut(HALF, EIGHT))
    assert first.training == training(0)
    found.begin(first)
    second = ask(found, points)
    assert second is not None
    assert second.cuts == (Cut(None, LSQ),)
    found.begin(second)
    # Nothing is known of what they give yet, so there is nothing to expect.
    assert ask(found, points) is None


def learned(drop: float) -> tuple[Refinement, list[Candidate]]:
    """Both moves were seen on trial 0: pruning halves the cost and loses ``drop``, LSQ ruins it."""
    found = refinement()
    points = whole(0, 0.9, 1e4)
    points += [
        candidate(0, "t5p0", Cut(HALF), 0.9 - drop, 5e3),
        candidate(0, "t5p0", Cut(HALF, EIGHT), 0.9 - drop, 312),
    ]
    points += [candidate(0, "t0p0", Cut(None, LSQ), 0.1, 78)]
    found.add(0, points, 0.01)
    for job in (
        Job(5, training(0), (Cut(HALF),), base=_base("t0p0")),
        Job(6, training(0), (Cut(None, LSQ),), base=_base("t0p0")),
    ):
        found.begin(job)
    return found, points


def _base(name: str):  # type: ignore[no-untyped-def]
    from autocompress.core.records import Base

    return Base(name, None, 10)


def test_what_helped_one_checkpoint_is_expected_of_another() -> None:
    found, points = learned(0.01)
    points += whole(1, 0.95, 4e4)
    found.add(1, points[-2:], 0.01)
    job = ask(found, points)
    assert job is not None
    assert job.base is not None
    assert (job.base.checkpoint, job.cuts[0]) == ("t1p0", Cut(HALF))


def test_what_ruined_one_checkpoint_is_not_done_to_another() -> None:
    found, points = learned(0.6)
    points += whole(1, 0.95, 4e4)
    found.add(1, points[-2:], 0.01)
    assert ask(found, points) is None


def test_further_cuts_keep_to_their_share_of_the_epochs() -> None:
    found = refinement(share=0.4)
    points = whole(0, 0.9, 1e4)
    found.add(0, points, 0.01)
    count = 0
    while (job := ask(found, points)) is not None:
        found.begin(job)
        count += 1
    # Three epochs of four, and then two more: the first that goes over is the last.
    assert count == 2
    assert refinement(share=0.0).next(np.ones((1, 2)), ["t0p0"], 0) is None


def test_a_model_that_was_pruned_is_only_quantized() -> None:
    found, points = learned(0.01)
    jobs = []
    while (job := ask(found, points)) is not None and len(jobs) < 9:
        found.begin(job)
        jobs.append(job)
    assert all((job.base is not None and job.base.prune is None) or job.cuts[0].prune == HALF for job in jobs)


def test_candidates_under_way_are_not_cut_further() -> None:
    found = refinement()
    partial = [replace(each, complete=False, checkpoint="") for each in whole(0, 0.9, 1e4)]
    found.add(0, partial, 0.01)
    front: NDArray[np.float64] = np.array([[0.2, 0.2]])
    assert found.next(front, ["t0p0"], 1) is None


def test_where_trainings_add_more_for_their_epochs_they_come_first() -> None:
    found, points = learned(0.01)
    points += whole(1, 0.95, 4e4)
    # A tenth of the box in each epoch: no cut promises as much.
    found.add(1, points[-2:], 10.0)
    assert ask(found, points) is None
    found.all_trained()
    assert ask(found, points) is not None


def priced(saving: float) -> Refinement:
    """Return a refinement over two settings of one method, the second of which saves more."""
    other = Part.of("structured", pruning_ratio=0.75, recovery_epochs=3)
    grid = tuple(Cut(prune) for prune in (None, HALF, other))
    found = Refinement(grid, 10.0, ARCHIVE.normalised, lambda training, cuts: [{"effective_flops": saving}])
    found.train(10)
    return found


def test_another_setting_of_a_method_is_made_where_what_it_saves_pays() -> None:
    for price, expected in ((1e2, 0.75), (9e3, None)):
        found = priced(price)
        points = [candidate(0, "t0p0", Cut(), 0.9, 1e4)]
        found.add(0, points, 0.01)
        first = ask(found, points)
        assert first is not None
        assert first.cuts == (Cut(HALF),)
        found.begin(first)
        points.append(candidate(0, "t99p0", Cut(HALF), 0.89, 5e3))
        found.add(99, points[-1:], 0.01)
        found.all_trained()
        # The cut that was made has lost a point of accuracy; the other one is expected to lose no less.
        second = ask(found, points)
        assert (second is None) == (expected is None)
        if second is not None and second.cuts[0].prune is not None:
            assert second.cuts[0].prune.values["pruning_ratio"] == expected


def test_what_is_remembered_between_choices_changes_none() -> None:
    draw = np.random.default_rng(0)
    found, points = learned(0.02)
    chosen = 0
    for trial in range(1, 40):
        # Ever larger and better, so that many of them are on the front.
        new = whole(trial, 0.55 + trial / 100 + float(draw.uniform(0, 0.01)), 10 ** (3 + trial / 20))
        points += new
        found.add(trial, new, 0.0)
        ask(found, points)
        remembered = ask(found, points)
        found._gains, found._gains_of = {}, ()
        assert ask(found, points) == remembered
        if remembered is not None:
            chosen += 1
            found.begin(remembered)
            cost = new[0].costs[COST] / 2
            less = candidate(trial, f"t{trial}p1", Cut(HALF), 0.55 + trial / 100 - float(draw.uniform(0, 0.04)), cost)
            found.add(100 + trial, [less], 0.0)
            points.append(less)
    assert chosen > 5
