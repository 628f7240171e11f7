"""How much a model suffers when one layer's weights, or its inputs, are rounded and everything else is not."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from autocompress.errors import CompressionError
from autocompress.quantize.fake_quantize import INPUT, FakeQuantize, attach_input_quantizer
from autocompress.quantize.layers import broadcast_channels, forward_hooks, set_weight
from autocompress.quantize.model_quantizer import ModelQuantizer
from autocompress.quantize.quantizers import Grid
from autocompress.quantize.weight_coding import QuantizedWeight


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer of the table.

    Attributes:
        layer: Its name.
        weights: Bits of its weights to what was measured.
        inputs: Bits of its inputs to what was measured.
    """

    layer: str
    weights: Mapping[int, float]
    inputs: Mapping[int, float]

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON values; bits are texts there."""
        weights, inputs = ({str(bits): rise for bits, rise in side.items()} for side in (self.weights, self.inputs))
        return {"name": self.layer, "weight_bits": weights, "activation_bits": inputs}


def measure_sensitivity(
    draft: ModelQuantizer,
    measure: Callable[[], float],
    weights: Mapping[str, Mapping[int, QuantizedWeight]],
    inputs: Mapping[str, Mapping[int, Grid]],
) -> list[LayerSensitivity]:
    """Return the table; the draft computes what it did before.

    Where the draft corrects biases, the mean output of the rounded layer is put right while it is measured.

    Args:
        draft: In floating point.
        measure: One of :data:`MEASURES`, built on the draft.
        weights: Layer to bits to its weight's codes.
        inputs: Layer to bits to the grid of its inputs.

    Raises:
        CompressionError: What is measured is not finite.
    """
    table = []

    def correct(name: str, _: object, __: object, output: Tensor) -> Tensor:
        layer = draft.layers[name]
        shift = None if draft.correction is None else draft.correction.shift(name, layer, output)
        return output if shift is None else output + broadcast_channels(layer, shift, output)

    for name, layer in draft.layers.items():
        of_weights, of_inputs, exact = {}, {}, layer.weight
        with forward_hooks({name: layer}, correct):
            for bits, coded in weights[name].items():
                set_weight(layer, coded)
                of_weights[bits] = _finite(measure(), name, bits)
            layer.weight = exact
            for bits, grid in inputs[name].items():
                attach_input_quantizer(layer, FakeQuantize(grid, bits))
                of_inputs[bits] = _finite(measure(), name, bits)
        if inputs[name]:
            layer.add_module(INPUT, nn.Identity())
        table.append(LayerSensitivity(name, of_weights, of_inputs))
    return table


def enforce_monotone_losses(rises: Mapping[int, float]) -> dict[int, float]:
    """Return what each width is expected to cost: never less than nothing, and never less than a wider one.

    A narrower width that measured better than a wider one did so by chance.

    Example:
        >>> enforce_monotone_losses({2: 0.5, 4: -0.1, 8: 0.1})
        {8: 0.1, 4: 0.1, 2: 0.5}
    """
    found: dict[int, float] = {}
    worst = 0.0
    for bits in sorted(rises, reverse=True):
        worst = found[bits] = max(worst, rises[bits])
    return found


class OutputDivergence:
    """The Kullback-Leibler divergence of the outputs' classes from what they were in floating point, per example.

    It is the rise of the loss to expect if labels came as often as the model says they do. Other than the rise of the
    loss itself, it does not hang on which labels a few calibration batches hold, and is never below zero.

    Raises:
        CompressionError: There are no calibration batches.
    """

    def __init__(self, draft: ModelQuantizer) -> None:
        if not draft.context.calibration:
            raise CompressionError("sensitivities need calibration batches: the context holds none")
        self._draft, self._inputs = draft, draft.join_batches()
        self._exact = self._outputs()

    def __call__(self) -> float:
        """Return the divergence for the model as it is now."""
        pairs = zip(self._exact, self._outputs(), strict=True)
        parts = [F.kl_div(now, before, reduction="sum", log_target=True) for before, now in pairs]
        return float(torch.stack(parts).sum()) / len(self._inputs[0])

    def _outputs(self) -> list[Tensor]:
        return [F.log_softmax(leaf.double(), -1) for leaf in tree_leaves(self._draft.model(*self._inputs))]


class LossIncrease:
    """The rise of the task's loss on the calibration batches; below zero where rounding happened to help.

    Raises:
        CompressionError: The context lacks the loss, calibration batches or their targets.
    """

    def __init__(self, draft: ModelQuantizer) -> None:
        context = draft.context
        if context.loss is None or not context.targets or len(context.targets) != len(context.calibration):
            raise CompressionError("sensitivities need the loss on calibration batches: the context lacks it")
        self._draft, self._inputs, self._loss = draft, draft.join_batches(), context.loss
        heads = context.targets[0]
        self._targets = {head: torch.cat([targets[head] for targets in context.targets]) for head in heads}
        self._exact = self._now()

    def __call__(self) -> float:
        """Return the rise for the model as it is now."""
        return self._now() - self._exact

    def _now(self) -> float:
        return float(self._loss(self._draft.model(*self._inputs), self._targets))


MEASURES: dict[str, Callable[[ModelQuantizer], Callable[[], float]]] = {
    "divergence": OutputDivergence,
    "loss": LossIncrease,
}


def _finite(measured: float, layer: str, bits: int) -> float:
    if not math.isfinite(measured):
        raise CompressionError(f"layer '{layer}' at {bits} bits: the sensitivity is {measured}, not a finite loss")
    return measured
