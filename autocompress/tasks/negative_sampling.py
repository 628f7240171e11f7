"""Lists to rank: one item that a user took, among others that the user never met."""

import numpy as np
import torch
from numpy.typing import NDArray

from autocompress.core.task import Split
from autocompress.errors import UsageError

Rows = NDArray[np.int64]
FROM_THE_END = ("test", "select_val", "search_val", "calibration")
# Up to 64 MB a table of who met what is ten times as fast as a search among the pairs.
LARGEST_TABLE = 2**26


def time_ordered(users: Rows) -> dict[str, Rows]:
    """Return the rows of each split: of every user the last four, as far as there are any behind the first.

    Args:
        users: The user of each interaction, in the order of time, ``[N]``.

    Example:
        >>> parts = time_ordered(np.array([0, 1, 0, 0, 1]))
        >>> {name: rows.tolist() for name, rows in parts.items() if len(rows)}
        {'test': [3, 4], 'select_val': [2], 'train': [0, 1]}
    """
    order = np.argsort(users, kind="stable")
    counts = np.bincount(users)
    place = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
    behind = np.repeat(counts, counts) - 1 - place
    parts = {}
    for number, name in enumerate(FROM_THE_END):
        parts[name] = np.sort(order[(behind == number) & (place > 0)])
    parts["train"] = np.sort(order[(behind >= len(FROM_THE_END)) | (place == 0)])
    return parts


class Lists:
    """Draws lists of candidates.

    Args:
        users: The user of each interaction, ``[N]``.
        items: Its item, ``[N]``.
        count: How many items there are.
        candidates: Items in a list.
        option: What the number of candidates is called, for messages.

    Raises:
        UsageError: A user has met so many items that too few are left.
    """

    def __init__(self, users: Rows, items: Rows, count: int, candidates: int, option: str) -> None:
        self._users, self._items, self._count, self._candidates = users, items, count, candidates
        pairs = users * count + items
        self._met: NDArray[np.int64] | NDArray[np.bool_] = np.sort(pairs)
        self._tabled = (int(users.max()) + 1) * count <= LARGEST_TABLE
        if self._tabled:
            self._met = np.zeros((int(users.max()) + 1) * count, np.bool_)
            self._met[pairs] = True
        left = count - int(np.bincount(users).max())
        if left < candidates - 1:
            raise UsageError(
                f"{option} is {candidates}, but a user has met all of the {count:,} items but {left}; "
                f"give {left + 1} at most"
            )

    def of(self, rows: Rows, random: np.random.Generator) -> Split:
        """Return lists for some interactions: users ``[B]`` and items ``[B, K]``, the target the true item's place."""
        return self._draw(self._users[rows], self._items[rows], random)

    def drawn_again(self, split: Split, random: np.random.Generator) -> Split:
        """Return the same users and true items among other negatives."""
        users, lists = (tensor.numpy() for tensor in split.inputs)
        (place,) = (target.numpy() for target in split.targets.values())
        return self._draw(users, lists[np.arange(len(lists)), place], random)

    def _draw(self, users: Rows, true: Rows, random: np.random.Generator) -> Split:
        rows = np.arange(len(users))
        lists = np.empty((len(users), self._candidates), np.int64)
        lists[:, 1:] = self._negatives(users, random)
        place = random.integers(0, self._candidates, len(users))
        # Negatives are in a random order already, so the one that gives way may go to the front.
        lists[:, 0] = lists[rows, place]
        lists[rows, place] = true
        return Split((torch.from_numpy(users), torch.from_numpy(lists)), {"item": torch.from_numpy(place)})

    def _negatives(self, users: Rows, random: np.random.Generator) -> Rows:
        """Return items that each user never met, without repetition, ``[B, K - 1]``."""
        drawn = random.integers(0, self._count, (len(users), self._candidates - 1))
        rows = np.arange(len(users))
        while len(rows):
            some = drawn[rows]
            bad = self._known(users[rows], some) | _repeated(some)
            some[bad] = random.integers(0, self._count, int(bad.sum()))
            drawn[rows] = some
            rows = rows[bad.any(1)]
        return drawn

    def _known(self, users: Rows, items: Rows) -> NDArray[np.bool_]:
        keys = users[:, None] * self._count + items
        if self._tabled:
            return np.asarray(self._met[keys], np.bool_)
        place = np.searchsorted(self._met, keys).clip(max=len(self._met) - 1)
        return np.asarray(self._met[place] == keys)


def _repeated(items: Rows) -> NDArray[np.bool_]:
    """Return where a row holds an item that stands further left in it too."""
    order = np.argsort(items, axis=1, kind="stable")
    ranked = np.take_along_axis(items, order, 1)
    same = np.zeros(items.shape, np.bool_)
    same[:, 1:] = ranked[:, 1:] == ranked[:, :-1]
    found = np.zeros_like(same)
    np.put_along_axis(found, order, same, 1)
    return found
