"""Series of different lengths: tables in long format, with one point of a series in each row, and lists of arrays."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autocompress.errors import UsageError, did_you_mean
from autocompress.tasks.signal_files import Series
from autocompress.tasks.table_files import TIME_NAMES, is_number_column, name_categories, read_numbers, read_table


def read_long_series(path: Path, series: str, label: str, order: str = "", key: str = "") -> Series:
    """Return the series of a table with one point in each row.

    Columns besides the named ones are the channels. Rows of a series need not be adjacent.

    Args:
        path: A ``.csv`` or ``.tsv`` file with a header, which may be compressed as ``.gz``, or a ``.parquet`` file.
        series: Column of the series that a row belongs to.
        label: Column of the label, the same in all rows of a series.
        order: Column of numbers or times by which the rows of a series are sorted. By default it is a column called
            ``timestamp``, ``datetime``, ``date`` or ``time``; without any, the order is that of the file.
        key: Column of groups or times of series; empty for none.

    Raises:
        UsageError: The file cannot be used; the message names the column and the series.
    """
    table = read_table(path)
    order = order or next((name for name in table.columns if name.lower() in TIME_NAMES and name != key), "")
    named = [name for name in (series, label, order, key) if name]
    for name in named:
        if name not in table.columns:
            raise UsageError(f"{path}: no column '{name}'; {did_you_mean(name, list(table.columns)[:50])}")
    channels = [name for name in table.columns if name not in named]
    if not channels:
        raise UsageError(f"{path}: no column is left for the values of the series; its columns are {', '.join(named)}")
    for name in channels:
        if not is_number_column(table[name]):
            raise UsageError(f"{path}: column '{name}' has texts; the values of a series are numbers")
    codes, names = pd.factorize(name_categories(table[series]))
    rows = np.lexsort((_read_order(path, table, order) if order else np.arange(len(table)), codes))
    values = np.stack([read_numbers(table[name]) for name in channels])[:, rows]
    starts = np.flatnonzero(np.diff(codes[rows], prepend=-1))
    arrays = np.split(values, starts[1:], axis=1)
    locations = tuple(f"{path}: series '{name}'" for name in names)
    texts = {column: name_categories(table[column])[rows] for column in filter(None, (label, key))}
    for column, cells in texts.items():
        for location, cell, group in zip(locations, cells[starts], np.split(cells, starts[1:]), strict=True):
            other = next((value for value in group if value != cell), None)
            if cell == "" or other is not None:
                problem = "has an empty" if cell == "" else f"has '{cell}' and '{other}' as"
                raise UsageError(f"{location} {problem} '{column}'; all rows of a series have one")
    keys = tuple(texts[key][starts]) if key else ()
    return stack_series(arrays, tuple(texts[label][starts]), locations, keys)


def _read_order(path: Path, table: pd.DataFrame, order: str) -> NDArray[np.float64]:
    """Return what the rows are sorted by: numbers, or times."""
    if is_number_column(table[order]):
        values = read_numbers(table[order])
    else:
        times = pd.to_datetime(table[order], errors="coerce", utc=True)
        values = times.to_numpy("datetime64[ns]").astype(np.float64)
        values[times.isna().to_numpy()] = np.nan
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise UsageError(f"{path}: '{order}' of row {row} is neither a number nor a time")
    return values


def read_series_list(arrays: Sequence[object], labels: Sequence[object]) -> Series:
    """Return series from arrays in memory, ``[L]`` or ``[C, L]`` each, with lengths of their own.

    Raises:
        UsageError: An array is none, or their channels or numbers differ.
    """
    if len(arrays) != len(labels) or not len(arrays):
        raise UsageError(f"there are {len(arrays)} series and {len(labels)} labels; give one label for each series")
    locations = tuple(f"series {row}" for row in range(len(arrays)))
    values = []
    for location, entry in zip(locations, arrays, strict=True):
        try:
            array = np.asarray(entry, np.float64)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{location} cannot be read as numbers ({' '.join(str(error).split())})") from None
        if array.ndim not in (1, 2):
            raise UsageError(f"{location} has the shape {list(array.shape)}; give [L], or [C, L] with channels first")
        values.append(np.atleast_2d(array))
    return stack_series(values, tuple(name_categories(pd.Series(list(labels), dtype=object))), locations)


def stack_series(
    arrays: Sequence[NDArray[np.float64]],
    labels: tuple[str, ...],
    locations: tuple[str, ...],
    keys: tuple[str, ...] = (),
) -> Series:
    """Return series ``[C, L]`` of different lengths as one array, with zeros behind the shorter ones.

    Raises:
        UsageError: A series is empty or not finite, has no label, or has another number of channels.
    """
    for location, array, label in zip(locations, arrays, labels, strict=True):
        if len(array) != len(arrays[0]):
            raise UsageError(f"{location} has {len(array)} channels, and {locations[0]} has {len(arrays[0])}")
        if not array.shape[1]:
            raise UsageError(f"{location} is empty; leave it out")
        if label == "":
            raise UsageError(f"{location} has no label; fill it in or leave the series out")
    lengths = np.array([array.shape[1] for array in arrays])
    values = np.zeros((len(arrays), len(arrays[0]), int(lengths.max())), np.float32)
    for row, array in enumerate(arrays):
        # Values beyond float32 become infinite, which is reported below.
        with np.errstate(over="ignore"):
            values[row, :, : array.shape[1]] = array
    is_finite = np.isfinite(values).all((1, 2))
    if not is_finite.all():
        location = locations[int(np.argmin(is_finite))]
        raise UsageError(f"{location} has a value that is missing or not finite; fill it in")
    return Series(values, labels, keys, locations, lengths)
