"""Sizes of the five splits, and the division of rows into them: by whole groups, or by time.

Sizes
-----
The shares are those of :data:`FRACTIONS`. A choice by few examples is mostly chance, so the validation splits of small
data are larger: each aims at :data:`VALIDATION_AIM` examples. They take them from ``train``, which keeps
:data:`TRAIN_RATIO` examples for each validation example, and from ``test``, which keeps :data:`LEAST_TEST` of the data.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.core.task import ExampleKeys
from autocompress.errors import UsageError

Rows = NDArray[np.int64]

FRACTIONS: Mapping[str, float] = MappingProxyType(
    {"test": 0.20, "select_val": 0.12, "search_val": 0.12, "calibration": 0.04}
)
# Beyond these sizes, examples are worth more in training: with 2,500, the standard error of a score is below a point.
MAX_SIZES: Mapping[str, int] = MappingProxyType({"select_val": 2500, "search_val": 2500, "calibration": 1000})
# So many examples certify a loss of at most 1 point at 90% confidence, the defaults of `pick`, for a candidate that
# differs from its teacher on 2% of them and loses nothing; both splits together certify one that differs on 4%.
VALIDATION_AIM = 445
TRAIN_RATIO = 1.6
LEAST_TEST = 0.15
VALIDATION = ("select_val", "search_val")
# Parts that data may have already, in order of time, as messages name them.
PARTS: Mapping[str, str] = MappingProxyType({"train": "training", "val": "validation", "test": "test"})
# Order of the splits by time.
TIME_ORDER = ("train", "calibration", "search_val", "select_val", "test")
# Groups times classes of the table by which groups are divided; above it, only sizes of groups count.
LARGEST_TABLE = 20_000_000


def choose_shares(count: int, given: Sequence[str] = ()) -> dict[str, float]:
    """Return the share of the examples for each split that is taken out of ``train``.

    Args:
        count: Number of examples.
        given: Parts that the data has already, such as ``test``; ``val`` is both validation splits.

    Example:
        >>> {name: round(share, 3) for name, share in choose_shares(1797).items()}
        {'test': 0.15, 'select_val': 0.156, 'search_val': 0.156, 'calibration': 0.04}
        >>> choose_shares(10_000) == FRACTIONS
        True
    """
    held = {*given, *(VALIDATION if "val" in given else ())}
    shares = {name: share for name, share in FRACTIONS.items() if name not in held}
    validation = [name for name in VALIDATION if name in shares]
    if not validation or not count:
        return shares
    # Both validation splits together, as a share of the data.
    wanted = sum(max(VALIDATION_AIM / count, shares[name]) for name in validation)
    rest = 1 - shares["calibration"]
    if "test" in shares:
        shares["test"] = min(shares["test"], max(rest - wanted * (1 + TRAIN_RATIO), LEAST_TEST))
        rest -= shares["test"]
    for name in validation:
        shares[name] = min(wanted, rest / (1 + TRAIN_RATIO)) / len(validation)
    return shares


def choose_sizes(count: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Return the number of examples of each split, at most that of :data:`MAX_SIZES`."""
    return {name: min(round(share * count), MAX_SIZES.get(name, count)) for name, share in shares.items()}


def draw_rows(count: int, seed: int, shares: Mapping[str, float]) -> dict[str, Rows]:
    """Return the row numbers of each split in ascending order, drawn at random, with the remaining rows as ``train``.

    Raises:
        UsageError: There are too few examples.
    """
    if count < 10 * len(shares):
        raise UsageError(
            f"the data has {count} examples; {len(shares) + 1} disjoint splits need at least {10 * len(shares)}"
        )
    remaining = np.random.default_rng(seed).permutation(count)
    rows: dict[str, Rows] = {}
    for name, size in choose_sizes(count, shares).items():
        rows[name], remaining = np.sort(remaining[:size]), remaining[size:]
    return {**rows, "train": np.sort(remaining)}


def divide_by_keys(
    keys: ExampleKeys, seed: int, shares: Mapping[str, float], strata: Tensor | None = None
) -> dict[str, Rows] | None:
    """Return the row numbers of each split by the groups or times of the examples; None if they have neither.

    Args:
        keys: Groups or times of the examples.
        seed: Seed of the division by groups.
        shares: Share of the examples for each split except ``train``.
        strata: Class of each example, ``[N]``, whose proportions a division by groups keeps as far as it can.

    Raises:
        UsageError: There are fewer groups or times than splits, or ``train`` would have a single class.
    """
    if keys.groups is not None:
        classes = None if strata is None else strata.numpy()
        return divide_by_groups(keys.groups.numpy(), seed, shares, classes, keys.column)
    if keys.times is not None:
        rows = divide_by_time(keys.times.numpy(), shares, keys.column)
        in_train = None if strata is None else strata[torch.from_numpy(rows["train"])].unique()
        # Data sorted by class, with row numbers as times, would train on one class.
        if strata is not None and in_train is not None and len(in_train) == 1 and len(strata.unique()) > 1:
            raise UsageError(
                f"the earliest examples by '{keys.column}', which are the training split, have a single class; name "
                "another column, or leave splits.time out"
            )
        return rows
    return None


def divide_by_groups(
    groups: Rows,
    seed: int,
    shares: Mapping[str, float],
    strata: NDArray[np.int64] | None = None,
    column: str = "groups",
) -> dict[str, Rows]:
    """Return the row numbers of each split; all rows of a group are in the same split.

    Groups are assigned from the largest to the smallest, each to the split whose numbers of examples of its classes lie
    furthest below their goals. The remaining rows are ``train``, which has every class.

    Args:
        groups: Group of each example, ``[N]``.
        seed: Seed of the order of groups of equal size.
        shares: Share of the examples for each split except ``train``.
        strata: Class of each example, ``[N]``; None where examples have none.
        column: Name of the column of groups, for messages.

    Raises:
        UsageError: There are fewer groups than splits.
    """
    names = ["train", *shares]
    _, members = np.unique(groups, return_inverse=True)
    count = int(members.max()) + 1
    if count < len(names):
        only = "one group only" if count == 1 else f"{count} groups"
        raise UsageError(
            f"'{column}' has {only}, and a group is never divided: {len(names)} splits need at least {len(names)} "
            "groups; name another column, or leave splits.groups out"
        )
    table = _count_classes(members, count, strata)
    sizes = choose_sizes(len(groups), shares)
    sizes = {"train": len(groups) - sum(sizes.values()), **sizes}
    goals = np.outer([sizes[name] for name in names], table.sum(0) / len(groups))
    split_of_group = _assign_groups(table, goals, np.random.default_rng(seed))
    _complete_train(table, split_of_group)
    return {name: np.flatnonzero(split_of_group[members] == number) for number, name in enumerate(names)}


def _count_classes(members: Rows, count: int, strata: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """Return the number of examples of each class in each group, ``[G, C]``."""
    classes = np.zeros(len(members), np.int64) if strata is None else np.unique(strata, return_inverse=True)[1]
    width = int(classes.max()) + 1
    if count * width > LARGEST_TABLE:
        classes, width = np.zeros_like(classes), 1
    return np.bincount(members * width + classes, minlength=count * width).reshape(count, width).astype(np.float64)


def _assign_groups(
    table: NDArray[np.float64], goals: NDArray[np.float64], random: np.random.Generator
) -> NDArray[np.int64]:
    """Return the split of each group, ``[G, C], [S, C] -> [G]``."""
    gaps = goals.copy()
    split_of_group = np.full(len(table), -1)
    # The seed decides among groups of equal size; large groups come first, while every split has room for them.
    order = random.permutation(len(table))
    order = order[np.argsort(-table[order].sum(1), kind="stable")]
    is_empty = np.ones(len(goals), np.bool_)
    for position, group in enumerate(order):
        # The squared distance from the goals falls most where this product is largest.
        gain = gaps @ table[group]
        # The last groups go to splits that have none.
        if len(order) - position <= is_empty.sum():
            gain = np.where(is_empty, gain, -np.inf)
        split = int(gain.argmax())
        split_of_group[group], is_empty[split] = split, False
        gaps[split] -= table[group]
    return split_of_group


def _complete_train(table: NDArray[np.float64], split_of_group: NDArray[np.int64]) -> None:
    """Move groups to split 0, ``train``, until it has every class; a model cannot learn a class without examples."""
    for label in np.flatnonzero(table[split_of_group == 0].sum(0) == 0):
        holders = np.flatnonzero(table[:, label] > 0)
        # A split keeps its last group.
        movable = [group for group in holders if (split_of_group == split_of_group[group]).sum() > 1]
        if movable:
            split_of_group[min(movable, key=lambda group: table[group].sum())] = 0


def divide_by_time(times: NDArray[np.float64], shares: Mapping[str, float], column: str = "times") -> dict[str, Rows]:
    """Return the row numbers of each split in ascending order; every example of a split is later than the one before.

    The order is that of :data:`TIME_ORDER`. Examples of equal time are in the same split.

    Args:
        times: Time of each example, ``[N]``.
        shares: Share of the examples for each split except ``train``.
        column: Name of the column of times, for messages.

    Raises:
        UsageError: There are fewer distinct times than splits.
    """
    names = [name for name in TIME_ORDER if name == "train" or name in shares]
    order = np.argsort(times, kind="stable")
    ordered = times[order]
    # Positions before which a split can end.
    boundaries = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    if len(boundaries) < len(names) - 1:
        raise UsageError(
            f"'{column}' has {len(boundaries) + 1} distinct times; {len(names)} splits in order of time need at least "
            f"{len(names)}; name another column, or leave splits.time out"
        )
    sizes = choose_sizes(len(times), shares)
    cuts: list[int] = []
    first, wanted = 0, len(times) - sum(sizes.values())
    for number, name in enumerate(names[1:]):
        # Each later split needs a boundary of its own.
        last = len(boundaries) - (len(names) - 2 - number)
        first += int(np.abs(boundaries[first:last] - wanted).argmin())
        cuts.append(int(boundaries[first]))
        first, wanted = first + 1, wanted + sizes[name]
    return {name: np.sort(rows) for name, rows in zip(names, np.split(order, cuts), strict=True)}


@dataclass(frozen=True)
class KeyColumn:
    """The column that splits are divided by.

    Attributes:
        name: Name of the column; empty if there is none.
        is_time: Whether it holds times; otherwise groups.
    """

    name: str = ""
    is_time: bool = False

    @classmethod
    def from_options(cls, split_groups: str, split_time: str) -> "KeyColumn":
        """Return the column of the options of a task.

        Raises:
            UsageError: Both options are given.
        """
        if split_groups and split_time:
            raise UsageError(
                f"splits names the groups '{split_groups}' and the time '{split_time}'; give one of them: a group that "
                "lasts over time would have to be in two splits"
            )
        return cls(split_groups or split_time, bool(split_time))

    def read_keys(
        self, values: Mapping[str, Sequence[str]], locations: Mapping[str, Sequence[str]]
    ) -> dict[str, ExampleKeys]:
        """Return the keys of each part from the fields of the column.

        Args:
            values: Part, such as ``train``, to the field of each example.
            locations: Part to the place of each example, for messages.

        Raises:
            UsageError: A field is empty, a time cannot be read, or the training and the test file share a group or
                overlap in time.
        """
        if not self.name:
            return {part: ExampleKeys() for part in values}
        for part, fields in values.items():
            for position, field in enumerate(fields):
                if not field.strip():
                    raise UsageError(
                        f"{locations[part][position]}: '{self.name}' is empty; fill it in, or leave the row out"
                    )
        if self.is_time:
            return self.make_time_keys(
                {part: np.array(parse_times(fields, self.name, locations[part])) for part, fields in values.items()}
            )
        return self.make_group_keys({part: np.array(fields, dtype=np.str_) for part, fields in values.items()})

    def make_group_keys(self, groups: Mapping[str, NDArray[np.generic]]) -> dict[str, ExampleKeys]:
        """Return the keys of each part, and check that no group is in two parts.

        Args:
            groups: Part to the group of each example, ``[N]``.

        Raises:
            UsageError: Two parts share a group.
        """
        for first, second in itertools.combinations([part for part in PARTS if part in groups], 2):
            if (shared := np.intersect1d(groups[first], groups[second])).size:
                raise UsageError(
                    f"{shared.size:,} of the groups of '{self.name}', such as '{shared[0]}', are in the "
                    f"{PARTS[first]} and in the {PARTS[second]} data; leave their rows out of one of them, or leave "
                    f"the {PARTS[second]} data out"
                )
        numbers = np.unique(np.concatenate(list(groups.values())), return_inverse=True)[1]
        keys, start = {}, 0
        for part, values in groups.items():
            keys[part] = ExampleKeys(groups=torch.from_numpy(numbers[start : start + len(values)]), column=self.name)
            start += len(values)
        return keys

    def make_time_keys(self, times: Mapping[str, NDArray[np.float64]]) -> dict[str, ExampleKeys]:
        """Return the keys of each part, and check that the test data is later than the training data.

        Args:
            times: Part to the time of each example, ``[N]``.

        Raises:
            UsageError: A part begins before an earlier one ends.
        """
        for first, second in itertools.combinations([part for part in PARTS if part in times], 2):
            if early := int((times[second] <= times[first].max()).sum()):
                raise UsageError(
                    f"{early:,} {PARTS[second]} examples are no later than the last {PARTS[first]} example by "
                    f"'{self.name}'; leave them out, or leave the {PARTS[second]} data out: the {PARTS[second]} split "
                    f"is then taken out of the latest {PARTS['train']} data"
                )
        return {part: ExampleKeys(times=torch.from_numpy(values), column=self.name) for part, values in times.items()}


def parse_times(fields: Sequence[str], column: str, locations: Sequence[str]) -> list[float]:
    """Return times as numbers, larger is later: numbers as they are, and dates such as ``2024-05-01T12:30``.

    Args:
        fields: Texts of the column.
        column: Name of the column, for messages.
        locations: Place of each field, for messages.

    Raises:
        UsageError: A field is neither, or the column has numbers and dates, or dates with and without a time zone.

    Example:
        >>> parse_times(["3", "2.5"], "day", ["a.csv:2", "a.csv:3"])
        [3.0, 2.5]
    """
    times: list[float] = []
    # Each kind of time with the position where it first occurs.
    kinds: dict[str, int] = {}
    for position, field in enumerate(fields):
        kind, time = _parse_time(field.strip())
        if not math.isfinite(time):
            raise UsageError(
                f"{locations[position]}: '{column}' is {field!r}, which has no place in time; give a number, or a date "
                "such as 2024-05-01 or 2024-05-01T12:30:00"
            )
        kinds.setdefault(kind, position)
        times.append(time)
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        raise UsageError(
            f"{locations[second]}: '{column}' is {other}, but {one} at {locations[first]}: they cannot be sorted; "
            "give all times in one form"
        )
    return times


def _parse_time(field: str) -> tuple[str, float]:
    """Return the kind of a time and its number; NaN if it is none."""
    try:
        return "a number", float(field)
    except ValueError:
        pass
    try:
        date = datetime.fromisoformat(field)
    except ValueError:
        return "", math.nan
    kind = "a date without a time zone" if date.tzinfo is None else "a date with a time zone"
    # Of dates without a zone, only differences count: local time would repeat an hour each year.
    return kind, (date - datetime(1970, 1, 1, tzinfo=date.tzinfo)).total_seconds()
