"""SMAC3 as a sampler of Optuna proposes values of each kind, and better ones than chance."""

import optuna
import pytest

pytest.importorskip("smac")

from benchmarks.smac_sampler import STARTUP, SMACSampler

TRIALS = 20


def evaluate(trial: optuna.Trial) -> tuple[float, float]:
    width = trial.suggest_int("width", 1, 64, log=True)
    rate = trial.suggest_float("rate", 1e-3, 1.0, log=True)
    method = trial.suggest_categorical("method", [None, "l1", "l2"])
    if method is not None:
        trial.suggest_float("ratio", 0.1, 0.9)  # not in every trial, so it is drawn at random
    trial.suggest_categorical("only", [3])
    return 1 - 1 / width - abs(rate - 0.03) - 0.3 * (method != "l2"), width


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # SMAC calls what ConfigSpace deprecates
def test_proposals_are_values_of_the_space_and_better_than_chance() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=SMACSampler(0))
    study.optimize(evaluate, n_trials=TRIALS)
    assert len(study.trials) == TRIALS
    share = [trial.params["method"] == "l2" for trial in study.trials]
    assert sum(share[STARTUP:]) / (TRIALS - STARTUP) > 0.5
