"""Adaptive pruning: each layer gives up as many channels as its measured sensitivity allows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from autocompress.core.knobs import Choice, FloatRange, IntRange, knob
from autocompress.core.method import Context, MethodState
from autocompress.core.registry import PRUNE
from autocompress.prune.channel_pruning import ChannelConfig, Ranked, cut_channels, restore_channels
from autocompress.prune.channel_sensitivity import Cost, allocate, measure_sensitivity, uses_of_weights
from autocompress.prune.importance import CRITERIA
from autocompress.prune.schedule import SCHEDULES

# A share r of the FLOPs is gone where each layer keeps a share sqrt(1 - r) of its channels. Some may keep less, but not
# next to nothing: what little a narrow layer costs is no measure of what must pass through it.
NARROWEST = 1 / 3


@dataclass(frozen=True)
class AdaptiveConfig(ChannelConfig):
    """How much of the model's cost goes.

    Example:
        >>> AdaptiveConfig(pruning_ratio=0.75, budget="parameters").criterion
        'taylor'
    """

    label: ClassVar[str] = "prune.adaptive"

    pruning_ratio: float = knob(0.5, FloatRange(0.0, 0.98), "share of the budget to remove")
    criterion: str = knob("taylor", Choice(tuple(CRITERIA)), "which channels of a layer go first")
    budget: str = knob("flops", Choice(("flops", "parameters")), "what the ratio is a share of")
    schedule: str = knob("linear", Choice(tuple(SCHEDULES)), "how the ratio grows from cut to cut")
    steps: int = knob(3, IntRange(1, 50), "cuts of the schedules linear and cubic")
    step_epochs: int = knob(0, IntRange(0, 1000), "passes over the training split between two cuts")


class Adaptive:
    """Removes channels where the loss rises least for what they cost, until a share of FLOPs or parameters is gone.

    Every group of channels is silenced at a few ratios, one group at a time, and the calibration loss is read; with a
    schedule, that is measured again before every cut. The report holds ``sensitivity`` (one row a cut, layer and
    ratio: the rise of the loss and each head's drop in accuracy), ``removed`` (share of the budget that went; of
    convolutions and linear layers alone) and what ``structured`` reports.
    """

    name: ClassVar[str] = "adaptive"
    config = AdaptiveConfig

    def is_identity(self, config: AdaptiveConfig) -> bool:
        """Return whether nothing is removed."""
        return config.pruning_ratio == 0

    def apply(self, model: nn.Module, config: AdaptiveConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a copy with fewer channels, and what was removed; ``model`` stays as it was.

        Raises:
            CompressionError: The model cannot be traced, has nothing to remove, would compute something else, or its
                loss cannot be measured.
        """
        rows: list[dict[str, Any]] = []
        whole: list[float] = []
        left: list[float] = []

        def choose(pruned: nn.Module, ranked: Sequence[Ranked], ratio: float) -> list[list[int]]:
            measured = measure_sensitivity(pruned, ranked, context)
            orders = [group.order for group in measured]
            cost = Cost(pruned, ranked, orders, _uses(pruned, config, context))
            nothing = [0] * len(ranked)
            whole.append(cost(nothing))
            narrowest = NARROWEST * math.sqrt(1 - config.pruning_ratio)
            curves = [
                group.curve()[: spare(place, narrowest) + 1] for place, group in zip(ranked, measured, strict=True)
            ]
            counts = allocate(curves, cost, whole[0] * (1 - ratio))
            left.append(cost(counts))
            for place, group in zip(ranked, measured, strict=True):
                rows.extend({"step": len(whole), **row} for row in group.rows(place.group.channels))
            return [sorted(order[:count]) for order, count in zip(orders, counts, strict=True)]

        pruned, state = cut_channels(model, config, context, choose)
        removed = 1 - left[-1] / whole[0] if left else 0.0
        report: Mapping[str, Any] = {**state.report, "removed": removed, "sensitivity": rows}
        return pruned, MethodState(history=state.history, report=report)

    def restore(self, model: nn.Module, config: AdaptiveConfig, state: MethodState) -> nn.Module:
        """Give a fresh model the pruned shape, in place, and return it in evaluation mode.

        Raises:
            CompressionError: The history does not fit the model.
        """
        return restore_channels(model, state)


def spare(place: Ranked, narrowest: float) -> int:
    """Return how many channels a group may give up so that it keeps at least a share of those it began with."""
    least = max(math.ceil(narrowest * (place.group.channels + place.gone)), 1)
    return max(place.group.channels - least, 0)


def _uses(model: nn.Module, config: AdaptiveConfig, context: Context) -> dict[str, float]:
    uses = uses_of_weights(model, context.example)
    return uses if config.budget == "flops" else dict.fromkeys(uses, 1.0)


PRUNE.add(Adaptive.name, Adaptive())
