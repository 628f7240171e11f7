"""Rows and fields of files of interactions; errors name file, line and column."""

import csv
import math
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from autocompress.core.untrusted import check_data_file
from autocompress.errors import UsageError

DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_rows(path: Path, delimiter: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the nonempty rows of a file with their line numbers.

    Args:
        path: The file. Only in ``.csv`` and ``.tsv`` files, quotation marks quote a field.
        delimiter: Text between the fields of a row, of any length.
        encoding: Encoding of the file.

    Raises:
        UsageError: The file cannot be read.
    """
    try:
        check_data_file(path)
        with path.open(encoding=encoding, newline="") as file:
            if path.suffix not in DELIMITERS:
                # Titles in MovieLens contain quotation marks that do not quote a field.
                lines = (line.rstrip("\r\n") for line in file)
                yield from ((number, line.split(delimiter)) for number, line in enumerate(lines, 1) if line)
                return
            rows = csv.reader(file, delimiter=delimiter)
            yield from ((rows.line_num, row) for row in rows if row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read ({error})") from None


def parse_text(field: str, location: str, name: str) -> str:
    """Return a field without blanks around it.

    Args:
        field: Text of the field.
        location: File and line, for the message.
        name: Name of the column, for the message.

    Raises:
        UsageError: The field is empty.
    """
    text = field.strip()
    if not text:
        raise UsageError(f"{location}: '{name}' is missing; fill it in or leave the row out")
    return text


def parse_number(field: str, location: str, name: str) -> float:
    """Return a field as a number; arguments as in :func:`parse_text`.

    Raises:
        UsageError: It is no finite number.
    """
    try:
        number = float(field)
    except ValueError:
        fix = "a number is needed; fill it in, leave the row out or ignore the column"
        raise UsageError(f"{location}: '{name}' is {field.strip()!r}; {fix}") from None
    # float() also accepts "nan" and "inf".
    if not math.isfinite(number):
        raise UsageError(f"{location}: '{name}' is {number}; fill it in or leave the row out")
    return number


def parse_time(field: str, location: str, name: str) -> float:
    """Return a number or a date in ISO 8601 as seconds; arguments as in :func:`parse_text`.

    Raises:
        UsageError: It is neither.
    """
    try:
        # A leading minus sign belongs to a negative number, a later one to a date.
        return datetime.fromisoformat(field.strip()).timestamp() if "-" in field.strip()[1:] else float(field)
    except ValueError:
        raise UsageError(
            f"{location}: '{name}' is {field!r}; give a number or a date such as 2024-05-01T12:30:00"
        ) from None
