"""Adaptive rounding (AdaRound): the rounding direction of each weight is learned layer by layer, without labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from autocompress.core.knobs import Choice, IntRange, knob
from autocompress.core.method import Context, MethodState
from autocompress.core.registry import QUANTIZE
from autocompress.errors import CompressionError
from autocompress.quantize.layers import (
    add_layer_to_errors,
    coding_for_layer,
    flatten_positions,
    forward_hooks,
    is_weight_only,
)
from autocompress.quantize.model_quantizer import ModelQuantizer, fit_activation_grid
from autocompress.quantize.observers import OBSERVER_CHOICE
from autocompress.quantize.post_training import BITS, BitSettings, InputSettings, WeightSettings
from autocompress.quantize.quantizers import Grid, broadcast_parameter
from autocompress.quantize.reconstruction import Moments, WeightSteps, learn_rounding
from autocompress.quantize.serialization import restore_quantization
from autocompress.quantize.weight_coding import WEIGHT_OBSERVERS, QuantizedWeight, WeightCoding, encode_weight, fit_grid


@dataclass(frozen=True)
class AdaRoundConfig(WeightSettings, InputSettings, BitSettings):
    """Settings of adaptive rounding.

    Example:
        >>> AdaRoundConfig(weight_bits=3).weight_observer
        'mse'
    """

    label: ClassVar[str] = "quantize.adaround"

    weight_bits: int = knob(4, BITS, "bits of a weight")
    weight_observer: str = knob("mse", Choice(WEIGHT_OBSERVERS), "how a weight's range is found")
    observer: str = knob("mse", OBSERVER_CHOICE, "how an input's range is found")
    iterations: int = knob(200, IntRange(1, 100_000, log=True), "steps that each layer's rounding is learned for")

    def estimate_epochs(self) -> float:
        """Return the compute cost in epochs; 200 steps per layer count as one epoch."""
        return self.iterations / 200


class AdaRound:
    """Rounds each weight up or down to preserve the outputs of its layer (Nagel et al. 2020, arXiv:2004.10568).

    Layers are optimized in the order of their calls. Their inputs come from the quantized layers before, their targets
    are the outputs in floating point, before the activation function (the paper uses those after it).
    ``report["adaround"]`` contains for each layer the output error with all weights rounded to the nearest, the error
    after learning, which is never larger, and the share of weights with another rounding direction. A layer that is
    called more than once learns from its first call. Embeddings are rounded to the nearest, which is optimal for them
    because their outputs are their rows.
    """

    name: ClassVar[str] = "adaround"
    config = AdaRoundConfig

    def is_identity(self, config: AdaRoundConfig) -> bool:
        """Return whether both weights and activations keep 32 bits."""
        return config.weight_bits == 32 and config.activation_bits == 32

    def apply(self, model: nn.Module, config: AdaRoundConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a folded, quantized copy in evaluation mode, and its state.

        Raises:
            CompressionError: The model cannot be quantized, or calibration batches are missing.
        """
        with torch.no_grad():
            quantizer = ModelQuantizer(model, context)
            has_input_bits = config.activation_bits < 32
            ranges = quantizer.observe_ranges(
                (lambda _: config.build_observer(config.activation_bits)) if has_input_bits else None
            )
            coding = config.weight_coding(config.weight_bits)
            # The targets are recorded before any input is quantized.
            targets = _record_float_outputs(quantizer) if config.weight_bits < 32 else {}
            for name, ends in ranges.items():
                grid = fit_activation_grid(ends, config.activation_scheme, config.activation_bits)
                quantizer.quantize_input(name, grid, config.activation_bits)
            if config.weight_bits < 32:
                _quantize_weight_only(quantizer, coding)
            report = _learn_layers(quantizer, targets, coding, config.iterations) if targets else {}
            return quantizer.finalize({"adaround": report})

    def restore(self, model: nn.Module, config: AdaRoundConfig, state: MethodState) -> nn.Module:
        """Fold and quantize a fresh model as ``apply`` did; the other tensors come from the saved ``state_dict``.

        Raises:
            CompressionError: The history does not fit the model.
        """
        return restore_quantization(model, state)


QUANTIZE.add(AdaRound.name, AdaRound())


def _record_float_outputs(quantizer: ModelQuantizer) -> dict[str, Tensor]:
    """Return the floating-point outputs of each layer at its first call, one row per position, ``[P, C]``."""
    if not quantizer.context.calibration:
        raise CompressionError("adaptive rounding needs calibration batches: the context holds none")
    outputs: dict[str, Tensor] = {}
    layers = {name: layer for name, layer in quantizer.layers.items() if not is_weight_only(layer)}

    def record_output(name: str, _: object, __: object, output: Tensor) -> None:
        if name not in outputs:
            outputs[name] = flatten_positions(layers[name], output).clone()

    with forward_hooks(layers, record_output):
        quantizer.model(*quantizer.join_batches())
    return outputs


def _quantize_weight_only(quantizer: ModelQuantizer, coding: WeightCoding) -> None:
    """Quantize embeddings and held weights first, so that later layers learn on the inputs that follow from them."""
    for name, layer in quantizer.layers.items():
        if is_weight_only(layer):
            with add_layer_to_errors(name, "weight"):
                quantizer.quantize_weight(
                    name, encode_weight(layer.weight, coding_for_layer(layer, coding)), coding.bits
                )


def _learn_layers(
    quantizer: ModelQuantizer, targets: dict[str, Tensor], coding: WeightCoding, iterations: int
) -> dict[str, dict[str, float]]:
    """Learn the rounding of each layer during one forward pass, and return the report by layer."""
    report: dict[str, dict[str, float]] = {}

    def learn_layer(name: str, layer: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
        outputs = targets.pop(name, None)
        if outputs is None:
            return
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
        with add_layer_to_errors(name, "output"):
            moments = Moments.from_batch(layer, args[0] if args else kwargs["input"], outputs)
        with add_layer_to_errors(name, "weight"):
            grid = fit_grid(layer.weight, coding_for_layer(layer, coding, quantizer.is_reduced(name)))
        rounded = learn_rounding(_to_steps(layer.weight.detach(), grid), moments, iterations)
        zero_point = broadcast_parameter(grid.zero_point, layer.weight, grid.group)
        codes = (rounded.steps.view_as(layer.weight) + zero_point).to(grid.dtype)
        # The hook runs before the call, so the call already computes with the quantized weight.
        quantizer.quantize_weight(name, QuantizedWeight(codes, grid), coding.bits)
        report[name] = {"nearest": rounded.nearest, "learned": rounded.error, "flipped": rounded.flipped}

    handles = [
        layer.register_forward_pre_hook(partial(learn_layer, name), with_kwargs=True)
        for name, layer in quantizer.layers.items()
    ]
    try:
        quantizer.model(*quantizer.join_batches())
    finally:
        for handle in handles:
            handle.remove()
    for name, layer in quantizer.layers.items():
        if name not in report and not is_weight_only(layer):
            code = encode_weight(layer.weight, coding_for_layer(layer, coding, quantizer.is_reduced(name)))
            quantizer.quantize_weight(name, code, coding.bits)
    return report


def _to_steps(weight: Tensor, grid: Grid) -> WeightSteps:
    scale, zero_point = (
        broadcast_parameter(t, weight, grid.group).expand_as(weight).flatten(1) for t in (grid.scale, grid.zero_point)
    )
    return WeightSteps(weight.flatten(1), scale, grid.low - zero_point, grid.high - zero_point)
