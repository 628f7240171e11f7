"""The harm of ``benchmarks.faults`` that takes seconds, in its smallest size; the whole of it is run by hand."""

from pathlib import Path

import pytest

from benchmarks.faults.mutants import MUTANTS, ROOT, Mutant
from benchmarks.faults.power import Disk
from benchmarks.faults.rows import ROWS, SMALL_ROWS

# The others start processes for longer, or repeat what tests of their modules check.
TESTED_ROWS = (1, 2, 6, 7, 8, 9, 13, 15, 24)


@pytest.mark.slow
@pytest.mark.parametrize("row", TESTED_ROWS)
def test_what_must_hold_holds(row: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    result = SMALL_ROWS[row](folder)
    if result.measured.startswith("not measured"):
        pytest.skip(result.measured)
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
