"""How many channels each group gives up, and which: pure functions on scores.

What is removed at one ratio is removed at every higher one too, so cost never rises with the ratio.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def least_important(
    scores: Sequence[Tensor], ratio: float, pooled: bool, parts: Sequence[Sequence[Sequence[int]]] | None = None
) -> list[list[int]]:
    """Return the channels to remove from each group; the best one of each group is kept.

    The number removed is the nearest to ``ratio`` times what there is. A ratio above zero removes at least one
    channel where any group can spare one: a ratio too small for the widest group takes its least important one.

    Args:
        scores: One score a channel for each group, ``[n]``; larger = keep.
        ratio: Share to remove, 0 to 1.
        pooled: Rank the channels of all groups together rather than each group by itself.
        parts: Sets of channels of each group that must not go as a whole (one of two concatenated layers).

    Example:
        >>> least_important([torch.tensor([3.0, 1.0, 2.0, 4.0]), torch.tensor([5.0, 6.0])], 0.5, pooled=False)
        [[1, 2], [0]]
        >>> least_important([torch.tensor([3.0, 1.0, 2.0, 4.0]), torch.tensor([5.0, 6.0])], 0.5, pooled=True)
        [[0, 1, 2], []]
    """
    orders = [_spare(group, parts[index] if parts else ()) for index, group in enumerate(scores)]
    if pooled:
        counts = _pooled(scores, orders, ratio)
    else:
        counts = [min(len(order), _nearest(ratio * len(group))) for group, order in zip(scores, orders, strict=True)]
    if ratio > 0 and not any(counts) and any(orders):
        counts[max(range(len(orders)), key=lambda index: len(orders[index]))] = 1
    return [sorted(order[:count]) for order, count in zip(orders, counts, strict=True)]


def _spare(scores: Tensor, parts: Sequence[Sequence[int]]) -> list[int]:
    """Return the channels that may go, the least important first."""
    order: list[int] = torch.argsort(scores, stable=True).tolist()
    rank = {channel: place for place, channel in enumerate(order)}
    safe = {max(part, key=rank.__getitem__) for part in (order, *parts)}
    return [channel for channel in order if channel not in safe]


def _nearest(value: float) -> int:
    return int(value + 0.5)


def _pooled(scores: Sequence[Tensor], orders: Sequence[Sequence[int]], ratio: float) -> list[int]:
    """Return how many of the least important channels overall lie in each group."""
    spare = sorted((float(scores[index][channel]), index) for index, order in enumerate(orders) for channel in order)
    counts = [0] * len(orders)
    for _, index in spare[: _nearest(ratio * sum(map(len, scores)))]:
        counts[index] += 1
    return counts
