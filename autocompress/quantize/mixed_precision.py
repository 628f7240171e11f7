"""Mixed precision: bit-widths per layer that minimize the expected loss within a budget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.core.knobs import Choice, FloatRange, IntRange, knob
from autocompress.core.method import Context, MethodState
from autocompress.core.registry import QUANTIZE
from autocompress.errors import CompressionError
from autocompress.quantize.bit_sensitivity import (
    MEASURES,
    LayerSensitivity,
    enforce_monotone_losses,
    measure_sensitivity,
)
from autocompress.quantize.layers import coding_for_layer, forward_hooks, is_weight_only
from autocompress.quantize.lsq import LSQConfig, LSQRounding
from autocompress.quantize.model_quantizer import BiasCorrection, ModelQuantizer, fit_activation_grid
from autocompress.quantize.observers import OBSERVER_CHOICE, Observer
from autocompress.quantize.post_training import BITS, InputSettings, WeightSettings, encode_layer
from autocompress.quantize.quantization_aware import train_with_rounding
from autocompress.quantize.quantizers import Grid
from autocompress.quantize.serialization import restore_quantization
from autocompress.quantize.weight_coding import WEIGHT_OBSERVERS, QuantizedWeight

# The options of a row: cost and loss of each.
Row = Sequence[tuple[int, float]]


def solve_exactly(rows: Sequence[Row], budget: int) -> list[int]:
    """Return the index of the option of each row that minimizes the sum of losses within the budget.

    Dynamic programming over the states that are non-dominated in cost and loss (Nemhauser and Ullmann 1969). Costs
    are integers, so sums are exact; of equal losses the cheaper one is taken. The number of states is at most the
    budget, and far smaller where rows share costs, as the layers of a network do.

    Args:
        rows: Cost and loss of every option; costs are not negative.
        budget: Largest sum of costs.

    Raises:
        CompressionError: The cheapest options exceed the budget.

    Example:
        >>> solve_exactly([[(1, 5.0), (2, 1.0)], [(1, 1.0), (4, 0.0)]], 4)
        [1, 0]
    """
    remaining = _cheapest_remaining_costs(rows)
    _require_budget(remaining[0], budget)
    costs, losses = np.zeros(1, np.int64), np.zeros(1)
    back_pointers: list[tuple[np.ndarray, np.ndarray]] = []
    for row, after in zip(rows, remaining[1:], strict=True):
        cost = (costs[:, None] + np.array([cost for cost, _ in row], np.int64)).ravel()
        loss = (losses[:, None] + np.array([loss for _, loss in row])).ravel()
        order = np.lexsort((loss, cost))
        # A state is dropped where even the cheapest options of the later rows would exceed the budget.
        order = order[cost[order] <= budget - after]
        sums = loss[order]
        # In order of cost, a state is non-dominated if its loss is below that of every cheaper state.
        best_before = np.concatenate([[np.inf], np.minimum.accumulate(sums)[:-1]])
        states = order[sums < best_before]
        costs, losses = cost[states], loss[states]
        back_pointers.append((states // len(row), states % len(row)))
    # The last state has the largest cost and so the smallest loss.
    state, chosen = len(costs) - 1, []
    for before, choice in reversed(back_pointers):
        chosen.append(int(choice[state]))
        state = int(before[state])
    return chosen[::-1]


def solve_greedily(rows: Sequence[Row], budget: int) -> list[int]:
    """Return options within the budget, by greedy steps from the costliest options downwards.

    Each step takes the option with the smallest increase of the loss per unit of saved cost.

    Raises:
        CompressionError: The cheapest options exceed the budget.

    Example:
        >>> solve_greedily([[(1, 5.0), (2, 1.0)], [(1, 1.0), (4, 0.0)]], 4)
        [1, 0]
    """
    _require_budget(_cheapest_remaining_costs(rows)[0], budget)
    # Of equal costs the smaller loss, because no later step changes the option of a row whose costs are equal.
    chosen = [-max((cost, -loss, -index) for index, (cost, loss) in enumerate(row))[2] for row in rows]
    while sum(row[at][0] for row, at in zip(rows, chosen, strict=True)) > budget:
        _, index, at = min(
            ((row[at][1] - row[now][1]) / (row[now][0] - row[at][0]), index, at)
            for index, (row, now) in enumerate(zip(rows, chosen, strict=True))
            for at in range(len(row))
            if row[at][0] < row[now][0]
        )
        chosen[index] = at
    return chosen


def _cheapest_remaining_costs(rows: Sequence[Row]) -> list[int]:
    """Return the sum of the smallest costs of row ``i`` and all later rows, for each ``i``; the last entry is 0."""
    totals = [0]
    for row in reversed(rows):
        totals.append(totals[-1] + min(cost for cost, _ in row))
    return totals[::-1]


def _require_budget(required: int, budget: int) -> None:
    if required > budget:
        raise CompressionError(f"the cheapest choices cost {required:,}, more than the budget of {budget:,}")


SOLVERS = {"exact": solve_exactly, "greedy": solve_greedily}


BIT_WIDTHS = (2, 3, 4, 5, 6, 8)

# Bits of the weights and of the inputs of a layer.
Bits = tuple[int, int]
# Cost of one option of a layer, and the loss that it is expected to add.
Option = tuple[int, float]


@dataclass(frozen=True)
class MixedPrecisionConfig(WeightSettings, InputSettings):
    """Settings of mixed precision: the budget and the search for an assignment.

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
    examples: int = knob(
        512, IntRange(1, 100_000, log=True), "calibration examples at most that sensitivities are measured on"
    )
    activation_bits: int = knob(8, BITS, "bits of every layer's input where the budget is a size")
    weight_observer: str = knob("mse", Choice(WEIGHT_OBSERVERS), "how a weight's range is found")
    observer: str = knob("mse", OBSERVER_CHOICE, "how an input's range is found")
    bias_correction: bool = knob(
        True, Choice((False, True)), "move biases so that each layer's mean output stays as it was"
    )
    epochs: int = knob(
        0, IntRange(0, 1000), "passes over the training split with these bits and learned step sizes; 0 does not train"
    )
    learning_rate: float = knob(5e-3, FloatRange(1e-6, 1.0, log=True), "peak learning rate of that training")

    def estimate_epochs(self) -> float:
        """Return the number of epochs of quantization-aware training."""
        return 0.0 if self.budget_bits == 32 else float(self.epochs)

    def select_measured(self) -> "MixedPrecisionConfig":
        """Return these settings with the defaults of those that sensitivities do not depend on."""
        default = MixedPrecisionConfig()
        return replace(
            self,
            budget_bits=default.budget_bits,
            solver=default.solver,
            epochs=default.epochs,
            learning_rate=default.learning_rate,
        )

    def training_settings(self) -> LSQConfig:
        """Return the settings of the training with the chosen bits."""
        return LSQConfig(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            granularity=self.granularity,
            group_size=self.group_size,
            observer=self.observer,
            percentile=self.percentile,
            activation_scheme=self.activation_scheme,
        )


class MixedPrecision:
    """Chooses 2 to 8 bits for the weights of each layer and, with the budget ``bops``, for its inputs.

    The effect of each layer and bit-width on the outputs is measured separately on the calibration batches; the
    assignment minimizes the sum within the budget (HAWQ-V3, Yao et al. 2021, arXiv:2011.10680, uses the curvature).
    ``report["sensitivity"]`` contains the measurements, ``report["assignment"]`` the cost and the expected loss of
    the assignment and of the widest uniform assignment within the budget.

    With ``epochs``, the model is then trained with these bits, as ``lsq`` trains it with the same bits in all layers;
    weights are rounded symmetrically, and biases are trained instead of corrected.

    A lookup in an embedding has no bit operations. With the budget ``bops`` embeddings keep 8 bits; the budget
    ``size`` reduces them.
    """

    name: ClassVar[str] = "mixed_precision"
    config = MixedPrecisionConfig

    def is_identity(self, config: MixedPrecisionConfig) -> bool:
        """Return whether the budget is that of the model in 32 bits."""
        return config.budget_bits == 32

    def apply(self, model: nn.Module, config: MixedPrecisionConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a folded, quantized copy in evaluation mode, and its state.

        Raises:
            CompressionError: The budget is below the smallest assignment, the model cannot be quantized, or the
                context lacks calibration batches, their targets or the loss, or cannot train where ``epochs`` is set.
        """
        if config.epochs and context.fine_tune is None:
            raise CompressionError(
                f"{config.label} with epochs trains the model, and the context has no 'fine_tune' function"
            )
        with torch.no_grad():
            if self.is_identity(config):
                quantizer = ModelQuantizer(model, context)
                quantizer.observe_ranges(None)
                return quantizer.finalize()
            quantizer = ModelQuantizer(model, context, BiasCorrection() if config.bias_correction else None)
            input_widths = BIT_WIDTHS if config.budget == "bops" else (config.activation_bits,)
            inputs = _input_grids(quantizer, config, [bits for bits in input_widths if bits < 32])
            weights = _encode_weights(quantizer, config)
            # Costs are known before any measurement, so an infeasible budget fails at once.
            unit_costs = _unit_costs(quantizer, config.budget)
            budget = _BitBudget(config, sum(unit_costs.values()))
            budget.require_feasible(min(BIT_WIDTHS), min(input_widths))
            sensitivities = context.compute_once(
                config.select_measured(),
                lambda: measure_sensitivity(
                    quantizer, MEASURES[config.sensitivity](quantizer, config.examples), weights, inputs
                ),
            )
            options = {
                row.layer: _layer_options(row, unit_costs[row.layer], budget, input_widths) for row in sensitivities
            }
            solution = SOLVERS[config.solver]([list(layer.values()) for layer in options.values()], budget.max_cost)
            chosen = {name: list(layer)[index] for (name, layer), index in zip(options.items(), solution, strict=True)}
            assignment = _describe_assignment(options, chosen, budget, input_widths)
            report = {"sensitivity": [row.to_json() for row in sensitivities], "assignment": assignment}
            if not config.epochs:
                # Only now is the model quantized: the measurements need it in floating point.
                for name, (weight_bits, input_bits) in chosen.items():
                    if input_bits < 32:
                        quantizer.quantize_input(name, inputs[name][input_bits], input_bits)
                    quantizer.quantize_weight(name, weights[name][weight_bits], weight_bits)
                return quantizer.finalize(report)
        trained, state = train_with_rounding(model, config.training_settings(), context, LSQRounding(), chosen)
        return trained, replace(state, report={**report, **state.report})

    def restore(self, model: nn.Module, config: MixedPrecisionConfig, state: MethodState) -> nn.Module:
        """Fold and quantize a fresh model as ``apply`` did; the other tensors come from the saved ``state_dict``.

        Raises:
            CompressionError: The history does not fit the model.
        """
        return restore_quantization(model, state)


QUANTIZE.add(MixedPrecision.name, MixedPrecision())


@dataclass(frozen=True)
class _BitBudget:
    """The budget: the cost of ``budget_bits`` bits in every layer.

    Attributes:
        config: Settings with the kind of budget and ``budget_bits``.
        total: Sum of the unit costs of all layers, see :func:`_unit_costs`.
    """

    config: MixedPrecisionConfig
    total: int

    @property
    def is_quadratic(self) -> bool:
        """Whether the cost is proportional to the bits of weights times the bits of inputs."""
        return self.config.budget == "bops"

    @property
    def max_cost(self) -> int:
        """The largest sum of costs within the budget."""
        bits = self.config.budget_bits
        # Costs are integers: the summand keeps a product just below an integer from losing one unit.
        return math.floor(self.total * bits * (bits if self.is_quadratic else 1) + 1e-6)

    def compute_cost(self, unit_cost: int, weight_bits: int, input_bits: int) -> int:
        """Return the cost of a layer with these bits."""
        return unit_cost * weight_bits * (input_bits if self.is_quadratic else 1)

    def to_bits(self, cost: float) -> float:
        """Return the uniform bit-width that has this cost."""
        share = cost / self.total
        return math.sqrt(share) if self.is_quadratic else share

    def require_feasible(self, weight_bits: int, input_bits: int) -> None:
        """Raise an error if the smallest bit-widths exceed the budget."""
        smallest = self.compute_cost(self.total, weight_bits, input_bits)
        if smallest > self.max_cost:
            raise CompressionError(
                f"budget_bits = {self.config.budget_bits:g} is below the smallest assignment, "
                f"{self.to_bits(smallest):g} bits in every layer; raise it"
            )


class _MultiWidthObserver:
    """Passes one input to an observer per bit-width, so that one pass gives the ranges of all.

    Args:
        observers: Observers by bits.
    """

    def __init__(self, observers: Mapping[int, Observer]) -> None:
        self.observers = observers

    def observe(self, values: Tensor) -> None:
        """Update all observers with one tensor."""
        for observer in self.observers.values():
            observer.observe(values)

    def range(self) -> tuple[float, float]:
        """Return the range of the first observer; the others are read directly."""
        return next(iter(self.observers.values())).range()


def _input_grids(
    quantizer: ModelQuantizer, config: MixedPrecisionConfig, widths: Sequence[int]
) -> dict[str, dict[int, Grid]]:
    observers: dict[str, _MultiWidthObserver] = {}

    def build(name: str) -> Observer:
        observers[name] = _MultiWidthObserver({bits: config.build_observer(bits) for bits in widths})
        return observers[name]

    quantizer.observe_ranges(build if widths else None)
    return {
        name: {
            bits: fit_activation_grid(observer.range(), config.activation_scheme, bits)
            for bits, observer in (observers[name].observers.items() if name in observers else ())
        }
        for name in quantizer.layers
    }


def _encode_weights(quantizer: ModelQuantizer, config: MixedPrecisionConfig) -> dict[str, dict[int, QuantizedWeight]]:
    context = quantizer.context
    # With a budget of bit operations, inputs always have fewer than 32 bits.
    is_reduced = context.reduce_range and (config.budget == "bops" or config.activation_bits < 32)
    return {
        name: {
            bits: encode_layer(name, layer, coding_for_layer(layer, config.weight_coding(bits), is_reduced), context)
            for bits in BIT_WIDTHS
        }
        for name, layer in quantizer.layers.items()
    }


def _unit_costs(quantizer: ModelQuantizer, budget: str) -> dict[str, int]:
    """Return the cost of one bit of each layer: its multiply-accumulates for one example, or its number of weights.

    Raises:
        CompressionError: The budget is ``bops`` and the model has no bit operations.
    """
    if budget == "size":
        return {name: layer.weight.numel() for name, layer in quantizer.layers.items()}
    macs = dict.fromkeys(quantizer.layers, 0)

    def count_macs(name: str, _: object, __: object, output: Tensor) -> None:
        macs[name] += output.numel() * quantizer.layers[name].weight[0].numel()

    # A lookup in an embedding multiplies nothing, and held weights multiply in floating point.
    multiplying = {name: layer for name, layer in quantizer.layers.items() if not is_weight_only(layer)}
    with forward_hooks(multiplying, count_macs):
        quantizer.model(*quantizer.context.example)
    if not any(macs.values()):
        raise CompressionError("the model looks rows up and multiplies nothing: set budget to 'size'")
    return macs


def _layer_options(
    row: LayerSensitivity, unit_cost: int, budget: _BitBudget, input_widths: Sequence[int]
) -> dict[Bits, Option]:
    weight_losses = enforce_monotone_losses(row.weights)
    input_losses = {32: 0.0, **enforce_monotone_losses(row.inputs)}
    return {
        (weight_bits, input_bits): (
            budget.compute_cost(unit_cost, weight_bits, input_bits),
            # Effects of weights and inputs are assumed to add up, as those of layers are.
            weight_losses[weight_bits] + input_losses[input_bits],
        )
        for weight_bits in BIT_WIDTHS
        for input_bits in (input_widths if row.inputs else (32,))
    }


def _describe_assignment(
    options: Mapping[str, Mapping[Bits, Option]],
    chosen: Mapping[str, Bits],
    budget: _BitBudget,
    input_widths: Sequence[int],
) -> dict[str, object]:
    def sum_options(assignment: Mapping[str, Bits]) -> tuple[float, float]:
        costs, losses = zip(*(options[name][bits] for name, bits in assignment.items()), strict=True)
        return budget.to_bits(sum(costs)), sum(losses)

    # Bit-widths between two candidates are compared with the smaller one, which stays within the budget.
    uniform_bits = max(bits for bits in BIT_WIDTHS if bits <= budget.config.budget_bits)
    uniform_input_bits = uniform_bits if len(input_widths) > 1 else input_widths[0]
    uniform_pair = (uniform_bits, uniform_input_bits)
    uniform = {name: uniform_pair if uniform_pair in options[name] else (uniform_bits, 32) for name in chosen}
    bits, loss = sum_options(chosen)
    _, uniform_loss = sum_options(uniform)
    return {
        "budget": budget.config.budget,
        "budget_bits": budget.config.budget_bits,
        "spent_bits": bits,
        "expected_loss": loss,
        "uniform_bits": uniform_bits,
        "uniform_expected_loss": uniform_loss,
        "layers": {name: list(widths) for name, widths in chosen.items()},
    }
