"""Allocation of removed channels to groups: pure functions on scores.

Channels removed at one ratio are also removed at every higher ratio, so the cost never rises with the ratio.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def select_least_important(
    scores: Sequence[Tensor],
    ratio: float,
    pooled: bool,
    protected_sets: Sequence[Sequence[Sequence[int]]] | None = None,
    removed_before: Sequence[int] | None = None,
) -> list[list[int]]:
    """Return the channels to remove from each group; the most important one of each group is never removed.

    The number removed is the nearest to ``ratio`` times the number of channels. A ratio above zero removes at least
    one channel where a group has a removable one: the least important of all, or one of the widest group.

    Args:
        scores: One score per channel for each group, ``[n]``; larger = keep.
        ratio: Share to remove, 0 to 1.
        pooled: Whether the channels of all groups are ranked together rather than each group by itself.
        protected_sets: Sets of channels of each group of which at least one must remain, such as the channels of one
            of two concatenated layers.
        removed_before: Number of channels of each group that earlier steps removed; the ratio counts them too.

    Example:
        >>> select_least_important([torch.tensor([3.0, 1.0, 2.0, 4.0]), torch.tensor([5.0, 6.0])], 0.5, pooled=False)
        [[1, 2], [0]]
        >>> select_least_important([torch.tensor([3.0, 1.0, 2.0, 4.0]), torch.tensor([5.0, 6.0])], 0.5, pooled=True)
        [[0, 1, 2], []]
    """
    removed = list(removed_before) if removed_before else [0] * len(scores)
    orders = [
        rank_removable_channels(group, protected_sets[index] if protected_sets else ())
        for index, group in enumerate(scores)
    ]
    # The ratio is a share of the original widths: what is left plus what earlier steps removed.
    sizes = [len(group) + count for group, count in zip(scores, removed, strict=True)]
    # Only the first step has to remove something; a later one may find its ratio reached already.
    minimum = int(ratio > 0 and not any(removed))
    if pooled:
        counts = _count_pooled(scores, orders, max(minimum, round_half_up(ratio * sum(sizes)) - sum(removed)))
    else:
        counts = [
            min(len(order), max(0, round_half_up(ratio * size) - count))
            for order, size, count in zip(orders, sizes, removed, strict=True)
        ]
        if minimum and not any(counts) and any(orders):
            counts[max(range(len(orders)), key=lambda index: (bool(orders[index]), sizes[index]))] = 1
    return [sorted(order[:count]) for order, count in zip(orders, counts, strict=True)]


def rank_removable_channels(scores: Tensor, protected_sets: Sequence[Sequence[int]]) -> list[int]:
    """Return the channels that can be removed, the least important first."""
    # A stable sort breaks ties by the channel's number, so that results do not depend on the platform.
    order: list[int] = torch.argsort(scores, stable=True).tolist()
    rank = {channel: position for position, channel in enumerate(order)}
    protected = {max(channels, key=rank.__getitem__) for channels in (order, *protected_sets)}
    return [channel for channel in order if channel not in protected]


def round_half_up(value: float) -> int:
    """Return the nearest whole number; a half is rounded up."""
    # Python's round() takes halves to the even number, which would make ratios of small layers irregular.
    return int(value + 0.5)


def _count_pooled(scores: Sequence[Tensor], orders: Sequence[Sequence[int]], number: int) -> list[int]:
    """Return how many of the ``number`` least important channels overall belong to each group."""
    ranking = sorted((float(scores[index][channel]), index) for index, order in enumerate(orders) for channel in order)
    counts = [0] * len(orders)
    for _, index in ranking[: max(number, 0)]:
        counts[index] += 1
    return counts
