"""Texts with one or several labels each, read from CSV and TSV files, compressed or not."""

import csv
import errno
import gzip
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from math import isfinite
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from autocompress.core.free_memory import free_memory
from autocompress.core.untrusted import check_data_file
from autocompress.errors import UsageError, did_you_mean
from autocompress.tasks.mapped_arrays import require_file_memory
from autocompress.tasks.signal_files import DELIMITERS
from autocompress.tasks.text_encoding import has_token

# The csv module allows 131,072 characters per field by default, which long texts exceed.
MAX_FIELD_BYTES = 1_000_000
# Largest number of distinct real numbers that still counts as classes, such as half stars.
MAX_REAL_CLASSES = 10


@dataclass(frozen=True)
class Texts:
    """Texts of one file that have all labels.

    Attributes:
        path: Path of the file.
        texts: Texts without surrounding white space.
        labels: Column to the label of each text.
        lines: Line on which the row of each text begins.
        left_out: Missing value, ``text`` or ``label``, to the number of rows left out because of it.
        keys: Field of the column of groups or times of each text; empty without such a column.
    """

    path: Path
    texts: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]
    lines: tuple[int, ...]
    left_out: Mapping[str, int]
    keys: tuple[str, ...] = ()

    def format_location(self, row: int) -> str:
        """Return the file and line of a text, ``reviews.csv:17``."""
        return f"{self.path}:{self.lines[row]}"


def read_texts(path: Path, text: str, labels: Sequence[str], kind: str, key: str = "") -> Texts:
    """Return the texts of a file; rows without a text or without a label are counted and left out.

    Args:
        path: A ``.csv`` or ``.tsv`` file with a header, which may be compressed as ``.gz``.
        text: Name of the column of texts.
        labels: Names of the columns of labels.
        kind: Kind of token of the encoding, which decides whether a text counts as empty.
        key: Name of the column of groups or times; empty if there is none.

    Raises:
        UsageError: The file cannot be used; the message names the line or the column.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}; give a .csv or .tsv file")
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in DELIMITERS:
        raise UsageError(f"{path} is neither a .csv nor a .tsv file (optionally compressed as .gz)")
    require_file_memory(path)
    complete_rows: list[tuple[int, str, list[str]]] = []
    keys: list[str] = []
    left_out: Counter[str] = Counter()
    with _open_rows(path, DELIMITERS[suffix]) as rows:
        _, header = next(rows, (1, []))
        indices = [_column_index(path, header, name, option) for name, option in _column_options(text, labels)]
        key_index = _column_index(path, header, key, "splits.groups or splits.time") if key else None
        for line, row in rows:
            if len(row) != len(header):
                raise UsageError(f"{path}:{line}: {len(row)} fields, but the header has {len(header)}")
            content, *classes = (row[index].strip() for index in indices)
            _check_row(f"{path}:{line}", content, *classes)
            if not has_token(kind, content):
                left_out["text"] += 1
            # A row needs all labels, because the heads are trained together.
            elif not all(classes):
                left_out["label"] += 1
            else:
                complete_rows.append((line, content, [_normalize_label(name) for name in classes]))
                if key_index is not None:
                    keys.append(row[key_index])
    if not complete_rows:
        raise UsageError(f"{path} contains no row with a text in '{text}' and a label in {_quote_names(labels)}")
    columns = zip(*(classes for _, _, classes in complete_rows), strict=True)
    labels_of_column = {name: tuple(column) for name, column in zip(labels, columns, strict=True)}
    return Texts(
        path,
        tuple(content for _, content, _ in complete_rows),
        labels_of_column,
        tuple(line for line, _, _ in complete_rows),
        left_out,
        tuple(keys),
    )


def check_class_labels(path: Path, column: str, labels: Sequence[str]) -> None:
    """Check that a column contains classes, not measurements.

    Raises:
        UsageError: The column has more than ten distinct numbers, and not all of them are whole.

    Example:
        >>> check_class_labels(Path("a.csv"), "stars", ["0.5", "1", "1.5"])
    """
    distinct = set(labels)
    try:
        numbers = [float(label) for label in distinct]
    except ValueError:
        return
    if len(distinct) > MAX_REAL_CLASSES and any(isfinite(number) and number != round(number) for number in numbers):
        raise UsageError(
            f"{path}: column '{column}' contains {len(distinct):,} distinct real numbers, but labels must be classes; "
            "divide the numbers into ranges, or name another column in task.text.labels"
        )


@contextmanager
def _open_rows(path: Path, delimiter: str) -> Iterator[Iterator[tuple[int, list[str]]]]:
    """Open a file as an iterator over its nonblank rows, each with the line on which it begins."""
    # The limit of the csv module is global, so it is restored afterwards.
    previous_limit = csv.field_size_limit(MAX_FIELD_BYTES)
    try:
        with open_text(path) as file:
            yield _number_rows(path, csv.reader(file, delimiter=delimiter))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read ({error}); texts are UTF-8") from None
    finally:
        csv.field_size_limit(previous_limit)


class _LimitedGzip(gzip.GzipFile):
    """A compressed file whose content fits into memory: gzip shrinks a text of one letter to a thousandth.

    Args:
        path: Path of the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        free = free_memory()
        # As text, rows take more than their bytes.
        self._largest = math.inf if free is None else free / 2

    def read1(self, size: int = -1) -> bytes:
        """Return the next bytes.

        Raises:
            OSError: The content takes more than half of the free memory.
        """
        if self.tell() > self._largest:
            raise OSError(
                errno.EFBIG, f"its content is larger than {self._largest:,.0f} bytes, half of the free memory"
            )
        return super().read1(size)


def open_text(path: Path) -> TextIO:
    """Open a text file in UTF-8, compressed as ``.gz`` or not."""
    check_data_file(path)
    # utf-8-sig also reads the byte order mark that spreadsheet programs write.
    if path.suffix == ".gz":
        return TextIOWrapper(cast(BinaryIO, _LimitedGzip(path)), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _number_rows(path: Path, rows: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    while True:
        # line_num is the last line read, so the next row begins on the line after it.
        line = getattr(rows, "line_num", 0) + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            if "field larger" in str(error):
                raise UsageError(_describe_long_field(f"{path}:{line}") + "; is a quotation mark not closed?") from None
            raise UsageError(f"{path}:{line}: {error}") from None
        if row is None:
            return
        if row:
            yield line, row


def _column_options(text: str, labels: Sequence[str]) -> list[tuple[str, str]]:
    return [(text, "task.text.text"), *((label, "task.text.labels") for label in labels)]


def _column_index(path: Path, header: list[str], name: str, option: str) -> int:
    if header.count(name) > 1:
        raise UsageError(f"{path}:1: the header has '{name}' {header.count(name)} times; rename one of them")
    if name not in header:
        hint = did_you_mean(name, header[:50])
        raise UsageError(f"{path}:1: no column '{name}'; {hint} (set {option})")
    return header.index(name)


def _check_row(location: str, text: str, *labels: str) -> None:
    if any("\0" in field for field in (text, *labels)):
        raise UsageError(
            f"{location}: the row contains a NUL character, so the file is not plain text; save it as UTF-8"
        )
    # A character takes at most four bytes in UTF-8, so most texts need not be encoded for the check.
    if len(text) > MAX_FIELD_BYTES // 4 and len(text.encode()) > MAX_FIELD_BYTES:
        raise UsageError(_describe_long_field(location) + "; shorten it or leave the row out")


def _describe_long_field(location: str) -> str:
    return f"{location}: a field is longer than {MAX_FIELD_BYTES // 1_000_000} MB"


def _normalize_label(label: str) -> str:
    """Return ``4`` for ``4.0``: pandas writes a column of whole numbers with a missing value as real numbers."""
    integer, dot, decimals = label.partition(".")
    return integer if dot and integer.lstrip("-").isdecimal() and decimals and not decimals.strip("0") else label


def _quote_names(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
