"""Linear quantizers: fit a grid to a range, encode tensors to codes and decode them."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

# A scale within these limits has a finite reciprocal in float32, and its product with every code is finite too.
SMALLEST_SCALE = 2.0**-100
LARGEST_SCALE = 2.0**119
# Smallest distance of a value to the middle between two codes, in steps: float32 errors of 255 steps are a tenth of it.
TIE_MARGIN = 2.0**-12
# Factors by which a scale is enlarged to keep values away from such middles.
TIE_FACTORS = tuple(1 + step * 2.0**-10 for step in range(33))


@dataclass(frozen=True)
class Grid:
    """Evenly spaced values: code ``c`` stands for ``(c - zero_point) * scale``.

    Attributes:
        scale: Step between neighbouring values, float32; ``[]`` for a whole tensor, ``[C]`` along axis 0, ``[C, G]``
            for groups of each flattened row.
        zero_point: The code of 0.0, int32, shaped like ``scale``.
        low: The smallest code.
        high: The largest code.
        group: Number of values that share a scale with groups, 0 without; the last group of a row may be shorter.
    """

    scale: Tensor
    zero_point: Tensor
    low: int
    high: int
    group: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """The integer type that holds a code."""
        return torch.int8 if self.low < 0 else torch.uint8


class Quantizer(Protocol):
    """Fits a grid to a range, encodes tensors to codes and decodes codes to tensors."""

    def fit(self, low: Tensor, high: Tensor, bits: int) -> Grid:
        """Return the grid for values from ``low`` to ``high``, two tensors of the same shape."""
        ...

    def encode(self, values: Tensor, grid: Grid) -> Tensor:
        """Return the code of each value, shaped like ``values``."""
        ...

    def decode(self, codes: Tensor, grid: Grid) -> Tensor:
        """Return the float32 value of each code."""
        ...


class LinearQuantizer:
    """Quantizer with evenly spaced codes; it rounds to the nearest, half to even, as torch does.

    Inside the fitted range ``|x - decode(encode(x))| <= scale / 2``. A channel with a single value gets that value
    as its scale and is represented exactly; a range of zeros gets scale 1.
    """

    def encode(self, values: Tensor, grid: Grid) -> Tensor:
        """Return the code of each value; values outside the range are clipped."""
        scale = broadcast_parameter(grid.scale, values, grid.group)
        zero_point = broadcast_parameter(grid.zero_point, values, grid.group)
        # Multiplies by the reciprocal as torch's fake-quantization operators do, so that ties are rounded alike.
        return values.mul(scale.reciprocal()).round_().add_(zero_point).clamp_(grid.low, grid.high).to(grid.dtype)

    def decode(self, codes: Tensor, grid: Grid) -> Tensor:
        """Return the float32 value of each code."""
        zero_point = broadcast_parameter(grid.zero_point, codes, grid.group)
        return (codes.to(torch.float32) - zero_point).mul_(broadcast_parameter(grid.scale, codes, grid.group))


class SymmetricQuantizer(LinearQuantizer):
    """Quantizer with zero point 0 and a symmetric range: [-a, a] -> -(2^(bits-1) - 1) .. 2^(bits-1) - 1.

    Args:
        unsigned: Whether a range without negative values uses unsigned codes.

    Example:
        >>> grid = SymmetricQuantizer().fit(torch.tensor(-1.0), torch.tensor(0.5), bits=3)
        >>> SymmetricQuantizer().encode(torch.tensor([-1.0, 0.2, 0.5]), grid).tolist()
        [-3, 1, 2]
    """

    def __init__(self, unsigned: bool = False) -> None:
        self.unsigned = unsigned

    def fit(self, low: Tensor, high: Tensor, bits: int) -> Grid:
        """Return the grid for values from ``low`` to ``high``, two tensors of the same shape."""
        # In double precision, so that the float32 scale is rounded only once.
        low, high = low.double(), high.double()
        if self.unsigned and bool((low >= 0).all()):
            steps, first, last = 2.0**bits - 1, 0, 2**bits - 1
        else:
            # One bit has only the codes -1 and 0: a step of twice the range keeps the error below half a step.
            steps, first, last = max(2.0 ** (bits - 1) - 1, 0.5), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        max_abs = torch.maximum(low.abs(), high.abs())
        scale = _limit_scale(max_abs / steps, max_abs, exact=(low == high) & (last > 0))
        return Grid(scale, torch.zeros_like(scale, dtype=torch.int32), first, last)


class AsymmetricQuantizer(LinearQuantizer):
    """Quantizer whose codes 0 .. 2^bits - 1 span the range, which is widened to include zero.

    Example:
        >>> grid = AsymmetricQuantizer().fit(torch.tensor(-1.0), torch.tensor(2.0), bits=2)
        >>> grid.scale.item(), grid.zero_point.item()
        (1.0, 1)
    """

    def fit(self, low: Tensor, high: Tensor, bits: int) -> Grid:
        """Return the grid for values from ``low`` to ``high``, two tensors of the same shape."""
        low, high = low.double(), high.double()
        last = 2**bits - 1
        # Zero must have a code: padding and pruned weights are zero.
        below, above = low.clamp(max=0), high.clamp(min=0)
        width = above - below
        scale = _limit_scale(width / last, width, exact=low == high)
        zero_point = (-below / scale).round_().clamp_(0, last).to(torch.int32)
        return Grid(scale, zero_point, 0, last)


WEIGHT_QUANTIZERS: dict[str, Quantizer] = {"symmetric": SymmetricQuantizer(), "asymmetric": AsymmetricQuantizer()}
ACTIVATION_QUANTIZERS: dict[str, Quantizer] = {
    "symmetric": SymmetricQuantizer(unsigned=True),
    "asymmetric": AsymmetricQuantizer(),
}


def avoid_ties(grid: Grid, values: Tensor) -> Grid:
    """Return a grid with a scale larger by at most 3%, so that no value lies halfway between two codes.

    Runtimes round such values differently: some add the zero point before they round half to even, some multiply by the
    reciprocal of the scale. A value that is frequent, such as the background of images, would then change every output.

    Args:
        grid: Grid of a whole tensor.
        values: Values that the grid will round, ``[n]``.

    Example:
        >>> grid = Grid(torch.tensor(1.0), torch.tensor(3, dtype=torch.int32), 0, 7)
        >>> [avoid_ties(grid, torch.tensor([value])).scale.item() for value in (-2.0, -2.5)]
        [1.0, 1.0009765625]
    """
    if not values.numel():
        return grid
    scales = grid.scale.double() * torch.tensor(TIE_FACTORS, dtype=torch.float64)
    steps = values.double() / scales.unsqueeze(1)
    low, high = (end - int(grid.zero_point) for end in (grid.low, grid.high))
    # Beyond the last codes everything is clipped, whatever it is rounded to.
    distances = torch.where((steps > low) & (steps < high), (steps - steps.floor() - 0.5).abs(), 0.5).amin(1)
    fitting = distances >= TIE_MARGIN
    best = fitting.int().argmax() if bool(fitting.any()) else distances.argmax()
    return replace(grid, scale=scales[best].float())


def _limit_scale(scale: Tensor, width: Tensor, exact: Tensor) -> Tensor:
    # Where `exact` holds the range is a single value, which becomes the scale and is then represented exactly.
    scale = torch.where(exact, width, scale).clamp_(SMALLEST_SCALE, LARGEST_SCALE)
    return torch.where(width == 0, 1.0, scale).float()


def broadcast_parameter(parameter: Tensor, values: Tensor, group: int) -> Tensor:
    """Return a scale or zero point in a shape that broadcasts to ``values``.

    Example:
        >>> broadcast_parameter(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 3), group=2).tolist()
        [[1.0, 1.0, 2.0]]
    """
    if parameter.ndim == 0:
        return parameter
    if parameter.ndim == 1:
        return parameter.view(-1, *[1] * (values.ndim - 1))
    row_size = values[0].numel()
    return parameter.repeat_interleave(group, 1)[:, :row_size].reshape(values.shape)
