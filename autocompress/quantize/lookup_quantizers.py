"""Quantizers whose codes look up a table: powers of two, and a codebook that is fitted to the weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.errors import CompressionError
from autocompress.quantize.clustering import cluster_values
from autocompress.quantize.quantizers import LARGEST_SCALE, SMALLEST_SCALE, broadcast_parameter

# Below 2**-24 of the largest a weight changes no float32 sum that the largest is part of.
LARGEST_EXPONENTS = 24


@dataclass(frozen=True)
class LookupTable:
    """Unevenly spaced values: code ``c`` stands for ``levels[c] * scale``.

    Attributes:
        levels: Ascending, float32, ``[L]``.
        scale: Float32; ``[]`` for a whole tensor, ``[C]`` along axis 0, ``[C, G]`` for groups of each flattened row.
        group: Values that share a scale where there are groups; the last group of a row may be shorter.
    """

    levels: Tensor
    scale: Tensor
    group: int = 0

    def encode(self, values: Tensor) -> Tensor:
        """Return the code of the nearest value, uint8; a tie goes to the lower one."""
        middle = (self.levels[1:].double() + self.levels[:-1].double()) / 2
        return torch.bucketize(values.double() / broadcast_parameter(self.scale, values, self.group), middle).to(
            torch.uint8
        )

    def decode(self, codes: Tensor) -> Tensor:
        """Return the float32 value of each code."""
        return self.levels[codes.int()] * broadcast_parameter(self.scale, codes, self.group)


def build_power_of_two_levels(bits: int) -> Tensor:
    """Return ``-1, -1/2, .., 0, .., 1/2, 1``: a sign and an exponent a code, and zero (Zhou et al. 2017, INQ).

    More than 24 exponents are never used, so that a sixth bit is the last that adds any.

    Raises:
        CompressionError: Fewer than 2 bits leave zero alone.

    Example:
        >>> build_power_of_two_levels(3).tolist()
        [-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]
    """
    if bits < 2:
        raise CompressionError("powers of two need 2 bits: a sign and an exponent")
    exponents = min(2 ** (bits - 1) - 1, LARGEST_EXPONENTS)
    positive = torch.ldexp(torch.ones(exponents), torch.arange(1 - exponents, 1))
    return torch.cat([-positive.flip(0), torch.zeros(1), positive])


def fit_power_of_two_table(reach: Tensor, bits: int) -> LookupTable:
    """Return the table of powers of two whose largest is the nearest to ``reach``, ``[]``, ``[C]`` or ``[C, G]``.

    Every value up to ``reach`` lies within half of the largest power, the table's scale.

    Raises:
        CompressionError: Fewer than 2 bits.

    Example:
        >>> table = fit_power_of_two_table(torch.tensor(0.7), bits=3)
        >>> table.decode(table.encode(torch.tensor([-0.7, 0.2, 0.01]))).tolist()
        [-0.5, 0.25, 0.0]
    """
    levels = build_power_of_two_levels(bits)
    fraction, exponent = torch.frexp(reach.double())
    # reach = fraction * 2**exponent with a fraction from 1/2 to 1: from 3/4 on the power above is nearer.
    scale = torch.ldexp(torch.ones_like(fraction), exponent - (fraction < 0.75).int())
    scale = torch.where(reach == 0, 1.0, scale.clamp(SMALLEST_SCALE, LARGEST_SCALE))
    return LookupTable(levels, scale.float())


def fit_codebook(values: Tensor, scale: Tensor, group: int, bits: int) -> LookupTable:
    """Return a table of at most ``2 ** bits`` levels clustered from a weight (Deep Compression, Han et al. 2016).

    The squared error of ``levels * scale`` is what is made small. Weights of exactly zero keep that value, so that
    what was pruned stays pruned.

    Args:
        values: The weight, ``[C, ...]``.
        scale: What levels are multiplied by, ``[]``, ``[C]`` or ``[C, G]``, positive.
        group: Values that share a scale where there are groups.
        bits: 1 to 8.
    """
    spread = broadcast_parameter(scale, values, group).double().expand_as(values).flatten()
    places = values.detach().flatten().double() / spread
    zero = places == 0
    count = 2**bits - bool(zero.any())
    levels = torch.zeros(0, dtype=torch.float64)
    if not bool(zero.all()):
        levels = cluster_values(places[~zero], spread[~zero].square(), count)
    if count < 2**bits:
        levels = torch.cat([levels, torch.zeros(1, dtype=torch.float64)])
    return LookupTable(levels.float().unique(), scale, group)
