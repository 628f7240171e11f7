"""The benchmark on NAS-Bench-201 runs the samplers as a search does, on a table that is made up here."""

from itertools import product

import numpy as np
import pytest

from autocompress.core.registry import STUDENTS
from benchmarks import nas_bench
from benchmarks.nas_bench import FAMILY, VARIANTS, CellTable, measure, render, run_search


@pytest.fixture(scope="module")
def table() -> CellTable:
    """Return a table in which convolutions add accuracy and size, and pooling nothing."""
    rows = {cell: row for row, cell in enumerate(product(range(5), repeat=6))}
    size = np.array([0.0, 0.0, 0.1, 0.9, 0.0])
    use = np.array([0.0, 0.3, 0.5, 1.0, 0.1])
    cells = np.array(list(rows))
    values = np.column_stack([0.3 + 0.6 * np.tanh(use[cells].mean(axis=1)), 0.1 + size[cells].sum(axis=1)])
    return CellTable(0.5, rows, values)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_searches_evaluate_no_cell_twice_and_repeat_themselves(table: CellTable) -> None:
    regrets = {}
    for sampler in ("surrogate", "random"):
        rows, seconds = run_search(table, sampler, 0, 60)
        assert len(set(rows)) == len(rows) == 60
        assert seconds > 0
        regrets[sampler] = table.compute_hypervolume(range(len(table.values))) - table.compute_hypervolume(rows)
    assert rows == run_search(table, "random", 0, 60)[0]
    assert rows != run_search(table, "random", 1, 60)[0]
    assert 0 <= regrets["surrogate"] < regrets["random"]
    # The family is registered for the time of a search alone.
    assert FAMILY not in STUDENTS


def test_variants_switch_existing_parts_off() -> None:
    for parts in VARIANTS.values():
        assert all(type(getattr(module, constant)) is type(value) for module, constant, value in parts)
    assert len(VARIANTS["surrogate without these parts"]) == len(VARIANTS) - 1


def test_hypervolume_is_a_share_of_the_box() -> None:
    values = np.array([[0.9, 1.0], [0.7, 0.1], [0.2, 0.01]])
    box = CellTable(0.5, {}, values)
    # The second cell reaches half of the accuracy at the middle of the logarithms; the third one lies below it.
    assert box.compute_hypervolume([1]) == pytest.approx(0.25)
    assert box.compute_hypervolume([0, 2]) == 0.0
    assert box.compute_hypervolume([0, 1, 2]) == pytest.approx(0.25)


def test_a_row_has_the_regret_at_each_number_of_evaluations(table: CellTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nas_bench, "EVALUATIONS", (5, 20))
    monkeypatch.setattr(nas_bench, "load_table", lambda dataset: table)
    rows = [measure("cifar100", "random", seed) for seed in range(2)]
    assert all(row["regrets"]["5"] >= row["regrets"]["20"] >= 0 for row in rows)
    (line,) = render(rows).splitlines()[2:]
    mean = (rows[0]["regrets"]["20"] + rows[1]["regrets"]["20"]) / 2
    assert line.startswith("| CIFAR-100 | random | 2 | ")
    assert f"| {mean:.4f} ± " in line
