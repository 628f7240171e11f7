"""Recommender tasks under shilling: profiles of fake users in the training split that push one item.

A profile rates the pushed item as high as possible and a few other items, the fillers, so that it looks like a user
(Lam and Riedl 2004, WWW; Mobasher et al. 2007, ACM TOIT 7(4)):

    random     fillers are random items, with ratings around the mean of all ratings
    average    fillers are random items, with ratings around the mean of each item
    bandwagon  half of the fillers are the most popular items with the highest rating, the others as in ``random``

The other splits contain real users only, so every score on them is one of clean users. How far the attack reaches is
measured on the same users by ``pushed_rating`` and ``pushed_hit_rate_at_10``.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.core.heads import Levels, as_head
from autocompress.core.knobs import Leaf
from autocompress.core.registry import TASKS
from autocompress.core.task import ExampleKeys, InputSpec, Split, Splits
from autocompress.errors import UsageError, did_you_mean
from autocompress.tasks.negative_sampling import CandidateLists
from autocompress.tasks.recommender import UNKNOWN, Ranking, Ratings

ATTACKS = ("random", "average", "bandwagon")
RANKING_ATTACKS = ("random", "bandwagon")
# Share of the items, by popularity, below which the pushed item lies if none is named: attackers push what few know.
PUSHED_QUANTILE = 0.25
# Seed of the profiles: the attack is a part of the data and the same for all splits.
SEED = 7


@dataclass(frozen=True)
class ShillingSettings:
    """The size of a shilling attack.

    Attributes:
        attack: Kind of the profiles.
        fake_users: Number of profiles as a share of the real users.
        fillers: Number of fillers in a profile as a share of the items.

    Raises:
        UsageError: A value is out of bounds.
    """

    attack: str
    fake_users: float
    fillers: float

    def check(self, task: str, attacks: tuple[str, ...]) -> None:
        """Check the settings against the attacks of a task.

        Raises:
            UsageError: The attack is unknown, or a share is out of bounds.
        """
        if self.attack not in attacks:
            hint = did_you_mean(str(self.attack), attacks)
            if task == "poisoned_ranking" and self.attack in ATTACKS:
                hint = f"a ranking has no ratings to average; use one of {', '.join(attacks)}"
            raise UsageError(f"task.{task}.attack is {self.attack!r}: {hint}")
        for name, highest in (("fake_users", 1.0), ("fillers", 0.5)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= highest:
                raise UsageError(f"task.{task}.{name} is {value!r}; give a share above 0, up to {highest:g}")


@dataclass(frozen=True)
class Profiles:
    """The interactions of fake users.

    Attributes:
        users: Number of the fake user of each interaction from 0, ``[N]``.
        items: Item of each interaction, ``[N]``.
        is_highest: Whether the interaction has the highest rating, ``[N]``; the others have the rating of a filler.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    is_highest: NDArray[np.bool_]


def draw_profiles(counts: NDArray[np.int64], pushed: int, fake_users: int, settings: ShillingSettings) -> Profiles:
    """Return the profiles of an attack.

    Args:
        counts: Number of real interactions of each item, ``[I]``; an item with none is no filler.
        pushed: The item that the profiles push.
        fake_users: Number of profiles.
        settings: Settings of the attack.
    """
    random = np.random.default_rng(SEED)
    choices = np.flatnonzero((counts > 0) & (np.arange(len(counts)) != pushed))
    size = min(max(round(settings.fillers * len(choices)), 1), len(choices))
    popular = np.zeros(0, np.int64)
    if settings.attack == "bandwagon":
        popular = choices[np.argsort(-counts[choices], kind="stable")][: -(-size // 2)]
        choices = np.setdiff1d(choices, popular)
    fillers = [random.choice(choices, size - len(popular), replace=False) for _ in range(fake_users)]
    items = [np.concatenate([[pushed], popular, chosen]) for chosen in fillers]
    highest = np.arange(1 + size) <= len(popular)
    return Profiles(np.repeat(np.arange(fake_users), 1 + size), np.concatenate(items), np.tile(highest, fake_users))


def select_pushed_item(counts: NDArray[np.int64]) -> int:
    """Return the item at the lower quartile of popularity, among items with at least two interactions.

    Example:
        >>> select_pushed_item(np.array([9, 1, 4, 2, 6]))
        3
    """
    repeated = np.flatnonzero(counts > 1)
    if not len(repeated):
        raise UsageError("no item has two interactions, so none can be pushed")
    return int(repeated[np.argsort(counts[repeated], kind="stable")[int(PUSHED_QUANTILE * (len(repeated) - 1))]])


@TASKS.register("poisoned_ratings")
class PoisonedRatings(Ratings):
    """The task ``ratings`` with fake users in the training split, whose profiles push an item (shilling).

    All other splits contain real users only. The score ``pushed_rating`` is the mean predicted rating of the pushed
    item for real users; its difference to that of a model without the attack is the prediction shift. The options of
    ``ratings`` are options of this task, too.

    Args:
        path: As in ``ratings``; generated ratings by default.
        attack: Kind of the profiles: ``random``, ``average`` or ``bandwagon``.
        fake_users: Number of fake users as a share of the real ones.
        fillers: Number of other items in a profile as a share of all items.
        pushed: Name of the pushed item; by default one that few users know.

    Raises:
        UsageError: A file cannot be used, an option is out of bounds, or the pushed item is unknown.
    """

    name = "poisoned_ratings"
    has_folds = False

    def __init__(
        self,
        path: str | Path = "",
        *,
        attack: str = "bandwagon",
        fake_users: float = 0.05,
        fillers: float = 0.03,
        pushed: str = "",
        **options: Leaf,
    ) -> None:
        super().__init__(path, **options)  # type: ignore[arg-type]
        self._settings = ShillingSettings(attack, fake_users, fillers)
        self._settings.check(self.name, ATTACKS)
        users = self.inputs[0].vocabulary
        self._fake_users = max(round(fake_users * (users - 1)), 1)
        self.inputs = (InputSpec((), vocabulary=users + self._fake_users), *self.inputs[1:])
        self.metrics = (*self.metrics, "pushed_rating")
        self._pushed = 0 if not pushed else _find_item(self._items, pushed, self.name) + 1

    @property
    def notices(self) -> tuple[str, ...]:
        """Remarks on the data and on the attack."""
        return (*super().notices, _describe_attack(self._fake_users, self._settings))

    def splits(self, seed: int) -> Splits:
        """Return the splits of ``ratings``, and the profiles in the training split."""
        splits = super().splits(seed)
        train = splits.train
        ((head, target),) = train.targets.items()
        items = train.inputs[1]
        counts = torch.bincount(items, minlength=self.inputs[1].vocabulary)
        # Row 0 stands for all unknown items and cannot be pushed.
        counts[UNKNOWN] = 0
        pushed = self._find_pushed(counts)
        profiles = draw_profiles(counts.numpy(), pushed, self._fake_users, self._settings)
        fake_items = torch.from_numpy(profiles.items)
        ids = torch.from_numpy(profiles.users) + self.inputs[0].vocabulary - self._fake_users
        # Features of an item are those of one of its real rows.
        rows = _first_rows(items, self.inputs[1].vocabulary)[fake_items]
        features = tuple(tensor[rows] for tensor in train.inputs[2:])
        fake = Split((ids, fake_items, *features), {head: self._rate(profiles, items, target)})
        return Splits(**{**dict(splits.items()), "train": _concatenate(train, fake)})

    def push_item(self, split: Split, train: Split) -> Split:
        """Return the examples of a split with the pushed item in place of theirs.

        Args:
            split: Examples of real users.
            train: The training split, whose rows give the features of the pushed item.
        """
        counts = torch.bincount(train.inputs[1][: self._count_real(train)], minlength=self.inputs[1].vocabulary)
        counts[UNKNOWN] = 0
        pushed = self._find_pushed(counts)
        row = _first_rows(train.inputs[1], self.inputs[1].vocabulary)[pushed]
        features = tuple(tensor[row].expand(len(split), *tensor.shape[1:]) for tensor in train.inputs[2:])
        return Split((split.inputs[0], torch.full_like(split.inputs[1], pushed), *features), split.targets)

    def _count_real(self, train: Split) -> int:
        """Return the number of real interactions, which come first in the training split."""
        return int((train.inputs[0] < self.inputs[0].vocabulary - self._fake_users).sum())

    def _find_pushed(self, counts: Tensor) -> int:
        if self._pushed and not counts[self._pushed]:
            raise UsageError(f"the item of task.{self.name}.pushed has fewer than two training rows; name another item")
        return self._pushed or select_pushed_item(counts.numpy())

    def _rate(self, profiles: Profiles, items: Tensor, target: Tensor) -> Tensor:
        """Return the class of each rating of the profiles, ``[N]``."""
        (size,) = self.heads.values()
        head = as_head(size)
        levels = torch.tensor(head.levels if isinstance(head, Levels) else range(head), dtype=torch.float64)
        values = levels[target]
        random = torch.Generator().manual_seed(SEED)
        noise = values.std() * torch.randn(len(profiles.items), generator=random, dtype=torch.float64)
        center: Tensor = values.mean()
        if self._settings.attack == "average":
            size = self.inputs[1].vocabulary
            sums = torch.zeros(size, dtype=torch.float64).index_add(0, items, values)
            center = (sums / torch.bincount(items, minlength=size).clamp(min=1))[torch.from_numpy(profiles.items)]
        # Each rating is the nearest level.
        nearest = ((center + noise)[:, None] - levels).abs().argmin(1)
        return torch.where(torch.from_numpy(profiles.is_highest), int(levels.argmax()), nearest)


@TASKS.register("poisoned_ranking")
class PoisonedRanking(Ranking):
    """The task ``ranking`` with fake users in the training split, whose interactions push an item (shilling).

    All other splits contain real users only. The score ``pushed_hit_rate_at_10`` is the share of real users whose list
    has the pushed item among the first ten if it takes the place of their true item. The options of ``ranking`` are
    options of this task, too.

    Args:
        path: As in ``ranking``; generated interactions by default.
        attack: Kind of the profiles: ``random`` or ``bandwagon``.
        fake_users: Number of fake users as a share of the real ones.
        fillers: Number of other items in a profile as a share of all items.
        pushed: Name of the pushed item; by default one that few users know.

    Raises:
        UsageError: A file cannot be used, an option is out of bounds, or the pushed item is unknown.
    """

    name = "poisoned_ranking"
    metrics = (*Ranking.metrics, "pushed_hit_rate_at_10")

    def __init__(
        self,
        path: str | Path = "",
        *,
        attack: str = "bandwagon",
        fake_users: float = 0.05,
        fillers: float = 0.03,
        pushed: str = "",
        **options: Leaf,
    ) -> None:
        super().__init__(path, **options)  # type: ignore[arg-type]
        self._settings = ShillingSettings(attack, fake_users, fillers)
        self._settings.check(self.name, RANKING_ATTACKS)
        # The last row of both tables stands for unknown users and items: no list and no profile contains it.
        real, items = self.inputs[0].vocabulary, len(self._items)
        self._fake_users = max(round(fake_users * real), 1)
        lists = self._candidate_lists
        counts = np.bincount(lists.items[self._parts["train"]], minlength=items)
        self._pushed = _find_item(np.array(self._items), pushed, self.name) if pushed else select_pushed_item(counts)
        profiles = draw_profiles(counts, self._pushed, self._fake_users, self._settings)
        (candidates,) = self.inputs[1].shape
        self._candidate_lists = CandidateLists(
            np.concatenate([lists.users, profiles.users + real]),
            np.concatenate([lists.items, profiles.items]),
            items,
            candidates,
            f"task.{self.name}.candidates",
        )
        fake_rows = np.arange(len(lists.users), len(lists.users) + len(profiles.users))
        self._parts = {**self._parts, "train": np.concatenate([self._parts["train"], fake_rows])}
        self.inputs = (InputSpec((), vocabulary=real + self._fake_users), self.inputs[1])

    @property
    def notices(self) -> tuple[str, ...]:
        """Remarks on the data and on the attack."""
        return (*super().notices, _describe_attack(self._fake_users, self._settings))

    def push_item(self, split: Split, train: Split) -> Split:
        """Return the lists of a split with the pushed item in place of the true one.

        Args:
            split: Lists of real users.
            train: The training split, which is not read.
        """
        users, lists = split.inputs
        (target,) = split.targets.values()
        # Where the pushed item is among the negatives as well, both entries have the same score, which counts as a tie.
        lists = lists.clone()
        lists[torch.arange(len(lists)), target] = self._pushed
        return Split((users, lists), split.targets)


def _find_item(names: NDArray[np.str_], name: str, task: str) -> int:
    """Return the position of an item's name.

    Raises:
        UsageError: There is no such item.
    """
    position = np.flatnonzero(names == str(name))
    if not len(position):
        raise UsageError(f"task.{task}.pushed is '{name}', but the data has no such item")
    return int(position[0])


def _describe_attack(fake_users: int, settings: ShillingSettings) -> str:
    return (
        f"the training split contains {fake_users:,} fake users of a {settings.attack} attack that push one item; all "
        "other splits contain real users only"
    )


def _first_rows(items: Tensor, count: int) -> Tensor:
    """Return the first row of each item, ``[I]``; 0 for an item without rows."""
    rows = torch.zeros(count, dtype=torch.int64)
    # Written from the last row to the first, so that the first one stays.
    rows[items.flip(0)] = torch.arange(len(items) - 1, -1, -1)
    return rows


def _concatenate(one: Split, other: Split) -> Split:
    inputs = tuple(torch.cat(pair) for pair in zip(one.inputs, other.inputs, strict=True))
    targets = {head: torch.cat([target, other.targets[head]]) for head, target in one.targets.items()}
    contents = one.keys.contents
    if contents is None:
        return Split(inputs, targets)
    # Fake pairs equal no real ones, whose digests are not small numbers.
    return Split(inputs, targets, ExampleKeys(contents=torch.cat([contents, torch.arange(len(other))])))
