"""The harm of ``benchmarks.faults`` that takes seconds, in its smallest size; the whole of it is run by hand."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from benchmarks.faults.__main__ import ROWS
from benchmarks.faults.drivers import kill_drivers, start_second_driver
from benchmarks.faults.injection import FaultResult
from benchmarks.faults.stores import count_checkpoints, damage_store, fill_disk
from benchmarks.faults.workers import check_bad_results, fail_all_trials, kill_workers

SMALL: dict[str, Callable[[Path], FaultResult]] = {
    "killed drivers": partial(kill_drivers, kills=1, trials=8, points=["after the files of a result, before its rows"]),
    "killed workers": partial(kill_workers, trials=6, killed=2),
    "second driver": start_second_driver,
    "damaged store": partial(damage_store, cuts=3, flips=20),
    "full disk": fill_disk,
    "bad results": partial(check_bad_results, tables=50),
    "hopeless": fail_all_trials,
    "checkpoints": partial(count_checkpoints, trials=20),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_what_must_hold_holds(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    result = SMALL[name](folder)
    assert result.passed, result.measured


def test_every_row_says_what_it_does() -> None:
    assert all((fault.__doc__ or "").startswith(f"Row {row}: ") for row, fault in ROWS.items())
