"""Candidate lists for ranking: the true item of an interaction among sampled negatives."""

import numpy as np
import torch
from numpy.typing import NDArray

from autocompress.core.task import Split
from autocompress.errors import UsageError

Rows = NDArray[np.int64]
# Splits of a user's last interactions, from the last one backwards.
LAST_SPLITS = ("test", "select_val", "search_val", "calibration")
# Up to this number of bytes, interactions are looked up in a table of all pairs, ten times as fast as a search.
LARGEST_TABLE = 2**26


def split_by_time(users: Rows) -> dict[str, Rows]:
    """Return the rows of each split: each user's last four interactions, one per split, and the others in ``train``.

    The first interaction of a user always belongs to ``train``.

    Args:
        users: User index of each interaction in the order of time, ``[N]``.

    Example:
        >>> parts = split_by_time(np.array([0, 1, 0, 0, 1]))
        >>> {name: rows.tolist() for name, rows in parts.items() if len(rows)}
        {'test': [3, 4], 'select_val': [2], 'train': [0, 1]}
    """
    order = np.argsort(users, kind="stable")
    counts = np.bincount(users)
    # The position of each interaction among those of its user, and the number that follow it.
    position = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
    followers = np.repeat(counts, counts) - 1 - position
    parts = {}
    for number, name in enumerate(LAST_SPLITS):
        parts[name] = np.sort(order[(followers == number) & (position > 0)])
    parts["train"] = np.sort(order[(followers >= len(LAST_SPLITS)) | (position == 0)])
    return parts


class CandidateLists:
    """Sampler of candidate lists.

    Args:
        users: User index of each interaction, ``[N]``.
        items: Item index of each interaction, ``[N]``.
        count: Number of items.
        candidates: Number of items in a list, the true one included.
        option: Name of the option for the number of candidates, for messages.

    Attributes:
        users: User index of each interaction, ``[N]``.
        items: Item index of each interaction, ``[N]``.

    Raises:
        UsageError: A user has interacted with so many items that too few negatives remain.
    """

    def __init__(self, users: Rows, items: Rows, count: int, candidates: int, option: str) -> None:
        self.users, self.items = users, items
        self._count, self._candidates = count, candidates
        # A pair of user and item as one number.
        pairs = users * count + items
        self._interactions: NDArray[np.int64] | NDArray[np.bool_] = np.sort(pairs)
        self._is_table = (int(users.max()) + 1) * count <= LARGEST_TABLE
        if self._is_table:
            self._interactions = np.zeros((int(users.max()) + 1) * count, np.bool_)
            self._interactions[pairs] = True
        # Rejection sampling would not end if a user had too few other items.
        left = count - int(np.bincount(users).max())
        if left < candidates - 1:
            raise UsageError(
                f"{option} is {candidates}, but one user has interacted with all but {left} of the {count:,} items; "
                f"give at most {left + 1}"
            )

    def draw_lists(self, rows: Rows, random: np.random.Generator) -> Split:
        """Return users ``[B]`` and item lists ``[B, K]`` of some interactions; the targets are the true positions."""
        return self._build_lists(self.users[rows], self.items[rows], random)

    def redraw_negatives(self, split: Split, random: np.random.Generator) -> Split:
        """Return the same users and true items with new negatives."""
        users, lists = (tensor.numpy() for tensor in split.inputs)
        (true_position,) = (target.numpy() for target in split.targets.values())
        return self._build_lists(users, lists[np.arange(len(lists)), true_position], random)

    def _build_lists(self, users: Rows, true_items: Rows, random: np.random.Generator) -> Split:
        rows = np.arange(len(users))
        lists = np.empty((len(users), self._candidates), np.int64)
        lists[:, 1:] = self.draw_negatives(users, random)
        true_position = random.integers(0, self._candidates, len(users))
        # Negatives are in random order, so the one that is replaced may move to the front.
        lists[:, 0] = lists[rows, true_position]
        lists[rows, true_position] = true_items
        return Split((torch.from_numpy(users), torch.from_numpy(lists)), {"item": torch.from_numpy(true_position)})

    def draw_negatives(self, users: Rows, random: np.random.Generator) -> Rows:
        """Return distinct items that each user never interacted with, ``[B, K - 1]``."""
        negatives = random.integers(0, self._count, (len(users), self._candidates - 1))
        rows = np.arange(len(users))
        # Rejection sampling: only the rejected entries are drawn again.
        while len(rows):
            redrawn = negatives[rows]
            rejected = self._has_interaction(users[rows], redrawn) | _find_repeats(redrawn)
            redrawn[rejected] = random.integers(0, self._count, int(rejected.sum()))
            negatives[rows] = redrawn
            rows = rows[rejected.any(1)]
        return negatives

    def _has_interaction(self, users: Rows, items: Rows) -> NDArray[np.bool_]:
        """Return whether each user interacted with each item of a row, ``[B], [B, K] -> [B, K]``."""
        keys = users[:, None] * self._count + items
        if self._is_table:
            return np.asarray(self._interactions[keys], np.bool_)
        position = np.searchsorted(self._interactions, keys).clip(max=len(self._interactions) - 1)
        return np.asarray(self._interactions[position] == keys)


def _find_repeats(items: Rows) -> NDArray[np.bool_]:
    """Return whether each item occurs further left in its row too, ``[B, K] -> [B, K]``."""
    # The sort is stable, so the first of equal items is never marked as a repeat.
    order = np.argsort(items, axis=1, kind="stable")
    ranked = np.take_along_axis(items, order, 1)
    equals_previous = np.zeros(items.shape, np.bool_)
    equals_previous[:, 1:] = ranked[:, 1:] == ranked[:, :-1]
    result = np.zeros_like(equals_previous)
    np.put_along_axis(result, order, equals_previous, 1)
    return result
