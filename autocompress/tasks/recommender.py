"""Recommender tasks: how a user rates an item or whether it is clicked, and which of many items comes next.

Every head is categorical, so that distillation, measuring and export work as for any other task. A rating's levels are
classes whose values the task names in ``levels``, and the predicted rating is their mean under the softmax
(Farebrother et al. 2024, arXiv:2403.03950); a list to rank has a class for each candidate.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.core.config import Part
from autocompress.core.registry import TASKS
from autocompress.core.task import InputSpec, Split, Splits
from autocompress.errors import UsageError
from autocompress.tasks.base import Supervised
from autocompress.tasks.generated_interactions import NOTICE, generated_interactions
from autocompress.tasks.interactions import Columns, Interactions, read_interactions
from autocompress.tasks.negative_sampling import Lists, time_ordered
from autocompress.tasks.splitting import FRACTIONS, stratified_rows

LEVELS = 20
UNKNOWN = 0
SCORES = ("accuracy", "loss", "kl", "agreement", "retention")


@TASKS.register("ratings")
class Ratings(Supervised):
    """How a user rates an item, or whether it is clicked: generated ratings, or your own in a file.

    Inputs are a user, an item and, if there are any, features ``[B, F]``, brought to mean 0 and deviation 1 over the
    training split. Distinct ratings are the classes; more than 20 become 20 bins of as many ratings each, which stand
    for the mean of theirs. Clicks have two classes. Of several rows with one user and item, the latest counts.

    Rows are split at random. Row 0 of both tables is for the unknown: users and items with a single training row share
    it, which trains it, and it stands for those with none, such as new ones in ``test``.

    Args:
        path: A MovieLens-100K folder (``u.data``, ``u.item``, ``u.user``); or a ``.csv`` or ``.tsv`` file with a header
            and a column each for user, item, rating or click; every other column but the time is a feature and holds
            numbers. Without it, the ratings are generated: 1,000 users, 2,000 items, about 60,000 ratings.
        test: A second such file or folder for the test split; by default it is taken out of ``path``.
        user: Name of the column of users.
        item: Name of the column of items.
        rating: Name of the column of ratings; leave it empty to take clicks.
        click: Name of the column of clicks, 0 or 1.
        time: Name of the column of times; it decides which of several rows counts.
        ignore: Names of columns to leave out, separated by commas.

    Raises:
        UsageError: A file cannot be used; the message names file and line.
    """

    name = "ratings"

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
    ) -> None:
        columns = Columns(user, item, rating, click, time, ignore)
        if test and not path:
            raise UsageError("task.ratings.test is set and task.ratings.path is not; give both")
        if path:
            found = read_interactions(Path(path).expanduser(), columns, self.name, needs_value=True)
        else:
            found = generated_interactions()
        rows = {"train": found.latest()}
        if test:
            rows["test"] = read_interactions(Path(test).expanduser(), columns, self.name, needs_value=True).latest()
            _refuse_others(rows["train"], rows["test"], Path(test))
        self._generated, self._repeated = not path, len(found) - len(rows["train"])
        self._users, self._items = (np.unique(names) for names in (rows["train"].users, rows["train"].items))
        self._bins = Bins(_values(rows["train"]))
        self._rows = rows
        features = len(rows["train"].names)
        specs = InputSpec((), vocabulary=len(self._users) + 1), InputSpec((), vocabulary=len(self._items) + 1)
        self.inputs = (*specs, InputSpec((features,))) if features else specs
        if rows["train"].clicks:
            self.heads: Mapping[str, int] = {"click": 2}
            self.labels: Mapping[str, list[str]] = {"click": ["no click", "click"]}
            self.levels: Mapping[str, Tensor] = {}
            self.metrics = ("auc", "log_loss", *SCORES)
        else:
            self.heads = {"rating": len(self._bins.levels)}
            self.labels = {"rating": [f"{level:g}" for level in self._bins.levels]}
            self.levels = {"rating": torch.from_numpy(self._bins.levels)}
            self.metrics = ("rmse", *SCORES)

    @cached_property
    def notices(self) -> tuple[str, ...]:
        """Whether the data is generated, and who shares the row for the unknown, in which numbers."""
        train, test = self._rows["train"], self._rows.get("test")
        found = [NOTICE if self._generated else ""]
        if self._repeated:
            found.append(f"{self._repeated:,} rows repeat a user and an item; the latest counts")
        if self._bins.spread:
            found.append(
                f"{self._bins.distinct:,} distinct ratings became {len(self._bins.levels)} bins; rmse is measured "
                f"against their means, from which ratings lie {self._bins.spread:.3g} away (root mean square)"
            )
        tested = (None, None) if test is None else (test.users, test.items)
        for what, names, others in (("users", train.users, tested[0]), ("items", train.items, tested[1])):
            known, counts = np.unique(names, return_counts=True)
            if single := int((counts == 1).sum()):
                found.append(f"{single:,} of {len(known):,} {what} have a single row and share the row of the unknown")
            if others is not None and (new := np.setdiff1d(others, known)).size:
                found.append(f"{new.size:,} {what} of the test file are not in the training file: they are unknown")
        return tuple(filter(None, found))

    def splits(self, seed: int) -> Splits:
        """Return five splits: rows at random, clicks in proportion.

        Raises:
            UsageError: There are too few rows.
        """
        whole = self._rows["train"]
        classes = self._bins.classes(_values(whole))
        parts = {name: whole.take(rows) for name, rows in self._parts(classes, seed).items()}
        parts |= {"test": self._rows["test"]} if "test" in self._rows else {}
        users, items = (
            _trained(names, known)
            for names, known in ((parts["train"].users, self._users), (parts["train"].items, self._items))
        )
        mean, std = parts["train"].features.mean(0), parts["train"].features.std(0)
        # A constant feature would be divided by nothing.
        std[std == 0] = 1
        splits = {}
        for name, part in parts.items():
            ids = [
                torch.from_numpy(_numbers(names, known, trained))
                for names, known, trained in ((part.users, self._users, users), (part.items, self._items, items))
            ]
            features = [torch.from_numpy((part.features - mean) / std)] if part.names else []
            (head,) = self.heads
            targets = torch.from_numpy(self._bins.classes(_values(part)))
            splits[name] = Split((*ids, *features), {head: targets})
        return Splits(**splits)

    def teacher(self) -> tuple[Part, Part]:
        """Return a wide model of pairwise interactions, and how to train it."""
        return (
            Part.of("interaction", embedding=32, width=128, depth=2, bottom=1),
            Part.of("adamw", epochs=6, learning_rate=5e-3, weight_decay=1.0, batch_size=256),
        )

    def _parts(self, classes: NDArray[np.int64], seed: int) -> dict[str, NDArray[np.int64]]:
        fractions = {name: share for name, share in FRACTIONS.items() if name not in self._rows}
        if self._rows["train"].clicks:
            return stratified_rows(torch.from_numpy(classes), seed, fractions, ["no click", "click"])
        if len(classes) < 50:
            raise UsageError(f"there are {len(classes)} ratings; five disjoint splits need at least 50")
        # Not in proportion: a level that a few rows hold is no reason to refuse the data.
        rest = np.random.default_rng(seed).permutation(len(classes))
        parts = {}
        for name, share in fractions.items():
            size = round(share * len(classes))
            parts[name], rest = np.sort(rest[:size]), rest[size:]
        return {**parts, "train": np.sort(rest)}


@TASKS.register("ranking")
class Ranking(Supervised):
    """Which of many items a user takes next: one true item among sampled negatives, generated or your own data.

    Inputs are a user and ``candidates`` items ``[B, K]``; the outputs are a score for each, and the target is the place
    of the true one. The others, 49 unless said otherwise, are drawn evenly from the items that the user never met in
    any split, without repetition, and their order is drawn too (He et al. 2017, arXiv:1708.05031, draw 99). Scores
    among sampled negatives are higher than among all items, and not comparable between numbers of candidates
    (Krichene and Rendle 2020). A view of the training split has other negatives; evaluation keeps its own.

    Each user's interactions are split by time, of equal times by row: the last goes to ``test``, the one before to
    ``select_val``, then ``search_val``, then ``calibration``, as far as the user has them, and all that came before to
    ``train``, but at least the first. A user with one interaction is left out.

    Args:
        path: A MovieLens-100K folder (``u.data``), or a ``.csv`` or ``.tsv`` file with a header and a column each for
            user and item. Without it, they are generated: 1,000 users, 2,000 items, about 60,000 interactions.
        candidates: Items in a list, the true one included.
        liked: The smallest rating that counts as an interaction; by default all do. Of clicks, 1 does.
        views: Views of the training split, each with other negatives.
        user: Name of the column of users.
        item: Name of the column of items.
        rating: Name of the column of ratings, if there is one.
        click: Name of the column of clicks, if there is one.
        time: Name of the column of times; without one, later rows are later.

    Raises:
        UsageError: A file cannot be used (the message names file and line), or an option is out of bounds.
    """

    name = "ranking"
    metrics = ("ndcg_at_10", "hit_rate_at_10", *SCORES)

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
    ) -> None:
        for option, value, least in (("candidates", candidates, 2), ("views", views, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"task.ranking.{option} is {value!r}; give a whole number of at least {least}")
        if liked is not None and (isinstance(liked, bool) or not isinstance(liked, int | float)):
            raise UsageError(f"task.ranking.liked is {liked!r}; give a rating")
        columns = Columns(user, item, rating, click, time)
        if path:
            found = read_interactions(Path(path).expanduser(), columns, self.name, needs_value=False)
        else:
            found = generated_interactions()
        self._generated, self._timed = not path, found.times is not None
        met = found.latest()
        self._repeated = len(found) - len(met)
        met = _liked(met, liked)
        _, who, counts = np.unique(met.users, return_inverse=True, return_counts=True)
        self._single = int((counts == 1).sum())
        met = met.take(counts[who] > 1)
        if not len(met):
            raise UsageError("no user has two interactions, one to learn from and one to predict")
        users, who = np.unique(met.users, return_inverse=True)
        items, what = np.unique(met.items, return_inverse=True)
        self._parts = time_ordered(who)
        short = [name for name in Splits.NAMES if not len(self._parts[name])]
        if short:
            raise UsageError(f"no user has enough interactions for {short[0]}; five in one user at least are needed")
        self._lists = Lists(who, what, len(items), candidates, f"task.{self.name}.candidates")
        self.views = views
        self.inputs = InputSpec((), vocabulary=len(users)), InputSpec((candidates,), vocabulary=len(items))
        self.heads: Mapping[str, int] = {"item": candidates}

    @property
    def notices(self) -> tuple[str, ...]:
        """Whether the data is generated, how many negatives were sampled, and who was left out."""
        negatives = self.heads["item"] - 1
        found = [
            NOTICE if self._generated else "",
            f"the true item is ranked among {negatives} sampled negatives, not among all items: compare scores only "
            f"with those of {negatives} negatives",
        ]
        if not self._timed:
            found.append("there is no column of times: later rows count as later")
        if self._repeated:
            found.append(f"{self._repeated:,} rows repeat a user and an item; the latest counts")
        if self._single:
            found.append(f"users with one interaction were left out: {self._single:,}")
        return tuple(filter(None, found))

    def splits(self, seed: int) -> Splits:
        """Return five splits by each user's time; the seed draws the negatives."""
        return Splits(
            **{
                name: self._lists.of(self._parts[name], np.random.default_rng([seed, number]))
                for number, name in enumerate(Splits.NAMES)
            }
        )

    def view(self, split: Split, index: int) -> Split:
        """Return the same users and true items among other negatives; view 0 is the split itself."""
        return split if index == 0 else self._lists.drawn_again(split, np.random.default_rng([index, 2**31]))

    def teacher(self) -> tuple[Part, Part]:
        """Return two wide towers of one layer, and how to train them."""
        # A hidden layer learns who is popular and, at a decay that keeps it from overfitting, no taste; what lets one
        # layer learn tastes are a high rate and many views: with the same negatives again it remembers them.
        return (
            Part.of("two_tower", embedding=64, depth=0, tower=64),
            Part.of("adamw", epochs=12, learning_rate=1e-2, weight_decay=0.08, batch_size=256),
        )


class Bins:
    """Rating levels: the distinct values, or 20 bins of as many ratings each, which stand for the mean of theirs.

    Args:
        values: Ratings, ``[N]``.

    Attributes:
        levels: The value of each class, rising.
        distinct: How many values there are.
        spread: Root mean square distance of a rating from its level; 0 where each has its own.

    Raises:
        UsageError: All ratings are equal.

    Example:
        >>> Bins(np.array([4.0, 1.0, 4.0])).classes(np.array([4.0])).tolist()
        [1]
    """

    def __init__(self, values: NDArray[np.float64]) -> None:
        known = np.unique(values)
        self.distinct = len(known)
        if self.distinct < 2:
            raise UsageError(f"every row holds the value {known[0]:g}; a task needs at least two")
        if self.distinct <= LEVELS:
            self._edges, self.levels, self.spread = (known[1:] + known[:-1]) / 2, known, 0.0
            return
        edges = np.unique(np.quantile(values, np.linspace(0, 1, LEVELS + 1)[1:-1]))
        places, number = np.unique(np.searchsorted(edges, values, side="right"), return_inverse=True)
        self._edges = edges[places[1:] - 1]
        self.levels = np.bincount(number, values) / np.bincount(number)
        self.spread = float(np.sqrt(np.square(values - self.levels[number]).mean()))

    def classes(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the class of each rating, ``[N]``."""
        return np.searchsorted(self._edges, values, side="right").astype(np.int64)


def _values(rows: Interactions) -> NDArray[np.float64]:
    assert rows.values is not None
    return rows.values


def _liked(met: Interactions, least: float | None) -> Interactions:
    """Return the rows that count: clicks, or ratings of at least ``least``."""
    if met.values is None or (least is None and not met.clicks):
        return met
    return met.take(met.values >= (1.0 if met.clicks else float(least or 0)))


def _refuse_others(train: Interactions, test: Interactions, path: Path) -> None:
    """Refuse a test file of another form than the training file.

    Raises:
        UsageError: It has other columns, or ratings that the training file never gives.
    """
    if train.names != test.names or train.clicks != test.clicks:
        raise UsageError(f"{path} has the features {list(test.names)}, and the training file {list(train.names)}")
    strange = np.setdiff1d(_values(test), _values(train))
    if len(np.unique(_values(train))) <= LEVELS and strange.size:
        raise UsageError(f"{path} holds the value {strange[0]:g}, which the training file has not")


def _trained(names: NDArray[np.str_], known: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Return which of the known have two training rows at least, and so a row of their own in the table."""
    counts = np.bincount(np.searchsorted(known, names), minlength=len(known))
    return counts > 1


def _numbers(names: NDArray[np.str_], known: NDArray[np.str_], trained: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the row of each name in the table, 0 for the unknown."""
    place = np.searchsorted(known, names).clip(max=len(known) - 1)
    return np.where((known[place] == names) & trained[place], place + 1, UNKNOWN).astype(np.int64)
