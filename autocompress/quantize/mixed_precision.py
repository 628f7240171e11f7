"""Mixed precision: each layer gets its own bits, so that a budget is spent where the loss depends on it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autocompress.core.knobs import Choice, FloatRange, knob
from autocompress.core.method import Context, MethodState
from autocompress.core.registry import QUANTIZE
from autocompress.errors import CompressionError
from autocompress.quantize.activation_recorder import Observer
from autocompress.quantize.bias_correction import BiasCorrection
from autocompress.quantize.bit_sensitivity import (
    MEASURES,
    LayerSensitivity,
    enforce_monotone_losses,
    measure_sensitivity,
)
from autocompress.quantize.budget import SOLVERS
from autocompress.quantize.layers import add_layer_to_errors, coding_for_layer, forward_hooks, is_embedding
from autocompress.quantize.model_quantizer import ModelQuantizer, fit_activation_grid
from autocompress.quantize.observers import OBSERVER_CHOICE
from autocompress.quantize.quantizers import Grid
from autocompress.quantize.serialization import restore_quantization
from autocompress.quantize.settings import BITS, InputSettings, WeightSettings
from autocompress.quantize.weight_coding import WEIGHT_OBSERVERS, QuantizedWeight, encode_weight

WIDTHS = (2, 3, 4, 5, 6, 8)

Bits = tuple[int, int]
# What one choice for a layer costs, and the loss that it is expected to add.
Option = tuple[int, float]


@dataclass(frozen=True)
class MixedPrecisionConfig(WeightSettings, InputSettings):
    """How many bits there are to spend.

    Example:
        >>> MixedPrecisionConfig(budget_bits=3.5).solver
        'exact'
    """

    label: ClassVar[str] = "quantize.mixed_precision"

    budget: str = knob(
        "bops", Choice(("bops", "size")), "what is spent: bit operations, or the bits of all weights together"
    )
    budget_bits: float = knob(
        4.0, FloatRange(1.0, 32.0), "the budget is what this many bits in every layer cost; 32 rounds nothing"
    )
    solver: str = knob("exact", Choice(tuple(SOLVERS)), "how the assignment is found")
    sensitivity: str = knob(
        "divergence", Choice(tuple(MEASURES)), "what is measured: the divergence of the outputs, or the loss"
    )
    activation_bits: int = knob(8, BITS, "bits of every layer's input where the budget is a size")
    weight_observer: str = knob("mse", Choice(WEIGHT_OBSERVERS), "how a weight's range is found")
    observer: str = knob("mse", OBSERVER_CHOICE, "how an input's range is found")
    bias_correction: bool = knob(
        True, Choice((False, True)), "move biases so that each layer's mean output stays as it was"
    )


class MixedPrecision:
    """Chooses 2 to 8 bits for each layer's weights and, where bit operations are spent, for its inputs.

    What each layer and width by itself does to the outputs is measured on the calibration batches, and the sum is
    made small within the budget (HAWQ-V3 does so by curvature, Yao et al. 2021, arXiv:2011.10680).
    ``report["sensitivity"]`` is the table, ``report["assignment"]`` what was spent and expected, beside the widest
    uniform assignment within the budget.

    Looking a row of an embedding table up is no bit operation: where these are spent, tables keep 8 bits, and the
    budget ``size`` is what shrinks them.
    """

    name: ClassVar[str] = "mixed_precision"
    config = MixedPrecisionConfig

    def is_identity(self, config: MixedPrecisionConfig) -> bool:
        """Return whether the budget is that of a 32-bit model."""
        return config.budget_bits == 32

    def apply(self, model: nn.Module, config: MixedPrecisionConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a folded, quantized copy in evaluation mode, and what was done.

        Raises:
            CompressionError: The budget is below the smallest assignment, the model cannot be quantized, or the
                context lacks calibration batches, their targets or the loss.
        """
        with torch.no_grad():
            if self.is_identity(config):
                draft = ModelQuantizer(model, context)
                draft.observe(None)
                return draft.finalize()
            draft = ModelQuantizer(model, context, BiasCorrection() if config.bias_correction else None)
            input_widths = WIDTHS if config.budget == "bops" else (config.activation_bits,)
            inputs = _input_grids(draft, config, [bits for bits in input_widths if bits < 32])
            weights = _weight_codes(draft, config)
            costs = _costs(draft, config.budget)
            limit = _Limit(config, sum(costs.values()))
            limit.check(min(WIDTHS), min(input_widths))
            table = measure_sensitivity(draft, MEASURES[config.sensitivity](draft), weights, inputs)
            options = {row.layer: _options(row, costs[row.layer], limit, input_widths) for row in table}
            found = SOLVERS[config.solver]([list(some.values()) for some in options.values()], limit.cost)
            chosen = {name: list(some)[at] for (name, some), at in zip(options.items(), found, strict=True)}
            for name, (weight_bits, input_bits) in chosen.items():
                if input_bits < 32:
                    draft.quantize_input(name, inputs[name][input_bits], input_bits)
                draft.quantize_weight(name, weights[name][weight_bits], weight_bits)
            assignment = _describe(options, chosen, limit, input_widths)
            return draft.finalize({"sensitivity": [row.to_json() for row in table], "assignment": assignment})

    def restore(self, model: nn.Module, config: MixedPrecisionConfig, state: MethodState) -> nn.Module:
        """Fold and quantize a fresh model as ``apply`` did; the other tensors come from the saved ``state_dict``.

        Raises:
            CompressionError: The history does not fit the model.
        """
        return restore_quantization(model, state)


QUANTIZE.add(MixedPrecision.name, MixedPrecision())


@dataclass(frozen=True)
class _Limit:
    """The budget: what ``budget_bits`` everywhere would cost."""

    config: MixedPrecisionConfig
    total: int

    @property
    def squared(self) -> bool:
        return self.config.budget == "bops"

    @property
    def cost(self) -> int:
        bits = self.config.budget_bits
        return math.floor(self.total * bits * (bits if self.squared else 1) + 1e-6)

    def of(self, unit: int, weight_bits: int, input_bits: int) -> int:
        return unit * weight_bits * (input_bits if self.squared else 1)

    def in_bits(self, cost: float) -> float:
        share = cost / self.total
        return math.sqrt(share) if self.squared else share

    def check(self, weight_bits: int, input_bits: int) -> None:
        smallest = self.of(self.total, weight_bits, input_bits)
        if smallest > self.cost:
            raise CompressionError(
                f"budget_bits = {self.config.budget_bits:g} is below the smallest assignment, "
                f"{self.in_bits(smallest):g} bits in every layer; raise it"
            )


class _Several:
    """Shows one input to an observer for each width."""

    def __init__(self, observers: Mapping[int, Observer]) -> None:
        self.observers = observers

    def observe(self, values: Tensor) -> None:
        for observer in self.observers.values():
            observer.observe(values)

    def range(self) -> tuple[float, float]:
        return next(iter(self.observers.values())).range()


def _input_grids(
    draft: ModelQuantizer, config: MixedPrecisionConfig, widths: Sequence[int]
) -> dict[str, dict[int, Grid]]:
    seen: dict[str, _Several] = {}

    def build(name: str) -> Observer:
        seen[name] = _Several({bits: config.watch(bits) for bits in widths})
        return seen[name]

    draft.observe(build if widths else None)
    return {
        name: {
            bits: fit_activation_grid(observer.range(), config.activation_scheme, bits)
            for bits, observer in (seen[name].observers.items() if name in seen else ())
        }
        for name in draft.layers
    }


def _weight_codes(draft: ModelQuantizer, config: MixedPrecisionConfig) -> dict[str, dict[int, QuantizedWeight]]:
    codes: dict[str, dict[int, QuantizedWeight]] = {}
    for name, layer in draft.layers.items():
        with add_layer_to_errors(name, "weight"):
            codes[name] = {
                bits: encode_weight(layer.weight, coding_for_layer(layer, config.coding(bits))) for bits in WIDTHS
            }
    return codes


def _costs(draft: ModelQuantizer, budget: str) -> dict[str, int]:
    """Return what a bit of each layer costs: its multiply-accumulates for one example, or its weights.

    Raises:
        CompressionError: Bit operations are spent, and the model has none.
    """
    if budget == "size":
        return {name: layer.weight.numel() for name, layer in draft.layers.items()}
    macs = dict.fromkeys(draft.layers, 0)

    def watch(name: str, _: object, __: object, output: Tensor) -> None:
        macs[name] += output.numel() * draft.layers[name].weight[0].numel()

    # Looking a row up multiplies nothing.
    with forward_hooks({name: layer for name, layer in draft.layers.items() if not is_embedding(layer)}, watch):
        draft.model(*draft.context.example)
    if not any(macs.values()):
        raise CompressionError("the model looks rows up and multiplies nothing: set budget to 'size'")
    return macs


def _options(row: LayerSensitivity, unit: int, limit: _Limit, input_widths: Sequence[int]) -> dict[Bits, Option]:
    of_weights, of_inputs = enforce_monotone_losses(row.weights), {32: 0.0, **enforce_monotone_losses(row.inputs)}
    return {
        (weight, inputs): (limit.of(unit, weight, inputs), of_weights[weight] + of_inputs[inputs])
        for weight in WIDTHS
        for inputs in (input_widths if row.inputs else (32,))
    }


def _describe(
    options: Mapping[str, Mapping[Bits, Option]], chosen: Mapping[str, Bits], limit: _Limit, input_widths: Sequence[int]
) -> dict[str, Any]:
    def total(assigned: Mapping[str, Bits]) -> tuple[float, float]:
        costs, losses = zip(*(options[name][bits] for name, bits in assigned.items()), strict=True)
        return limit.in_bits(sum(costs)), sum(losses)

    uniform = max(bits for bits in WIDTHS if bits <= limit.config.budget_bits)
    of_inputs = uniform if len(input_widths) > 1 else input_widths[0]
    same = {name: (uniform, of_inputs if (uniform, of_inputs) in options[name] else 32) for name in chosen}
    bits, loss = total(chosen)
    _, uniform_loss = total(same)
    return {
        "budget": limit.config.budget,
        "budget_bits": limit.config.budget_bits,
        "spent_bits": bits,
        "expected_loss": loss,
        "uniform_bits": uniform,
        "uniform_expected_loss": uniform_loss,
        "layers": {name: list(widths) for name, widths in chosen.items()},
    }
