"""How many channels each group gives up, and which: pure functions on scores.

What is removed at one ratio is removed at every higher one too, so cost never rises with the ratio.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def least_important(
    scores: Sequence[Tensor],
    ratio: float,
    pooled: bool,
    parts: Sequence[Sequence[Sequence[int]]] | None = None,
    gone: Sequence[int] | None = None,
) -> list[list[int]]:
    """Return the channels to remove from each group; the best one of each group is kept.

    The number removed is the nearest to ``ratio`` times what there is. A ratio above zero removes at least one
    channel where any group can spare one: the least important of all, or of the widest group.

    Args:
        scores: One score a channel for each group, ``[n]``; larger = keep.
        ratio: Share to remove, 0 to 1.
        pooled: Rank the channels of all groups together rather than each group by itself.
        parts: Sets of channels of each group that must not go as a whole (one of two concatenated layers).
        gone: How many channels of each group went before; the ratio counts them too.

    Example:
        >>> least_important([torch.tensor([3.0, 1.0, 2.0, 4.0]), torch.tensor([5.0, 6.0])], 0.5, pooled=False)
        [[1, 2], [0]]
        >>> least_important([torch.tensor([3.0, 1.0, 2.0, 4.0]), torch.tensor([5.0, 6.0])], 0.5, pooled=True)
        [[0, 1, 2], []]
    """
    before = list(gone) if gone else [0] * len(scores)
    orders = [spare(group, parts[index] if parts else ()) for index, group in enumerate(scores)]
    sizes = [len(group) + less for group, less in zip(scores, before, strict=True)]
    least = int(ratio > 0 and not any(before))
    if pooled:
        counts = _pooled(scores, orders, max(least, nearest(ratio * sum(sizes)) - sum(before)))
    else:
        counts = [
            min(len(order), max(0, nearest(ratio * size) - less))
            for order, size, less in zip(orders, sizes, before, strict=True)
        ]
        if least and not any(counts) and any(orders):
            counts[max(range(len(orders)), key=lambda index: (bool(orders[index]), sizes[index]))] = 1
    return [sorted(order[:count]) for order, count in zip(orders, counts, strict=True)]


def spare(scores: Tensor, parts: Sequence[Sequence[int]]) -> list[int]:
    """Return the channels that may go, the least important first."""
    order: list[int] = torch.argsort(scores, stable=True).tolist()
    rank = {channel: place for place, channel in enumerate(order)}
    safe = {max(part, key=rank.__getitem__) for part in (order, *parts)}
    return [channel for channel in order if channel not in safe]


def nearest(value: float) -> int:
    """Return the nearest whole number; a half goes up."""
    return int(value + 0.5)


def _pooled(scores: Sequence[Tensor], orders: Sequence[Sequence[int]], number: int) -> list[int]:
    """Return how many of the least important channels overall lie in each group."""
    ranked = sorted((float(scores[index][channel]), index) for index, order in enumerate(orders) for channel in order)
    counts = [0] * len(orders)
    for _, index in ranked[: max(number, 0)]:
        counts[index] += 1
    return counts
