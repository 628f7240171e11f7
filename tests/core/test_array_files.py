"""Arrays in NPZ files: equal to NumPy's, and refused by name where a file says more than it holds."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from autocompress.core import array_files
from autocompress.core.array_files import list_arrays, open_array, read_arrays


def write_header(path: Path, shape: tuple[int, ...], kind: str = "<f4", values: bytes = bytes(64)) -> Path:
    """Write an NPZ file whose array ``x`` declares a shape."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": kind, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + values)
    return path


def change_entry(path: Path, offset: int, value: int) -> None:
    """Change a byte of the local and of the central header of the first entry."""
    content = bytearray(path.read_bytes())
    content[content.find(b"PK\x03\x04") + offset - 2] = value
    content[content.find(b"PK\x01\x02") + offset] = value
    path.write_bytes(content)


def break_stream(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:200] + b"\xff" * 99 + content[299:])


def test_arrays_are_those_of_numpy(tmp_path: Path) -> None:
    stored = {"x": np.arange(6.0).reshape(2, 3), "texts": np.array(["a", "bc"]), "one": np.array(7), "f": np.eye(3).T}
    np.savez_compressed(tmp_path / "a.npz", **stored)
    arrays = read_arrays(tmp_path / "a.npz")
    assert set(arrays) == set(stored) == set(list_arrays(tmp_path / "a.npz"))
    for name, values in stored.items():
        np.testing.assert_array_equal(arrays[name], values)
    assert set(read_arrays(tmp_path / "a.npz", ["x", "absent"])) == {"x"}
    file, shape, dtype = open_array(tmp_path / "a.npz", "x")
    assert (shape, dtype) == ((2, 3), np.float64)
    np.testing.assert_array_equal(np.frombuffer(file.read(48)), np.arange(6.0))


@pytest.mark.parametrize("shape", [(2**30, 2**10), (2**62, 2**62), (-1, 4), (-1, -16), (0, 2**60), (15,)])
def test_an_array_that_declares_another_size_is_refused_before_it_is_made(tmp_path: Path, shape: tuple[int]) -> None:
    path = write_header(tmp_path / "x.npz", shape)
    for read in (lambda: read_arrays(path), lambda: open_array(path, "x")):
        with pytest.raises(ValueError, match="and the file has 64"):
            read()


def test_arrays_larger_than_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros(2000), y=np.zeros(2000))
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 5, "SC_PAGE_SIZE": 4096}.__getitem__)
    with pytest.raises(ValueError, match=r"take 32\.\d KB, and this machine has 20\.5 KB of memory"):
        read_arrays(tmp_path / "x.npz")
    assert len(read_arrays(tmp_path / "x.npz", ["x"])["x"]) == 2000


def test_damage_is_a_message_of_one_line_whatever_the_library_raises(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((40, 40))
    damages = {
        "no archive": lambda path: path.write_bytes(b"text"),
        "encrypted": lambda path: change_entry(path, 8, 1),
        "unknown compression": lambda path: change_entry(path, 10, 97),
        "broken stream": break_stream,
        "objects": lambda path: np.savez(path, x=np.array([print], dtype=object)),
        "no header": lambda path: zipfile.ZipFile(path, "w").writestr("x.npy", b"\x80\x04"),
    }
    for name, damage in damages.items():
        path = tmp_path / f"{name}.npz"
        np.savez_compressed(path, x=rows)
        damage(path)
        with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
            read_arrays(path)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npz")
    for read in (read_arrays, list_arrays, lambda path: array_files.open_array(path, "x")):
        with pytest.raises(OSError, match="not a regular file"):
            read(tmp_path / "x.npz")
