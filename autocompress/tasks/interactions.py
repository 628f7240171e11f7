"""Interactions of users with items, read from a MovieLens folder or a CSV file, or generated."""

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import UsageError, did_you_mean
from autocompress.tasks.interaction_fields import DELIMITERS, parse_number, parse_text, parse_time, read_rows
from autocompress.tasks.mapped_arrays import require_file_memory
from autocompress.tasks.movielens import LAYOUTS, read_movielens

# Names of columns of public data sets, in lower case, that stand for a default name which the file does not have.
ALIASES = {
    "user": ("userid", "user_id", "reviewerid"),
    "item": ("itemid", "item_id", "movieid", "movie_id", "bookid", "book_id", "asin"),
    "rating": ("stars", "overall"),
    "time": ("timestamp", "date", "datetime", "unixreviewtime"),
}

GENERATED_NOTICE = "no path is set: the interactions are generated, so the scores do not transfer to real data"
# Size of the latent factors and number of features of generated interactions.
LATENT_FACTORS = 8
FEATURES = 6


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a CSV file; an empty name stands for no column.

    Attributes:
        user: Column of users.
        item: Column of items.
        rating: Column of ratings, which are numbers.
        click: Column of clicks, 0 or 1.
        time: Column of times: numbers, or dates such as ``2024-05-01T12:30:00``.
        ignore: Columns to leave out, separated by commas.
    """

    user: str = "user"
    item: str = "item"
    rating: str = "rating"
    click: str = "click"
    time: str = "time"
    ignore: str = ""


@dataclass(frozen=True)
class Interactions:
    """Table with one row per interaction.

    Attributes:
        users: User of each interaction, ``[N]``.
        items: Item of each interaction, ``[N]``.
        values: Ratings, or 1.0 for a click and 0.0 for none, ``[N]``; ``None`` if the data has neither.
        clicks: Whether ``values`` are clicks.
        times: Times, larger is later, ``[N]``; ``None`` if only the order of the rows is known.
        features: Finite features, ``[N, F]``.
        names: Name of each of the ``F`` features.
        clicked: 1.0 for a click and 0.0 for none beside ratings, ``[N]``; ``None`` if the data has not both. A missing
            rating or click is NaN.
    """

    users: NDArray[np.str_]
    items: NDArray[np.str_]
    values: NDArray[np.float64] | None
    clicks: bool
    times: NDArray[np.float64] | None
    features: NDArray[np.float32]
    names: tuple[str, ...]
    clicked: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.users)

    def select_rows(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "Interactions":
        """Return the interactions of some rows."""
        return Interactions(
            self.users[rows],
            self.items[rows],
            None if self.values is None else self.values[rows],
            self.clicks,
            None if self.times is None else self.times[rows],
            self.features[rows],
            self.names,
            None if self.clicked is None else self.clicked[rows],
        )

    def latest_rows(self) -> "Interactions":
        """Return only the latest interaction of each pair of user and item, in the order of time.

        Of interactions at the same time, the later row counts.

        Example:
            >>> columns = np.array(["a", "a"]), np.array(["x", "x"]), np.array([1.0, 2.0]), False, np.array([5.0, 4.0])
            >>> Interactions(*columns, np.zeros((2, 0), np.float32), ()).latest_rows().values.tolist()
            [1.0]
        """
        # A stable sort keeps the order of rows with equal times.
        ordered = self if self.times is None else self.select_rows(np.argsort(self.times, kind="stable"))
        users, items = (np.unique(names, return_inverse=True)[1] for names in (ordered.users, ordered.items))
        # One number for each pair; np.unique returns the first occurrence, so the last one is found in reverse order.
        pairs = users.astype(np.int64) * (int(items.max(initial=0)) + 1) + items
        _, positions_from_end = np.unique(pairs[::-1], return_index=True)
        return ordered.select_rows(np.sort(len(pairs) - 1 - positions_from_end))


def read_interactions(
    path: Path, columns: Columns, task: str, needs_value: bool, *, takes_both: bool = False
) -> Interactions:
    """Return the interactions of a MovieLens folder or of a CSV file.

    Args:
        path: A folder in one of the layouts of :mod:`autocompress.tasks.movielens`; or a ``.csv`` or ``.tsv`` file with
            a header, in which all other columns are numeric features.
        columns: Names of the columns of a CSV file.
        task: Name of the task, for messages.
        needs_value: Whether a column of ratings or clicks is required.
        takes_both: Whether ratings and clicks may both be present, and single values of them missing.

    Raises:
        UsageError: The file cannot be used; the message names file and line.
    """
    if path.is_dir():
        table = read_movielens(path)
        users, items = np.array(table.users, dtype=np.str_), np.array(table.items, dtype=np.str_)
        times = np.array(table.times)
        interactions = Interactions(users, items, np.array(table.ratings), False, times, table.features, table.names)
    elif path.suffix in DELIMITERS and path.is_file():
        require_file_memory(path)
        interactions = _read_csv(path, columns, task, needs_value, takes_both)
    else:
        raise UsageError(f"{path} is neither a .csv or .tsv file nor a folder with {LAYOUTS}")
    if not len(interactions):
        raise UsageError(f"{path} contains no interactions")
    return interactions


def check_times(interactions: Interactions, column: str) -> None:
    """Check that interactions have the column of times that ``splits.time`` names.

    Args:
        interactions: The interactions.
        column: Name of the column; empty if none is named.

    Raises:
        UsageError: There is no such column.
    """
    if column and interactions.times is None:
        raise UsageError(f"the data has no column '{column}' (set splits.time)")


def _read_csv(path: Path, columns: Columns, task: str, needs_value: bool, takes_both: bool) -> Interactions:
    rows = read_rows(path, DELIMITERS[path.suffix], "utf-8-sig")
    # An empty file has an empty header, which the checks of the columns report.
    _, header = next(rows, (1, []))
    columns = _match_names(columns, header)
    has_both = takes_both and {columns.rating, columns.click} <= set(header)
    if has_both:
        label, clicks = columns.rating, False
    else:
        label, clicks = _find_label(path, columns, header, task, needs_value)
    keys = {"user": columns.user, "item": columns.item}
    for option, name in keys.items():
        if name not in header:
            raise UsageError(f"{path}:1: no column '{name}' (task.{task}.{option}): {did_you_mean(name, header[:20])}")
    ignored = {name.strip() for name in columns.ignore.split(",") if name.strip()}
    for name in sorted(ignored - set(header)):
        raise UsageError(f"{path}:1: no column '{name}' to ignore: {did_you_mean(name, header[:20])}")
    used = {*keys.values(), label, columns.time, *ignored, *([columns.click] if has_both else [])}
    names = tuple(name for name in header if name not in used)
    index_of = {name: header.index(name) for name in header}
    has_times = columns.time in header
    # Columns are lists first: the number of rows is unknown until the end of the file.
    users, items, values, clicked, times, features = [], [], [], [], [], []
    for line, row in rows:
        location = f"{path}:{line}"
        if len(row) != len(header):
            raise UsageError(f"{location}: {len(row)} fields, but the header has {len(header)}")
        users.append(parse_text(row[index_of[columns.user]], location, columns.user))
        items.append(parse_text(row[index_of[columns.item]], location, columns.item))
        if label:
            values.append(_parse_value(row[index_of[label]], location, label, takes_both))
            if clicks:
                _check_click(values[-1], location, label, task)
        if has_both:
            clicked.append(_parse_value(row[index_of[columns.click]], location, columns.click, True))
            _check_click(clicked[-1], location, columns.click, task)
        if has_times:
            times.append(parse_time(row[index_of[columns.time]], location, columns.time))
        features.append([parse_number(row[index_of[name]], location, name) for name in names])
    return Interactions(
        np.array(users, dtype=np.str_),
        np.array(items, dtype=np.str_),
        np.array(values) if label else None,
        clicks,
        np.array(times) if has_times else None,
        np.array(features, np.float32).reshape(len(users), len(names)),
        names,
        np.array(clicked) if has_both else None,
    )


def _match_names(columns: Columns, header: list[str]) -> Columns:
    """Return names of columns with those of public data sets in the place of default names that the file lacks."""
    by_lower = {name.strip().lower(): name for name in header}
    names = asdict(columns)
    for default, aliases in ALIASES.items():
        present = [by_lower[alias] for alias in aliases if alias in by_lower]
        if names[default] == default and default not in header and len(present) == 1:
            names[default] = present[0]
    return Columns(**names)


def _parse_value(field: str, location: str, name: str, may_be_missing: bool) -> float:
    return math.nan if may_be_missing and not field.strip() else parse_number(field, location, name)


def _check_click(value: float, location: str, name: str, task: str) -> None:
    if value not in (0.0, 1.0) and not math.isnan(value):
        raise UsageError(
            f"{location}: '{name}' is {value:g}, and a click is 0 or 1; for ratings set "
            f"task.{task}.rating={name} and task.{task}.click="
        )


def _find_label(path: Path, columns: Columns, header: list[str], task: str, needed: bool) -> tuple[str, bool]:
    """Return the name of the column of ratings or clicks, empty if there is none, and whether it holds clicks."""
    present = [name for name in (columns.rating, columns.click) if name and name in header]
    if len(present) == 2:
        raise UsageError(
            f"{path}:1: there are ratings '{present[0]}' and clicks '{present[1]}'; the task 'recommendation' learns "
            f"both, and '{task}' one: disable the other with task.{task}.rating= or task.{task}.click=, and name it in "
            f"task.{task}.ignore"
        )
    if not present and needed:
        expected = columns.rating or columns.click
        option = "rating" if columns.rating else "click"
        raise UsageError(
            f"{path}:1: no column '{expected}' (task.{task}.{option}): {did_you_mean(expected, header[:20])}"
        )
    return (present[0], present[0] == columns.click) if present else ("", False)


@lru_cache(maxsize=2)
def generate_interactions(
    users: int = 1000, items: int = 2000, mean: int = 60, least: int = 20, seed: int = 0
) -> Interactions:
    """Return generated ratings from 1 to 5 of a latent-factor model (Koren et al. 2009).

    Users and items have eight latent factors each, and the product of both is the user's preference for the item. The
    items of a user are drawn by preference and by popularity, which falls as the inverse square root of the popularity
    rank. A rating is the rounded sum of preference, user bias, item bias and noise. Six features of each row are noisy
    linear projections of the item's factors. The same arguments give the same interactions.

    Args:
        users: Number of users.
        items: Number of items.
        mean: Mean number of interactions of a user.
        least: Smallest number of interactions of a user.
        seed: Seed of all random numbers.

    Example:
        >>> interactions = generate_interactions(users=30, items=50, mean=12, least=5)
        >>> sorted(set(interactions.values.tolist()))
        [1.0, 2.0, 3.0, 4.0, 5.0]
    """
    random = np.random.default_rng(seed)
    user_factors = random.normal(size=(users, LATENT_FACTORS))
    item_factors = random.normal(size=(items, LATENT_FACTORS))
    preference = user_factors @ item_factors.T / np.sqrt(LATENT_FACTORS)
    popularity = -0.5 * np.log(random.permutation(items) + 1)
    # The largest sums of utility and Gumbel noise are a draw without replacement (Kool et al. 2019, arXiv:1903.06059).
    order = np.argsort(-(1.5 * preference + popularity + random.gumbel(size=preference.shape)), axis=1)
    counts = np.minimum(least + random.exponential(mean - least, users).astype(np.int64), items)
    user_of_row = np.repeat(np.arange(users), counts)
    # Shuffled, because the order by preference would make later interactions less preferred ones.
    item_of_row = np.concatenate([random.permutation(order[user, :count]) for user, count in enumerate(counts)])
    user_bias, item_bias = 0.4 * random.normal(size=users), 0.4 * random.normal(size=items)
    noise = 0.4 * random.normal(size=len(user_of_row))
    rating = 2.9 + 0.8 * preference[user_of_row, item_of_row] + user_bias[user_of_row] + item_bias[item_of_row] + noise
    projection = random.normal(size=(LATENT_FACTORS, FEATURES))
    views = item_factors @ projection + random.normal(size=(items, FEATURES))
    return Interactions(
        user_of_row.astype(np.str_),
        item_of_row.astype(np.str_),
        np.clip(np.round(rating), 1, 5),
        False,
        random.random(len(user_of_row)),
        views[item_of_row].astype(np.float32),
        tuple(f"view {number}" for number in range(FEATURES)),
    )
