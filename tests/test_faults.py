"""The harm of ``benchmarks.faults`` that takes seconds, in its smallest size; the whole of it is run by hand."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from benchmarks.faults.__main__ import ROWS
from benchmarks.faults.drivers import kill_drivers, start_second_driver
from benchmarks.faults.injection import FaultResult
from benchmarks.faults.mutants import MUTANTS, ROOT, Mutant
from benchmarks.faults.power import Disk
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


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.guard)
def test_every_mutant_takes_out_a_guard_that_is_there(mutant: Mutant, tmp_path: Path) -> None:
    path = tmp_path / mutant.path
    path.parent.mkdir(parents=True)
    path.write_bytes((ROOT / mutant.path).read_bytes())
    mutant.apply(tmp_path)
    compile(path.read_text(), mutant.path, "exec")
    assert path.read_text() != (ROOT / mutant.path).read_text()
    assert set(mutant.rows) <= set(ROWS)
    with pytest.raises(ValueError, match="occurs 0 times"):
        mutant.apply(tmp_path)


def encode(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def test_a_power_loss_leaves_what_was_synced() -> None:
    disk = Disk()
    root, new, old = (f"5<{encode(path)}>" for path in ("/run", "/run/.new", "/run/old"))
    paths = f'"{encode("/run/.new")}", "{encode("/run/old")}"'

    def list_files() -> dict[str, bytes]:
        return {name: node.synced for name, node in disk.synced_names.items()}

    disk.apply("openat", f'AT_FDCWD, "{encode("/run/old")}", O_WRONLY|O_CREAT|O_TRUNC, 0666', 5)
    disk.apply("write", f'{old}, "{encode("first")}", 5', 5)
    disk.apply("fsync", old, 0)
    assert list_files() == {}
    disk.apply("fsync", root, 0)
    assert list_files() == {"/run/old": b"first"}
    disk.apply("openat", f'AT_FDCWD, "{encode("/run/.new")}", O_RDWR|O_CREAT|O_EXCL, 0666', 5)
    disk.apply("write", f'{new}, "{encode("second")}", 6', 6)
    disk.apply("rename", paths, 0)
    assert list_files() == {"/run/old": b"first"}
    # Without the sync of the file, its new name refers to nothing.
    disk.apply("fsync", root, 0)
    assert list_files() == {"/run/old": b""}
    disk.apply("pwrite64", f'{old}, "{encode("!")}", 1, 6', 1)
    disk.apply("fdatasync", old, 0)
    assert list_files() == {"/run/old": b"second!"}
    disk.apply("ftruncate", f"{old}, 3", 0)
    disk.apply("fsync", old, 0)
    disk.apply("unlink", f'"{encode("/run/old")}"', 0)
    assert list_files() == {"/run/old": b"sec"}
    disk.apply("fsync", root, 0)
    assert list_files() == {}
