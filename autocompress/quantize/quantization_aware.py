"""Quantization-aware training: the model learns with its weights and inputs rounded.

Batch norms are folded first, with the statistics that the trained model has (Jacob et al. 2018 fold the batch's own,
Krishnamoorthi 2018 freezes them after a while): what is trained is what is deployed, and a fit of a few epochs at a
small learning rate needs no normalization. Weights that are zero when training begins were pruned, and stay zero.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from autocompress.core.knobs import Choice, FloatRange, IntRange, knob
from autocompress.core.method import Context, MethodState
from autocompress.errors import CompressionError
from autocompress.quantize.activation_recorder import MinMaxObserver, Observer, finite_min_max
from autocompress.quantize.fake_quantize import attach_input_quantizer
from autocompress.quantize.layers import add_layer_to_errors, coding_for_layer
from autocompress.quantize.model_quantizer import ModelQuantizer
from autocompress.quantize.observers import OBSERVER_CHOICE
from autocompress.quantize.quantizers import WEIGHT_QUANTIZERS, Grid
from autocompress.quantize.settings import BITS, BitSettings, InputSettings
from autocompress.quantize.weight_coding import (
    GRANULARITIES,
    QuantizedWeight,
    WeightCoding,
    join_blocks,
    reshape_to_scale,
    search_clipping,
    split_blocks,
)

WEIGHTS = WEIGHT_QUANTIZERS["symmetric"]


@dataclass(frozen=True)
class QuantizationAwareSettings(InputSettings, BitSettings):
    """What methods that train with rounding share; 32 bits leave weights or activations as they are."""

    weight_bits: int = knob(4, BITS, "bits of a weight")
    activation_bits: int = knob(4, BITS, "bits of a layer's input")
    epochs: int = knob(5, IntRange(1, 1000), "passes over the training split with rounding")
    learning_rate: float = knob(5e-3, FloatRange(1e-6, 1.0, log=True), "peak learning rate of that training")
    granularity: str = knob("per_channel", Choice(GRANULARITIES), "what shares one weight scale")
    group_size: int = knob(32, IntRange(2, 1024, log=True), "weights of a channel in a group, for 'per_group'")
    observer: str = knob("mse", OBSERVER_CHOICE, "how an input's first range is found")

    @property
    def is_identity(self) -> bool:
        """Whether both weights and activations keep 32 bits."""
        return self.weight_bits == 32 and self.activation_bits == 32

    def effort(self) -> float:
        """Return the epochs of the training with rounding."""
        return 0.0 if self.is_identity else float(self.epochs)

    def coding(self) -> WeightCoding:
        """Return how a weight becomes codes; its first range leaves the smallest squared error."""
        return WeightCoding(self.weight_bits, "linear", "symmetric", self.granularity, self.group_size, "mse")


class WeightQuantizer(nn.Module, ABC):
    """Rounds the rows of a weight, each with a scale of its own, ``[B, n] -> [B, n]``."""

    @abstractmethod
    def scale(self, blocks: Tensor) -> Tensor:
        """Return the scale of each row, ``[B, n] -> [B, 1]``."""


class InputQuantizer(nn.Module, ABC):
    """Rounds a layer's input, ``[...] -> [...]``, and finds its grid while it is trained."""

    @property
    @abstractmethod
    def grid(self) -> Grid:
        """The grid that inputs are rounded to."""


@dataclass
class RangeRecorder:
    """An observer that remembers the smallest and the largest value beside the range it settles on."""

    chosen: Observer
    ends: MinMaxObserver = field(default_factory=MinMaxObserver)

    def observe(self, values: Tensor) -> None:
        """Take note of one tensor of any shape."""
        self.chosen.observe(values)
        self.ends.observe(values)

    def range(self) -> tuple[float, float]:
        """Return the lowest and the highest value to represent."""
        return self.chosen.range()


class QuantizerFactory(Protocol):
    """What a method rounds with while it trains."""

    def weight(self, blocks: Tensor, share: Tensor, coding: WeightCoding) -> WeightQuantizer:
        """Return what rounds a weight; ``share`` of each row's range is what its first scale covers, ``[B]``."""
        ...

    def input(self, seen: RangeRecorder, settings: QuantizationAwareSettings) -> InputQuantizer:
        """Return what rounds the input of a layer, on which ``seen`` looked."""
        ...


class WeightParametrization(nn.Module):
    """The parametrization of a weight that is trained with rounding.

    Args:
        weight: As it is before training; where it is zero it stays zero.
        coding: What shares a scale.
        rounding: Builds what rounds.
    """

    kept: Tensor | None

    def __init__(self, weight: Tensor, coding: WeightCoding, rounding: QuantizerFactory) -> None:
        super().__init__()
        self.coding = coding
        kept = weight != 0
        self.register_buffer("kept", None if bool(kept.all()) else kept.to(weight.dtype))
        blocks = split_blocks(weight, coding)
        low, high = torch.aminmax(blocks, dim=1)
        self.rounding = rounding.weight(blocks, search_clipping(blocks, low, high, coding), coding)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weight, ``[C, ...] -> [C, ...]``."""
        return join_blocks(self.rounding(self._blocks(weight)), weight.shape, self.coding)

    def coded(self, weight: Tensor) -> QuantizedWeight:
        """Return the codes of what :meth:`forward` returns."""
        blocks = self._blocks(weight)
        scale = self.rounding.scale(blocks).detach()
        low, high = code_range(self.coding.bits)
        codes = blocks.div(scale).round_().clamp_(low, high)
        shared = reshape_to_scale(scale.flatten(), weight, self.coding)
        grid = Grid(shared, torch.zeros_like(shared, dtype=torch.int32), low, high, self.coding.group)
        return QuantizedWeight(join_blocks(codes, weight.shape, self.coding).to(grid.dtype), grid)

    def _blocks(self, weight: Tensor) -> Tensor:
        return split_blocks(weight if self.kept is None else weight * self.kept, self.coding)


def code_range(bits: int) -> tuple[int, int]:
    """Return the smallest and the largest code of a weight.

    Example:
        >>> code_range(3)
        (-4, 3)
    """
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def train_with_rounding(
    model: nn.Module, settings: QuantizationAwareSettings, context: Context, rounding: QuantizerFactory
) -> tuple[nn.Module, MethodState]:
    """Train a folded copy of ``model`` with its weights and inputs rounded, and return it in its deployed form.

    Codes and grids are the ones that the last step of training left, so weights and inputs are rounded as they were.

    Raises:
        CompressionError: The context cannot train, calibration batches are missing, a tensor is not finite, or no
            layer can be quantized.
    """
    if settings.is_identity:
        with torch.no_grad():
            draft = ModelQuantizer(model, context)
            draft.observe(None)
            return draft.finalize()
    if context.tune is None:
        raise CompressionError(f"{settings.label} trains the model, and the context holds no 'tune' to do so")
    seen: dict[str, RangeRecorder] = {}

    def watch(name: str) -> Observer:
        seen[name] = RangeRecorder(settings.watch(settings.activation_bits))
        return seen[name]

    with torch.no_grad():
        draft = ModelQuantizer(model, context)
        draft.observe(watch if settings.activation_bits < 32 else None)
        inputs = {name: rounding.input(found, settings) for name, found in seen.items()}
        for name, layer in draft.layers.items():
            if name in inputs:
                attach_input_quantizer(layer, inputs[name])
            if settings.weight_bits < 32:
                rounded = WeightParametrization(layer.weight, coding_for_layer(layer, settings.coding()), rounding)
                parametrize.register_parametrization(layer, "weight", rounded)
    # The fit has generators of its own; what else is random, such as dropout, follows the seed too.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        context.tune(draft.model, settings.epochs, settings.learning_rate, None)
    draft.model.eval()
    with torch.no_grad():
        for name, parameter in draft.model.named_parameters():
            with add_layer_to_errors(name, "trained"):
                finite_min_max(parameter)
        for name, layer in draft.layers.items():
            if name in inputs:
                draft.quantize_input(name, inputs[name].grid, settings.activation_bits)
            if settings.weight_bits < 32:
                rounded = layer.parametrizations.weight[0]
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
                draft.quantize_weight(name, rounded.coded(layer.weight), settings.weight_bits)
        return draft.finalize({"trained": {"epochs": settings.epochs, "learning_rate": settings.learning_rate}})
