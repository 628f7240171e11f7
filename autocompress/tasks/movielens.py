"""Ratings of MovieLens in the layouts in which GroupLens publishes them (https://grouplens.org/datasets/movielens).

100K: ``u.data``, ``u.user``, ``u.item``. 1M and 10M: ``ratings.dat``, ``users.dat``, ``movies.dat``. Latest, 20M and
later: ``ratings.csv``, ``movies.csv``. Files of users and films are optional: without them there are no features.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import UsageError
from autocompress.tasks.interaction_fields import parse_number, parse_text, read_rows

LAYOUTS = "u.data, ratings.dat or ratings.csv"
NO_GENRES = "(no genres listed)"
# Columns of u.item: id, title, two dates, address, then a flag for each genre.
GENRES_FROM = 5

# Features of each id, and their names.
Features: TypeAlias = tuple[Mapping[str, Sequence[float]], Sequence[str]]


@dataclass(frozen=True)
class MovieLens:
    """Ratings with the features of user and film.

    Attributes:
        users: User of each rating.
        items: Film of each rating.
        ratings: The ratings.
        times: Seconds since 1970.
        features: Features of each rating, ``[N, F]``.
        names: Names of the ``F`` features.
    """

    users: list[str]
    items: list[str]
    ratings: list[float]
    times: list[float]
    features: NDArray[np.float32]
    names: tuple[str, ...]


@dataclass(frozen=True)
class _File:
    """A file of a layout.

    Attributes:
        name: Name of the file.
        fields: What its fields are, for messages.
        count: Smallest number of fields.
        delimiter: Text between two fields.
    """

    name: str
    fields: str
    count: int
    delimiter: str


@dataclass(frozen=True)
class _Layout:
    """The files of a layout.

    Attributes:
        ratings: File of user, film, rating and time.
        users: File of users; None if the layout has none.
        items: File of films.
        read_genres: Returns the genres that the fields of a film name.
        encoding: Encoding of the files.
        has_header: Whether the first line names the columns.
        age_and_gender: Positions of these fields of a user.
    """

    ratings: _File
    users: _File | None
    items: _File
    read_genres: Callable[[Sequence[str], str], dict[str, float]]
    encoding: str
    has_header: bool = False
    age_and_gender: tuple[int, int] = (2, 1)


def _read_flags(fields: Sequence[str], location: str) -> dict[str, float]:
    flags = [parse_number(flag, location, "genre") for flag in fields[GENRES_FROM:]]
    return {f"genre {number}": flag for number, flag in enumerate(flags)}


def _read_names(fields: Sequence[str], location: str) -> dict[str, float]:
    names = [name.strip() for name in fields[2].split("|")]
    return {f"genre {name}": 1.0 for name in names if name and name != NO_GENRES}


_RATINGS = "user, item, rating and time are needed"
_LAYOUTS = (
    _Layout(
        _File("u.data", f"{_RATINGS}, separated by tabs", 4, "\t"),
        _File("u.user", "id, age, gender, occupation and zip code are needed", 5, "|"),
        _File("u.item", "id, title, two dates, address and genre flags are needed", GENRES_FROM + 1, "|"),
        _read_flags,
        "latin-1",
        age_and_gender=(1, 2),
    ),
    _Layout(
        _File("ratings.dat", f"{_RATINGS}, separated by ::", 4, "::"),
        _File("users.dat", "id, gender, age, occupation and zip code are needed, separated by ::", 5, "::"),
        _File("movies.dat", "id, title and genres are needed, separated by ::", 3, "::"),
        _read_names,
        "latin-1",
    ),
    _Layout(
        _File("ratings.csv", _RATINGS, 4, ","),
        None,
        _File("movies.csv", "id, title and genres are needed", 3, ","),
        _read_names,
        "utf-8-sig",
        has_header=True,
    ),
)


def read_movielens(folder: Path) -> MovieLens:
    """Return the ratings of a folder with the features of users and films.

    Features are age, gender and a flag for each occupation of the user, and a flag for each genre of the film.

    Raises:
        UsageError: The folder has none of the layouts, or a file is damaged; the message names file and line.
    """
    layout = next((layout for layout in _LAYOUTS if (folder / layout.ratings.name).is_file()), None)
    if layout is None:
        raise UsageError(f"{folder} holds no {LAYOUTS}; give a MovieLens folder or a .csv file")
    users, items, ratings, times = [], [], [], []
    for location, fields in _iterate_fields(folder, layout.ratings, layout):
        users.append(parse_text(fields[0], location, "user"))
        items.append(parse_text(fields[1], location, "item"))
        ratings.append(parse_number(fields[2], location, "rating"))
        times.append(parse_number(fields[3], location, "time"))
    names: list[str] = []
    columns = []
    for ids, file, (table, own_names) in (
        (users, layout.users, _read_users(folder, layout)),
        (items, layout.items, _read_items(folder, layout)),
    ):
        missing = sorted(set(ids) - set(table)) if own_names else []
        if missing and file is not None:
            entity = "user" if ids is users else "item"
            raise UsageError(
                f"{layout.ratings.name} contains the {entity} {missing[0]}, but {file.name} has no line for it; add it "
                f"or delete {file.name}"
            )
        names += own_names
        values = [table[name] for name in ids] if own_names else np.zeros((len(ids), 0))
        columns.append(np.array(values, np.float32).reshape(len(ids), -1))
    return MovieLens(users, items, ratings, times, np.concatenate(columns, axis=1), tuple(names))


def _iterate_fields(folder: Path, file: _File, layout: _Layout) -> Iterator[tuple[str, list[str]]]:
    """Yield location and fields of each row of a file, without the header."""
    path = folder / file.name
    for number, (line, fields) in enumerate(read_rows(path, file.delimiter, layout.encoding)):
        if len(fields) < file.count:
            raise UsageError(f"{path}:{line}: {len(fields)} fields; {file.fields}")
        if number or not layout.has_header:
            yield f"{path}:{line}", fields


def _read_users(folder: Path, layout: _Layout) -> Features:
    """Return age, gender and occupation of each user as numbers."""
    if layout.users is None or not (folder / layout.users.name).is_file():
        return {}, ()
    age, gender = layout.age_and_gender
    users: dict[str, tuple[float, float, str]] = {}
    for location, fields in _iterate_fields(folder, layout.users, layout):
        users[parse_text(fields[0], location, "id")] = (
            parse_number(fields[age], location, "age"),
            float(fields[gender].strip() == "F"),
            fields[3].strip(),
        )
    # Occupations become one-hot features; the zip code is not used.
    jobs = sorted({job for _, _, job in users.values()})
    table = {user: [years, sex, *(float(job == one) for one in jobs)] for user, (years, sex, job) in users.items()}
    return table, ["age", "gender", *(f"occupation {job}" for job in jobs)]


def _read_items(folder: Path, layout: _Layout) -> Features:
    """Return a flag for each genre of each film."""
    if not (folder / layout.items.name).is_file():
        return {}, ()
    genres: dict[str, dict[str, float]] = {}
    for location, fields in _iterate_fields(folder, layout.items, layout):
        own = layout.read_genres(fields, location)
        if layout.read_genres is _read_flags and genres and len(own) != len(next(iter(genres.values()))):
            raise UsageError(f"{location}: {len(own)} genre flags, but the first line has another number")
        genres[parse_text(fields[0], location, "id")] = own
    # The order of first occurrence is that of the flags in u.item; names are sorted.
    names = list(dict.fromkeys(name for own in genres.values() for name in own))
    names = names if layout.read_genres is _read_flags else sorted(names)
    return {item: [own.get(name, 0.0) for name in names] for item, own in genres.items()}, names
