"""Tables in CSV and Parquet files: reading them, and the use of each column."""

import csv
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autocompress.core.untrusted import check_data_file
from autocompress.errors import UsageError, did_you_mean
from autocompress.tasks.mapped_arrays import PARQUET, require_file_memory
from autocompress.tasks.signal_files import DELIMITERS
from autocompress.tasks.text_files import open_text

# Texts that stand for a missing value, besides those of pandas ("", "NA", "null", "nan", ...).
MISSING = ("?",)
# Headers of columns that say when a row was written.
TIME_NAMES = ("timestamp", "datetime", "date", "time")
# A text column with more names than this share of the rows, and than this number, identifies rows.
IDENTIFYING_SHARE, IDENTIFYING_COUNT = 0.5, 50
# Names with fewer rows than this are read as unknown: their embedding could hardly be learned.
MIN_CATEGORY_ROWS = 5
# A column of whole numbers with at most this many distinct values is a column of classes if it is the target.
MAX_WHOLE_CLASSES = 20


@dataclass(frozen=True)
class Columns:
    """The use of each column of a table.

    Attributes:
        numbers: Columns of numbers.
        categories: Columns of categories to the names that have an embedding; an empty name is a missing value.
        flagged: Columns of numbers with missing values.
        notices: Remarks on columns that are not used.
    """

    numbers: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]]
    flagged: tuple[str, ...]
    notices: tuple[str, ...] = field(default=())


def read_table(path: Path) -> pd.DataFrame:
    """Return the table of a file, with NaN or None where a value is missing.

    Args:
        path: A ``.csv`` or ``.tsv`` file with a header, which may be compressed as ``.gz``, or a ``.parquet`` file.

    Raises:
        UsageError: The file cannot be read, has no rows, or has a header that names a column twice.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}; give a .csv, .tsv or .parquet file")
    suffix = Path(path.name.removesuffix(".gz")).suffix
    try:
        check_data_file(path)
        require_file_memory(path)
        if path.suffix in PARQUET:
            table = pd.read_parquet(path)
        elif suffix in DELIMITERS:
            _check_header(path, DELIMITERS[suffix])
            table = pd.read_csv(
                path, sep=DELIMITERS[suffix], na_values=list(MISSING), skipinitialspace=True, encoding="utf-8-sig",
                low_memory=False, index_col=False, on_bad_lines="error",
            )  # fmt: skip
        else:
            raise UsageError(f"{path} is neither a .csv, a .tsv (optionally .gz) nor a .parquet file")
    # pandas and Arrow have errors of their own, which derive from these.
    except (OSError, ValueError, EOFError, zlib.error, csv.Error) as error:
        raise UsageError(f"{path} cannot be read ({' '.join(str(error).split())})") from None
    table.columns = [str(column).strip() for column in table.columns]
    if not len(table):
        raise UsageError(f"{path} has no rows below its header")
    return table


def _check_header(path: Path, delimiter: str) -> None:
    """Check that no column is named twice: pandas would rename the second one."""
    with open_text(path) as file:
        header = [name.strip() for name in next(csv.reader(file, delimiter=delimiter), [])]
    if not header:
        raise UsageError(f"{path} is empty; its first line must name the columns")
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{path}:1: the header has '{twice}' {header.count(twice)} times; rename one of them")


def check_column(path: Path, table: pd.DataFrame, column: str, option: str) -> None:
    """Check that a table has a column.

    Raises:
        UsageError: It has none of that name.
    """
    if column not in table.columns:
        hint = did_you_mean(column, list(table.columns)[:50])
        raise UsageError(f"{path}: no column '{column}'; {hint} (set task.tabular.{option})")


def name_categories(values: "pd.Series[Any]") -> NDArray[np.object_]:
    """Return cells as names of categories: 1 and 1.0 are one name, and a missing value is an empty one."""
    return np.array([name_category(cell) for cell in values.tolist()], dtype=object)


def name_category(cell: Any) -> str:
    """Return one cell as the name of a category."""
    # The pipeline of an artifact names a cell in the same way.
    if cell is None or cell != cell or cell is pd.NA:
        return ""
    if isinstance(cell, float | np.floating) and float(cell).is_integer():
        return str(int(cell))
    return str(cell).strip()


def is_number_column(values: "pd.Series[Any]") -> bool:
    """Return whether a column holds numbers; truth values are categories."""
    return pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype)


def read_numbers(values: "pd.Series[Any]") -> NDArray[np.float64]:
    """Return a column of numbers as float64, with NaN where one is missing."""
    # A copy, because torch takes no array that cannot be written, as pandas may return.
    return values.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)


def choose_columns(
    path: Path, table: pd.DataFrame, target: str, categorical: Sequence[str], exclude: Sequence[str]
) -> Columns:
    """Return the use of each column of a table except the target.

    Columns that say nothing about other rows are left out: one value alone, a number or name of each row, and times.

    Args:
        path: Path of the file, for messages.
        table: The training table.
        target: Column of the target.
        categorical: Columns of numbers to read as categories, and columns of many names to keep.
        exclude: Columns to leave out.

    Raises:
        UsageError: A named column is absent, a number is infinite, or no column remains.
    """
    for option, names in (("categorical", categorical), ("exclude", exclude)):
        for name in names:
            check_column(path, table, name, option)
    numbers, flagged, notices = [], [], []
    categories: dict[str, tuple[str, ...]] = {}
    for column in (name for name in table.columns if name != target and name not in exclude):
        values = table[column]
        reason = "" if column in categorical else _find_useless(column, values)
        if reason:
            notices.append(f"column '{column}' {reason} and is left out")
        elif column not in categorical and is_number_column(values):
            numbers.append(column)
            measured = read_numbers(values)
            if np.isinf(measured).any():
                row = int(np.isinf(measured).nonzero()[0][0])
                raise UsageError(
                    f"{path}: column '{column}' is infinite in row {row}; leave it empty where it is unknown"
                )
            if np.isnan(measured).any():
                flagged.append(column)
        else:
            cells, counts = np.unique(name_categories(values).astype(str), return_counts=True)
            categories[column] = tuple(cells[counts >= MIN_CATEGORY_ROWS].tolist())
            if rare := int((counts < MIN_CATEGORY_ROWS).sum()):
                notices.append(f"column '{column}': {rare:,} names with few rows are read as one unknown name")
    if not numbers and not categories:
        raise UsageError(f"{path}: no column is left to predict '{target}' from; {'; '.join(notices) or 'add one'}")
    return Columns(tuple(numbers), categories, tuple(flagged), tuple(notices))


def _find_useless(column: str, values: "pd.Series[Any]") -> str:
    """Return why a column says nothing about other rows; empty if it may."""
    count = values.nunique(dropna=False)
    if count <= 1:
        return "has a single value"
    if column.lower() in TIME_NAMES or pd.api.types.is_datetime64_any_dtype(values.dtype):
        return "is the time of the row"
    if is_number_column(values):
        numbers = read_numbers(values)
        steps = np.diff(numbers)
        # Consecutive numbers from the first row to the last.
        if len(numbers) > 2 and bool((steps == steps[0]).all()) and abs(steps[0]) == 1:
            return "counts the rows"
        is_named = column.lower() in ("id", "index", "") or column.lower().startswith("unnamed:")
        return "numbers the rows" if is_named and count == len(values) else ""
    if count > max(IDENTIFYING_COUNT, IDENTIFYING_SHARE * len(values)):
        return f"has {count:,} different texts (a name of each row, or prose for the task `text`)"
    return ""
