"""Texts with one label or several each, read from CSV and TSV files, compressed or not."""

import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TextIO

from autocompress.errors import UsageError, did_you_mean
from autocompress.tasks.signal_files import DELIMITERS
from autocompress.tasks.text_encoding import says_something

LIMIT = 1_000_000
REALS = 10


@dataclass(frozen=True)
class Texts:
    """Texts of one file that have every label.

    Attributes:
        path: The file.
        texts: As they stand in it.
        labels: Column to the label of each text.
        lines: The line on which each text's row begins.
        left_out: What is missing in rows that were left out, to their number.
    """

    path: Path
    texts: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]
    lines: tuple[int, ...]
    left_out: Mapping[str, int]

    def where(self, row: int) -> str:
        """Return where a text stands, ``reviews.csv:17``."""
        return f"{self.path}:{self.lines[row]}"


def read_texts(path: Path, text: str, labels: Sequence[str], kind: str) -> Texts:
    """Return the texts of a file; rows without a text or without a label are counted and left out.

    Args:
        path: ``.csv`` or ``.tsv`` with a header, or either with ``.gz`` behind it.
        text: Name of the column of texts.
        labels: Names of the columns of labels.
        kind: How texts will be encoded, which decides what an empty one is.

    Raises:
        UsageError: The file cannot be used; the message names the line or the column.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}; give a .csv or .tsv file")
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in DELIMITERS:
        raise UsageError(f"{path} is neither a .csv nor a .tsv file, compressed as .gz or not")
    kept: list[tuple[int, str, list[str]]] = []
    left_out: Counter[str] = Counter()
    with _rows(path, DELIMITERS[suffix]) as rows:
        _, header = next(rows, (1, []))
        places = [_place(path, header, name, option) for name, option in _asked(text, labels)]
        for line, row in rows:
            if len(row) != len(header):
                raise UsageError(f"{path}:{line}: {len(row)} fields, but the header has {len(header)}")
            words, *classes = (row[place].strip() for place in places)
            _refuse_strange(f"{path}:{line}", words, *classes)
            if not says_something(kind, words):
                left_out["text"] += 1
            elif not all(classes):
                left_out["label"] += 1
            else:
                kept.append((line, words, [_whole(name) for name in classes]))
    if not kept:
        raise UsageError(f"{path} holds no row with a text in '{text}' and a label in {_listed(labels)}")
    columns = zip(*(classes for _, _, classes in kept), strict=True)
    found = {name: tuple(column) for name, column in zip(labels, columns, strict=True)}
    return Texts(path, tuple(words for _, words, _ in kept), found, tuple(line for line, _, _ in kept), left_out)


def refuse_real_numbers(path: Path, column: str, labels: Sequence[str]) -> None:
    """Make sure that a column holds classes, not measurements.

    Raises:
        UsageError: It holds more than ten distinct numbers, and not all of them are whole.

    Example:
        >>> refuse_real_numbers(Path("a.csv"), "stars", ["0.5", "1", "1.5"])
    """
    distinct = set(labels)
    try:
        numbers = [float(label) for label in distinct]
    except ValueError:
        return
    if len(distinct) > REALS and any(isfinite(number) and number != round(number) for number in numbers):
        raise UsageError(
            f"{path}: column '{column}' holds {len(distinct):,} distinct real numbers, and a label is one of a few "
            "classes; divide it into ranges, or name another column in task.text.labels"
        )


@contextmanager
def _rows(path: Path, delimiter: str) -> Iterator[Iterator[tuple[int, list[str]]]]:
    """Yield the rows that are not blank, each with the line on which it begins."""
    before = csv.field_size_limit(LIMIT)
    try:
        with _open(path) as file:
            yield _numbered(path, csv.reader(file, delimiter=delimiter))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as reason:
        raise UsageError(f"{path} cannot be read ({reason}); texts are UTF-8") from None
    finally:
        csv.field_size_limit(before)


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _numbered(path: Path, rows: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    while True:
        line = getattr(rows, "line_num", 0) + 1
        try:
            row = next(rows, None)
        except csv.Error as reason:
            if "field larger" in str(reason):
                raise UsageError(_too_long(f"{path}:{line}") + "; is a quotation mark left open?") from None
            raise UsageError(f"{path}:{line}: {reason}") from None
        if row is None:
            return
        if row:
            yield line, row


def _asked(text: str, labels: Sequence[str]) -> list[tuple[str, str]]:
    return [(text, "text"), *((label, "labels") for label in labels)]


def _place(path: Path, header: list[str], name: str, option: str) -> int:
    if header.count(name) > 1:
        raise UsageError(f"{path}:1: the header has '{name}' {header.count(name)} times; rename one of them")
    if name not in header:
        hint = did_you_mean(name, header[:50])
        raise UsageError(f"{path}:1: no column '{name}'; {hint} (set task.text.{option})")
    return header.index(name)


def _refuse_strange(where: str, text: str, *labels: str) -> None:
    if any("\0" in field for field in (text, *labels)):
        raise UsageError(f"{where}: the row holds a NUL character, so the file is no text; save it as UTF-8")
    if len(text) > LIMIT // 4 and len(text.encode()) > LIMIT:
        raise UsageError(_too_long(where) + "; cut it or leave the row out")


def _too_long(where: str) -> str:
    return f"{where}: a field is longer than {LIMIT // 1_000_000} MB"


def _whole(label: str) -> str:
    """Return ``4`` for ``4.0``: a column of whole numbers is written so once a value is missing."""
    head, dot, tail = label.partition(".")
    return head if dot and head.lstrip("-").isdecimal() and tail and not tail.strip("0") else label


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
