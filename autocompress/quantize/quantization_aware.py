"""Quantization-aware training: the model is trained with rounded weights and inputs.

Batch normalizations are folded first, with the statistics of the trained model (Jacob et al. 2018 fold those of the
batch, Krishnamoorthi 2018 freezes them after some steps). So the deployed model is the one that is trained, and a few
epochs with a small learning rate need no normalization. Weights that are zero before training were pruned and stay
zero.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from autocompress.core.knobs import Choice, FloatRange, IntRange, knob
from autocompress.core.method import Context, MethodState
from autocompress.errors import CompressionError
from autocompress.quantize.fake_quantize import attach_input_quantizer
from autocompress.quantize.layers import add_layer_to_errors, coding_for_layer
from autocompress.quantize.model_quantizer import ModelQuantizer
from autocompress.quantize.observers import OBSERVER_CHOICE, MinMaxObserver, Observer, finite_min_max
from autocompress.quantize.post_training import BITS, BitSettings, InputSettings
from autocompress.quantize.quantizers import WEIGHT_QUANTIZERS, Grid
from autocompress.quantize.serialization import restore_quantization
from autocompress.quantize.weight_coding import (
    GRANULARITIES,
    QuantizedWeight,
    WeightCoding,
    join_blocks,
    reshape_to_scale,
    search_clipping,
    split_blocks,
)

SYMMETRIC = WEIGHT_QUANTIZERS["symmetric"]


@dataclass(frozen=True)
class QuantizationAwareSettings(InputSettings, BitSettings):
    """Settings of quantization-aware training; 32 bits leave weights or activations in floating point."""

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

    def estimate_epochs(self) -> float:
        """Return the number of epochs of quantization-aware training."""
        return 0.0 if self.is_identity else float(self.epochs)

    def weight_coding(self) -> WeightCoding:
        """Return the coding of a weight, whose first range minimizes the squared error."""
        return WeightCoding(self.weight_bits, "linear", "symmetric", self.granularity, self.group_size, "mse")


class TrainableWeightQuantizer(nn.Module, ABC):
    """Module that rounds the rows of a weight, each with its own scale, ``[B, n] -> [B, n]``."""

    @abstractmethod
    def compute_scale(self, blocks: Tensor) -> Tensor:
        """Return the scale of each row, ``[B, n] -> [B, 1]``."""


class TrainableInputQuantizer(nn.Module, ABC):
    """Module that rounds the input of a layer, ``[...] -> [...]``, to a grid that training changes."""

    @property
    @abstractmethod
    def grid(self) -> Grid:
        """The grid that inputs are rounded to."""


@dataclass
class RangeRecorder:
    """An observer that records the range of another observer and the extreme values.

    Attributes:
        observer: Observer that computes the range.
        min_max: Observer of the smallest and the largest value.
    """

    observer: Observer
    min_max: MinMaxObserver = field(default_factory=MinMaxObserver)

    def observe(self, values: Tensor) -> None:
        """Update both observers with one tensor of any shape."""
        self.observer.observe(values)
        self.min_max.observe(values)

    def range(self) -> tuple[float, float]:
        """Return the smallest and the largest value that the grid must cover."""
        return self.observer.range()


class QuantizerFactory(Protocol):
    """Builds the trainable quantizers of one method."""

    def build_weight_quantizer(self, blocks: Tensor, share: Tensor, coding: WeightCoding) -> TrainableWeightQuantizer:
        """Return the quantizer of a weight.

        Args:
            blocks: Blocks of the weight with one scale each, ``[B, n]``.
            share: Share of each block's range that its first scale covers, ``[B]``.
            coding: Coding of the weight.
        """
        ...

    def build_input_quantizer(
        self, recorder: RangeRecorder, settings: QuantizationAwareSettings
    ) -> TrainableInputQuantizer:
        """Return the quantizer of a layer's input from its recorded ranges."""
        ...


class WeightParametrization(nn.Module):
    """Parametrization of a weight by its rounded values, for training.

    Args:
        weight: Weight before training, ``[C, ...]``; its zeros stay zero.
        coding: Coding of the weight.
        factory: Factory of the weight quantizer.
    """

    mask: Tensor | None

    def __init__(self, weight: Tensor, coding: WeightCoding, factory: QuantizerFactory) -> None:
        super().__init__()
        self.coding = coding
        mask = weight != 0
        # Without pruned weights there is no mask, which saves a product in every step.
        self.register_buffer("mask", None if bool(mask.all()) else mask.to(weight.dtype))
        # The first scale clips to the least squared error; training starts from there.
        blocks = split_blocks(weight, coding)
        low, high = torch.aminmax(blocks, dim=1)
        self.rounding = factory.build_weight_quantizer(blocks, search_clipping(blocks, low, high, coding), coding)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weight, ``[C, ...] -> [C, ...]``."""
        return join_blocks(self.rounding(self._masked_blocks(weight)), weight.shape, self.coding)

    def encode(self, weight: Tensor) -> QuantizedWeight:
        """Return the codes of the weight that :meth:`forward` returns."""
        blocks = self._masked_blocks(weight)
        scale = self.rounding.compute_scale(blocks).detach()
        low, high = code_range(self.coding.bits)
        codes = blocks.div(scale).round_().clamp_(low, high)
        grid_scale = reshape_to_scale(scale.flatten(), weight, self.coding)
        grid = Grid(grid_scale, torch.zeros_like(grid_scale, dtype=torch.int32), low, high, self.coding.group)
        return QuantizedWeight(join_blocks(codes, weight.shape, self.coding).to(grid.dtype), grid)

    def _masked_blocks(self, weight: Tensor) -> Tensor:
        return split_blocks(weight if self.mask is None else weight * self.mask, self.coding)


def code_range(bits: int) -> tuple[int, int]:
    """Return the smallest and the largest code of a weight.

    Example:
        >>> code_range(3)
        (-4, 3)
    """
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def train_with_rounding(
    model: nn.Module,
    settings: QuantizationAwareSettings,
    context: Context,
    factory: QuantizerFactory,
    layer_bits: Mapping[str, tuple[int, int]] | None = None,
) -> tuple[nn.Module, MethodState]:
    """Train a folded copy of a model with rounded weights and inputs, and return it in its deployed form.

    Codes and grids are those of the last training step, so the deployed model rounds as in training.

    Args:
        model: The model.
        settings: Settings of the training.
        context: Data and functions of the trial.
        factory: Factory of the trainable quantizers.
        layer_bits: Bits of the weights and of the inputs by layer; other layers have those of ``settings``.

    Raises:
        CompressionError: The context cannot train, calibration batches are missing, a tensor is not finite, or no
            layer can be quantized.
    """
    if settings.is_identity:
        with torch.no_grad():
            quantizer = ModelQuantizer(model, context)
            quantizer.observe_ranges(None)
            return quantizer.finalize()
    if context.fine_tune is None:
        raise CompressionError(f"{settings.label} trains the model, and the context has no 'fine_tune' function")
    with torch.no_grad():
        quantizer = ModelQuantizer(model, context)
        by_layer = dict.fromkeys(quantizer.layers, settings)
        for name, (weight_bits, input_bits) in (layer_bits or {}).items():
            by_layer[name] = replace(settings, weight_bits=weight_bits, activation_bits=input_bits)
        inputs = _attach_trainable_quantizers(quantizer, by_layer, factory)
    # The training loop has its own generators; other random operations, such as dropout, follow the seed as well.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        context.fine_tune(quantizer.model, settings.epochs, settings.learning_rate, None)
    quantizer.model.eval()
    with torch.no_grad():
        # A diverged training is reported by the name of the parameter.
        for name, parameter in quantizer.model.named_parameters():
            with add_layer_to_errors(name, "trained"):
                finite_min_max(parameter)
        for name, layer in quantizer.layers.items():
            bits = by_layer[name]
            if name in inputs:
                quantizer.quantize_input(name, inputs[name].grid, bits.activation_bits, is_trained=True)
            if bits.weight_bits < 32:
                parametrization = _weight_parametrization(layer)
                # Leaves the trained floating-point weight, which is encoded with the last scale.
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
                quantizer.quantize_weight(name, parametrization.encode(layer.weight), bits.weight_bits)
        return quantizer.finalize({"trained": {"epochs": settings.epochs, "learning_rate": settings.learning_rate}})


def _attach_trainable_quantizers(
    quantizer: ModelQuantizer, by_layer: Mapping[str, QuantizationAwareSettings], factory: QuantizerFactory
) -> dict[str, TrainableInputQuantizer]:
    """Attach quantizers to the weights and inputs of all layers, and return those of the inputs by layer."""
    recorders: dict[str, RangeRecorder] = {}

    def build_recorder(name: str) -> Observer:
        recorders[name] = RangeRecorder(by_layer[name].build_observer(by_layer[name].activation_bits))
        return recorders[name]

    has_input_bits = any(settings.activation_bits < 32 for settings in by_layer.values())
    quantizer.observe_ranges(build_recorder if has_input_bits else None)
    inputs = {
        name: factory.build_input_quantizer(recorder, by_layer[name])
        for name, recorder in recorders.items()
        if by_layer[name].activation_bits < 32
    }
    for name, layer in quantizer.layers.items():
        settings = by_layer[name]
        if name in inputs:
            attach_input_quantizer(layer, inputs[name])
        if settings.weight_bits < 32:
            is_reduced = quantizer.context.reduce_range and settings.activation_bits < 32
            coding = coding_for_layer(layer, settings.weight_coding(), is_reduced)
            parametrize.register_parametrization(layer, "weight", WeightParametrization(layer.weight, coding, factory))
    return inputs


def _weight_parametrization(layer: nn.Module) -> WeightParametrization:
    parametrization = layer.get_submodule("parametrizations.weight.0")
    assert isinstance(parametrization, WeightParametrization)
    return parametrization


class QuantizationAwareMethod:
    """Base of the methods that train a folded model with rounded weights and inputs.

    A method names itself, its settings and the factory of its quantizers. Its trained model is deployed in the same
    form as after post-training quantization.
    """

    name: ClassVar[str]
    config: ClassVar[type[QuantizationAwareSettings]]
    factory: ClassVar[QuantizerFactory]

    def is_identity(self, config: QuantizationAwareSettings) -> bool:
        """Return whether both weights and activations keep 32 bits."""
        return config.is_identity

    def apply(
        self, model: nn.Module, config: QuantizationAwareSettings, context: Context
    ) -> tuple[nn.Module, MethodState]:
        """Return a folded, trained and quantized copy in evaluation mode, and its state.

        Raises:
            CompressionError: The context cannot train, calibration batches are missing, a tensor is empty, NaN or
                infinite, or no layer can be quantized.
        """
        return train_with_rounding(model, config, context, self.factory)

    def restore(self, model: nn.Module, config: QuantizationAwareSettings, state: MethodState) -> nn.Module:
        """Fold and quantize a fresh model as ``apply`` did; the other tensors come from the saved ``state_dict``.

        Raises:
            CompressionError: The history does not fit the model.
        """
        return restore_quantization(model, state)
