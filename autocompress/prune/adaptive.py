"""Adaptive pruning: the number of channels removed from each layer follows its measured sensitivity."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from autocompress.core.knobs import Choice, FloatRange, IntRange, knob
from autocompress.core.method import Context, MethodState
from autocompress.core.registry import PRUNE
from autocompress.prune.channel_sensitivity import (
    ChannelCost,
    allocate_removals,
    count_weight_uses,
    measure_sensitivity,
)
from autocompress.prune.importance import CRITERION_CHOICE
from autocompress.prune.schedule import SCHEDULES
from autocompress.prune.structured import ChannelConfig, ScoredGroup, prune_channels, restore_channels

# The FLOPs of a layer fall with the square of its width, so keeping a share sqrt(1 - r) of all channels removes a share
# r of the FLOPs. A single layer may become narrower than that, but by at most this factor: a narrow layer costs few
# FLOPs, and yet all information passes through it.
MIN_WIDTH_SHARE = 1 / 3


@dataclass(frozen=True)
class AdaptiveConfig(ChannelConfig):
    """The share of the model's cost to remove, and how the steps are scheduled.

    Example:
        >>> AdaptiveConfig(pruning_ratio=0.75, budget="parameters").criterion
        'taylor'
    """

    label: ClassVar[str] = "prune.adaptive"

    pruning_ratio: float = knob(0.5, FloatRange(0.0, 0.98), "share of the budget to remove")
    criterion: str = knob("taylor", CRITERION_CHOICE, "which channels of a layer are removed first")
    budget: str = knob("flops", Choice(("flops", "parameters")), "the cost that the ratio is a share of")
    schedule: str = knob("linear", Choice(tuple(SCHEDULES)), "how the ratio grows over the pruning steps")
    steps: int = knob(3, IntRange(1, 50), "pruning steps of the schedules linear and cubic")
    step_epochs: int = knob(0, IntRange(0, 1000), "passes over the training split between two steps")


class Adaptive:
    """Removes the channels with the smallest rise of the loss per saved cost, until the budget is met.

    The sensitivity of a channel group is the rise of the calibration loss when its least important channels are set to
    zero, measured at a few ratios for one group at a time. With a schedule it is measured again before every step. The
    report holds ``sensitivity`` (one row per step, layer and ratio: the rise of the loss and each head's drop in
    accuracy), ``removed`` (the removed share of the budget, over convolutions and linear layers) and the entries of
    ``structured``.
    """

    name: ClassVar[str] = "adaptive"
    config = AdaptiveConfig

    def is_identity(self, config: AdaptiveConfig) -> bool:
        """Return whether the config removes nothing."""
        return config.removes_nothing()

    def apply(self, model: nn.Module, config: AdaptiveConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a copy with fewer channels and a record of the removal; ``model`` is not changed.

        Raises:
            CompressionError: The model cannot be traced, has no removable channels, would compute other values
                after pruning, or its loss cannot be measured.
        """
        rows: list[dict[str, object]] = []
        costs_before: list[float] = []
        costs_after: list[float] = []

        def choose_channels(pruned: nn.Module, groups: Sequence[ScoredGroup], ratio: float) -> list[list[int]]:
            sensitivities = measure_sensitivity(pruned, groups, context)
            orders = [sensitivity.order for sensitivity in sensitivities]
            cost = ChannelCost(pruned, groups, orders, _weight_uses(pruned, config, context))
            costs_before.append(cost([0] * len(groups)))
            min_share = MIN_WIDTH_SHARE * math.sqrt(1 - config.pruning_ratio)
            # A curve ends at the last channel that may be removed, so the allocation never goes beyond it.
            curves = [
                sensitivity.loss_curve()[: count_removable(scored, min_share) + 1]
                for scored, sensitivity in zip(groups, sensitivities, strict=True)
            ]
            # The target refers to the model before the first step, not to the one before this step.
            counts = allocate_removals(curves, cost, costs_before[0] * (1 - ratio))
            costs_after.append(cost(counts))
            for scored, sensitivity in zip(groups, sensitivities, strict=True):
                rows.extend({"step": len(costs_before), **row} for row in sensitivity.table_rows(scored.group.channels))
            return [sorted(order[:count]) for order, count in zip(orders, counts, strict=True)]

        pruned, state = prune_channels(model, config, context, choose_channels)
        removed = 1 - costs_after[-1] / costs_before[0] if costs_after else 0.0
        report: Mapping[str, object] = {**state.report, "removed": removed, "sensitivity": rows}
        return pruned, MethodState(history=state.history, report=report)

    def restore(self, model: nn.Module, config: AdaptiveConfig, state: MethodState) -> nn.Module:
        """Shrink a freshly built model to the pruned shape, in place, and return it in evaluation mode.

        Raises:
            CompressionError: The history does not fit the model.
        """
        return restore_channels(model, state)


def count_removable(scored: ScoredGroup, min_share: float) -> int:
    """Return the number of channels that can be removed while the group keeps ``min_share`` of its original ones."""
    smallest = max(math.ceil(min_share * (scored.group.channels + scored.removed)), 1)
    return max(scored.group.channels - smallest, 0)


def _weight_uses(model: nn.Module, config: AdaptiveConfig, context: Context) -> dict[str, float]:
    """Return the cost of one weight per layer: its uses for FLOPs, 1 for the number of parameters."""
    uses = count_weight_uses(model, context.example)
    # With one use per weight, the cost of a layer is its number of parameters.
    return uses if config.budget == "flops" else dict.fromkeys(uses, 1.0)


PRUNE.add(Adaptive.name, Adaptive())
