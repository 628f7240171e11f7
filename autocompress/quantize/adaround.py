"""Adaptive rounding: whether a weight is rounded up or down is learned, one layer after the other, without labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

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
    is_embedding,
)
from autocompress.quantize.model_quantizer import ModelQuantizer, fit_activation_grid
from autocompress.quantize.observers import OBSERVER_CHOICE
from autocompress.quantize.quantizers import Grid, broadcast_parameter
from autocompress.quantize.reconstruction import Moments, WeightSteps, learn_rounding
from autocompress.quantize.serialization import restore_quantization
from autocompress.quantize.settings import BITS, BitSettings, InputSettings, WeightSettings
from autocompress.quantize.weight_coding import WEIGHT_OBSERVERS, QuantizedWeight, WeightCoding, encode_weight, fit_grid


@dataclass(frozen=True)
class AdaRoundConfig(WeightSettings, InputSettings, BitSettings):
    """How long rounding is learned.

    Example:
        >>> AdaRoundConfig(weight_bits=3).weight_observer
        'mse'
    """

    label: ClassVar[str] = "quantize.adaround"

    weight_bits: int = knob(4, BITS, "bits of a weight")
    weight_observer: str = knob("mse", Choice(WEIGHT_OBSERVERS), "how a weight's range is found")
    observer: str = knob("mse", OBSERVER_CHOICE, "how an input's range is found")
    iterations: int = knob(200, IntRange(1, 100_000, log=True), "steps that each layer's rounding is learned for")

    def effort(self) -> float:
        """Return what the learning takes, where 200 steps a layer count as an epoch."""
        return self.iterations / 200


class AdaRound:
    """Rounds each weight up or down so that its layer's outputs stay (Nagel et al. 2020, arXiv:2004.10568).

    Layers are learned in the order of their calls, on the inputs that the rounded layers before them give, against
    the outputs in floating point (before what follows the layer, unlike the paper's). ``report["adaround"]`` holds
    for each layer the output error with all weights rounded to the nearest, the error as learned, which is never
    larger, and the share of weights that changed sides. A layer called more than once learns from its first call.
    Embedding tables are rounded to the nearest first: a row's own outputs, the row itself, are nearest then.
    """

    name: ClassVar[str] = "adaround"
    config = AdaRoundConfig

    def is_identity(self, config: AdaRoundConfig) -> bool:
        """Return whether both weights and activations keep 32 bits."""
        return config.weight_bits == 32 and config.activation_bits == 32

    def apply(self, model: nn.Module, config: AdaRoundConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a folded, quantized copy in evaluation mode, and what was done.

        Raises:
            CompressionError: The model cannot be quantized, or calibration batches are missing.
        """
        with torch.no_grad():
            draft = ModelQuantizer(model, context)
            rounds_inputs = config.activation_bits < 32
            ranges = draft.observe((lambda _: config.watch(config.activation_bits)) if rounds_inputs else None)
            coding = config.coding(config.weight_bits)
            wanted = _outputs(draft) if config.weight_bits < 32 else {}
            for name, ends in ranges.items():
                grid = fit_activation_grid(ends, config.activation_scheme, config.activation_bits)
                draft.quantize_input(name, grid, config.activation_bits)
            if config.weight_bits < 32:
                _round_tables(draft, coding)
            learned = _learn(draft, wanted, coding, config.iterations) if wanted else {}
            return draft.finalize({"adaround": learned})

    def restore(self, model: nn.Module, config: AdaRoundConfig, state: MethodState) -> nn.Module:
        """Fold and quantize a fresh model as ``apply`` did; the other tensors come from the saved ``state_dict``.

        Raises:
            CompressionError: The history does not fit the model.
        """
        return restore_quantization(model, state)


QUANTIZE.add(AdaRound.name, AdaRound())


def _outputs(draft: ModelQuantizer) -> dict[str, Tensor]:
    """Return what each layer gives at its first call, in floating point, one row a position."""
    if not draft.context.calibration:
        raise CompressionError("adaptive rounding needs calibration batches: the context holds none")
    outputs: dict[str, Tensor] = {}
    layers = {name: layer for name, layer in draft.layers.items() if not is_embedding(layer)}

    def watch(name: str, _: object, __: object, output: Tensor) -> None:
        if name not in outputs:
            outputs[name] = flatten_positions(layers[name], output).clone()

    with forward_hooks(layers, watch):
        draft.model(*draft.join_batches())
    return outputs


def _round_tables(draft: ModelQuantizer, coding: WeightCoding) -> None:
    """Round the embedding tables of the draft, so that what is learned is learned on their rounded rows."""
    for name, layer in draft.layers.items():
        if is_embedding(layer):
            with add_layer_to_errors(name, "weight"):
                draft.quantize_weight(name, encode_weight(layer.weight, coding_for_layer(layer, coding)), coding.bits)


def _learn(draft: ModelQuantizer, wanted: dict[str, Tensor], coding: WeightCoding, iterations: int) -> dict[str, Any]:
    """Round the weights of the draft, each as its layer is called, and return the report."""
    report: dict[str, Any] = {}

    def before(name: str, layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        outputs = wanted.pop(name, None)
        if outputs is None:
            return
        with add_layer_to_errors(name, "output"):
            moments = Moments.of(layer, args[0] if args else kwargs["input"], outputs)
        with add_layer_to_errors(name, "weight"):
            grid = fit_grid(layer.weight, coding)
        rounded = learn_rounding(_steps(layer.weight.detach(), grid), moments, iterations)
        zero_point = broadcast_parameter(grid.zero_point, layer.weight, grid.group)
        codes = (rounded.steps.view_as(layer.weight) + zero_point).to(grid.dtype)
        # The call that follows reads the rounded weight.
        draft.quantize_weight(name, QuantizedWeight(codes, grid), coding.bits)
        report[name] = {"nearest": rounded.nearest, "learned": rounded.error, "flipped": rounded.flipped}

    handles = [
        layer.register_forward_pre_hook(partial(before, name), with_kwargs=True) for name, layer in draft.layers.items()
    ]
    try:
        draft.model(*draft.join_batches())
    finally:
        for handle in handles:
            handle.remove()
    for name, layer in draft.layers.items():
        if name not in report and not is_embedding(layer):
            draft.quantize_weight(name, encode_weight(layer.weight, coding), coding.bits)
    return report


def _steps(weight: Tensor, grid: Grid) -> WeightSteps:
    scale, zero_point = (
        broadcast_parameter(t, weight, grid.group).expand_as(weight).flatten(1) for t in (grid.scale, grid.zero_point)
    )
    return WeightSteps(weight.flatten(1), scale, grid.low - zero_point, grid.high - zero_point)
