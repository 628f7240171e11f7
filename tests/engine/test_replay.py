"""Promotion rules, replayed on recorded trainings (`python -m benchmarks.rungs`): what is lost by stopping early."""

import json
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import pytest
from numpy.typing import NDArray

from autocompress.core.registry import PROMOTION_RULES
from autocompress.engine.scheduler.asha import Ladder
from autocompress.engine.scheduler.promotion import PromotionRule

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "rungs.json").read_text())
TRAININGS: list[dict[str, Any]] = RECORDED["trainings"]
ORDERS = range(20)
#: Share of the epochs of all trainings.
BUDGET = 0.4
ALLOWED = 0.01


def points(trial: int, rung: int) -> NDArray[np.float64]:
    return np.array(TRAININGS[trial]["rungs"][rung]["points"])


def epochs(trial: int, rung: int) -> int:
    reached = [0, *(each["epochs"] for each in TRAININGS[trial]["rungs"])]
    return int(reached[rung + 1] - reached[rung])


def volume(trials: list[int]) -> float:
    rows = np.vstack([points(trial, -1) for trial in trials])
    return float(moocore.hypervolume(rows, ref=np.ones(2)))


def replay(rule: PromotionRule, order: NDArray[np.int64], budget: float) -> float:
    """Return the hypervolume of what one worker has trained to its end when the epochs are spent."""
    ladder = Ladder(rule, RECORDED["score"])
    waiting, spent, complete = order.tolist(), 0, []
    while True:
        found = ladder.next(lambda trial, rung: -rung)
        if found is not None:
            ladder.take(found[0])
        if found is None and not waiting:
            break
        trial, rung = (waiting.pop(0), 0) if found is None else (found[0], found[1] + 1)
        spent += epochs(trial, rung)
        if spent > budget:
            break
        if rung == len(TRAININGS[trial]["rungs"]) - 1:
            complete.append(trial)
        else:
            ladder.note(trial, rung, points(trial, rung))
            ladder.pause(trial, rung)
            ladder.hopeless()
    return volume(complete) if complete else 0.0


def regret(name: str) -> float:
    """Return what is missing to the hypervolume of all trainings, on average over orders of arrival."""
    whole = volume(list(range(len(TRAININGS))))
    budget = BUDGET * sum(each["rungs"][-1]["epochs"] for each in TRAININGS)
    orders = [np.random.default_rng(seed).permutation(len(TRAININGS)) for seed in ORDERS]
    return float(np.mean([whole - replay(PROMOTION_RULES.get(name)(), order, budget) for order in orders]))


def test_the_record_holds_every_rung_of_some_tens_of_trainings() -> None:
    assert len(TRAININGS) >= 30
    assert {len(each["rungs"]) for each in TRAININGS} == {3}


def test_the_default_rule_loses_little() -> None:
    lost = {name: regret(name) for name in ("pareto_rank", "always", "best_score")}
    print({name: round(value, 4) for name, value in lost.items()})
    assert lost["pareto_rank"] <= ALLOWED
    assert lost["pareto_rank"] < lost["always"]
    assert lost["pareto_rank"] < lost["best_score"]


@pytest.mark.parametrize("name", ["pareto_rank", "always", "best_score"])
def test_with_epochs_for_everything_no_more_is_spent_than_there_is(name: str) -> None:
    order = np.arange(len(TRAININGS))
    reached = replay(PROMOTION_RULES.get(name)(), order, float("inf"))
    whole = volume(order.tolist())
    assert reached <= whole + 1e-12
    assert name != "always" or reached == pytest.approx(whole)
