"""Learned step size quantization (LSQ): the scales of weights and inputs are trained with the weights."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from autocompress.core.registry import QUANTIZE
from autocompress.quantize.model_quantizer import fit_activation_grid
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
from autocompress.quantize.ste import gradient_scale, lsq_quantize
from autocompress.quantize.weight_coding import WeightCoding


@dataclass(frozen=True)
class LSQConfig(QuantizationAwareSettings):
    """Settings of learned step size quantization.

    Example:
        >>> LSQConfig(weight_bits=2, activation_bits=2).observer
        'mse'
    """

    label: ClassVar[str] = "quantize.lsq"


class LearnedStep(nn.Module):
    """Positive step sizes ``start * exp(drift)`` with a trainable drift.

    An update of an optimizer such as Adam then changes each step size by a relative amount, and no update changes its
    sign. Weight decay pulls a step size back to its start.

    Args:
        start: Positive initial step sizes, of any shape.
    """

    start: Tensor

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.register_buffer("start", start)
        self.drift = nn.Parameter(torch.zeros_like(start))

    def forward(self) -> Tensor:
        """Return the step sizes, shaped like ``start``."""
        # The drift starts at zero, so the first steps are exactly the calibrated ones.
        return self.start * self.drift.exp()


class LSQWeightQuantizer(TrainableWeightQuantizer):
    """Weight quantizer with a learned step size per row.

    Args:
        start: Initial step size of each row, ``[B, 1]``.
        count: Number of weights in a row.
        bits: Number of bits of a code.
    """

    factor: Tensor

    def __init__(self, start: Tensor, count: int, bits: int) -> None:
        super().__init__()
        self.step = LearnedStep(start)
        self._code_range = code_range(bits)
        self.register_buffer("factor", torch.full_like(start, gradient_scale(count, self._code_range[1])))

    def compute_scale(self, blocks: Tensor) -> Tensor:
        """Return the step size of each row, ``[B, 1]``."""
        step: Tensor = self.step()
        return step

    def forward(self, blocks: Tensor) -> Tensor:
        """Return the rows rounded to their grids."""
        return lsq_quantize(blocks, self.step(), self.factor, *self._code_range)


class LSQInputQuantizer(TrainableInputQuantizer):
    """Input quantizer with a learned step size and the calibrated zero point.

    Args:
        grid: Initial grid of a whole tensor.
    """

    zero_point: Tensor

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.step = LearnedStep(grid.scale)
        self.register_buffer("zero_point", grid.zero_point)
        self._low, self._high = grid.low, grid.high
        # The zero point does not change, so it is read from its tensor once and not in every step.
        self._code_range = grid.low - int(grid.zero_point), grid.high - int(grid.zero_point)

    @property
    def grid(self) -> Grid:
        """The grid that inputs are rounded to."""
        return Grid(self.step().detach(), self.zero_point, self._low, self._high)

    def forward(self, values: Tensor) -> Tensor:
        """Return the values rounded to the grid, ``[...] -> [...]``."""
        # An input without positive values has no positive code; the factor must stay finite.
        factor = gradient_scale(values[0].numel(), max(self._code_range[1], 1))
        rounded = lsq_quantize(
            values.float(), self.step(), values.new_tensor(factor, dtype=torch.float32), *self._code_range
        )
        return rounded.to(values.dtype)


class LSQRounding:
    """Factory of quantizers with learned steps, initialized by the least squared error (LSQ+, Bhalgat et al. 2020)."""

    def build_weight_quantizer(self, blocks: Tensor, share: Tensor, coding: WeightCoding) -> TrainableWeightQuantizer:
        """Return the quantizer of a weight."""
        low, high = torch.aminmax(blocks, dim=1)
        start = SYMMETRIC.fit(low * share, high * share, coding.bits).scale
        return LSQWeightQuantizer(start[:, None], blocks.shape[1], coding.bits)

    def build_input_quantizer(
        self, recorder: RangeRecorder, settings: QuantizationAwareSettings
    ) -> TrainableInputQuantizer:
        """Return the quantizer of a layer's input."""
        return LSQInputQuantizer(
            fit_activation_grid(recorder.range(), settings.activation_scheme, settings.activation_bits)
        )


class LSQ(QuantizationAwareMethod):
    """Trains weights and step sizes (Esser et al. 2020, arXiv:1902.08153).

    The gradient of a step size is scaled by ``1 / sqrt(N Qp)``, where ``N`` is the number of weights with that step or
    of features of an example, and ``Qp`` the largest code.
    """

    name = "lsq"
    config = LSQConfig
    factory = LSQRounding()


QUANTIZE.add(LSQ.name, LSQ())
