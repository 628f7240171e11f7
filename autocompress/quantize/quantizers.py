"""Quantizers: a range becomes a grid of codes, and tensors go to codes and back."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# The reciprocal of a scale inside these limits is finite in float32, and so is every code times it.
SMALLEST_SCALE = 2.0**-100
LARGEST_SCALE = 2.0**119


@dataclass(frozen=True)
class Grid:
    """Evenly spaced values: code ``c`` stands for ``(c - zero_point) * scale``.

    Attributes:
        scale: Distance of neighbours, float32; ``[]`` for a whole tensor, ``[C]`` along axis 0, ``[C, G]`` for
            groups of each flattened row.
        zero_point: The code of 0.0, int32, shaped like ``scale``.
        low: The smallest code.
        high: The largest code.
        group: Values that share a scale where there are groups; the last group of a row may be shorter.
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
    """Maps a range to a grid, and tensors to codes and back."""

    def fit(self, low: Tensor, high: Tensor, bits: int) -> Grid:
        """Return the grid for values from ``low`` to ``high``, of any one shape."""
        ...

    def encode(self, values: Tensor, grid: Grid) -> Tensor:
        """Return the code of each value, shaped like ``values``."""
        ...

    def decode(self, codes: Tensor, grid: Grid) -> Tensor:
        """Return the float32 value of each code."""
        ...


class LinearQuantizer:
    """Evenly spaced codes: rounding to the nearest, half to even, as the fake-quantization operators of torch do.

    Inside the fitted range ``|x - decode(encode(x))| <= scale / 2``. A channel that holds a single value is
    given that value as its scale, so it comes back exactly; a range of zero has scale 1.
    """

    def encode(self, values: Tensor, grid: Grid) -> Tensor:
        """Return the code of each value; values outside the range get the nearest end."""
        scale = broadcast_parameter(grid.scale, values, grid.group)
        zero_point = broadcast_parameter(grid.zero_point, values, grid.group)
        return values.mul(scale.reciprocal()).round_().add_(zero_point).clamp_(grid.low, grid.high).to(grid.dtype)

    def decode(self, codes: Tensor, grid: Grid) -> Tensor:
        """Return the float32 value of each code."""
        zero_point = broadcast_parameter(grid.zero_point, codes, grid.group)
        return (codes.to(torch.float32) - zero_point).mul_(broadcast_parameter(grid.scale, codes, grid.group))


class SymmetricQuantizer(LinearQuantizer):
    """Zero is code 0 and the range reaches equally far to both sides: [-a, a] -> -(2^(bits-1) - 1) .. 2^(bits-1) - 1.

    Args:
        unsigned: Spend all codes on the positive side where the range holds no negative value.

    Example:
        >>> grid = SymmetricQuantizer().fit(torch.tensor(-1.0), torch.tensor(0.5), bits=3)
        >>> SymmetricQuantizer().encode(torch.tensor([-1.0, 0.2, 0.5]), grid).tolist()
        [-3, 1, 2]
    """

    def __init__(self, unsigned: bool = False) -> None:
        self.unsigned = unsigned

    def fit(self, low: Tensor, high: Tensor, bits: int) -> Grid:
        """Return the grid for values from ``low`` to ``high``, of any one shape."""
        low, high = low.double(), high.double()
        if self.unsigned and bool((low >= 0).all()):
            steps, first, last = 2.0**bits - 1, 0, 2**bits - 1
        else:
            # One bit leaves the codes -1 and 0: a step of twice the range keeps the error below half a step.
            steps, first, last = max(2.0 ** (bits - 1) - 1, 0.5), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        reach = torch.maximum(low.abs(), high.abs())
        scale = _scale(reach / steps, reach, exact=(low == high) & (last > 0))
        return Grid(scale, torch.zeros_like(scale, dtype=torch.int32), first, last)


class AsymmetricQuantizer(LinearQuantizer):
    """The codes 0 .. 2^bits - 1 span the range, which is widened to hold zero.

    Example:
        >>> grid = AsymmetricQuantizer().fit(torch.tensor(-1.0), torch.tensor(2.0), bits=2)
        >>> grid.scale.item(), grid.zero_point.item()
        (1.0, 1)
    """

    def fit(self, low: Tensor, high: Tensor, bits: int) -> Grid:
        """Return the grid for values from ``low`` to ``high``, of any one shape."""
        low, high = low.double(), high.double()
        last = 2**bits - 1
        below, above = low.clamp(max=0), high.clamp(min=0)
        reach = above - below
        scale = _scale(reach / last, reach, exact=low == high)
        zero_point = (-below / scale).round_().clamp_(0, last).to(torch.int32)
        return Grid(scale, zero_point, 0, last)


WEIGHT_QUANTIZERS: dict[str, Quantizer] = {"symmetric": SymmetricQuantizer(), "asymmetric": AsymmetricQuantizer()}
ACTIVATION_QUANTIZERS: dict[str, Quantizer] = {
    "symmetric": SymmetricQuantizer(unsigned=True),
    "asymmetric": AsymmetricQuantizer(),
}


def _scale(scale: Tensor, reach: Tensor, exact: Tensor) -> Tensor:
    scale = torch.where(exact, reach, scale).clamp_(SMALLEST_SCALE, LARGEST_SCALE)
    return torch.where(reach == 0, 1.0, scale).float()


def broadcast_parameter(parameter: Tensor, values: Tensor, group: int) -> Tensor:
    """Return a scale or zero point in a shape that broadcasts over ``values``.

    Example:
        >>> broadcast_parameter(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 3), group=2).tolist()
        [[1.0, 1.0, 2.0]]
    """
    if parameter.ndim == 0:
        return parameter
    if parameter.ndim == 1:
        return parameter.view(-1, *[1] * (values.ndim - 1))
    row = values[0].numel()
    return parameter.repeat_interleave(group, 1)[:, :row].reshape(values.shape)
