"""Labeled series, read from CSV and NPZ files."""

import csv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autocompress.core.array_files import read_arrays
from autocompress.core.untrusted import check_data_file
from autocompress.errors import UsageError, did_you_mean
from autocompress.tasks.mapped_arrays import require_file_memory

DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Series:
    """Labeled series.

    Attributes:
        values: Finite values, ``[N, C, L]``; shorter series are filled with zeros.
        labels: Class of each series, as text.
        keys: Group or time of each series, as text; empty if the file is read without such a column.
        locations: Location of each series in the file, for messages.
        lengths: Number of points of each series, ``[N]``; None if all have L.
    """

    values: NDArray[np.float32]
    labels: tuple[str, ...]
    keys: tuple[str, ...] = ()
    locations: tuple[str, ...] = ()
    lengths: NDArray[np.int64] | None = None


def read_series(path: Path, label: str, key: str = "") -> Series:
    """Return the series of a file.

    Args:
        path: A ``.csv`` or ``.tsv`` file with a header and one series per row; or an ``.npz`` file with ``x``
            ``[N, L]`` or ``[N, C, L]`` and ``y`` ``[N]``, and ``lengths`` ``[N]`` if some series are shorter than L.
        label: Name of the label column in a CSV file.
        key: Name of the column, or of the array ``[N]`` of an ``.npz`` file, of groups or times; empty for none.

    Raises:
        UsageError: The file cannot be used; the message names the line of a CSV file.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}; give a .csv, .tsv or .npz file")
    if path.suffix not in (".npz", *DELIMITERS):
        raise UsageError(f"{path} is neither a .csv, a .tsv nor an .npz file")
    require_file_memory(path)
    series = _read_npz(path, key) if path.suffix == ".npz" else _read_csv(path, label, key)
    if len(series.labels) == 0 or series.values.shape[2] == 0:
        raise UsageError(f"{path} contains no series")
    return series


def _read_csv(path: Path, label: str, key: str) -> Series:
    values: list[NDArray[np.float32]] = []
    labels: list[str] = []
    keys: list[str] = []
    locations: list[str] = []
    try:
        check_data_file(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter=DELIMITERS[path.suffix])
            header = next(rows, [])
            if label not in header:
                raise UsageError(f"{path}:1: no column '{label}'; {did_you_mean(label, header[:20])}")
            if key and (key not in header or key == label):
                hint = "it is the column of labels" if key == label else did_you_mean(key, header[:20])
                raise UsageError(f"{path}:1: no column '{key}' (set splits.groups or splits.time): {hint}")
            label_index = header.index(label)
            for row in filter(None, rows):
                line = rows.line_num
                if len(row) != len(header):
                    raise UsageError(f"{path}:{line}: {len(row)} fields, but the header has {len(header)}")
                labels.append(row[label_index].strip())
                locations.append(f"{path}:{line}")
                if key:
                    keys.append(row[header.index(key)])
                # What is left are the values of the series.
                row = [field for name, field in zip(header, row, strict=True) if name not in (label, key)]
                values.append(_parse_numbers(row, f"{path}:{line}"))
                if not labels[-1]:
                    raise UsageError(f"{path}:{line}: the label is empty; fill it in or leave the row out")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read ({error})") from None
    stacked = np.stack(values) if values else np.zeros((0, 0), np.float32)
    return Series(stacked[:, None], tuple(labels), tuple(keys), tuple(locations))


def _parse_numbers(row: list[str], location: str) -> NDArray[np.float32]:
    try:
        # Values beyond float32 become infinite, which is reported below.
        with np.errstate(over="ignore"):
            numbers = np.asarray(row, np.float64).astype(np.float32)
    except ValueError as error:
        raise UsageError(f"{location}: {error}; all columns except the label must be numbers") from None
    if not np.isfinite(numbers).all():
        raise UsageError(f"{location}: a value is missing or not finite; fill it in or leave the row out")
    return numbers


def _read_npz(path: Path, key: str) -> Series:
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{path} is not an NPZ file; write it with numpy.savez")
    try:
        arrays = read_arrays(path)
        values, labels = arrays["x"], arrays["y"]
        if values.dtype.kind not in "biuf":
            raise ValueError(f"x has the type {values.dtype}, not numbers")
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{path} cannot be read as arrays x and y ({' '.join(str(error).split())})") from None
    if key and key not in arrays:
        raise UsageError(f"{path}: no array '{key}' (set splits.groups or splits.time): {did_you_mean(key, arrays)}")
    keys = arrays[key] if key else np.zeros(0)
    if key and keys.shape != values.shape[:1]:
        raise UsageError(f"{path}: {key} is {list(keys.shape)}; give one value for each series")
    if values.ndim not in (2, 3) or labels.shape != values.shape[:1]:
        raise UsageError(
            f"{path}: x is {list(values.shape)} and y {list(labels.shape)}; give x [N, L] or [N, C, L] and y [N]"
        )
    with np.errstate(over="ignore"):
        values = (values[:, None] if values.ndim == 2 else values).astype(np.float32)
    lengths = arrays.get("lengths")
    if lengths is not None:
        is_whole = lengths.shape == labels.shape and lengths.dtype.kind in "iu"
        if not is_whole or lengths.min(initial=1) < 1 or lengths.max(initial=1) > values.shape[2]:
            raise UsageError(f"{path}: lengths are whole numbers from 1 to {values.shape[2]}, one for each series")
        # What stands behind a series is no part of it, whatever it is.
        values = np.where(np.arange(values.shape[2]) < lengths[:, None, None], values, np.float32(0))
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=(1, 2)))[0])
        raise UsageError(f"{path}: x[{row}] contains a value that is missing or not finite")
    label_texts, key_texts = (tuple(str(value) for value in array.tolist()) for array in (labels, keys))
    locations = tuple(f"{path}: x[{row}]" for row in range(len(values)))
    return Series(values, label_texts, key_texts, locations, lengths)
