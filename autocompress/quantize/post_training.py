"""Post-training quantization: ranges from one pass over the calibration split, and no training."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from autocompress.core.knobs import Choice, knob
from autocompress.core.method import Context, MethodState
from autocompress.core.registry import QUANTIZE
from autocompress.quantize.layers import Layer, add_layer_to_errors, coding_for_layer
from autocompress.quantize.model_quantizer import BiasCorrection, ModelQuantizer, fit_activation_grid
from autocompress.quantize.serialization import restore_quantization
from autocompress.quantize.settings import BitSettings, InputSettings, WeightSettings
from autocompress.quantize.weight_coding import (
    QUANTIZER_CHOICE,
    WEIGHT_OBSERVERS,
    QuantizedWeight,
    WeightCoding,
    encode_weight,
)


@dataclass(frozen=True)
class PostTrainingConfig(WeightSettings, InputSettings, BitSettings):
    """Settings of post-training quantization; 32 bits leave weights or activations in floating point.

    Example:
        >>> PostTrainingConfig(weight_bits=4, quantizer="codebook").observer
        'minmax'
    """

    label: ClassVar[str] = "quantize.post_training"

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


class PostTraining:
    """Quantizes weights and inputs of convolutions and linear layers (Jacob et al. 2018), and embeddings.

    An embedding has one scale per row, whatever the granularity, and its inputs are indices, which stay.

    The quantized model computes the same as integer kernels: biases are rounded to the grid of the products, and the
    output of a convolution with other readers (a sum, an average) is quantized to 8 bits. Weights in groups, powers of
    two and codebooks have no integer kernel. Their layers keep biases and outputs, and an exported graph contains the
    dequantized weights in floating point (``report["float_in_onnx"]``).
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
                    quantizer.quantize_weight(
                        name, self._encode_weight(name, layer, config, context), config.weight_bits
                    )
            return quantizer.finalize()

    def _encode_weight(self, name: str, layer: Layer, config: PostTrainingConfig, context: Context) -> QuantizedWeight:
        coding = coding_for_layer(layer, config.weight_coding(config.weight_bits))
        with add_layer_to_errors(name, "weight"):
            return context.compute_once(("weight", name, coding), lambda: encode_weight(layer.weight, coding))

    def restore(self, model: nn.Module, config: PostTrainingConfig, state: MethodState) -> nn.Module:
        """Fold and quantize a fresh model as ``apply`` did; the other tensors come from the saved ``state_dict``.

        Raises:
            CompressionError: The history does not fit the model.
        """
        return restore_quantization(model, state)


QUANTIZE.add(PostTraining.name, PostTraining())
