"""Recommender tasks: prediction of ratings or clicks, and ranking of candidate items.

Every head is categorical, so distillation, measuring and export work as for any other task. The levels of a rating are
classes with values, and the predicted rating is their mean under the softmax
(Farebrother et al. 2024, arXiv:2403.03950); a candidate list has one class for each candidate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.core.config import Part
from autocompress.core.duplicates import digest_contents
from autocompress.core.heads import Candidates, Head, Levels
from autocompress.core.preprocessing import CandidatesInput, IdInput, Preprocessing, RawExample, RowInput
from autocompress.core.registry import TASKS
from autocompress.core.task import NO_KEYS, ExampleKeys, InputSpec, Split, Splits
from autocompress.errors import UsageError
from autocompress.tasks.base import Supervised, check_positive, stratify_rows
from autocompress.tasks.interactions import (
    GENERATED_NOTICE,
    Columns,
    Interactions,
    check_times,
    generate_interactions,
    read_interactions,
)
from autocompress.tasks.negative_sampling import CandidateLists, split_by_time
from autocompress.tasks.split_rows import KeyColumn, choose_shares, divide_by_keys, draw_rows

# Largest number of rating levels; more distinct ratings are binned.
MAX_LEVELS = 20
# Row of the embedding tables for unknown users and items.
UNKNOWN = 0
# Share of the candidate lists of an augmented view whose user is unknown, and of those with an unknown candidate.
UNKNOWN_SHARE = 0.02
Mask = NDArray[np.bool_]
SCORES = ("accuracy", "loss", "kl", "agreement", "retention")


@TASKS.register("ratings")
class Ratings(Supervised):
    """Prediction of a user's rating of an item, or of a click: generated ratings, or your own in a file.

    Inputs are a user, an item and optional features ``[B, F]``, normalized to mean 0 and standard deviation 1 over the
    training split. Distinct ratings are the classes; more than 20 become 20 bins with equal numbers of ratings, each
    with the mean of its ratings as its value. Clicks have two classes. Of several rows with the same user and item, the
    latest counts.

    Rows are split at random, by a column of times, or by users or items, each of which is then in one split. Row 0 of
    both embedding tables stands for unknown users and items, such as new ones in ``test``; it is trained on the users
    and items with a single training row.

    Args:
        path: A MovieLens folder of any size (``u.data``, ``ratings.dat`` or ``ratings.csv``); or a ``.csv`` or ``.tsv``
            file with a header and a column each for user, item, rating or click; all other columns except the time are
            numeric features. Without a path, the ratings are generated: 1,000 users, 2,000 items, about 60,000 ratings.
        test: A second file or folder of that kind for the test split; by default it is taken out of ``path``.
        user: Name of the column of users.
        item: Name of the column of items.
        rating: Name of the column of ratings; leave it empty to use clicks.
        click: Name of the column of clicks, 0 or 1.
        time: Name of the column of times, which decides which of several rows counts.
        ignore: Names of columns to leave out, separated by commas.
        split_groups: Name of the column of users or of items, none of which is then in two splits: ``splits: {groups:
            user}`` in a search space.
        split_time: Name of the column of times by which the rows are split: ``splits: {time: time}`` in a search space.

    Raises:
        UsageError: A file cannot be used; the message names file and line.
    """

    name = "ratings"
    split_keys = ("groups", "time")

    def __init__(
        self,
        path: str | Path = "",
        *,
        test: str | Path = "",
        user: str = "user",
        item: str = "item",
        rating: str = "rating",
        click: str = "click",
        time: str = "time",
        ignore: str = "",
        split_groups: str = "",
        split_time: str = "",
    ) -> None:
        self._key = KeyColumn.from_options(split_groups, split_time)
        columns = Columns(user, item, rating, click, split_time or time, ignore)
        if split_groups and split_groups not in (user, item):
            raise UsageError(f"the rows of {self.name} are grouped by '{user}' or '{item}', not by '{split_groups}'")
        if test and not path:
            raise UsageError("task.ratings.test is set and task.ratings.path is not; give both")
        if path:
            interactions = read_interactions(Path(path).expanduser(), columns, self.name, needs_value=True)
        else:
            interactions = generate_interactions()
        rows = {"train": interactions.latest_rows()}
        if test:
            rows["test"] = read_interactions(
                Path(test).expanduser(), columns, self.name, needs_value=True
            ).latest_rows()
            _check_test_file(rows["train"], rows["test"], Path(test))
        self._keys = _make_row_keys(rows, self._key, is_user=split_groups == user)
        self._is_generated, self._repeats = not path, len(interactions) - len(rows["train"])
        self._users, self._items = (np.unique(names) for names in (rows["train"].users, rows["train"].items))
        self._bins = RatingBins(_require_values(rows["train"]))
        self._rows = rows
        features = len(rows["train"].names)
        # One row more than names, for unknown users and items.
        specs = InputSpec((), vocabulary=len(self._users) + 1), InputSpec((), vocabulary=len(self._items) + 1)
        self.inputs = (*specs, InputSpec((features,))) if features else specs
        if rows["train"].clicks:
            self.heads: Mapping[str, int] = {"click": Head(2, "auc")}
            self.labels: Mapping[str, list[str]] = {"click": ["no click", "click"]}
            self.metrics = ("auc", "log_loss", *SCORES)
        else:
            self.heads = {"rating": Levels(len(self._bins.levels), levels=tuple(self._bins.levels.tolist()))}
            self.labels = {"rating": [f"{level:g}" for level in self._bins.levels]}
            self.metrics = ("rmse", *SCORES)

    @cached_property
    def notices(self) -> tuple[str, ...]:
        """Remarks on the data: generated data, repeated rows, bins, and users and items that count as unknown."""
        train, test = self._rows["train"], self._rows.get("test")
        remarks = [GENERATED_NOTICE if self._is_generated else ""]
        if self._repeats:
            remarks.append(f"{self._repeats:,} rows repeat a pair of user and item; the latest row counts")
        if self._bins.spread:
            remarks.append(
                f"{self._bins.distinct:,} distinct ratings were put into {len(self._bins.levels)} bins; "
                "rmse is measured against bin means, which differ from the ratings by "
                f"{self._bins.spread:.3g} (root mean square)"
            )
        test_columns = (None, None) if test is None else (test.users, test.items)
        for kind, names, test_names in (
            ("users", train.users, test_columns[0]),
            ("items", train.items, test_columns[1]),
        ):
            distinct, counts = np.unique(names, return_counts=True)
            if single := int((counts == 1).sum()):
                remarks.append(
                    f"{single:,} of {len(distinct):,} {kind} have one row and share the table row for unknown ones"
                )
            if test_names is not None and (new := np.setdiff1d(test_names, distinct)).size:
                remarks.append(
                    f"{new.size:,} {kind} of the test file are not in the training file and count as unknown"
                )
        return tuple(filter(None, remarks))

    @property
    def has_distinct_inputs(self) -> bool:
        """False: pairs of unknown users and items have one input; pairs are compared by their digests instead."""
        return False

    def resampling_groups(self, split: Split) -> Tensor:
        """Return the group of each row, ``[N]``: its user by default; rows of unknown users are groups of their own."""
        if split.keys.groups is not None:
            return split.keys.groups
        users = split.inputs[0]
        return torch.where(users == UNKNOWN, -1 - torch.arange(len(users)), users)

    def splits(self, seed: int) -> Splits:
        """Return five splits: by users, items or time if a column is named, otherwise random; clicks are stratified.

        Raises:
            UsageError: The data has too few rows, groups or times.
        """
        rows = self._locate_rows(seed)
        parts = self._split_interactions(seed)
        users, items, mean, std = self._fit_encoding(parts["train"])
        splits = {}
        for name, part in parts.items():
            ids = [
                torch.from_numpy(_table_rows(names, table, has_row))
                for names, table, has_row in ((part.users, self._users, users), (part.items, self._items, items))
            ]
            features = [torch.from_numpy((part.features - mean) / std)] if part.names else []
            (head,) = self.heads
            targets = torch.from_numpy(self._bins.assign_classes(_require_values(part)))
            source, index = rows[name]
            splits[name] = Split((*ids, *features), {head: targets}, self._keys[source].take(torch.from_numpy(index)))
        return Splits(**splits)

    def specify_preprocessing(self, seed: int) -> Preprocessing:
        """Return the id maps of users and items, and the normalization of the features if there are any.

        Unknown ids are row 0, and so are the ids with a single training row.
        """
        train = self._split_interactions(seed)["train"]
        users, items, mean, std = self._fit_encoding(train)
        ids: list[IdInput | RowInput] = [
            IdInput(name, _mask_names(table, has_row), first_row=1, unknown_row=UNKNOWN)
            for name, table, has_row in (("user", self._users, users), ("item", self._items, items))
        ]
        if train.names:
            ids.append(RowInput(train.names, tuple(mean.tolist()), tuple(std.tolist())))
        return tuple(ids)

    def list_test_examples(self, seed: int) -> Sequence[RawExample]:
        """Return the test rows: a user, an item and, if there are any, features by name."""
        test = self._split_interactions(seed)["test"]
        return [
            {
                "user": str(user),
                "item": str(item),
                **({"features": dict(zip(test.names, row.tolist(), strict=True))} if test.names else {}),
            }
            for user, item, row in zip(test.users, test.items, test.features, strict=True)
        ]

    def teacher(self) -> tuple[Part, Part]:
        """Return a wide model of pairwise interactions, and its training config."""
        return (
            Part.of("interaction", embedding=32, width=128, depth=2, bottom=1),
            Part.of("adamw", epochs=6, learning_rate=5e-3, weight_decay=1.0, batch_size=256),
        )

    def _split_interactions(self, seed: int) -> dict[str, Interactions]:
        """Return the interactions of each split."""
        return {name: self._rows[source].select_rows(rows) for name, (source, rows) in self._locate_rows(seed).items()}

    def _locate_rows(self, seed: int) -> dict[str, tuple[str, NDArray[np.int64]]]:
        """Return the file of each split, ``train`` or ``test``, and its rows there."""
        classes = self._bins.assign_classes(_require_values(self._rows["train"]))
        located = {name: ("train", rows) for name, rows in self._split_rows(classes, seed).items()}
        return located | ({"test": ("test", np.arange(len(self._rows["test"])))} if "test" in self._rows else {})

    def _fit_encoding(self, train: Interactions) -> tuple[Mask, Mask, NDArray[np.float32], NDArray[np.float32]]:
        """Return which users and items have a table row of their own, and mean and deviation of each feature."""
        users, items = _has_table_row(train.users, self._users), _has_table_row(train.items, self._items)
        mean, std = train.features.mean(0), train.features.std(0)
        # The deviation of a constant feature is 0; dividing by 1 avoids values that are not finite.
        std[std == 0] = 1
        return users, items, mean, std

    def _split_rows(self, classes: NDArray[np.int64], seed: int) -> dict[str, NDArray[np.int64]]:
        shares = choose_shares(len(classes), list(self._rows))
        strata = torch.from_numpy(classes) if self._rows["train"].clicks else None
        if len(classes) < 50:
            raise UsageError(f"the data has {len(classes)} ratings; five disjoint splits need at least 50")
        by_keys = divide_by_keys(self._keys["train"], seed, shares, strata)
        if by_keys is not None:
            return by_keys
        if strata is not None:
            return stratify_rows(strata, seed, shares, ["no click", "click"])
        # Not stratified: a rating level with few rows should not make the data unusable.
        return draw_rows(len(classes), seed, shares)


@TASKS.register("ranking")
class Ranking(Supervised):
    """Ranking of a user's next item: one true item among sampled negatives, generated or your own data.

    Inputs are a user and ``candidates`` items ``[B, K]``; the outputs are one score per item, and the target is the
    position of the true item. The negatives, 49 by default, are drawn uniformly and without repetition from the items
    that the user never interacted with in any split, and their order is random (He et al. 2017, arXiv:1708.05031, use
    99). Scores among sampled negatives are higher than among all items, and not comparable between numbers of
    candidates (Krichene and Rendle 2020). An augmented view of the training split has new negatives; evaluation splits
    keep theirs.

    The last row of both embedding tables stands for unknown users and items. Augmented views train it: they replace the
    user of 2% of the lists by it, and one random candidate of 2% of the lists.

    Each user's interactions are split by time, and by row for equal times: the last goes to ``test``, the ones before
    to ``select_val``, ``search_val`` and ``calibration``, and the earlier ones to ``train``. The first interaction of a
    user is always in ``train``; users with a single interaction are left out.

    Args:
        path: A MovieLens folder, or a ``.csv`` or ``.tsv`` file with a header and a column each for
            user and item. Without a path, they are generated: 1,000 users, 2,000 items, about 60,000 interactions.
        candidates: Number of items in a list, the true one included.
        liked: Smallest rating that counts as an interaction; by default all count. Of clicks, only 1 counts.
        views: Number of views of the training split, each with other negatives.
        user: Name of the column of users.
        item: Name of the column of items.
        rating: Name of the column of ratings, if the file has one.
        click: Name of the column of clicks, if the file has one.
        time: Name of the column of times; without one, the order of the rows is the order of time.
        split_time: Name of a column of times that the data must have: ``splits: {time: time}`` in a search space.

    Raises:
        UsageError: A file cannot be used (the message names file and line), or an option is out of bounds.
    """

    name = "ranking"
    split_keys = ("time",)
    has_folds = False
    metrics: tuple[str, ...] = ("ndcg_at_10", "hit_rate_at_10", *SCORES)

    def __init__(
        self,
        path: str | Path = "",
        *,
        candidates: int = 50,
        liked: float | None = None,
        views: int = 12,
        user: str = "user",
        item: str = "item",
        rating: str = "rating",
        click: str = "click",
        time: str = "time",
        split_time: str = "",
    ) -> None:
        check_positive("ranking.candidates", candidates, 2)
        check_positive("ranking.views", views)
        if liked is not None and (isinstance(liked, bool) or not isinstance(liked, int | float)):
            raise UsageError(f"task.ranking.liked is {liked!r}; give a rating")
        columns = Columns(user, item, rating, click, split_time or time)
        if path:
            interactions = read_interactions(Path(path).expanduser(), columns, self.name, needs_value=False)
        else:
            interactions = generate_interactions()
        check_times(interactions, split_time)
        self._is_generated, self._has_times = not path, interactions.times is not None
        pairs = interactions.latest_rows()
        self._repeats = len(interactions) - len(pairs)
        pairs = _select_positive(pairs, liked)
        _, user_of_row, counts = np.unique(pairs.users, return_inverse=True, return_counts=True)
        self._single_users = int((counts == 1).sum())
        pairs = pairs.select_rows(counts[user_of_row] > 1)
        if not len(pairs):
            raise UsageError("no user has two interactions, one for training and one to predict")
        users, user_of_row = np.unique(pairs.users, return_inverse=True)
        items, item_of_row = np.unique(pairs.items, return_inverse=True)
        self._users, self._items = tuple(users.tolist()), tuple(items.tolist())
        self._parts = split_by_time(user_of_row)
        missing = [name for name in Splits.NAMES if not len(self._parts[name])]
        if missing:
            raise UsageError(f"no user has enough interactions for {missing[0]}; at least one user needs five")
        self._candidate_lists = CandidateLists(
            user_of_row, item_of_row, len(items), candidates, f"task.{self.name}.candidates"
        )
        self.views = views
        # One row more than names, for unknown users and items.
        self.inputs = InputSpec((), vocabulary=len(users) + 1), InputSpec((candidates,), vocabulary=len(items) + 1)
        self.heads: Mapping[str, int] = {"item": Candidates(candidates)}

    @property
    def notices(self) -> tuple[str, ...]:
        """Remarks on the data: generated data, the number of negatives, repeated rows and users that were left out."""
        negatives = self.heads["item"] - 1
        remarks = [
            GENERATED_NOTICE if self._is_generated else "",
            f"the true item is ranked among {negatives} sampled negatives, not among all items: compare scores only "
            f"with those of {negatives} negatives",
        ]
        if not self._has_times:
            remarks.append("the data has no column of times: the order of the rows is the order of time")
        if self._repeats:
            remarks.append(f"{self._repeats:,} rows repeat a pair of user and item; the latest row counts")
        if self._single_users:
            remarks.append(f"users with one interaction were left out: {self._single_users:,}")
        return tuple(filter(None, remarks))

    def splits(self, seed: int) -> Splits:
        """Return five splits by each user's order of time; the seed is that of the negatives."""
        return Splits(
            **{
                name: self._candidate_lists.draw_lists(self._parts[name], np.random.default_rng([seed, number]))
                for number, name in enumerate(Splits.NAMES)
            }
        )

    def specify_preprocessing(self, seed: int) -> Preprocessing:
        """Return the id maps of users and items; unknown ids are refused if no augmented view trains their row."""
        users, items = (len(names) if self.views > 1 else None for names in (self._users, self._items))
        return (
            IdInput("user", self._users, unknown_row=users),
            CandidatesInput("candidates", self._items, unknown_row=items, count=self.heads["item"]),
        )

    def list_test_examples(self, seed: int) -> Sequence[RawExample]:
        """Return the users of the test split with their candidates."""
        users, lists = (tensor.tolist() for tensor in self.splits(seed).test.inputs)
        return [
            {"user": self._users[user], "candidates": [self._items[item] for item in items]}
            for user, items in zip(users, lists, strict=True)
        ]

    def view(self, split: Split, index: int) -> Split:
        """Return the same users and true items with other negatives, some of them unknown; view 0 is the split."""
        if index == 0:
            return split
        # The second number separates the random streams of views from those of splits, which have small numbers.
        random = np.random.default_rng([index, 2**31])
        redrawn = self._candidate_lists.redraw_negatives(split, random)
        users, lists = (tensor.clone() for tensor in redrawn.inputs)
        users[torch.from_numpy(random.random(len(users)) < UNKNOWN_SHARE)] = len(self._users)
        rows = np.flatnonzero(random.random(len(users)) < UNKNOWN_SHARE)
        lists[rows, random.integers(lists.shape[1], size=len(rows))] = len(self._items)
        return Split((users, lists), redrawn.targets)

    def teacher(self) -> tuple[Part, Part]:
        """Return a two-tower model with wide embeddings and no hidden layer, and its training config."""
        # With a hidden layer and enough weight decay against overfitting, the model learns only popularity. Without one
        # it learns preferences, given a high learning rate and new negatives in each view, which it cannot memorize.
        return (
            Part.of("two_tower", embedding=64, depth=0, tower=64),
            Part.of("adamw", epochs=12, learning_rate=1e-2, weight_decay=0.08, batch_size=256),
        )


class RatingBins:
    """Rating levels: the distinct ratings, or 20 bins with equal numbers of ratings.

    Args:
        values: Ratings, ``[N]``.

    Attributes:
        levels: Value of each class in ascending order; the mean rating of a bin.
        distinct: Number of distinct ratings.
        spread: Root mean square distance of a rating from its level; 0 without bins.

    Raises:
        UsageError: All ratings are equal.

    Example:
        >>> RatingBins(np.array([4.0, 1.0, 4.0])).assign_classes(np.array([4.0])).tolist()
        [1]
    """

    def __init__(self, values: NDArray[np.float64]) -> None:
        distinct_values = np.unique(values)
        self.distinct = len(distinct_values)
        if self.distinct < 2:
            raise UsageError(f"every row has the value {distinct_values[0]:g}; a task needs at least two")
        # The edges lie halfway between levels, so a value belongs to the nearest level.
        if self.distinct <= MAX_LEVELS:
            self._edges, self.levels, self.spread = (
                (distinct_values[1:] + distinct_values[:-1]) / 2,
                distinct_values,
                0.0,
            )
            return
        # Frequent ratings make several quantiles equal, so there may be fewer bins.
        edges = np.unique(np.quantile(values, np.linspace(0, 1, MAX_LEVELS + 1)[1:-1]))
        # Empty bins are dropped, because a level is the mean of its ratings.
        used_bins, class_of_value = np.unique(np.searchsorted(edges, values, side="right"), return_inverse=True)
        self._edges = edges[used_bins[1:] - 1]
        self.levels = np.bincount(class_of_value, values) / np.bincount(class_of_value)
        self.spread = float(np.sqrt(np.square(values - self.levels[class_of_value]).mean()))

    def assign_classes(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the class index of each rating, ``[N]``."""
        return np.searchsorted(self._edges, values, side="right").astype(np.int64)


def _make_row_keys(rows: Mapping[str, Interactions], key: KeyColumn, *, is_user: bool) -> dict[str, ExampleKeys]:
    """Return groups or times, and the digests of the pairs of user and item, of each part.

    Raises:
        UsageError: There are no times, or the training and the test file share a group or overlap in time.
    """
    keys = dict.fromkeys(rows, NO_KEYS)
    if key.is_time:
        for table in rows.values():
            check_times(table, key.name)
        keys = key.make_time_keys({part: table.times for part, table in rows.items() if table.times is not None})
    elif key.name:
        keys = key.make_group_keys({part: table.users if is_user else table.items for part, table in rows.items()})
    return {
        part: replace(
            keys[part], contents=digest_contents("\0".join(pair) for pair in zip(table.users, table.items, strict=True))
        )
        for part, table in rows.items()
    }


def _require_values(rows: Interactions) -> NDArray[np.float64]:
    assert rows.values is not None
    return rows.values


def _select_positive(interactions: Interactions, minimum: float | None) -> Interactions:
    """Return the interactions that count: clicks, or ratings of at least ``minimum``."""
    if interactions.values is None or (minimum is None and not interactions.clicks):
        return interactions
    return interactions.select_rows(interactions.values >= (1.0 if interactions.clicks else float(minimum or 0)))


def _check_test_file(train: Interactions, test: Interactions, path: Path) -> None:
    """Check that a test file has the form of the training file.

    Raises:
        UsageError: The test file has other columns, or ratings that do not occur in the training file.
    """
    if train.names != test.names or train.clicks != test.clicks:
        raise UsageError(f"{path} has the features {list(test.names)}, but the training file has {list(train.names)}")
    # With bins, every value has a class.
    unknown = np.setdiff1d(_require_values(test), _require_values(train))
    if len(np.unique(_require_values(train))) <= MAX_LEVELS and unknown.size:
        raise UsageError(f"{path} contains the value {unknown[0]:g}, which the training file does not")


def _mask_names(table: NDArray[np.str_], has_row: Mask) -> tuple[str | None, ...]:
    """Return the names of a table, None for those without a row of their own."""
    return tuple(name if row else None for name, row in zip(table.tolist(), has_row.tolist(), strict=True))


def _has_table_row(names: NDArray[np.str_], table: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Return whether each name of ``table`` has at least two training rows, and thus its own row in the embedding."""
    counts = np.bincount(np.searchsorted(table, names), minlength=len(table))
    return counts > 1


def _table_rows(names: NDArray[np.str_], table: NDArray[np.str_], has_row: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the embedding row of each name, 0 for unknown names."""
    position = np.searchsorted(table, names).clip(max=len(table) - 1)
    return np.where((table[position] == names) & has_row[position], position + 1, UNKNOWN).astype(np.int64)
