"""Promotion rules, replayed on recorded trials (`python -m benchmarks.rungs`): the loss by early stopping."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import pytest
from numpy.typing import NDArray

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Candidate, CompressionRecipe, Job
from autocompress.core.registry import PROMOTION_RULES
from autocompress.engine.scheduler.asha import AshaScheduler
from autocompress.engine.scheduler.promotion import PromotionRule

RECORD: dict[str, Any] = json.loads((Path(__file__).parent / "rungs.json").read_text())
TRIALS: list[dict[str, Any]] = RECORD["trainings"]
ORDERS = range(20)
#: Share of the epochs of all trials.
BUDGET = 0.4
MAX_REGRET = 0.01
CONFIG = CompressionConfig(Part("cnn"), (Part("none"),), Part.of("adamw", epochs=27))


def read_points(trial: int, rung: int) -> NDArray[np.float64]:
    return np.array(TRIALS[trial]["rungs"][rung]["points"])


def count_epochs(trial: int, rung: int) -> int:
    reached = [0, *(rung_record["epochs"] for rung_record in TRIALS[trial]["rungs"])]
    return int(reached[rung + 1] - reached[rung])


def compute_hypervolume(trials: list[int]) -> float:
    rows = np.vstack([read_points(trial, -1) for trial in trials])
    return float(moocore.hypervolume(rows, ref=np.ones(2)))


def normalize(candidates: Sequence[Candidate]) -> NDArray[np.float64]:
    """Return the recorded points of a trial at the rung where its candidate was made."""
    return read_points(candidates[0].trial, candidates[0].epochs)


def replay(rule: PromotionRule, order: NDArray[np.int64], budget: float) -> float:
    """Return the hypervolume of the trials that one worker has completed when the epochs are spent."""
    scheduler = AshaScheduler(rule, 2, (CompressionRecipe(),), RECORD["score"], normalize)
    queue, spent, complete = order.tolist(), 0, []
    while True:
        # The trial at the highest rung comes first.
        promotable = min(scheduler.promotable_trials.items(), key=lambda item: (-item[1], item), default=None)
        if promotable is not None:
            scheduler.resume_trial(promotable[0])
        if promotable is None and not queue:
            break
        trial, rung = (queue.pop(0), 0) if promotable is None else (promotable[0], promotable[1] + 1)
        spent += count_epochs(trial, rung)
        if spent > budget:
            break
        if rung == len(TRIALS[trial]["rungs"]) - 1:
            complete.append(trial)
        else:
            candidate = Candidate(f"t{trial}c0", trial, CONFIG, rung, {}, {}, complete=False)
            segment = Job(trial, CONFIG, (CompressionRecipe(),), rung=rung)
            if promotable is None:
                scheduler.add_trial(segment)
            scheduler.pause_trial(segment, [candidate])
            scheduler.stop_poor_trials()
    return compute_hypervolume(complete) if complete else 0.0


def compute_regret(name: str) -> float:
    """Return the missing share of the hypervolume of all trials, on average over orders of arrival."""
    whole = compute_hypervolume(list(range(len(TRIALS))))
    budget = BUDGET * sum(trial["rungs"][-1]["epochs"] for trial in TRIALS)
    orders = [np.random.default_rng(seed).permutation(len(TRIALS)) for seed in ORDERS]
    return float(np.mean([whole - replay(PROMOTION_RULES.get(name)(), order, budget) for order in orders]))


def test_the_record_holds_every_rung_of_some_tens_of_trials() -> None:
    assert len(TRIALS) >= 30
    assert {len(trial["rungs"]) for trial in TRIALS} == {3}


@pytest.mark.slow
def test_the_default_rule_has_a_small_regret() -> None:
    regret = {name: compute_regret(name) for name in ("pareto_rank", "always", "best_score")}
    print({name: round(value, 4) for name, value in regret.items()})
    assert regret["pareto_rank"] <= MAX_REGRET
    assert regret["pareto_rank"] < regret["always"]
    assert regret["pareto_rank"] < regret["best_score"]


@pytest.mark.parametrize("name", ["pareto_rank", "always", "best_score"])
def test_with_epochs_for_everything_no_more_is_spent_than_there_is(name: str) -> None:
    order = np.arange(len(TRIALS))
    reached = replay(PROMOTION_RULES.get(name)(), order, float("inf"))
    whole = compute_hypervolume(order.tolist())
    assert reached <= whole + 1e-12
    assert name != "always" or reached == pytest.approx(whole)
