"""Learned step size quantization: the scales of weights and inputs are trained with the weights."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from autocompress.core.method import Context, MethodState
from autocompress.core.registry import QUANTIZE
from autocompress.quantize.model_quantizer import fit_activation_grid
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
from autocompress.quantize.ste import gradient_scale, lsq_quantize
from autocompress.quantize.weight_coding import WeightCoding


@dataclass(frozen=True)
class LSQConfig(QuantizationAwareSettings):
    """How long to train steps and weights, and with how many bits.

    Example:
        >>> LSQConfig(weight_bits=2, activation_bits=2).observer
        'mse'
    """

    label: ClassVar[str] = "quantize.lsq"


class LearnedStep(nn.Module):
    """Positive steps ``start * exp(drift)``, of which the drift is trained.

    A step of an optimizer such as Adam then changes each step size by a share of it, whatever its size, and none
    changes its sign; weight decay draws it back to where it started.

    Args:
        start: Positive, of any shape.
    """

    start: Tensor

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.register_buffer("start", start)
        self.drift = nn.Parameter(torch.zeros_like(start))

    def forward(self) -> Tensor:
        """Return the steps, shaped like ``start``."""
        return self.start * self.drift.exp()


class LSQWeightQuantizer(WeightQuantizer):
    """Each row's step is learned.

    Args:
        start: The first step of each row, ``[B, 1]``.
        count: Weights in a row.
        bits: Bits of a code.
    """

    factor: Tensor

    def __init__(self, start: Tensor, count: int, bits: int) -> None:
        super().__init__()
        self.step = LearnedStep(start)
        self._ends = code_range(bits)
        self.register_buffer("factor", torch.full_like(start, gradient_scale(count, self._ends[1])))

    def scale(self, blocks: Tensor) -> Tensor:
        """Return the step of each row, ``[B, 1]``."""
        step: Tensor = self.step()
        return step

    def forward(self, blocks: Tensor) -> Tensor:
        """Return the rows on their grids."""
        return lsq_quantize(blocks, self.step(), self.factor, *self._ends)


class LSQInputQuantizer(InputQuantizer):
    """The step is learned; the code of zero is the one that was calibrated.

    Args:
        grid: The first grid, of a whole tensor.
    """

    zero_point: Tensor

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.step = LearnedStep(grid.scale)
        self.register_buffer("zero_point", grid.zero_point)
        self._low, self._high = grid.low, grid.high
        # The zero point never changes: it is read once, not in every step.
        self._ends = grid.low - int(grid.zero_point), grid.high - int(grid.zero_point)

    @property
    def grid(self) -> Grid:
        """The grid that inputs are rounded to."""
        return Grid(self.step().detach(), self.zero_point, self._low, self._high)

    def forward(self, values: Tensor) -> Tensor:
        """Return ``values`` on the grid, ``[...] -> [...]``."""
        # An input that is never above zero has no positive code.
        factor = gradient_scale(values[0].numel(), max(self._ends[1], 1))
        rounded = lsq_quantize(values.float(), self.step(), values.new_tensor(factor, dtype=torch.float32), *self._ends)
        return rounded.to(values.dtype)


class LSQRounding:
    """Rounds on steps that are learned, from the ones that leave the smallest squared error (Bhalgat et al. 2020)."""

    def weight(self, blocks: Tensor, share: Tensor, coding: WeightCoding) -> WeightQuantizer:
        """Return what rounds a weight."""
        low, high = torch.aminmax(blocks, dim=1)
        start = WEIGHTS.fit(low * share, high * share, coding.bits).scale
        return LSQWeightQuantizer(start[:, None], blocks.shape[1], coding.bits)

    def input(self, seen: RangeRecorder, settings: QuantizationAwareSettings) -> InputQuantizer:
        """Return what rounds the input of a layer."""
        return LSQInputQuantizer(
            fit_activation_grid(seen.range(), settings.activation_scheme, settings.activation_bits)
        )


class LSQ:
    """Trains weights and step sizes (Esser et al. 2020, arXiv:1902.08153).

    The gradient of a step is scaled by ``1 / sqrt(N Qp)``: ``N`` weights that share it or features of an example,
    ``Qp`` the largest code. The trained model is deployed as that of post-training quantization is.
    """

    name: ClassVar[str] = "lsq"
    config = LSQConfig

    def is_identity(self, config: LSQConfig) -> bool:
        """Return whether both weights and activations keep 32 bits."""
        return config.is_identity

    def apply(self, model: nn.Module, config: LSQConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a folded, trained and quantized copy in evaluation mode, and what was done.

        Raises:
            CompressionError: The context cannot train, calibration batches are missing, a tensor is empty, NaN or
                infinite, or no layer can be quantized.
        """
        return train_with_rounding(model, config, context, LSQRounding())

    def restore(self, model: nn.Module, config: LSQConfig, state: MethodState) -> nn.Module:
        """Fold and quantize a fresh model as ``apply`` did; the other tensors come from the saved ``state_dict``.

        Raises:
            CompressionError: The history does not fit the model.
        """
        return restore_quantization(model, state)


QUANTIZE.add(LSQ.name, LSQ())
