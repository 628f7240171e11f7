"""Several recommender tasks at once, on shared embeddings: interest in an item, click-through, and rating."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from autocompress.core.config import Part
from autocompress.core.heads import IGNORED, Candidates, Head, Levels
from autocompress.core.preprocessing import CandidatesInput, IdInput, Preprocessing, RawExample
from autocompress.core.registry import TASKS
from autocompress.core.task import InputSpec, Split, Splits
from autocompress.errors import UsageError
from autocompress.tasks.base import FRACTIONS, Supervised, check_positive
from autocompress.tasks.interactions import (
    GENERATED_NOTICE,
    Columns,
    Interactions,
    check_times,
    generate_interactions,
    read_interactions,
)
from autocompress.tasks.negative_sampling import CandidateLists
from autocompress.tasks.recommender import UNKNOWN_SHARE, RatingBins
from autocompress.tasks.targets import metrics_of

Rows = NDArray[np.int64]
HEADS = ("item", "click", "rating")


@TASKS.register("recommendation")
class Recommendation(Supervised):
    """Interest, click-through and rating at once: three heads on one table of users and one of items.

    Inputs are a user, the item of a row, and other items ``[B, K - 1]`` that the user never interacted with. The head
    ``item`` scores all K of them, and the first is the true one; ``click`` and ``rating`` predict what the user does
    with the first. A row without a click trains no ``item``, and a row without a rating no ``rating``. Scores among
    sampled negatives are comparable only between equal numbers of candidates (Krichene and Rendle 2020).

    Each user's rows are split by time: the last fifth is ``test``, the parts before it are ``select_val``,
    ``search_val`` and ``calibration``, and the earlier rows are ``train``.

    Args:
        path: A ``.csv`` or ``.tsv`` file with a header and the columns user, item, and click, rating or both; a missing
            rating or click is left empty. Without a path, the data is generated: 600 users, 1,000 items.
        heads: Names of the heads, of ``item``, ``click`` and ``rating``, separated by commas; by default all for which
            the file has a column. The first is the head whose weight ``fit.first_head`` sets.
        candidates: Number of items to rank, the true one included.
        liked: Smallest rating that counts as interest where there are no clicks; by default every row counts.
        views: Number of views of the training split, each with other negatives.
        user: Name of the column of users.
        item: Name of the column of items.
        rating: Name of the column of ratings.
        click: Name of the column of clicks, 0 or 1.
        time: Name of the column of times; without one, the order of the rows is the order of time.
        split_time: Name of a column of times that the data must have: ``splits: {time: time}`` in a search space.

    Raises:
        UsageError: A file cannot be used (the message names file and line), or an option is out of bounds.
    """

    name = "recommendation"
    split_keys = ("time",)
    has_folds = False
    metrics = metrics_of([Candidates(2), Head(2, "auc"), Levels(2, levels=(0.0, 1.0))])

    def __init__(
        self,
        path: str | Path = "",
        *,
        heads: str | Sequence[str] = "",
        candidates: int = 20,
        liked: float | None = None,
        views: int = 6,
        user: str = "user",
        item: str = "item",
        rating: str = "rating",
        click: str = "click",
        time: str = "time",
        split_time: str = "",
    ) -> None:
        check_positive("recommendation.candidates", candidates, 2)
        check_positive("recommendation.views", views)
        columns = Columns(user, item, rating, click, split_time or time)
        self._is_generated = not path
        if path:
            source = Path(path).expanduser()
            rows = read_interactions(source, columns, self.name, needs_value=False, takes_both=True).latest_rows()
        else:
            rows = generate_impressions()
        check_times(rows, split_time)
        self._rows = rows
        values_of_head = self._known_columns()
        names = _list_heads(heads, values_of_head)
        for column in names:
            values = values_of_head.get(column)
            if values is not None and bool(np.isnan(values).all()):
                raise UsageError(
                    f"the column '{column}' has no value in any row; fill it in, or leave the head out: "
                    f"task.recommendation.heads={', '.join(name for name in names if name != column)}"
                )
        # Names become rows of the embedding tables, in alphabetical order.
        self._user_names, self._users = np.unique(rows.users, return_inverse=True)
        self._item_names, self._items = np.unique(rows.items, return_inverse=True)
        self._is_interest = _find_interest(values_of_head, liked)
        if not self._is_interest.any():
            raise UsageError("no row shows interest, so there is nothing to rank; lower task.recommendation.liked")
        self._lists = CandidateLists(
            self._users, self._items, len(self._item_names), candidates, "task.recommendation.candidates"
        )
        self._bins = (
            RatingBins(values_of_head["rating"][~np.isnan(values_of_head["rating"])]) if "rating" in names else None
        )
        self.views = views
        # One more row of each table is for unknown users and items.
        users, items = len(self._user_names) + 1, len(self._item_names) + 1
        self.inputs = (
            InputSpec((), vocabulary=users),
            InputSpec((), vocabulary=items),
            InputSpec((candidates - 1,), vocabulary=items),
        )
        self._set_heads(names, candidates)
        self._parts = _split_by_fraction(self._users)

    @property
    def notices(self) -> Sequence[str]:
        """Remarks on the data: generated data, the number of negatives, missing values, and unused features."""
        negatives = self.inputs[2].shape[0]
        remarks = [
            GENERATED_NOTICE if self._is_generated else "",
            f"the true item is ranked among {negatives} sampled negatives, not among all items: compare scores only "
            f"with those of {negatives} negatives",
        ]
        if self._rows.times is None:
            remarks.append("the data has no column of times: the order of the rows is the order of time")
        if self._rows.names and not self._is_generated:
            remarks.append(f"features are not used by this task: {', '.join(self._rows.names[:5])}")
        for column, values in self._known_columns().items():
            if column in self.heads and (missing := int(np.isnan(values).sum())):
                remarks.append(f"{missing:,} of {len(values):,} rows have no {column}, and do not train that head")
        return tuple(filter(None, remarks))

    def splits(self, seed: int) -> Splits:
        """Return five splits by each user's order of time; the seed is that of the negatives."""
        return Splits(
            **{
                name: self._draw(rows, np.random.default_rng([seed, number]))
                for number, (name, rows) in enumerate(self._parts.items())
            }
        )

    def specify_preprocessing(self, seed: int) -> Preprocessing:
        """Return the id maps of users and items; unknown ids are refused if no augmented view trains their row."""
        users, items = (tuple(map(str, names.tolist())) for names in (self._user_names, self._item_names))
        user_row, item_row = (len(names) if self.views > 1 else None for names in (users, items))
        return (
            IdInput("user", users, unknown_row=user_row),
            IdInput("item", items, unknown_row=item_row),
            CandidatesInput("candidates", items, unknown_row=item_row, count=self.inputs[2].shape[0], first="item"),
        )

    def list_test_examples(self, seed: int) -> Sequence[RawExample]:
        """Return the rows of the test split: a user, an item, and the candidates beside it."""
        users, items, lists = (tensor.tolist() for tensor in self.splits(seed).test.inputs)
        names = self._item_names
        return [
            {"user": str(self._user_names[user]), "item": str(names[item]), "candidates": list(map(str, names[others]))}
            for user, item, others in zip(users, items, lists, strict=True)
        ]

    def view(self, split: Split, index: int) -> Split:
        """Return the same rows with other negatives, some of them unknown; view 0 is the split itself."""
        if index == 0:
            return split
        # The second number separates the random streams of views from those of splits, which have small numbers.
        random = np.random.default_rng([index, 2**31])
        drawn = torch.from_numpy(self._lists.draw_negatives(split.inputs[0].numpy(), random))
        users, items, others = (tensor.clone() for tensor in (*split.inputs[:2], drawn))
        for rows, table in ((users, self._user_names), (items, self._item_names), (others[:, 0], self._item_names)):
            rows[torch.from_numpy(random.random(len(rows)) < UNKNOWN_SHARE)] = len(table)
        return Split((users, items, others), split.targets)

    def teacher(self) -> tuple[Part, Part]:
        """Return a wide model of pairwise interactions, and its training config."""
        return (
            Part.of("two_tower", embedding=48, depth=0, tower=48),
            Part.of("adamw", epochs=10, learning_rate=1e-2, weight_decay=0.08, batch_size=256),
        )

    def _known_columns(self) -> dict[str, NDArray[np.float64]]:
        """Return clicks and ratings of every row by head, for the columns that the data has."""
        rows = self._rows
        values_of_head = {}
        if rows.clicked is not None:
            values_of_head["click"] = rows.clicked
        if rows.values is not None:
            values_of_head["click" if rows.clicks else "rating"] = rows.values
        return values_of_head

    def _set_heads(self, names: Sequence[str], candidates: int) -> None:
        heads: dict[str, Head] = {}
        labels: dict[str, list[str]] = {}
        for name in names:
            if name == "item":
                heads[name] = Candidates(candidates)
            elif name == "click":
                heads[name], labels[name] = Head(2, "auc"), ["no click", "click"]
            elif self._bins is not None:
                levels = tuple(self._bins.levels.tolist())
                heads[name], labels[name] = Levels(len(levels), levels=levels), [f"{level:g}" for level in levels]
        self.heads: Mapping[str, int] = heads
        self.labels: Mapping[str, Sequence[str]] = labels
        self.metrics = metrics_of(list(heads.values()))

    def _draw(self, rows: Rows, random: np.random.Generator) -> Split:
        """Return the examples of some rows, with random negatives."""
        users, items, values_of_head = self._users[rows], self._items[rows], self._known_columns()
        targets = {}
        for name in self.heads:
            if name == "item":
                # The true item comes first; a row without interest has no rank.
                classes = np.where(self._is_interest[rows], 0, IGNORED)
            else:
                values = values_of_head[name][rows]
                filled = np.nan_to_num(values)
                indices = self._bins.assign_classes(filled) if name == "rating" and self._bins else filled
                classes = np.where(np.isnan(values), IGNORED, indices)
            targets[name] = torch.from_numpy(classes.astype(np.int64))
        others = self._lists.draw_negatives(users, random)
        return Split(tuple(map(torch.from_numpy, (users, items, others))), targets)


def _list_heads(heads: str | Sequence[str], values_of_head: Mapping[str, object]) -> list[str]:
    """Return the names of the heads in the order that the user gave.

    Raises:
        UsageError: A name is unknown or repeated, or the data lacks its column.
    """
    given = [name.strip() for name in heads.split(",")] if isinstance(heads, str) else list(heads)
    names = [name for name in given if name] or [name for name in HEADS if name == "item" or name in values_of_head]
    for name in names:
        if name not in HEADS or names.count(name) > 1:
            raise UsageError(f"task.recommendation.heads is {heads!r}; give some of {', '.join(HEADS)}, each once")
        if name != "item" and name not in values_of_head:
            raise UsageError(
                f"the head '{name}' needs a column '{name}', which the data lacks; name it with "
                f"task.recommendation.{name}, or leave the head out of task.recommendation.heads"
            )
    if "item" not in names:
        raise UsageError(
            "task.recommendation.heads has no 'item'; the task 'ratings' learns a rating or a click without a ranking"
        )
    return names


def _find_interest(values_of_head: Mapping[str, NDArray[np.float64]], liked: float | None) -> NDArray[np.bool_]:
    """Return whether each row shows interest: a click, or a rating of at least ``liked`` where there are no clicks."""
    # A click tells interest more plainly than a rating, which may be low.
    if "click" in values_of_head:
        return np.asarray(values_of_head["click"] == 1)
    if "rating" in values_of_head and liked is not None:
        return np.asarray(values_of_head["rating"] >= liked)
    return np.ones(len(next(iter(values_of_head.values()), ())), np.bool_)


def _split_by_fraction(users: Rows) -> dict[str, Rows]:
    """Return the rows of each split by each user's order of time; the first row of a user belongs to ``train``."""
    # Rows are in the order of time, which a stable sort by user keeps.
    order = np.argsort(users, kind="stable")
    counts = np.bincount(users)
    position = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
    # Share of the user's rows that come after each row.
    share_after = (np.repeat(counts, counts) - 1 - position) / np.repeat(counts, counts)
    parts, start = {}, 0.0
    is_free = position > 0
    for name, share in FRACTIONS.items():
        selected = is_free & (share_after >= start) & (share_after < start + share)
        parts[name], start = np.sort(order[selected]), start + share
        is_free &= ~selected
    rest = np.ones(len(users), np.bool_)
    for rows in parts.values():
        rest[rows] = False
    ordered = {"train": np.flatnonzero(rest), **{name: parts[name] for name in Splits.NAMES if name != "train"}}
    missing = [name for name, rows in ordered.items() if not len(rows)]
    if missing:
        raise UsageError(f"no user has enough rows for {missing[0]}; some users need at least 25")
    return ordered


@lru_cache(maxsize=1)
def generate_impressions(users: int = 600, items: int = 1000, mean: int = 40, seed: int = 0) -> Interactions:
    """Return generated interactions with ratings, and as many items that were shown and not clicked.

    Interactions are those of :func:`~autocompress.tasks.interactions.generate_interactions`: clicked and rated. The
    other items are drawn by popularity among those that a user did not interact with: not clicked and not rated.

    Args:
        users: Number of users.
        items: Number of items.
        mean: Mean number of interactions of a user.
        seed: Seed of all random numbers.

    Example:
        >>> rows = generate_impressions(users=30, items=60, mean=12)
        >>> float(rows.clicked.mean())
        0.5
    """
    liked = generate_interactions(users, items, mean, least=10, seed=seed)
    random = np.random.default_rng([seed, 1])
    names, item_of_row = np.unique(liked.items, return_inverse=True)
    popularity = np.bincount(item_of_row) / len(item_of_row)
    shown_users, shown_items = [], []
    for user in np.unique(liked.users):
        of_user = item_of_row[liked.users == user]
        weights = popularity.copy()
        # What a user interacted with was clicked, so it is not shown without a click.
        weights[of_user] = 0
        count = min(len(of_user), int((weights > 0).sum()))
        shown_items.append(random.choice(len(names), count, replace=False, p=weights / weights.sum()))
        shown_users.append(np.full(count, user))
    shown, count = names[np.concatenate(shown_items)], sum(map(len, shown_items))
    assert liked.values is not None
    rows = replace(
        liked,
        users=np.concatenate([liked.users, *shown_users]),
        items=np.concatenate([liked.items, shown]),
        values=np.concatenate([liked.values, np.full(count, np.nan)]),
        times=np.concatenate([np.asarray(liked.times), random.random(count)]),
        features=np.zeros((len(liked) + count, 0), np.float32),
        names=(),
        clicked=np.concatenate([np.ones(len(liked)), np.zeros(count)]),
    )
    return rows.latest_rows()
