"""How much each group of channels matters, measured, and how many each should give up for that."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from autocompress.core.method import Context
from autocompress.prune.allocation import nearest, spare
from autocompress.prune.batch_norm import reestimate_batch_norm
from autocompress.prune.calibration import EXAMPLES, Reading, labelled, read
from autocompress.prune.channel_pruning import Ranked
from autocompress.prune.channels import silence, size_of

RATIOS = (0.25, 0.5, 0.75, 1.0)
# A group gives up its channels in at most this many steps, so that wide layers do not cost time.
INCREMENTS = 32


@dataclass(frozen=True)
class Sensitivity:
    """What it costs a group to give up channels, the least important first.

    Attributes:
        name: The group's first layer.
        order: The channels that may go, the least important first.
        points: ``(channels that went, rise of the loss, head to drop in accuracy)``, by number of channels.
    """

    name: str
    order: tuple[int, ...]
    points: tuple[tuple[int, float, Mapping[str, float]], ...]

    def rows(self, channels: int) -> list[dict[str, Any]]:
        """Return the measurements as rows of a table."""
        return [
            {"layer": self.name, "pruning_ratio": count / channels, "loss": loss, "accuracy_drop": dict(drop)}
            for count, loss, drop in self.points
        ]

    def curve(self) -> list[float]:
        """Return the expected rise of the loss for each number of channels that go, from none to all that may.

        It is the lower convex hull through the measured points: a step that hurts less than the one before it is
        noise, or not worth stopping at.
        """
        points = [(0, 0.0), *((count, max(loss, 0.0)) for count, loss, _ in self.points)]
        hull: list[tuple[int, float]] = []
        for point in points:
            while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], point):
                hull.pop()
            hull.append(point)
        values = [0.0]
        for before, after in pairwise(hull):
            values += [before[1] + _slope(before, after) * step for step in range(1, after[0] - before[0] + 1)]
        return list(accumulate(values, max))


def measure_sensitivity(model: nn.Module, ranked: Sequence[Ranked], context: Context) -> list[Sensitivity]:
    """Silence the least important channels of one group at a time, and read what that does on the calibration split.

    A silent channel is one that no layer listens to: what a cut would leave, without a cut. Batch norms are measured
    again first, as they will be after a cut. ``model`` stays as it was.

    Raises:
        CompressionError: The loss cannot be measured, or is not finite.
    """
    batches = [inputs for inputs, _ in labelled(context, EXAMPLES)]
    silent = copy.deepcopy(model)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = _settled_reading(silent, batches, context)
    found = []
    for place in ranked:
        order = spare(place.scores, place.group.parts)
        points = []
        for count in sorted({max(1, nearest(ratio * len(order))) for ratio in RATIOS} if order else ()):
            silent.load_state_dict(weights)
            gone = set(order[:count])
            for part in place.group.slices:
                if not part.outputs:
                    inputs = [
                        index
                        for index, root in zip(part.indices, part.roots, strict=True)
                        if root % place.group.channels in gone
                    ]
                    silence(silent.get_submodule(part.name), inputs)
            after = _settled_reading(silent, batches, context)
            drop = {head: before.accuracy[head] - share for head, share in after.accuracy.items()}
            points.append((count, after.loss - before.loss, drop))
        found.append(Sensitivity(place.group.name, tuple(order), tuple(points)))
    return found


def _settled_reading(model: nn.Module, batches: Sequence[tuple[Tensor, ...]], context: Context) -> Reading:
    reestimate_batch_norm(model, batches)
    return read(model, context)


def _slope(one: tuple[int, float], other: tuple[int, float]) -> float:
    return (other[1] - one[1]) / (other[0] - one[0])


class Cost:
    """What the convolutions and linear layers of a model cost, as a function of how many channels each group gives up.

    Args:
        model: The model before the cut.
        ranked: Its groups.
        orders: For each group, the channels that may go, in the order in which they go.
        uses: Layer name to how often each of its weights is used for one example; absent layers cost nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        ranked: Sequence[Ranked],
        orders: Sequence[Sequence[int]],
        uses: Mapping[str, float],
    ) -> None:
        self._layers: dict[str, tuple[float, dict[bool, int]]] = {}
        for name, use in uses.items():
            layer = model.get_submodule(name)
            # What one weight costs: a kernel's window counts once for each pair of channels that it joins.
            sides = {True: size_of(layer, True), False: size_of(layer, False)}
            weight = layer.get_parameter("weight")
            self._layers[name] = (use * weight.numel() / prod(sides.values()), sides)
        # For each group and each number of channels that go: how many channels each layer loses on each side.
        self._losses: list[list[tuple[str, bool, list[int]]]] = []
        for place, order in zip(ranked, orders, strict=True):
            rank = {channel: index for index, channel in enumerate(order)}
            losses = []
            for part in place.group.slices:
                if part.name in self._layers:
                    steps = [0] * (len(order) + 1)
                    for root in part.roots:
                        if root % place.group.channels in rank:
                            steps[rank[root % place.group.channels] + 1] += 1
                    losses.append((part.name, part.outputs, list(accumulate(steps))))
            self._losses.append(losses)

    def __call__(self, counts: Sequence[int]) -> float:
        """Return the cost once each group has given up so many channels."""
        left = {name: dict(sides) for name, (_, sides) in self._layers.items()}
        for losses, count in zip(self._losses, counts, strict=True):
            for name, outputs, lost in losses:
                left[name][outputs] -= lost[count]
        return sum(unit * left[name][True] * left[name][False] for name, (unit, _) in self._layers.items())


@torch.no_grad()
def uses_of_weights(model: nn.Module, example: tuple[Tensor, ...]) -> dict[str, float]:
    """Return how often each weight of every convolution and linear layer is used for one example, by layer name.

    Times the number of its weights, that is the layer's multiply-accumulates.
    """
    names = {module: name for name, module in model.named_modules() if isinstance(module, _ConvNd | nn.Linear)}
    found: dict[str, float] = {}

    def note(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        transposed = getattr(module, "transposed", False)
        side = inputs[0] if transposed else output
        width = size_of(module, outputs=not transposed)
        found[names[module]] = found.get(names[module], 0.0) + side.numel() / width

    handles = [module.register_forward_hook(note) for module in names]
    try:
        model(*example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def allocate(curves: Sequence[Sequence[float]], cost: Callable[[Sequence[int]], float], target: float) -> list[int]:
    """Return how many channels each group gives up so that the cost is at most ``target``.

    The next channels to go are always those whose expected rise of the loss is smallest for what they save; what
    goes for one target goes for every smaller one too. Where the target cannot be met, all that may go goes.

    Args:
        curves: For each group, the rise of the loss for each number of channels that go, from zero on.
        cost: The cost for so many channels of each group.
        target: The highest cost.

    Example:
        >>> allocate([[0.0, 1.0, 4.0], [0.0, 2.0, 4.0]], lambda counts: 4 - sum(counts), 2)
        [1, 1]
    """
    counts = [0] * len(curves)
    sizes = [max(1, len(curve) // INCREMENTS) for curve in curves]
    now = cost(counts)
    while now > target:
        best: tuple[float, int, list[int], float] | None = None
        for index, curve in enumerate(curves):
            step = min(sizes[index], len(curve) - 1 - counts[index])
            if step > 0:
                tried = [*counts[:index], counts[index] + step, *counts[index + 1 :]]
                after = cost(tried)
                price = (curve[tried[index]] - curve[counts[index]]) / max(now - after, 1e-12)
                if best is None or price < best[0]:
                    best = (price, index, tried, after)
        if best is None:
            break
        _, _, counts, now = best
    return counts
