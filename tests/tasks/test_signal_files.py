from pathlib import Path

import numpy as np
import pytest

from autocompress.errors import UsageError
from autocompress.tasks.signal_files import read_series


def test_a_csv_file_may_name_its_label_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("\ufeffa,kind,b\r\n1,up,-2.5\r\n\r\n3e1,down,4\r\n".encode())
    series = read_series(path, "kind")
    assert series.values.tolist() == [[[1, -2.5]], [[30, 4]]]
    assert series.labels == ("up", "down")


def test_a_tsv_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("label\t0\t1\n7\t1\t2\n")
    assert read_series(path, "label").values.tolist() == [[[1, 2]]]


def test_an_npz_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(12).reshape(3, 4), y=[0, 1, 0])
    series = read_series(tmp_path / "a.npz", "")
    assert series.values.shape == (3, 1, 4)
    assert series.values.dtype == np.float32
    assert series.labels == ("0", "1", "0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.csv:1: no column 'label'"),
        ("lable,a\n", "did you mean 'lable'?"),
        ("label,a\n", "contains no series"),
        ("label\nup\n", "contains no series"),
        ("label,a,b\nup,1,2\nup,1\n", "a.csv:3: 2 fields, but the header has 3"),
        ("label,a\nup,1\nup,two\n", "a.csv:3: .*'two'"),
        ("label,a\nup,\n", "a.csv:2: "),
        ("label,a\nup,nan\n", "a.csv:2: a value is missing or not finite"),
        ("label,a\nup,1e300\n", "a.csv:2: a value is missing or not finite"),
        ("label,a\n,1\n", "a.csv:2: the label is empty"),
    ],
)
def test_a_csv_file_that_cannot_be_used_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_series(path, "label")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((3, 4))}, "arrays x and y"),
        ({"x": np.zeros((3, 4)), "y": np.zeros(2)}, r"x is \[3, 4\] and y \[2\]"),
        ({"x": np.zeros(3), "y": np.zeros(3)}, r"x is \[3\]"),
        ({"x": np.array([[1.0], [np.inf]]), "y": np.zeros(2)}, r"x\[1\] contains a value"),
        ({"x": np.array([[1e300]]), "y": np.zeros(1)}, r"x\[0\] contains a value"),
        ({"x": np.array([["a"]]), "y": np.zeros(1)}, "arrays x and y"),
        ({"x": np.zeros((3, 4), complex), "y": np.zeros(3)}, "x has the type complex128, not numbers"),
        ({"x": np.zeros((3, 4), "datetime64[s]"), "y": np.zeros(3)}, r"x has the type datetime64\[s\], not numbers"),
        ({"x": np.zeros((0, 4)), "y": np.zeros(0)}, "contains no series"),
        ({"x": np.array([object()]), "y": np.zeros(1)}, "arrays x and y"),
    ],
)
def test_an_npz_file_that_cannot_be_used_is_named(tmp_path: Path, arrays, message: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.raises(UsageError, match=message):
        read_series(path, "label")


@pytest.mark.parametrize("name", ["a.npz", "a.csv", "a.parquet"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\xff\xfe\x00 nothing of the kind"])
def test_files_of_another_kind_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=name):
        read_series(path, "label")
