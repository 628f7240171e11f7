"""Bit sensitivity: the loss of a model when only the weights, or only the inputs, of one layer are quantized."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

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
    """Sensitivity of one layer.

    Attributes:
        layer: Name of the layer.
        weights: Measured loss by bits of the weights.
        inputs: Measured loss by bits of the inputs.
    """

    layer: str
    weights: Mapping[int, float]
    inputs: Mapping[int, float]

    def to_json(self) -> dict[str, object]:
        """Return the sensitivity as JSON values, with the bits as strings."""
        weights, inputs = ({str(bits): loss for bits, loss in side.items()} for side in (self.weights, self.inputs))
        return {"name": self.layer, "weight_bits": weights, "activation_bits": inputs}


def measure_sensitivity(
    quantizer: ModelQuantizer,
    measure: Callable[[], float],
    weights: Mapping[str, Mapping[int, QuantizedWeight]],
    inputs: Mapping[str, Mapping[int, Grid]],
) -> list[LayerSensitivity]:
    """Return the sensitivity of each layer; the model computes the same as before afterwards.

    With bias correction, the mean output of the quantized layer is corrected while its loss is measured.

    Args:
        quantizer: Model quantizer, before any layer is quantized.
        measure: Loss of the current model, one of :data:`MEASURES`.
        weights: Quantized weights by layer and bits.
        inputs: Input grids by layer and bits.

    Raises:
        CompressionError: A measured loss is not finite.
    """
    sensitivities = []

    def correct_output(name: str, _: object, __: object, output: Tensor) -> Tensor:
        layer, correction = quantizer.layers[name], quantizer.correction
        shift = None if correction is None else correction.compute_shift(name, layer, output)
        return output if shift is None else output + broadcast_channels(layer, shift, output)

    for name, layer in quantizer.layers.items():
        weight_losses, input_losses, exact = {}, {}, layer.weight
        with forward_hooks({name: layer}, correct_output):
            for bits, quantized in weights[name].items():
                set_weight(layer, quantized)
                weight_losses[bits] = _require_finite(measure(), name, bits)
            # The very parameter from before, so weights that are shared with other layers stay shared.
            layer.weight = exact
            for bits, grid in inputs[name].items():
                attach_input_quantizer(layer, FakeQuantize(grid, bits))
                input_losses[bits] = _require_finite(measure(), name, bits)
        if inputs[name]:
            # The hook of the input quantizer stays on the layer, so its submodule becomes the identity.
            layer.add_module(INPUT, nn.Identity())
        sensitivities.append(LayerSensitivity(name, weight_losses, input_losses))
    return sensitivities


def enforce_monotone_losses(losses: Mapping[int, float]) -> dict[int, float]:
    """Return losses by bits that are not negative and do not decrease with fewer bits.

    A smaller measured loss with fewer bits is noise of the calibration batches.

    Example:
        >>> enforce_monotone_losses({2: 0.5, 4: -0.1, 8: 0.1})
        {8: 0.1, 4: 0.1, 2: 0.5}
    """
    monotone: dict[int, float] = {}
    worst = 0.0
    for bits in sorted(losses, reverse=True):
        worst = monotone[bits] = max(worst, losses[bits])
    return monotone


class OutputDivergence:
    """Kullback-Leibler divergence of the quantized from the floating-point class probabilities, per example.

    It is the expected increase of the cross-entropy if labels followed the predicted probabilities. Unlike the
    increase of the loss itself, it does not depend on the labels of a few calibration batches and is never negative.

    Args:
        quantizer: Model quantizer, before any layer is quantized.
        count: Number of calibration examples that are measured; ``None`` for all.

    Raises:
        CompressionError: There are no calibration batches.
    """

    def __init__(self, quantizer: ModelQuantizer, count: int | None = None) -> None:
        if not quantizer.context.calibration:
            raise CompressionError("sensitivities need calibration batches: the context holds none")
        self._model = quantizer.model
        self._inputs = tuple(inputs[:count] for inputs in quantizer.join_batches())
        self._exact = self._log_probabilities()

    def __call__(self) -> float:
        """Return the divergence of the current model."""
        pairs = zip(self._exact, self._log_probabilities(), strict=True)
        parts = [F.kl_div(current, exact, reduction="sum", log_target=True) for exact, current in pairs]
        return float(torch.stack(parts).sum()) / len(self._inputs[0])

    def _log_probabilities(self) -> list[Tensor]:
        # In double precision, because a divergence is a small difference of larger terms.
        return [F.log_softmax(leaf.double(), -1) for leaf in tree_leaves(self._model(*self._inputs))]


class LossIncrease:
    """Increase of the task's loss on the calibration batches; it can be negative.

    Args:
        quantizer: Model quantizer, before any layer is quantized.
        count: Number of calibration examples that are measured; ``None`` for all.

    Raises:
        CompressionError: The context lacks the loss, calibration batches or their targets.
    """

    def __init__(self, quantizer: ModelQuantizer, count: int | None = None) -> None:
        context = quantizer.context
        if context.loss is None or not context.targets or len(context.targets) != len(context.calibration):
            raise CompressionError("sensitivities need the loss on calibration batches: the context lacks it")
        self._model, self._loss = quantizer.model, context.loss
        # All batches are joined to one, because each sensitivity needs a forward pass over all of them.
        self._inputs = tuple(inputs[:count] for inputs in quantizer.join_batches())
        heads = context.targets[0]
        self._targets = {head: torch.cat([targets[head] for targets in context.targets])[:count] for head in heads}
        self._exact = self._compute_loss()

    def __call__(self) -> float:
        """Return the increase of the loss of the current model."""
        return self._compute_loss() - self._exact

    def _compute_loss(self) -> float:
        return float(self._loss(self._model(*self._inputs), self._targets))


MEASURES: dict[str, Callable[[ModelQuantizer, int | None], Callable[[], float]]] = {
    "divergence": OutputDivergence,
    "loss": LossIncrease,
}


def _require_finite(loss: float, layer: str, bits: int) -> float:
    if not math.isfinite(loss):
        raise CompressionError(f"layer '{layer}' at {bits} bits: the sensitivity is {loss}, not a finite loss")
    return loss
