"""Who did what with which item: interactions read from a MovieLens-100K folder or a CSV file."""

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import UsageError, did_you_mean

DELIMITERS = {".csv": ",", ".tsv": "\t"}
# u.item: id, title, two dates, address, then one flag a genre. u.user: id, age, gender, occupation, zip code.
GENRES_FROM, USER_FIELDS = 5, 5


@dataclass(frozen=True)
class Columns:
    """What the columns of a CSV file are called; an empty name is not looked for.

    Attributes:
        user: Who.
        item: With what.
        rating: A number: how good it was.
        click: 0 or 1: whether it was clicked.
        time: When: a number, or a date such as ``2024-05-01T12:30:00``.
        ignore: Columns that are left out, separated by commas.
    """

    user: str = "user"
    item: str = "item"
    rating: str = "rating"
    click: str = "click"
    time: str = "time"
    ignore: str = ""


@dataclass(frozen=True)
class Interactions:
    """One row an interaction.

    Attributes:
        users: Who, ``[N]``.
        items: With what, ``[N]``.
        values: The rating, or 1.0 for a click and 0.0 for none, ``[N]``; ``None`` where neither is known.
        clicks: Whether ``values`` are clicks.
        times: Larger is later, ``[N]``; ``None`` where the order of the rows is all that is known.
        features: ``[N, F]``, all finite.
        names: Name of each feature, ``F``.
    """

    users: NDArray[np.str_]
    items: NDArray[np.str_]
    values: NDArray[np.float64] | None
    clicks: bool
    times: NDArray[np.float64] | None
    features: NDArray[np.float32]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "Interactions":
        """Return some rows."""
        return Interactions(
            self.users[rows],
            self.items[rows],
            None if self.values is None else self.values[rows],
            self.clicks,
            None if self.times is None else self.times[rows],
            self.features[rows],
            self.names,
        )

    def latest(self) -> "Interactions":
        """Return the rows in the order of time, of each user and item the latest alone; of equal times the later row.

        Example:
            >>> columns = np.array(["a", "a"]), np.array(["x", "x"]), np.array([1.0, 2.0]), False, np.array([5.0, 4.0])
            >>> Interactions(*columns, np.zeros((2, 0), np.float32), ()).latest().values.tolist()
            [1.0]
        """
        ordered = self if self.times is None else self.take(np.argsort(self.times, kind="stable"))
        who, what = (np.unique(names, return_inverse=True)[1] for names in (ordered.users, ordered.items))
        pairs = who.astype(np.int64) * (int(what.max(initial=0)) + 1) + what
        _, first_from_behind = np.unique(pairs[::-1], return_index=True)
        return ordered.take(np.sort(len(pairs) - 1 - first_from_behind))


def read_interactions(path: Path, columns: Columns, task: str, needs_value: bool) -> Interactions:
    """Return the interactions of a MovieLens-100K folder or of a CSV file.

    Args:
        path: A folder with ``u.data``, and ``u.item`` and ``u.user`` where there are features; or a ``.csv`` or
            ``.tsv`` file with a header, whose other columns are features and hold numbers.
        columns: What the file's columns are called.
        task: The task's name, for messages.
        needs_value: Whether a rating or a click must be there.

    Raises:
        UsageError: The file cannot be used; the message names file and line.
    """
    if path.is_dir():
        found = _from_movielens(path)
    elif path.suffix in DELIMITERS and path.is_file():
        found = _from_csv(path, columns, task, needs_value)
    else:
        raise UsageError(f"{path} is neither a .csv or .tsv file nor a folder with u.data")
    if not len(found):
        raise UsageError(f"{path} holds no interaction")
    return found


def _from_csv(path: Path, columns: Columns, task: str, needs_value: bool) -> Interactions:
    rows = _lines(path, DELIMITERS[path.suffix], "utf-8-sig")
    _, header = next(rows, (1, []))
    label, clicks = _label(path, columns, header, task, needs_value)
    keys = {"user": columns.user, "item": columns.item}
    for option, name in keys.items():
        if name not in header:
            raise UsageError(f"{path}:1: no column '{name}' (task.{task}.{option}): {did_you_mean(name, header[:20])}")
    ignored = {name.strip() for name in columns.ignore.split(",") if name.strip()}
    for name in sorted(ignored - set(header)):
        raise UsageError(f"{path}:1: no column '{name}' to ignore: {did_you_mean(name, header[:20])}")
    taken = {*keys.values(), label, columns.time, *ignored}
    names = tuple(name for name in header if name not in taken)
    place = {name: header.index(name) for name in header}
    timed = columns.time in header
    users, items, values, times, features = [], [], [], [], []
    for line, row in rows:
        where = f"{path}:{line}"
        if len(row) != len(header):
            raise UsageError(f"{where}: {len(row)} fields, but the header has {len(header)}")
        users.append(_text(row[place[columns.user]], where, columns.user))
        items.append(_text(row[place[columns.item]], where, columns.item))
        if label:
            values.append(_number(row[place[label]], where, label))
            if clicks and values[-1] not in (0.0, 1.0):
                raise UsageError(
                    f"{where}: '{label}' is {values[-1]:g}, and a click is 0 or 1; for ratings set "
                    f"task.{task}.rating={label} and task.{task}.click="
                )
        if timed:
            times.append(_time(row[place[columns.time]], where, columns.time))
        features.append([_number(row[place[name]], where, name) for name in names])
    return Interactions(
        np.array(users, dtype=np.str_),
        np.array(items, dtype=np.str_),
        np.array(values) if label else None,
        clicks,
        np.array(times) if timed else None,
        np.array(features, np.float32).reshape(len(users), len(names)),
        names,
    )


def _label(path: Path, columns: Columns, header: list[str], task: str, needed: bool) -> tuple[str, bool]:
    """Return the name of the column that holds ratings or clicks, empty if there is none, and whether it is clicks."""
    known = [name for name in (columns.rating, columns.click) if name and name in header]
    if len(known) == 2:
        raise UsageError(
            f"{path}:1: there are ratings '{known[0]}' and clicks '{known[1]}'; switch one off with "
            f"task.{task}.rating= or task.{task}.click=, and name it in task.{task}.ignore"
        )
    if not known and needed:
        wanted = columns.rating or columns.click
        option = "rating" if columns.rating else "click"
        raise UsageError(f"{path}:1: no column '{wanted}' (task.{task}.{option}): {did_you_mean(wanted, header[:20])}")
    return (known[0], known[0] == columns.click) if known else ("", False)


def _from_movielens(folder: Path) -> Interactions:
    data = folder / "u.data"
    if not data.is_file():
        raise UsageError(f"{folder} holds no u.data; give a MovieLens-100K folder or a .csv file")
    users, items, values, times = [], [], [], []
    for line, row in _lines(data, "\t", "latin-1"):
        where = f"{data}:{line}"
        if len(row) != 4:
            raise UsageError(f"{where}: {len(row)} fields; user, item, rating and time are needed, separated by tabs")
        users.append(_text(row[0], where, "user"))
        items.append(_text(row[1], where, "item"))
        values.append(_number(row[2], where, "rating"))
        times.append(_number(row[3], where, "time"))
    names: list[str] = []
    columns = []
    for who, ids, (table, named) in (
        ("user", users, _people(folder / "u.user")),
        ("item", items, _genres(folder / "u.item")),
    ):
        lost = sorted(set(ids) - set(table)) if named else []
        if lost:
            raise UsageError(
                f"u.data holds the {who} {lost[0]}, and u.{who} has no line for it; add it or delete u.{who}"
            )
        names += named
        columns.append(np.array([table[name] for name in ids] if named else np.zeros((len(ids), 0)), np.float32))
    return Interactions(
        np.array(users, dtype=np.str_),
        np.array(items, dtype=np.str_),
        np.array(values),
        False,
        np.array(times),
        np.concatenate([column.reshape(len(users), -1) for column in columns], axis=1),
        tuple(names),
    )


def _people(path: Path) -> tuple[Mapping[str, list[float]], list[str]]:
    """Return age, gender and occupation of each user as numbers, and what they are called."""
    if not path.is_file():
        return {}, []
    found: dict[str, tuple[float, float, str]] = {}
    for line, row in _lines(path, "|", "latin-1"):
        where = f"{path}:{line}"
        if len(row) != USER_FIELDS:
            raise UsageError(f"{where}: {len(row)} fields; id, age, gender, occupation and zip code are needed")
        found[_text(row[0], where, "id")] = _number(row[1], where, "age"), float(row[2].strip() == "F"), row[3].strip()
    jobs = sorted({job for _, _, job in found.values()})
    table = {who: [age, gender, *(float(job == one) for one in jobs)] for who, (age, gender, job) in found.items()}
    return table, ["age", "gender", *(f"occupation {job}" for job in jobs)]


def _genres(path: Path) -> tuple[Mapping[str, list[float]], list[str]]:
    """Return the genre flags of each item, and what they are called."""
    if not path.is_file():
        return {}, []
    found: dict[str, list[float]] = {}
    for line, row in _lines(path, "|", "latin-1"):
        where = f"{path}:{line}"
        if len(row) <= GENRES_FROM:
            raise UsageError(f"{where}: {len(row)} fields; id, title, two dates, address and genre flags are needed")
        flags = [_number(flag, where, "genre") for flag in row[GENRES_FROM:]]
        if found and len(flags) != len(next(iter(found.values()))):
            raise UsageError(f"{where}: {len(flags)} genre flags, but the first line has another number")
        found[_text(row[0], where, "id")] = flags
    return found, [f"genre {number}" for number in range(len(next(iter(found.values()), [])))]


def _lines(path: Path, delimiter: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a file that are not empty, with their line."""
    # A title of MovieLens holds quotation marks that quote nothing.
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if path.suffix in DELIMITERS else csv.QUOTE_NONE
    try:
        with path.open(encoding=encoding, newline="") as file:
            rows = csv.reader(file, delimiter=delimiter, quoting=quoting)
            yield from ((rows.line_num, row) for row in rows if row)
    except (OSError, UnicodeDecodeError, csv.Error) as reason:
        raise UsageError(f"{path} cannot be read ({reason})") from None


def _text(field: str, where: str, name: str) -> str:
    text = field.strip()
    if not text:
        raise UsageError(f"{where}: '{name}' is missing; fill it in or leave the row out")
    return text


def _number(field: str, where: str, name: str) -> float:
    try:
        number = float(field)
    except ValueError:
        fix = "a number is needed; fill it in, leave the row out or ignore the column"
        raise UsageError(f"{where}: '{name}' is {field.strip()!r}; {fix}") from None
    if not math.isfinite(number):
        raise UsageError(f"{where}: '{name}' is {number}; fill it in or leave the row out")
    return number


def _time(field: str, where: str, name: str) -> float:
    try:
        return datetime.fromisoformat(field.strip()).timestamp() if "-" in field.strip()[1:] else float(field)
    except ValueError:
        raise UsageError(
            f"{where}: '{name}' is {field!r}; give a number or a date such as 2024-05-01T12:30:00"
        ) from None
