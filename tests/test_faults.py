"""The harm of ``benchmarks.faults`` that takes seconds, in its smallest size; the whole of it is run by hand."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from benchmarks.faults.__main__ import ROWS
from benchmarks.faults.drivers import killed_drivers, second_driver
from benchmarks.faults.harm import Figure
from benchmarks.faults.stores import checkpoints, damaged_store, full_disk
from benchmarks.faults.workers import bad_results, hopeless, killed_workers

SMALL: dict[str, Callable[[Path], Figure]] = {
    "killed drivers": partial(
        killed_drivers, kills=1, trials=8, points=["after the files of a result, before its rows"]
    ),
    "killed workers": partial(killed_workers, trials=6, killed=2),
    "second driver": second_driver,
    "damaged store": partial(damaged_store, cuts=3, flips=20),
    "full disk": full_disk,
    "bad results": partial(bad_results, tables=50),
    "hopeless": hopeless,
    "checkpoints": partial(checkpoints, trials=20),
}


@pytest.mark.parametrize("name", SMALL)
def test_what_must_hold_holds(name: str, tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir()
    figure = SMALL[name](place)
    assert figure.held, figure.found


def test_every_row_says_what_it_does() -> None:
    assert all((harm.__doc__ or "").startswith(f"Row {row}: ") for row, harm in ROWS.items())
