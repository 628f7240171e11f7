"""Post-training quantization: ranges from one pass over the calibration split, and no training.

The settings of weights, inputs and bit-widths are shared by all quantization methods.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from autocompress.core.knobs import Choice, FloatRange, IntRange, Settings, knob
from autocompress.core.method import Context, MethodState
from autocompress.core.precisions import HALF_BITS
from autocompress.core.registry import OBSERVERS, QUANTIZE
from autocompress.quantize.layers import Layer, add_layer_to_errors, coding_for_layer
from autocompress.quantize.model_quantizer import BiasCorrection, ModelQuantizer, fit_activation_grid
from autocompress.quantize.observers import OBSERVER_CHOICE, Observer, ObserverConfig
from autocompress.quantize.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS
from autocompress.quantize.serialization import restore_quantization
from autocompress.quantize.weight_coding import (
    GRANULARITIES,
    QUANTIZER_CHOICE,
    WEIGHT_OBSERVERS,
    QuantizedWeight,
    WeightCoding,
    encode_weight,
)

BITS = Choice((2, 3, 4, 5, 6, 7, 8, 32))
WEIGHT_BITS = Choice((2, 3, 4, 5, 6, 7, 8, HALF_BITS, 32))


@dataclass(frozen=True)
class InputSettings(Settings):
    """Settings of the quantization of layer inputs."""

    activation_scheme: str = knob(
        "asymmetric", Choice(tuple(ACTIVATION_QUANTIZERS)), "where an input's codes lie around zero"
    )
    observer: str = knob("minmax", OBSERVER_CHOICE, "how an input's range is found")
    percentile: float = knob(99.9, FloatRange(90.0, 100.0), "upper end of the range for the observer 'percentile'")

    def build_observer(self, bits: int) -> Observer:
        """Return a new observer for the inputs of one layer."""
        return OBSERVERS[self.observer](ObserverConfig(bits, self.activation_scheme, self.percentile))


@dataclass(frozen=True)
class WeightSettings(Settings):
    """Settings of the quantization of weights: granularity and range."""

    weight_scheme: str = knob("symmetric", Choice(tuple(WEIGHT_QUANTIZERS)), "where a weight's codes lie around zero")
    granularity: str = knob("per_channel", Choice(GRANULARITIES), "what shares one weight scale")
    group_size: int = knob(32, IntRange(2, 1024, log=True), "weights of a channel in a group, for 'per_group'")
    weight_observer: str = knob("minmax", Choice(WEIGHT_OBSERVERS), "how a weight's range is found")

    def weight_coding(self, bits: int) -> WeightCoding:
        """Return the coding of a weight on a linear grid."""
        return WeightCoding(bits, "linear", self.weight_scheme, self.granularity, self.group_size, self.weight_observer)


@dataclass(frozen=True)
class BitSettings(Settings):
    """Bit-widths of all layers; 32 leaves weights or activations in floating point."""

    weight_bits: int = knob(8, BITS, "bits of a weight")
    activation_bits: int = knob(8, BITS, "bits of a layer's input")


@dataclass(frozen=True)
class PostTrainingConfig(WeightSettings, InputSettings, BitSettings):
    """Settings of post-training quantization; 32 bits leave weights or activations in floating point.

    16 bits round weights to float16, whatever the quantizer, its grid and its range.

    Example:
        >>> PostTrainingConfig(weight_bits=4, quantizer="codebook").observer
        'minmax'
    """

    label: ClassVar[str] = "quantize.post_training"

    weight_bits: int = knob(8, WEIGHT_BITS, "bits of a weight; 16 is float16")
    quantizer: str = knob(
        "linear", QUANTIZER_CHOICE, "what a weight's codes stand for: even steps, powers of two, a fitted table"
    )
    weight_observer: str = knob("mse", Choice(WEIGHT_OBSERVERS), "how a weight's range is found")
    bias_correction: bool = knob(
        True, Choice((False, True)), "move biases so that each layer's mean output stays as it was"
    )

    def weight_coding(self, bits: int) -> WeightCoding:
        """Return the coding of a weight with the quantizer of this config."""
        return replace(super().weight_coding(bits), quantizer=self.quantizer)


def encode_layer(name: str, layer: Layer, coding: WeightCoding, context: Context) -> QuantizedWeight:
    """Return the codes of a layer's weight, computed once for all compression recipes of a model.

    Raises:
        CompressionError: The weight is empty, NaN or infinite.
    """
    with add_layer_to_errors(name, "weight"):
        return context.compute_once(("weight", name, coding), lambda: encode_weight(layer.weight, coding))


class PostTraining:
    """Quantizes weights and inputs of convolutions and linear layers (Jacob et al. 2018), and embeddings.

    An embedding has one scale per row, whatever the granularity, and its inputs are indices, which stay.

    The quantized model computes the same as integer kernels: biases are rounded to the grid of the products, and the
    output of a convolution with other readers (a sum, an average) is quantized to 8 bits. Weights in groups, powers of
    two, codebooks and float16 have no integer kernel. Their layers keep biases and outputs, and an exported graph
    contains the dequantized weights in floating point (``report["float_in_onnx"]``).
    """

    name: ClassVar[str] = "post_training"
    config = PostTrainingConfig

    def is_identity(self, config: PostTrainingConfig) -> bool:
        """Return whether both weights and activations keep 32 bits."""
        return config.weight_bits == 32 and config.activation_bits == 32

    def apply(self, model: nn.Module, config: PostTrainingConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a folded, quantized copy in evaluation mode, and its state.

        Raises:
            CompressionError: A weight or an activation is empty, NaN or infinite, no layer can be quantized,
                or calibration batches are missing.
        """
        with torch.no_grad():
            has_correction = config.bias_correction and not self.is_identity(config)
            quantizer = ModelQuantizer(model, context, BiasCorrection() if has_correction else None)
            has_input_bits = config.activation_bits < 32
            ranges = quantizer.observe_ranges(
                (lambda _: config.build_observer(config.activation_bits)) if has_input_bits else None,
                (config.activation_bits, config.activation_scheme, config.observer, config.percentile),
            )
            for name, layer in quantizer.layers.items():
                if name in ranges:
                    grid = fit_activation_grid(ranges[name], config.activation_scheme, config.activation_bits)
                    quantizer.quantize_input(name, grid, config.activation_bits)
                if config.weight_bits < 32:
                    coding = coding_for_layer(
                        layer, config.weight_coding(config.weight_bits), context.reduce_range and has_input_bits
                    )
                    quantizer.quantize_weight(name, encode_layer(name, layer, coding, context), config.weight_bits)
            return quantizer.finalize()

    def restore(self, model: nn.Module, config: PostTrainingConfig, state: MethodState) -> nn.Module:
        """Fold and quantize a fresh model as ``apply`` did; the other tensors come from the saved ``state_dict``.

        Raises:
            CompressionError: The history does not fit the model.
        """
        return restore_quantization(model, state)


QUANTIZE.add(PostTraining.name, PostTraining())
