"""Post-training quantization: ranges from one pass over the calibration split, then rounding; nothing is trained."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from autocompress.core.knobs import Choice, knob
from autocompress.core.method import Context, MethodState
from autocompress.core.registry import QUANTIZE
from autocompress.quantize.bias_correction import BiasCorrection
from autocompress.quantize.layers import add_layer_to_errors, coding_for_layer
from autocompress.quantize.model_quantizer import ModelQuantizer, fit_activation_grid
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
    """What one rounding is made of; 32 bits leave weights or activations as they are.

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

    def coding(self, bits: int) -> WeightCoding:
        """Return how a weight becomes codes of some bits."""
        return replace(super().coding(bits), quantizer=self.quantizer)


class PostTraining:
    """Rounds weights and layer inputs of convolutions and linear layers (Jacob et al. 2018), and embedding tables.

    A table has one scale a row, whatever the granularity, and its input is row numbers, which stay.

    The model then computes what integer kernels will: biases lie on the grid of the products, and the output of
    a convolution that other operations read too (a sum, an average) is rounded to 8 bits. Weights in groups, powers
    of two and codebooks have no integer kernel: there biases and outputs stay, and an exported graph holds the
    decoded weights in floating point (``report["float_in_onnx"]``).
    """

    name: ClassVar[str] = "post_training"
    config = PostTrainingConfig

    def is_identity(self, config: PostTrainingConfig) -> bool:
        """Return whether both weights and activations keep 32 bits."""
        return config.weight_bits == 32 and config.activation_bits == 32

    def apply(self, model: nn.Module, config: PostTrainingConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a folded, quantized copy in evaluation mode, and what was done.

        Raises:
            CompressionError: A weight or an activation is empty, NaN or infinite, no layer can be quantized,
                or calibration batches are missing.
        """
        with torch.no_grad():
            corrects = config.bias_correction and not self.is_identity(config)
            draft = ModelQuantizer(model, context, BiasCorrection() if corrects else None)
            rounds_inputs = config.activation_bits < 32
            ranges = draft.observe(
                (lambda _: config.watch(config.activation_bits)) if rounds_inputs else None,
                (config.activation_bits, config.activation_scheme, config.observer, config.percentile),
            )
            for name, layer in draft.layers.items():
                if name in ranges:
                    grid = fit_activation_grid(ranges[name], config.activation_scheme, config.activation_bits)
                    draft.quantize_input(name, grid, config.activation_bits)
                if config.weight_bits < 32:
                    draft.quantize_weight(name, self._coded(name, layer, config, context), config.weight_bits)
            return draft.finalize()

    def _coded(self, name: str, layer: Any, config: PostTrainingConfig, context: Context) -> QuantizedWeight:
        coding = coding_for_layer(layer, config.coding(config.weight_bits))
        with add_layer_to_errors(name, "weight"):
            return context.once(("weight", name, coding), lambda: encode_weight(layer.weight, coding))

    def restore(self, model: nn.Module, config: PostTrainingConfig, state: MethodState) -> nn.Module:
        """Fold and quantize a fresh model as ``apply`` did; the other tensors come from the saved ``state_dict``.

        Raises:
            CompressionError: The history does not fit the model.
        """
        return restore_quantization(model, state)


QUANTIZE.add(PostTraining.name, PostTraining())
