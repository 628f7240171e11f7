"""How much is pruned, and where: the ratio of each step, and the channels of each group that it removes.

Channels removed at one ratio are also removed at every higher ratio, so the cost never rises with the ratio.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.core.knobs import Choice, IntRange, knob
from autocompress.core.method import Context, Recovery
from autocompress.errors import CompressionError
from autocompress.prune.calibration import reestimate_batch_norm


def select_least_important(
    scores: Sequence[Tensor],
    ratio: float,
    pooled: bool,
    removed_before: Sequence[int] | None = None,
) -> list[list[int]]:
    """Return the channels to remove from each group; the most important one of each group is never removed.

    The number removed is the nearest to ``ratio`` times the number of channels. A ratio above zero removes at least
    one channel where a group has a removable one: the least important of all, or one of the widest group.

    Args:
        scores: One score per channel for each group, ``[n]``; larger = keep.
        ratio: Share to remove, 0 to 1.
        pooled: Whether the channels of all groups are ranked together rather than each group by itself.
        removed_before: Number of channels of each group that earlier steps removed; the ratio counts them too.

    Example:
        >>> select_least_important([torch.tensor([3.0, 1.0, 2.0, 4.0]), torch.tensor([5.0, 6.0])], 0.5, pooled=False)
        [[1, 2], [0]]
        >>> select_least_important([torch.tensor([3.0, 1.0, 2.0, 4.0]), torch.tensor([5.0, 6.0])], 0.5, pooled=True)
        [[0, 1, 2], []]
    """
    removed = list(removed_before) if removed_before else [0] * len(scores)
    orders = [rank_removable_channels(group) for group in scores]
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


def rank_removable_channels(scores: Tensor) -> list[int]:
    """Return all channels but the most important one, the least important first."""
    # A stable sort breaks ties by the channel's number, so that results do not depend on the platform.
    order: list[int] = torch.argsort(scores, stable=True).tolist()
    return order[:-1]


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


# Share of the final ratio after a share of the steps.
SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "one_shot": lambda share: 1.0,
    "linear": lambda share: share,
    # Large steps while many weights are redundant, small ones at the end (Zhu and Gupta 2017, arXiv:1710.01878).
    "cubic": lambda share: 1 - (1 - share) ** 3,
}


@dataclass(frozen=True)
class GradualConfig(Recovery):
    """Hyperparameters of a method that can prune in several steps with training between them."""

    schedule: str = knob("one_shot", Choice(tuple(SCHEDULES)), "how the ratio grows over the pruning steps")
    steps: int = knob(4, IntRange(1, 50), "pruning steps of the schedules linear and cubic")
    step_epochs: int = knob(1, IntRange(0, 1000), "passes over the training split between two steps")

    def estimate_epochs(self) -> float:
        """Return the epochs of training between the steps and after the last one."""
        steps = 1 if self.schedule == "one_shot" else self.steps
        return float(self.recovery_epochs + (steps - 1) * self.step_epochs)

    def step_ratios(self, ratio: float) -> list[float]:
        """Return the ratio after each step; the last one is ``ratio`` itself.

        Example:
            >>> GradualConfig(schedule="linear", steps=4).step_ratios(0.5)
            [0.125, 0.25, 0.375, 0.5]
            >>> GradualConfig(schedule="cubic", steps=2).step_ratios(0.5)
            [0.4375, 0.5]
        """
        steps = 1 if self.schedule == "one_shot" else self.steps
        return [ratio * SCHEDULES[self.schedule](step / steps) for step in range(1, steps + 1)]

    def train_between_steps(self, model: nn.Module, context: Context, hold: Callable[[], None] | None = None) -> None:
        """Train a model in place before its next pruning step, and leave it in evaluation mode.

        With ``step_epochs=0`` its batch norms are re-estimated instead, because the criteria of the next step depend
        on their outputs.

        Args:
            model: The model after a pruning step.
            context: The training function and the calibration batches.
            hold: Callback after each training step, such as one that sets masked weights back to zero.

        Raises:
            CompressionError: The context has no training function.
        """
        if self.step_epochs == 0:
            if context.calibration:
                reestimate_batch_norm(model, context.calibration)
        elif context.fine_tune is None:
            raise CompressionError(
                f"schedule '{self.schedule}' trains between its steps, but this context cannot train; set step_epochs=0"
            )
        else:
            context.fine_tune(model, self.step_epochs, self.recovery_learning_rate, hold)
        model.eval()
