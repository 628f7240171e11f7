"""Quantization-aware training with the straight-through estimator: ranges follow what passes by."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from autocompress.core.method import Context, MethodState
from autocompress.core.registry import QUANTIZE
from autocompress.quantize.fake_quantize import FakeQuantize
from autocompress.quantize.model_quantizer import fit_activation_grid
from autocompress.quantize.observers import MovingAverageObserver
from autocompress.quantize.quantization_aware import (
    WEIGHTS,
    InputQuantizer,
    QuantizationAwareSettings,
    RangeRecorder,
    WeightQuantizer,
    code_range,
    train_with_rounding,
)
from autocompress.quantize.quantizers import Grid
from autocompress.quantize.serialization import restore_quantization
from autocompress.quantize.ste import ste_quantize
from autocompress.quantize.weight_coding import WeightCoding

MOMENTUM = 0.99


@dataclass(frozen=True)
class QATConfig(QuantizationAwareSettings):
    """How long to train with rounding, and with how many bits.

    Example:
        >>> QATConfig(weight_bits=3, epochs=10).granularity
        'per_channel'
    """

    label: ClassVar[str] = "quantize.qat"


class QATWeightQuantizer(WeightQuantizer):
    """Each row's scale covers a fixed share of the range that its weights have now.

    Args:
        share: ``[B]``, as calibrated on the weights before training.
        bits: Bits of a code.
    """

    share: Tensor

    def __init__(self, share: Tensor, bits: int) -> None:
        super().__init__()
        self.register_buffer("share", share)
        self._bits = bits

    def scale(self, blocks: Tensor) -> Tensor:
        """Return the scale of each row, ``[B, n] -> [B, 1]``."""
        low, high = torch.aminmax(blocks.detach(), dim=1)
        return WEIGHTS.fit(low * self.share, high * self.share, self._bits).scale[:, None]

    def forward(self, blocks: Tensor) -> Tensor:
        """Return the rows on their grids; gradients pass inside them."""
        return ste_quantize(blocks, self.scale(blocks), *code_range(self._bits))


class QATInputQuantizer(InputQuantizer):
    """The range follows a moving average of each batch's smallest and largest value (Jacob et al. 2018).

    Where the observer cut the calibrated range short of these, the same share of the moving one is covered.

    Args:
        seen: What was observed on the calibration batches.
        scheme: Where the codes lie around zero.
        bits: Bits of a code.
    """

    def __init__(self, seen: RangeRecorder, scheme: str, bits: int) -> None:
        super().__init__()
        first, chosen = seen.ends.range(), seen.range()
        self._shares = tuple(part / end if end else 1.0 for part, end in zip(chosen, first, strict=True))
        self._average = MovingAverageObserver(MOMENTUM)
        self._average.observe(torch.tensor(first))
        self._scheme, self._bits = scheme, bits
        self.rounding = FakeQuantize(fit_activation_grid(chosen, scheme, bits), bits)

    @property
    def grid(self) -> Grid:
        """The grid that inputs are rounded to."""
        return self.rounding.grid

    def forward(self, values: Tensor) -> Tensor:
        """Return ``values`` on the grid; in training mode the grid follows them first."""
        if self.training:
            self._average.observe(values)
            low, high = (end * share for end, share in zip(self._average.range(), self._shares, strict=True))
            grid = fit_activation_grid((low, high), self._scheme, self._bits)
            self.rounding.scale, self.rounding.zero_point = grid.scale, grid.zero_point
            self.rounding.low, self.rounding.high = grid.low, grid.high
        rounded: Tensor = self.rounding(values)
        return rounded


class QATRounding:
    """Rounds on ranges that follow weights and activations."""

    def weight(self, blocks: Tensor, share: Tensor, coding: WeightCoding) -> WeightQuantizer:
        """Return what rounds a weight."""
        return QATWeightQuantizer(share, coding.bits)

    def input(self, seen: RangeRecorder, settings: QuantizationAwareSettings) -> InputQuantizer:
        """Return what rounds the input of a layer."""
        return QATInputQuantizer(seen, settings.activation_scheme, settings.activation_bits)


class QAT:
    """Trains weights through their rounding; gradients pass inside the ranges and stop outside (Bengio et al. 2013).

    The trained model is deployed as that of post-training quantization is.
    """

    name: ClassVar[str] = "qat"
    config = QATConfig

    def is_identity(self, config: QATConfig) -> bool:
        """Return whether both weights and activations keep 32 bits."""
        return config.is_identity

    def apply(self, model: nn.Module, config: QATConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a folded, trained and quantized copy in evaluation mode, and what was done.

        Raises:
            CompressionError: The context cannot train, calibration batches are missing, a tensor is empty, NaN or
                infinite, or no layer can be quantized.
        """
        return train_with_rounding(model, config, context, QATRounding())

    def restore(self, model: nn.Module, config: QATConfig, state: MethodState) -> nn.Module:
        """Fold and quantize a fresh model as ``apply`` did; the other tensors come from the saved ``state_dict``.

        Raises:
            CompressionError: The history does not fit the model.
        """
        return restore_quantization(model, state)


QUANTIZE.add(QAT.name, QAT())
