"""Rungs, promotion, early stopping and the compute budget of asynchronous successive halving."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import BaseCheckpoint, Candidate, CompressionRecipe, Job, State
from autocompress.engine.scheduler.asha import (
    LARGE_RUNG,
    MAX_PAUSED,
    MIN_TRIALS_TO_STOP,
    RUNG_QUANTIZATIONS,
    AshaScheduler,
    ComputeBudget,
    rung_epochs,
    select_rung_recipes,
)
from autocompress.engine.scheduler.compute_cost import STEP_OVERHEAD
from autocompress.engine.scheduler.promotion import ParetoRank
from autocompress.store.schema import StoredTrial
from tests.fakes import fake_result

FIT = Part.of("adamw", epochs=27)
PRUNE = Part.of("structured", pruning_ratio=0.5, recovery_epochs=6)
LSQ = Part.of("lsq", epochs=4)
GRID = (
    CompressionRecipe(),
    *(CompressionRecipe(quantize=Part.of("post_training", weight_bits=bits)) for bits in range(2, 9)),
)


def make_trial(
    number: int, width: int = 8, epochs: int = 27, recipes: tuple[CompressionRecipe, ...] = (CompressionRecipe(),)
) -> Job:
    fit = Part.of("adamw", epochs=epochs)
    return Job(number, CompressionConfig(Part.of("cnn", width=width), (Part("none"),), fit, seed=number), recipes)


def normalize(candidates: Sequence[Candidate]) -> NDArray[np.float64]:
    costs = [np.log10(candidate.costs["effective_flops"]) / 8 for candidate in candidates]
    return np.column_stack([[1 - candidate.scores["search_val"]["accuracy"] for candidate in candidates], costs])


def make_scheduler(
    reference_student: Part | None = None,
    max_rungs: int = 2,
    recipes: Sequence[CompressionRecipe] = (CompressionRecipe(),),
) -> AshaScheduler:
    return AshaScheduler(ParetoRank(), max_rungs, recipes, 0, normalize, reference_student)


def run_segment(scheduler: AshaScheduler, segment: Job) -> None:
    candidates = fake_result(segment).candidates
    scheduler.record_compute(segment, candidates)
    if segment.until is not None:
        scheduler.pause_trial(segment, candidates)


# -- points at rungs, without any training ----------------------------------------------------


def read_points(candidates: Sequence[Candidate]) -> NDArray[np.float64]:
    return np.array([[candidate.scores["search_val"]["error"], candidate.costs["cost"]] for candidate in candidates])


def pause(scheduler: AshaScheduler, number: int, rung: int, error: float, cost: float, flops: float = 0.0) -> None:
    """Pause a trial at a rung with one candidate, whose training takes so many FLOPs."""
    if number not in scheduler.active_trials:
        scheduler.add_trial(make_trial(number))
    segment = scheduler.make_segment(scheduler.active_trials[number], rung)
    scores = {"search_val": {"error": error}}
    candidate = Candidate(f"t{number}c0", number, segment.training, 3, scores, {"cost": cost, "flops": flops})
    scheduler.record_compute(segment, [candidate])
    scheduler.pause_trial(segment, [candidate])


def paused_scheduler(count: int, reference_student: Part | None = None) -> AshaScheduler:
    """Return a scheduler in which trial 0 is the best in everything, and each later one is worse."""
    scheduler = AshaScheduler(ParetoRank(), 2, (CompressionRecipe(),), 0, read_points, reference_student)
    for trial in range(count):
        pause(scheduler, trial, 0, 0.1 + trial / 1000, 0.1 + trial / 1000)
    return scheduler


def paused_trials(scheduler: AshaScheduler) -> list[int]:
    return list(scheduler.next_segments)


def promote(scheduler: AshaScheduler) -> tuple[int, int] | None:
    """Promote the trial at the highest rung, and return its number and rung."""
    promotable = scheduler.promotable_trials.items()
    trial, rung = min(promotable, key=lambda item: (-item[1], item), default=(None, 0))
    if trial is None:
        return None
    scheduler.resume_trial(trial)
    return trial, rung


@pytest.mark.parametrize(
    ("epochs", "expected"), [(0, ()), (1, ()), (2, (1,)), (4, (1, 2)), (9, (1, 3)), (15, (2, 5)), (90, (10, 30))]
)
def test_a_trial_pauses_at_a_ninth_and_a_third(epochs: int, expected: tuple[int, ...]) -> None:
    assert rung_epochs(epochs) == expected


def test_the_first_trial_at_a_rung_is_promoted_at_once() -> None:
    scheduler = paused_scheduler(1)
    assert promote(scheduler) == (0, 0)
    assert promote(scheduler) is None
    assert paused_trials(scheduler) == []


def test_a_third_is_promoted_and_more_as_others_arrive() -> None:
    scheduler = paused_scheduler(6)
    assert [promote(scheduler) for _ in range(3)] == [(0, 0), (1, 0), None]
    for trial in range(6, 9):
        pause(scheduler, trial, 0, 0.9, 0.9)
    assert promote(scheduler) == (2, 0)


@pytest.mark.parametrize("cheapest", [0, 1])
def test_the_promotable_trial_with_the_cheapest_segment_is_next(cheapest: int) -> None:
    scheduler = AshaScheduler(ParetoRank(), 2, (CompressionRecipe(),), 0, read_points)
    for trial in range(6):
        flops = 1e9 if trial < 2 and trial != cheapest else 1e6
        pause(scheduler, trial, 0, 0.1 + trial / 100, 0.1 + trial / 100, flops)
    assert scheduler.promotable_trials == {0: 0, 1: 0}
    segment = scheduler.next_promotion()
    assert segment is not None
    assert (segment.number, segment.rung) == (cheapest, 1)
    # Selecting it changes nothing.
    assert scheduler.next_promotion() == segment


def test_a_trial_is_promoted_from_rung_to_rung() -> None:
    scheduler = paused_scheduler(6)
    assert promote(scheduler) == (0, 0)
    pause(scheduler, 0, 1, 0.05, 0.05)
    assert promote(scheduler) == (0, 1)
    assert promote(scheduler) == (1, 0)


def test_trials_far_behind_are_stopped_and_the_others_stay_paused() -> None:
    assert paused_scheduler(MIN_TRIALS_TO_STOP - 1).stop_poor_trials() == []
    # Three of nine are promoted, and the other six are few enough to stay paused.
    assert paused_scheduler(9).stop_poor_trials() == []
    scheduler = paused_scheduler(24)
    # Eight are promoted; of the other sixteen, the best six stay paused.
    assert scheduler.stop_poor_trials() == list(range(14, 24))
    assert paused_trials(scheduler) == list(range(14))
    assert scheduler.stop_paused_trials() == list(range(14))
    assert scheduler.stop_reasons[14].endswith("epochs): ranked behind the promoted trials and those next in line")
    assert scheduler.stop_reasons[13].startswith("at rung 1 (")
    assert scheduler.stop_reasons[13].endswith("epochs): not promoted before the search ended")
    assert promote(scheduler) is None
    assert scheduler.active_trials == {}


def test_the_reference_trial_is_promoted_whatever_its_rank() -> None:
    scheduler = paused_scheduler(8, reference_student=Part.of("cnn", width=64))
    scheduler.add_trial(make_trial(8, width=64))
    pause(scheduler, 8, 0, 0.18, 0.18)
    assert 8 not in scheduler.stop_poor_trials()
    promotions = []
    while (promotion := promote(scheduler)) is not None:
        promotions.append(promotion)
    assert promotions[-1] == (8, 0)


def test_a_rung_scores_the_uncompressed_model_first_and_a_few_quantizations() -> None:
    bits = [Part.of("post_training", weight_bits=b) for b in range(2, 9)]
    pruned = CompressionRecipe(Part.of("structured", pruning_ratio=0.5, recovery_epochs=0))
    recipes = (CompressionRecipe(), *(CompressionRecipe(quantize=part) for part in bits), pruned)
    selected = select_rung_recipes(recipes)
    assert selected[0] == CompressionRecipe()
    assert len(selected) == 1 + RUNG_QUANTIZATIONS
    assert {selected[1].quantize, selected[-1].quantize} == {bits[0], bits[-1]}
    assert all(recipe.prune is None for recipe in selected)
    assert select_rung_recipes(recipes[:3]) == recipes[:3]


@pytest.mark.parametrize("count", [LARGE_RUNG, LARGE_RUNG + 1, 400])
def test_however_many_arrive_few_stay_paused(count: int) -> None:
    scheduler = paused_scheduler(count)
    while promote(scheduler) is not None:
        pass
    stopped = scheduler.stop_poor_trials()
    assert len(paused_trials(scheduler)) <= MAX_PAUSED
    # Those that stay paused are the next in line.
    assert max(paused_trials(scheduler)) < min(stopped)


def test_at_a_large_rung_trials_are_stopped_in_groups() -> None:
    scheduler = paused_scheduler(400)
    while promote(scheduler) is not None:
        pass
    scheduler.stop_poor_trials()
    next_in_line = paused_trials(scheduler)
    for trial in range(400, 400 + 2 * MAX_PAUSED + 1 - len(next_in_line)):
        assert scheduler.stop_poor_trials() == []
        pause(scheduler, trial, 0, 0.8 + trial / 10000, 0.8 + trial / 10000)
    assert len(scheduler.stop_poor_trials()) > MAX_PAUSED / 2
    assert set(paused_trials(scheduler)) <= set(next_in_line)


# -- segments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("max_rungs", [0, 1, 2])
@pytest.mark.parametrize("epochs", [1, 2, 9, 30])
def test_the_segments_of_a_trial_make_up_the_whole(max_rungs: int, epochs: int) -> None:
    scheduler = make_scheduler(max_rungs=max_rungs, recipes=GRID)
    trial = make_trial(3, epochs=epochs, recipes=GRID)
    pauses = rung_epochs(epochs, max_rungs)
    assert len(pauses) <= max_rungs
    segments = [scheduler.make_segment(trial, rung) for rung in range(len(pauses) + 1)]
    assert [segment.until for segment in segments] == [*pauses, None]
    assert sum(scheduler.count_job_epochs(segment) for segment in segments) == epochs
    assert scheduler.count_remaining_epochs(segments[0]) == epochs
    assert scheduler.count_remaining_epochs(segments[-1]) == scheduler.count_job_epochs(segments[-1])
    # All recipes are applied at the end, some at the rungs.
    assert segments[-1].recipes == GRID
    assert all(0 < len(segment.recipes) < len(GRID) for segment in segments[:-1])


def test_a_trial_that_never_pauses_is_at_no_rung() -> None:
    assert make_scheduler(max_rungs=0, recipes=GRID).make_segment(make_trial(3, epochs=30), 0).rung is None
    assert make_scheduler(max_rungs=2, recipes=GRID).make_segment(make_trial(3, epochs=1), 0).rung is None


def test_a_refinement_takes_its_own_epochs_and_not_those_before() -> None:
    base = BaseCheckpoint("t2p0", None, 30)
    job = replace(
        make_trial(3, epochs=30), base=base, recipes=(CompressionRecipe(PRUNE), CompressionRecipe(PRUNE, LSQ))
    )
    scheduler = make_scheduler(recipes=GRID)
    # Pruned once for both, and one of them trains with quantization.
    assert scheduler.count_job_epochs(job) == 6 + 4
    pruned = replace(job, base=replace(base, prune=PRUNE), recipes=(CompressionRecipe(PRUNE, LSQ),))
    assert scheduler.count_job_epochs(pruned) == 4


def test_a_trial_runs_segment_by_segment() -> None:
    scheduler = make_scheduler()
    scheduler.add_trial(make_trial(0))
    run_segment(scheduler, scheduler.make_segment(scheduler.active_trials[0], 0))
    segment = scheduler.next_promotion()
    assert segment is not None
    assert (segment.rung, segment.until, scheduler.count_remaining_epochs(segment)) == (1, 9, 24)
    assert scheduler.next_segments == {0: segment}
    scheduler.resume_trial(segment.number)
    assert not scheduler.next_segments
    run_segment(scheduler, segment)
    last = scheduler.next_promotion()
    assert last is not None
    assert (last.until, scheduler.count_remaining_epochs(last)) == (None, 18)


def test_the_reference_trial_waits_for_the_compute_of_others_or_for_the_time_limit() -> None:
    scheduler = make_scheduler(Part.of("cnn", width=64))
    for number, width in enumerate((64, 4, 4)):
        scheduler.add_trial(make_trial(number, width))
        segment = scheduler.make_segment(scheduler.active_trials[number], 0)
        candidates = [
            replace(candidate, costs={**candidate.costs, "flops": 1e5 * width})
            for candidate in fake_result(segment).candidates
        ]
        scheduler.record_compute(segment, candidates)
        scheduler.pause_trial(segment, candidates)
    assert scheduler.due_reference_segment(lambda cost: False) is None
    costs: list[float] = []
    due = scheduler.due_reference_segment(lambda cost: bool(costs.append(cost)) or True)
    assert due is not None
    assert due.number == 0
    assert costs[0] > scheduler.budget.estimate_cost(1, 24) * 2


def test_without_a_reference_student_no_reference_trial_is_due() -> None:
    scheduler = make_scheduler()
    scheduler.add_trial(make_trial(0, width=64))
    run_segment(scheduler, scheduler.make_segment(scheduler.active_trials[0], 0))
    assert scheduler.due_reference_segment(lambda cost: True) is None


def test_passed_rungs_are_replayed_from_the_store() -> None:
    scheduler = make_scheduler()
    scheduler.add_trial(make_trial(0))
    segments = [scheduler.make_segment(scheduler.active_trials[0], rung) for rung in range(2)]
    candidates = [candidate for segment in segments for candidate in fake_result(segment).candidates]
    stored = StoredTrial(segments[1], State.PAUSED, None, 1, 1.0, 1.0)
    replayed = [(epochs, len(partial)) for epochs, partial in scheduler.replay_rungs(stored, candidates)]
    assert replayed == [(3, 1)]


# -- compute budget ---------------------------------------------------------------------------

CONFIG = CompressionConfig(Part("cnn"), (Part("none"),), Part.of("adamw", batch_size=60))
# With one layer, a step's overhead is 7e6 / 60 for an example.
OVERHEAD = STEP_OVERHEAD / 60
SMALL = Candidate("t0c0", 0, CONFIG, 3, {}, {"flops": 2e6 - OVERHEAD, "layers": 1.0})
LARGE = replace(SMALL, id="t1c0", trial=1, costs={"flops": 10e6 - OVERHEAD, "layers": 1.0})


def test_a_large_trial_may_use_half_of_the_compute_of_all_others() -> None:
    budget = ComputeBudget()
    for trial, candidate in ((0, SMALL), (1, LARGE), (2, SMALL)):
        budget.record_epoch_cost(trial, candidate)
        budget.record_epochs(trial, 1)
    # Ten for an epoch of the large one, two for one of a small one: it has used ten, and needs twenty more.
    assert not budget.can_promote(1, 2)
    budget.record_epochs(0, 27)
    assert not budget.can_promote(1, 2)
    budget.record_epochs(2, 1)
    assert budget.can_promote(1, 2)
    assert budget.estimate_cost(1, 2) == pytest.approx(20e6)


def test_a_trial_of_median_cost_waits_for_no_other() -> None:
    budget = ComputeBudget()
    budget.record_epoch_cost(0, SMALL)
    assert budget.can_promote(0, 1000)
    budget.record_epoch_cost(1, LARGE)
    assert budget.can_promote(0, 1000)


def test_a_trial_of_unknown_cost_waits_for_no_other() -> None:
    assert ComputeBudget().can_promote(3, 100)


def test_a_new_trial_may_use_as_much_compute_as_all_others() -> None:
    budget = ComputeBudget()
    assert budget.can_start(1e9)
    budget.record_epoch_cost(0, SMALL)
    budget.record_epochs(0, 10)
    assert budget.can_start(19e6)
    assert not budget.can_start(21e6)
