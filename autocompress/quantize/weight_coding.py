"""Coding of weights: a quantizer, a granularity and a range turn a weight into codes and back."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from autocompress.core.knobs import RegisteredChoice
from autocompress.core.precisions import HALF_BITS
from autocompress.core.registry import QUANTIZERS
from autocompress.errors import CompressionError
from autocompress.quantize.lookup_quantizers import LookupTable, fit_codebook, fit_power_of_two_table
from autocompress.quantize.observers import compute_squared_error
from autocompress.quantize.quantizers import WEIGHT_QUANTIZERS, Grid, LinearQuantizer

GRANULARITIES = ("per_tensor", "per_channel", "per_group")
WEIGHT_OBSERVERS = ("minmax", "mse")
#: The entry ``by`` of float16 weights in a quantization history.
HALF = "float16"
# Shares of the range of a block that the search for the best clipping compares.
CLIPPING_SHARES = tuple(1 - 0.02 * step for step in range(40))
# Factors of the scale that the same search compares for powers of two, whose scale is a power of two itself.
SCALE_FACTORS = (1.0, 0.5, 0.25, 0.125)
# Largest number of values that the search for the best clipping holds in memory at once.
LARGEST_SEARCH = 2**22


@dataclass(frozen=True)
class WeightCoding:
    """Settings of the coding of a weight.

    Attributes:
        bits: Number of bits of a code; 16 for float16 values, which no other setting changes.
        quantizer: Registered name of the quantizer, such as ``linear``, ``power_of_two`` or ``codebook``.
        scheme: ``symmetric`` or ``asymmetric`` codes around zero, for ``linear``.
        granularity: Part of the weight with one scale: ``per_tensor``, ``per_channel`` (output channel) or
            ``per_group`` (group of weights of a channel).
        group_size: Number of weights in a group; the last group of a channel can be shorter.
        observer: Range of a block: ``minmax``, or ``mse``, the clipping of least squared error; a codebook minimizes
            that error in any case.
    """

    bits: int
    quantizer: str = "linear"
    scheme: str = "symmetric"
    granularity: str = "per_channel"
    group_size: int = 32
    observer: str = "minmax"

    @property
    def is_integer(self) -> bool:
        """Whether integer kernels can run the weight: one scale and zero point per tensor or channel."""
        return self.quantizer == "linear" and self.granularity != "per_group"

    @property
    def group(self) -> int:
        """The number of weights in a group, 0 without groups."""
        return self.group_size if self.granularity == "per_group" else 0


@dataclass(frozen=True)
class HalfPrecision:
    """The map of float16 values, which are their own codes.

    Attributes:
        group: Number of values that share a scale: there are no scales.
    """

    group: int = 0


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight as codes with the map from codes to values.

    Attributes:
        codes: Integer codes, or float16 values; shaped like the weight.
        code_map: Grid of evenly spaced values, lookup table, or float16.
    """

    codes: Tensor
    code_map: Grid | LookupTable | HalfPrecision

    def dequantize(self) -> Tensor:
        """Return the float32 weight."""
        if isinstance(self.code_map, HalfPrecision):
            return self.codes.float()
        return (
            LinearQuantizer().decode(self.codes, self.code_map)
            if isinstance(self.code_map, Grid)
            else self.code_map.decode(self.codes)
        )

    @property
    def is_integer(self) -> bool:
        """Whether integer kernels can run the weight."""
        return isinstance(self.code_map, Grid) and not self.code_map.group

    def to_json(self) -> dict[str, str | int]:
        """Return the JSON values that :func:`load_weight` needs with the tensors; none for integer kernels."""
        if self.is_integer:
            return {}
        if isinstance(self.code_map, HalfPrecision):
            return {"by": HALF}
        return {"by": "grid" if isinstance(self.code_map, Grid) else "table", "group": self.code_map.group}

    def to_tensors(self, layer: str) -> dict[str, Tensor]:
        """Return the tensors that :func:`load_weight` reads, by name."""
        if isinstance(self.code_map, HalfPrecision):
            return {f"{layer}.weight_codes": self.codes}
        last = (
            {"zero_point": self.code_map.zero_point}
            if isinstance(self.code_map, Grid)
            else {"levels": self.code_map.levels}
        )
        tensors = {"codes": self.codes, "scale": self.code_map.scale, **last}
        return {f"{layer}.weight_{part}": tensor for part, tensor in tensors.items()}


class WeightQuantizer(Protocol):
    """A function that encodes a weight; registered by name in ``QUANTIZERS``.

    A quantizer with levels of its own returns them as a :class:`LookupTable`, which exported models contain, so they
    do not need the code of the quantizer.
    """

    def __call__(self, weight: Tensor, coding: WeightCoding, /) -> QuantizedWeight:
        """Return the codes of a weight and their values, ``[C, ...] -> [C, ...]``."""
        ...


def encode_weight(weight: Tensor, coding: WeightCoding) -> QuantizedWeight:
    """Return a weight as codes, ``[C, ...] -> [C, ...]``.

    Raises:
        CompressionError: The quantizer does not support so few bits, or float16 does not hold so large values.

    Example:
        >>> quantized = encode_weight(torch.tensor([[0.9, -0.4], [3.0, 1.0]]), WeightCoding(2))
        >>> quantized.codes.tolist(), quantized.code_map.scale.tolist()
        ([[1, 0], [1, 0]], [0.8999999761581421, 3.0])
    """
    if coding.bits == HALF_BITS:
        return _encode_half(weight.detach())
    quantized = QUANTIZERS[coding.quantizer](weight.detach(), coding)
    # An artifact contains only tensors, because it is loaded without the code of the plugin that wrote it.
    if not isinstance(quantized, QuantizedWeight) or not isinstance(quantized.code_map, Grid | LookupTable):
        raise CompressionError(
            f"quantizer '{coding.quantizer}' returns codes that an exported model cannot contain: it must return "
            "QuantizedWeight(codes, LookupTable(levels, scale, group)), or a Grid instead of the table"
        )
    return quantized


def _encode_half(weight: Tensor) -> QuantizedWeight:
    """Return a weight as float16 values."""
    values = weight.to(torch.float16)
    if not bool(values.isfinite().all()):
        largest, limit = float(weight.abs().max()), torch.finfo(torch.float16).max
        raise CompressionError(f"float16 ends at {limit:g}, and the weight has a value of {largest:g}; use 32 bits")
    return QuantizedWeight(values, HalfPrecision())


def encode_linear(weight: Tensor, coding: WeightCoding) -> QuantizedWeight:
    """Return a weight as codes of evenly spaced values."""
    grid = fit_grid(weight, coding)
    return QuantizedWeight(LinearQuantizer().encode(weight, grid), grid)


def encode_power_of_two(weight: Tensor, coding: WeightCoding) -> QuantizedWeight:
    """Return a weight as codes of powers of two times a scale."""
    blocks = split_blocks(weight, coding)
    table = _fit_power_of_two(blocks, blocks.abs().amax(1), coding)
    table = replace(table, scale=reshape_to_scale(table.scale, weight, coding), group=coding.group)
    return QuantizedWeight(table.encode(weight), table)


def encode_codebook(weight: Tensor, coding: WeightCoding) -> QuantizedWeight:
    """Return a weight as codes of a lookup table that is fitted to it."""
    max_abs = split_blocks(weight, coding).abs().amax(1)
    # One table serves all blocks, so each block is normalized by its largest value; a single block needs no scale.
    ones = torch.ones_like(max_abs)
    scale = ones if coding.granularity == "per_tensor" else torch.where(max_abs == 0, ones, max_abs)
    table = fit_codebook(weight, reshape_to_scale(scale, weight, coding), coding.group, coding.bits)
    return QuantizedWeight(table.encode(weight), table)


def fit_grid(weight: Tensor, coding: WeightCoding) -> Grid:
    """Return the grid of evenly spaced values for a weight."""
    quantizer = WEIGHT_QUANTIZERS[coding.scheme]
    blocks = split_blocks(weight.detach(), coding)
    low, high = torch.aminmax(blocks, dim=1)
    if coding.observer == "mse":
        share = search_clipping(blocks, low, high, coding)
        low, high = low * share, high * share
    grid = quantizer.fit(reshape_to_scale(low, weight, coding), reshape_to_scale(high, weight, coding), coding.bits)
    return replace(grid, group=coding.group)


def search_clipping(blocks: Tensor, low: Tensor, high: Tensor, coding: WeightCoding) -> Tensor:
    """Return the share of each block's range that minimizes the squared error, ``[B, n] -> [B]``."""
    quantizer = WEIGHT_QUANTIZERS[coding.scheme]
    shares = torch.tensor(CLIPPING_SHARES, dtype=low.dtype)
    # Few shares at once for large weights, all at once for small ones.
    chunk_size = max(1, LARGEST_SEARCH // blocks.numel())
    errors = [
        compute_squared_error(blocks, quantizer.fit(low * chunk[:, None], high * chunk[:, None], coding.bits)).sum(-1)
        for chunk in shares.split(chunk_size)
    ]
    return shares[torch.cat(errors).argmin(0)]


def split_blocks(weight: Tensor, coding: WeightCoding) -> Tensor:
    """Return the blocks with one scale as rows, ``[C, ...] -> [B, n]``; a shorter last group is padded with zeros.

    Example:
        >>> split_blocks(torch.ones(2, 3), WeightCoding(8, granularity="per_group", group_size=2)).tolist()
        [[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 0.0]]
    """
    if coding.granularity == "per_tensor":
        return weight.reshape(1, -1)
    rows = weight.flatten(1)
    if coding.granularity == "per_channel":
        return rows
    return F.pad(rows, (0, -rows.shape[1] % coding.group)).view(-1, coding.group)


def join_blocks(blocks: Tensor, shape: torch.Size, coding: WeightCoding) -> Tensor:
    """Return the weight from its blocks, the inverse of :func:`split_blocks`, ``[B, n] -> [C, ...]``."""
    if coding.granularity == "per_group":
        blocks = blocks.view(shape[0], -1)[:, : shape[1:].numel()]
    return blocks.reshape(shape)


def reshape_to_scale(parameter: Tensor, weight: Tensor, coding: WeightCoding) -> Tensor:
    """Return values per block in the shape of a scale, ``[B] -> []``, ``[C]`` or ``[C, G]``."""
    if coding.granularity == "per_tensor":
        return parameter.view(())
    return parameter.view(len(weight), -1) if coding.granularity == "per_group" else parameter


def load_weight(
    layer: str, entry: Mapping[str, str | int], shape: torch.Size, tensors: Mapping[str, Tensor]
) -> QuantizedWeight:
    """Return the quantized weight that :meth:`QuantizedWeight.to_tensors` wrote.

    Raises:
        CompressionError: The tensors do not fit the layer or each other.
        KeyError: A tensor is missing.
    """
    if entry.get("by") == HALF:
        values = tensors[f"{layer}.weight_codes"]
        if values.shape != shape or values.dtype != torch.float16:
            raise CompressionError(f"layer '{layer}' needs {list(shape)} float16 weights, not {list(values.shape)}")
        return QuantizedWeight(values, HalfPrecision())
    is_table = entry.get("by") == "table"
    parts = ("codes", "scale", "levels" if is_table else "zero_point")
    codes, scale, last = (tensors[f"{layer}.weight_{part}"] for part in parts)
    # Files can be edited or belong to another model, so every shape is checked before it is used.
    if codes.shape != shape:
        raise CompressionError(f"layer '{layer}' has another shape: {list(codes.shape)} codes, {list(shape)} weights")
    group = int(entry.get("group", 0))
    blocks = (shape[0], math.ceil(shape[1:].numel() / group)) if group > 0 else None
    if tuple(scale.shape) not in ({blocks} if blocks else {(), (shape[0],)}):
        raise CompressionError(f"layer '{layer}' has {list(scale.shape)} scales for {list(shape)} codes")
    if is_table:
        if last.ndim != 1 or codes.dtype != torch.uint8 or int(codes.max()) >= len(last):
            raise CompressionError(f"layer '{layer}' has codes beyond its table of {list(last.shape)} levels")
        return QuantizedWeight(codes, LookupTable(last, scale, group))
    if last.shape != scale.shape:
        raise CompressionError(f"layer '{layer}' has {list(last.shape)} zero points for {list(scale.shape)} scales")
    # The exact ends do not matter for decoding, so those of the integer type stand for them.
    limits = torch.iinfo(codes.dtype)
    return QuantizedWeight(codes, Grid(scale, last, limits.min, limits.max, group))


def _fit_power_of_two(blocks: Tensor, max_abs: Tensor, coding: WeightCoding) -> LookupTable:
    """Return the table of each block, with the scale factor that minimizes the squared error."""
    table = fit_power_of_two_table(max_abs, coding.bits)
    if coding.observer == "minmax":
        return table
    # Smaller scales clip the largest weights and represent the many small ones better.
    tables = [replace(table, scale=table.scale * factor) for factor in SCALE_FACTORS]
    errors = [(option.decode(option.encode(blocks)) - blocks).square().sum(1) for option in tables]
    best = torch.stack(errors).argmin(0)
    return replace(table, scale=torch.stack([option.scale for option in tables]).gather(0, best[None])[0])


_BUILTIN: Mapping[str, WeightQuantizer] = {
    "linear": encode_linear,
    "power_of_two": encode_power_of_two,
    "codebook": encode_codebook,
}
for _name, _quantizer in _BUILTIN.items():
    QUANTIZERS.add(_name, _quantizer)

QUANTIZER_NAMES = tuple(_BUILTIN)
QUANTIZER_CHOICE = RegisteredChoice(QUANTIZERS, first=QUANTIZER_NAMES)
