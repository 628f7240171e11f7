"""Sensitivity of channel groups: the measured rise of the loss, and the allocation of removals that follows from it."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod

import torch
from torch import Tensor, nn

from autocompress.core.method import Context
from autocompress.prune.calibration import (
    MAX_EXAMPLES,
    CalibrationMetrics,
    calibration_batches,
    measure_calibration,
    reestimate_batch_norm,
)
from autocompress.prune.channels import count_channels, zero_input_channels
from autocompress.prune.importance import LayerSlice
from autocompress.prune.layer_channels import is_matrix_layer, output_axis
from autocompress.prune.schedule import rank_removable_channels, round_half_up
from autocompress.prune.structured import ScoredGroup

# Shares of a group's removable channels at which the loss is measured.
RATIOS = (0.25, 0.5, 0.75, 1.0)
# The allocation removes a group's channels in at most this many increments, which bounds its time for wide layers.
INCREMENTS = 32


@dataclass(frozen=True)
class GroupSensitivity:
    """Rise of the loss when a group loses channels, the least important first.

    Attributes:
        name: Name of the group's first layer.
        order: Removable channels, the least important first.
        points: ``(removed channels, rise of the loss, head to drop in accuracy)``, in the order of removed channels.
    """

    name: str
    order: tuple[int, ...]
    points: tuple[tuple[int, float, Mapping[str, float]], ...]

    def table_rows(self, channels: int) -> list[dict[str, object]]:
        """Return the measurements as rows of a table, with ratios relative to ``channels``."""
        return [
            {"layer": self.name, "pruning_ratio": count / channels, "loss": loss, "accuracy_drop": dict(drop)}
            for count, loss, drop in self.points
        ]

    def loss_curve(self) -> list[float]:
        """Return the expected rise of the loss for each number of removed channels, from 0 to all removable ones.

        It is the lower convex hull of the measured points: where removing more channels costs less per channel than
        before, the difference is noise, or the smaller number is never the better choice.
        """
        # A negative rise is noise of the calibration split; it would make removals look like gains.
        points = [(0, 0.0), *((count, max(loss, 0.0)) for count, loss, _ in self.points)]
        hull: list[tuple[int, float]] = []
        for point in points:
            while len(hull) > 1 and _slope_between(hull[-2], hull[-1]) >= _slope_between(hull[-2], point):
                hull.pop()
            hull.append(point)
        values = [0.0]
        for before, after in pairwise(hull):
            values += [before[1] + _slope_between(before, after) * step for step in range(1, after[0] - before[0] + 1)]
        # The running maximum makes the curve rise even where the hull falls.
        return list(accumulate(values, max))


def measure_sensitivity(model: nn.Module, groups: Sequence[ScoredGroup], context: Context) -> list[GroupSensitivity]:
    """Return the sensitivity of each group, measured on the calibration split.

    The least important channels of one group at a time are masked: the weights that read them are set to zero, which
    gives the outputs of a pruned model without pruning it. Batch norms are re-estimated before each measurement, as
    they are after pruning. ``model`` is not changed.

    Raises:
        CompressionError: The loss cannot be measured, or is not finite.
    """
    batches = [inputs for inputs, _ in calibration_batches(context, MAX_EXAMPLES)]
    masked_model = copy.deepcopy(model)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = _measure_reestimated(masked_model, batches, context)
    sensitivities = []
    for scored in groups:
        order = rank_removable_channels(scored.scores)
        points = []
        for count in sorted({max(1, round_half_up(ratio * len(order))) for ratio in RATIOS} if order else ()):
            masked_model.load_state_dict(weights)
            masked_channels = set(order[:count])
            for part in scored.group.slices:
                if not part.outputs:
                    inputs = [
                        index for index, root in zip(part.indices, part.roots, strict=True) if root in masked_channels
                    ]
                    zero_input_channels(masked_model.get_submodule(part.name), inputs)
            after = _measure_reestimated(masked_model, batches, context)
            drop = {head: before.accuracy[head] - share for head, share in after.accuracy.items()}
            points.append((count, after.loss - before.loss, drop))
        sensitivities.append(GroupSensitivity(scored.group.name, tuple(order), tuple(points)))
    return sensitivities


def _measure_reestimated(
    model: nn.Module, batches: Sequence[tuple[Tensor, ...]], context: Context
) -> CalibrationMetrics:
    reestimate_batch_norm(model, batches)
    return measure_calibration(model, context)


def _slope_between(one: tuple[int, float], other: tuple[int, float]) -> float:
    return (other[1] - one[1]) / (other[0] - one[0])


class ChannelCost:
    """Cost of the convolutions and linear layers of a model as a function of the channels removed from each group.

    Args:
        model: The model before pruning.
        groups: Channel groups of the model.
        orders: Removable channels of each group, in the order of removal.
        uses: Layer name to the number of uses of each of its weights for one example; absent layers cost nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ScoredGroup],
        orders: Sequence[Sequence[int]],
        uses: Mapping[str, float],
    ) -> None:
        self._layers: dict[str, tuple[float, dict[bool, int]]] = {}
        for name, use in uses.items():
            layer = model.get_submodule(name)
            # Cost of one pair of input and output channel: the uses of all weights in the kernel window between them.
            sides = {True: count_channels(layer, True), False: count_channels(layer, False)}
            weight = layer.get_parameter("weight")
            self._layers[name] = (use * weight.numel() / prod(sides.values()), sides)
        # For each group and each number of removed channels: the channels that each layer loses on each side.
        self._losses: list[list[tuple[str, bool, list[int]]]] = []
        for scored, order in zip(groups, orders, strict=True):
            rank = {channel: index for index, channel in enumerate(order)}
            losses = []
            for part in scored.group.slices:
                steps = [0] * (len(order) + 1)
                for root in part.roots:
                    if root in rank:
                        steps[rank[root] + 1] += 1
                lost = list(accumulate(steps))
                losses += [(name, outputs, lost) for name, outputs in self._list_users(model, part)]
            self._losses.append(losses)

    def _list_users(self, model: nn.Module, part: LayerSlice) -> list[tuple[str, bool]]:
        """Return the layers that multiply by the weight of a slice, each with the side of the slice's channels.

        A table of tokens may be the weight of the last layer too; its columns are the inputs of that layer.
        """
        weight = getattr(model.get_submodule(part.name), "weight", None)
        users = []
        for name in self._layers:
            layer = model.get_submodule(name)
            if layer.weight is weight:
                is_same_layout = output_axis(layer) == output_axis(part.layer)
                users.append((name, part.outputs if is_same_layout else not part.outputs))
        return users

    def __call__(self, counts: Sequence[int]) -> float:
        """Return the cost after the removal of ``counts[i]`` channels from group ``i``."""
        widths = {name: dict(sides) for name, (_, sides) in self._layers.items()}
        for losses, count in zip(self._losses, counts, strict=True):
            for name, outputs, lost in losses:
                widths[name][outputs] -= lost[count]
        return sum(unit * widths[name][True] * widths[name][False] for name, (unit, _) in self._layers.items())


@torch.no_grad()
def count_weight_uses(model: nn.Module, example: tuple[Tensor, ...]) -> dict[str, float]:
    """Return the number of uses of each weight of every convolution and linear layer for one example, by layer name.

    Multiplied by the number of weights, it is the number of multiply-accumulates of the layer.
    """
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules() if is_matrix_layer(module)}
    uses: dict[str, float] = {}

    def record_uses(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # Each weight is used once per output position; in a transposed convolution, once per input position.
        transposed = getattr(module, "transposed", False)
        side = inputs[0] if transposed else output
        width = count_channels(module, outputs=not transposed)
        uses[names[module]] = uses.get(names[module], 0.0) + side.numel() / width

    handles = [module.register_forward_hook(record_uses) for module in names]
    try:
        model(*example)
    finally:
        for handle in handles:
            handle.remove()
    return uses


def allocate_removals(
    curves: Sequence[Sequence[float]], cost: Callable[[Sequence[int]], float], target: float
) -> list[int]:
    """Return the number of channels to remove from each group so that the cost is at most ``target``.

    A greedy search removes the channels with the smallest expected rise of the loss per saved cost next; the removals
    for one target are part of those for every smaller target. If the target cannot be met, every removable channel is
    removed.

    Args:
        curves: Rise of the loss of each group for each number of removed channels, from zero on.
        cost: Cost as a function of the number of channels removed from each group.
        target: Highest allowed cost.

    Example:
        >>> allocate_removals([[0.0, 1.0, 4.0], [0.0, 2.0, 4.0]], lambda counts: 4 - sum(counts), 2)
        [1, 1]
    """
    counts = [0] * len(curves)
    sizes = [max(1, len(curve) // INCREMENTS) for curve in curves]
    current_cost = cost(counts)
    while current_cost > target:
        best: tuple[float, int, list[int], float] | None = None
        for index, curve in enumerate(curves):
            step = min(sizes[index], len(curve) - 1 - counts[index])
            if step > 0:
                next_counts = [*counts[:index], counts[index] + step, *counts[index + 1 :]]
                next_cost = cost(next_counts)
                # A removal that saves nothing must not divide by zero; it is then the most expensive one.
                price = (curve[next_counts[index]] - curve[counts[index]]) / max(current_cost - next_cost, 1e-12)
                if best is None or price < best[0]:
                    best = (price, index, next_counts, next_cost)
        if best is None:
            break
        _, _, counts, current_cost = best
    return counts
