"""Non-uniform weight quantizers with a lookup table: powers of two, and a codebook clustered from the weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.errors import CompressionError
from autocompress.quantize.clustering import cluster_values
from autocompress.quantize.quantizers import LARGEST_SCALE, SMALLEST_SCALE, broadcast_parameter

# A weight below 2**-24 of the largest one does not change a float32 sum that contains the largest.
LARGEST_EXPONENTS = 24


@dataclass(frozen=True)
class LookupTable:
    """Unevenly spaced values: code ``c`` stands for ``levels[c] * scale``.

    Attributes:
        levels: Table of values in ascending order, float32, ``[L]``.
        scale: Factor of the levels, float32; ``[]`` for a whole tensor, ``[C]`` along axis 0, ``[C, G]`` for groups of
            each flattened row.
        group: Number of values that share a scale with groups, 0 without; the last group of a row may be shorter.
    """

    levels: Tensor
    scale: Tensor
    group: int = 0

    def encode(self, values: Tensor) -> Tensor:
        """Return the code of the nearest level, uint8; a tie goes to the lower level."""
        # Nearest level: the number of midpoints below the value is the code. In double precision to keep ties exact.
        midpoints = (self.levels[1:].double() + self.levels[:-1].double()) / 2
        return torch.bucketize(values.double() / broadcast_parameter(self.scale, values, self.group), midpoints).to(
            torch.uint8
        )

    def decode(self, codes: Tensor) -> Tensor:
        """Return the float32 value of each code."""
        return self.levels[codes.int()] * broadcast_parameter(self.scale, codes, self.group)


def build_power_of_two_levels(bits: int) -> Tensor:
    """Return the levels ``-1, -1/2, .., 0, .., 1/2, 1`` (INQ, Zhou et al. 2017, arXiv:1702.03044).

    At most 24 exponents are used, so 7 and 8 bits give the same levels as 6.

    Raises:
        CompressionError: ``bits`` is below 2: zero would be the only level.

    Example:
        >>> build_power_of_two_levels(3).tolist()
        [-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]
    """
    if bits < 2:
        raise CompressionError("powers of two need 2 bits: a sign and an exponent")
    exponents = min(2 ** (bits - 1) - 1, LARGEST_EXPONENTS)
    positive = torch.ldexp(torch.ones(exponents), torch.arange(1 - exponents, 1))
    return torch.cat([-positive.flip(0), torch.zeros(1), positive])


def fit_power_of_two_table(max_abs: Tensor, bits: int) -> LookupTable:
    """Return the table of powers of two whose largest level is nearest to ``max_abs``, ``[]``, ``[C]`` or ``[C, G]``.

    Values up to ``max_abs`` have an error of at most half of the table's scale, the largest level.

    Raises:
        CompressionError: ``bits`` is below 2.

    Example:
        >>> table = fit_power_of_two_table(torch.tensor(0.7), bits=3)
        >>> table.decode(table.encode(torch.tensor([-0.7, 0.2, 0.01]))).tolist()
        [-0.5, 0.25, 0.0]
    """
    levels = build_power_of_two_levels(bits)
    fraction, exponent = torch.frexp(max_abs.double())
    # max_abs = fraction * 2**exponent with a fraction in [1/2, 1): from 3/4 on the larger power is nearer.
    scale = torch.ldexp(torch.ones_like(fraction), exponent - (fraction < 0.75).int())
    scale = torch.where(max_abs == 0, 1.0, scale.clamp(SMALLEST_SCALE, LARGEST_SCALE))
    return LookupTable(levels, scale.float())


def fit_codebook(values: Tensor, scale: Tensor, group: int, bits: int) -> LookupTable:
    """Return a table of at most ``2 ** bits`` levels clustered from a weight (Deep Compression, Han et al. 2016).

    The clustering minimizes the squared error of ``levels * scale``. Weights that are exactly zero stay zero, so
    pruned weights stay pruned.

    Args:
        values: The weight, ``[C, ...]``.
        scale: Positive factor of the levels, ``[]``, ``[C]`` or ``[C, G]``.
        group: Number of values that share a scale with groups, 0 without.
        bits: Number of bits of a code, 1 to 8.
    """
    scales = broadcast_parameter(scale, values, group).double().expand_as(values).flatten()
    normalized = values.detach().flatten().double() / scales
    zero = normalized == 0
    # One level is reserved for pruned weights.
    count = 2**bits - bool(zero.any())
    levels = torch.zeros(0, dtype=torch.float64)
    if not bool(zero.all()):
        # An error of a normalized value counts by its squared scale.
        levels = cluster_values(normalized[~zero], scales[~zero].square(), count)
    if count < 2**bits:
        levels = torch.cat([levels, torch.zeros(1, dtype=torch.float64)])
    # `unique` sorts the levels and merges those that are equal in float32.
    return LookupTable(levels.float().unique(), scale, group)
