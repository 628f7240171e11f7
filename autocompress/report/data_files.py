"""The data of the page for other programs: CSV, JSON and Parquet files."""

import csv
import io
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from autocompress.core.atomic import write_atomic

_LOGGER = logging.getLogger(__name__)

# Nested values do not fit into a CSV cell; front.json has them.
_NESTED = ("details", "curve", "segments")
# Spreadsheets run a cell that starts with one of these characters as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_tables(folder: Path, candidates: pd.DataFrame, trials: pd.DataFrame, front: pd.DataFrame) -> list[Path]:
    """Write the CSV files, front.json and candidates.parquet, each atomically; return their paths.

    Args:
        folder: The run folder.
        candidates: Table with one row per candidate.
        trials: Table with one row per trial.
        front: Candidates on the front.

    Raises:
        StorageError: No space is left, or the folder cannot be written.
    """
    files = {
        "candidates.csv": to_csv(candidates),
        "trials.csv": to_csv(trials),
        "front.csv": to_csv(front),
        "front.json": to_json(front),
    }
    for name, text in files.items():
        # UTF-8 cannot encode a lone surrogate, which a file name on Linux may contain: write its escape.
        write_atomic(Path(folder) / name, text.encode("utf-8", "backslashreplace"))
    write_atomic(Path(folder) / "candidates.parquet", to_parquet(candidates))
    _LOGGER.info("wrote %d candidates and %d trials to %s", len(candidates), len(trials), folder)
    return [Path(folder) / name for name in (*files, "candidates.parquet")]


def to_parquet(table: pd.DataFrame) -> bytes:
    """Return a table as Parquet: numbers stay numbers, columns of several types and nested ones become JSON texts."""
    flat = {str(name): _uniform_column(table[name]) for name in table.columns}
    return bytes(pd.DataFrame(flat, index=table.index).to_parquet(index=False))


def _uniform_column(column: "pd.Series") -> "pd.Series":
    if pd.api.types.is_numeric_dtype(column) or _is_text(column):
        return column
    values = column.tolist()
    if {dict, list, tuple} & set(map(type, values)):
        texts = [None if _is_missing(value) else _dump(value) for value in values]
        return pd.Series(texts, index=column.index, dtype="str")
    values = [_json_value(None, value) for value in values]
    # Parquet columns have one type: mixed columns become JSON texts.
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {str}:
        texts = [None if value is None else str(value).encode("utf-8", "backslashreplace").decode() for value in values]
        return pd.Series(texts, index=column.index, dtype="str")
    if kinds in ({bool}, {int}, {float}, {int, float}):
        return pd.Series(values, index=column.index, dtype="boolean" if kinds == {bool} else "float64")
    texts = [None if value is None else json.dumps(value) for value in values]
    return pd.Series(texts, index=column.index, dtype="str")


def _is_text(column: "pd.Series") -> bool:
    """Return whether a column holds nothing but texts that UTF-8 can encode, and missing values."""
    if not isinstance(column.dtype, pd.StringDtype):
        return False
    try:
        "".join(column.dropna()).encode()
    except UnicodeEncodeError:
        return False
    return True


def to_csv(table: pd.DataFrame) -> str:
    r"""Return a table as CSV; texts that a spreadsheet would run as formulas are quoted, missing values are empty.

    Example:
        >>> to_csv(pd.DataFrame({"name": ["=1+1", "-x"], "value": [-0.5, None]}))
        "name,value\r\n'=1+1,-0.5\r\n'-x,\r\n"
    """
    columns = [name for name in table.columns if name not in _NESTED]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([_csv_cell(str(name)) for name in columns])
    writer.writerows(zip(*(_csv_column(table[name]) for name in columns), strict=True))
    return text.getvalue()


def to_json(table: pd.DataFrame) -> str:
    """Return a table as a JSON list of objects; values that are missing or not finite become null."""
    rows = [{str(name): _json_value(name, value) for name, value in row.items()} for row in table.to_dict("records")]
    return json.dumps(rows, indent=1, allow_nan=False)


def _is_missing(value: object) -> bool:
    """Return whether a cell is empty: None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _dump(value: object) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        # Numbers that are not finite, and types of numpy.
        return json.dumps(_json_value(None, value))


def _csv_column(column: "pd.Series") -> list[object]:
    values = column.tolist()
    if column.dtype == np.int64:
        return values
    if column.dtype != np.float64:
        return [_csv_cell(value) for value in values]
    numbers = column.to_numpy()
    # Most cells of a table are numbers: the rule of _csv_cell, for all of them at once.
    whole = (np.floor(numbers) == numbers) & (np.abs(numbers) < 1e15)
    cells: list[object] = ["" if value != value else value for value in values]
    for position in np.flatnonzero(whole).tolist():
        cells[position] = int(values[position])
    return cells


def _csv_cell(value: object) -> object:
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    if _is_missing(value):
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        # pandas stores integers beside missing values as floats: write 8, not 8.0.
        return int(value)
    return value


def _json_value(name: object, value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _json_value(key, entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(None, entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if name == "config" and isinstance(value, str):
        return _json_value(None, json.loads(value))
    return value
