"""Quantization-aware training with the straight-through estimator; ranges follow weights and activations."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autocompress.core.registry import QUANTIZE
from autocompress.quantize.fake_quantize import FakeQuantize
from autocompress.quantize.model_quantizer import fit_activation_grid
from autocompress.quantize.observers import MovingAverageObserver
from autocompress.quantize.quantization_aware import (
    SYMMETRIC,
    QuantizationAwareMethod,
    QuantizationAwareSettings,
    RangeRecorder,
    TrainableInputQuantizer,
    TrainableWeightQuantizer,
    code_range,
)
from autocompress.quantize.quantizers import Grid
from autocompress.quantize.ste import ste_quantize
from autocompress.quantize.weight_coding import WeightCoding

# Weight of the previous average in the moving range of an input.
MOMENTUM = 0.99


@dataclass(frozen=True)
class QATConfig(QuantizationAwareSettings):
    """Settings of quantization-aware training with the straight-through estimator.

    Example:
        >>> QATConfig(weight_bits=3, epochs=10).granularity
        'per_channel'
    """

    label: ClassVar[str] = "quantize.qat"


class QATWeightQuantizer(TrainableWeightQuantizer):
    """Weight quantizer whose scale covers a fixed share of the current range of each row.

    Args:
        share: Share of the range of each row, fitted to the weight before training, ``[B]``.
        bits: Number of bits of a code.
    """

    share: Tensor

    def __init__(self, share: Tensor, bits: int) -> None:
        super().__init__()
        self.register_buffer("share", share)
        self._bits = bits

    def compute_scale(self, blocks: Tensor) -> Tensor:
        """Return the scale of each row, ``[B, n] -> [B, 1]``."""
        low, high = torch.aminmax(blocks.detach(), dim=1)
        return SYMMETRIC.fit(low * self.share, high * self.share, self._bits).scale[:, None]

    def forward(self, blocks: Tensor) -> Tensor:
        """Return the rows rounded to their grids; gradients pass inside the grids."""
        return ste_quantize(blocks, self.compute_scale(blocks), *code_range(self._bits))


class QATInputQuantizer(TrainableInputQuantizer):
    """Input quantizer whose range follows a moving average of the extremes of each batch (Jacob et al. 2018).

    Where the calibrated range is clipped, the same share of the moving range is covered.

    Args:
        recorder: Ranges recorded on the calibration batches.
        scheme: Activation quantizer, ``symmetric`` or ``asymmetric``.
        bits: Number of bits of a code.
    """

    def __init__(self, recorder: RangeRecorder, scheme: str, bits: int) -> None:
        super().__init__()
        extremes, calibrated = recorder.min_max.range(), recorder.range()
        self._shares = tuple(
            end / extreme if extreme else 1.0 for end, extreme in zip(calibrated, extremes, strict=True)
        )
        self._average = MovingAverageObserver(MOMENTUM)
        self._average.observe(torch.tensor(extremes))
        self._scheme, self._bits = scheme, bits
        self.rounding = FakeQuantize(fit_activation_grid(calibrated, scheme, bits), bits)

    @property
    def grid(self) -> Grid:
        """The grid that inputs are rounded to."""
        return self.rounding.grid

    def forward(self, values: Tensor) -> Tensor:
        """Return the values rounded to the grid; in training mode the grid is updated first."""
        if self.training:
            self._average.observe(values)
            low, high = (end * share for end, share in zip(self._average.range(), self._shares, strict=True))
            grid = fit_activation_grid((low, high), self._scheme, self._bits)
            # The buffers are replaced, so the `state_dict` always contains the current grid.
            self.rounding.scale, self.rounding.zero_point = grid.scale, grid.zero_point
            self.rounding.low, self.rounding.high = grid.low, grid.high
        rounded: Tensor = self.rounding(values)
        return rounded


class QATRounding:
    """Factory of quantizers whose ranges follow weights and activations."""

    def build_weight_quantizer(self, blocks: Tensor, share: Tensor, coding: WeightCoding) -> TrainableWeightQuantizer:
        """Return the quantizer of a weight."""
        return QATWeightQuantizer(share, coding.bits)

    def build_input_quantizer(
        self, recorder: RangeRecorder, settings: QuantizationAwareSettings
    ) -> TrainableInputQuantizer:
        """Return the quantizer of a layer's input."""
        return QATInputQuantizer(recorder, settings.activation_scheme, settings.activation_bits)


class QAT(QuantizationAwareMethod):
    """Trains weights with rounding and the straight-through estimator (Bengio et al. 2013, arXiv:1308.3432)."""

    name = "qat"
    config = QATConfig
    factory = QATRounding()


QUANTIZE.add(QAT.name, QAT())
