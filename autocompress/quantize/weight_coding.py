"""From a weight to codes and back: which quantizer, over which part of the weight, with which range."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from autocompress.core.knobs import RegisteredChoice
from autocompress.core.registry import QUANTIZERS
from autocompress.errors import CompressionError
from autocompress.quantize.histogram_observers import compute_squared_error
from autocompress.quantize.lookup_quantizers import LookupTable, fit_codebook, fit_power_of_two_table
from autocompress.quantize.quantizers import WEIGHT_QUANTIZERS, Grid, LinearQuantizer

GRANULARITIES = ("per_tensor", "per_channel", "per_group")
WEIGHT_OBSERVERS = ("minmax", "mse")
SHARES = tuple(1 - 0.02 * step for step in range(40))
SHIFTS = (1.0, 0.5, 0.25, 0.125)
LARGEST_SEARCH = 2**22


@dataclass(frozen=True)
class WeightCoding:
    """How a weight becomes codes.

    Attributes:
        bits: Bits of a code.
        quantizer: Registered name of the quantizer, such as ``linear``, ``power_of_two`` or ``codebook``.
        scheme: Where the codes of ``linear`` lie around zero.
        granularity: What shares a scale: the tensor, each output channel, or each group of a channel's weights.
        group_size: Weights in a group; the last group of a channel is shorter where it does not divide.
        observer: ``minmax``, or ``mse``, the clipping that leaves the smallest squared error; a codebook has that
            anyway.
    """

    bits: int
    quantizer: str = "linear"
    scheme: str = "symmetric"
    granularity: str = "per_channel"
    group_size: int = 32
    observer: str = "minmax"

    @property
    def is_integer(self) -> bool:
        """Whether integer kernels can run it: one scale and one zero point for the tensor or each channel."""
        return self.quantizer == "linear" and self.granularity != "per_group"

    @property
    def group(self) -> int:
        """The weights in a group, 0 where there are none."""
        return self.group_size if self.granularity == "per_group" else 0


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight as codes, and what they stand for."""

    codes: Tensor
    how: Grid | LookupTable

    def values(self) -> Tensor:
        """Return the float32 weight."""
        return (
            LinearQuantizer().decode(self.codes, self.how)
            if isinstance(self.how, Grid)
            else self.how.decode(self.codes)
        )

    @property
    def is_integer(self) -> bool:
        """Whether integer kernels can run it."""
        return isinstance(self.how, Grid) and not self.how.group

    def form(self) -> dict[str, Any]:
        """Return what :func:`load_weight` must know beside the tensors; nothing for what integer kernels can run."""
        if self.is_integer:
            return {}
        return {"by": "grid" if isinstance(self.how, Grid) else "table", "group": self.how.group}

    def saved(self, layer: str) -> dict[str, Tensor]:
        """Return the tensors that :func:`load_weight` reads."""
        how = {"zero_point": self.how.zero_point} if isinstance(self.how, Grid) else {"levels": self.how.levels}
        tensors = {"codes": self.codes, "scale": self.how.scale, **how}
        return {f"{layer}.weight_{part}": tensor for part, tensor in tensors.items()}


class WeightQuantizer(Protocol):
    """A function that turns a weight into codes; registered by name in ``QUANTIZERS``.

    A new grid is a :class:`LookupTable` of its levels: exported models hold it, and need no code of the quantizer.
    """

    def __call__(self, weight: Tensor, coding: WeightCoding, /) -> QuantizedWeight:
        """Return the codes of a weight and their values, ``[C, ...] -> [C, ...]``."""
        ...


def encode_weight(weight: Tensor, coding: WeightCoding) -> QuantizedWeight:
    """Return a weight's codes, ``[C, ...] -> [C, ...]``.

    Raises:
        CompressionError: The quantizer needs more bits.

    Example:
        >>> coded = encode_weight(torch.tensor([[0.9, -0.4], [3.0, 1.0]]), WeightCoding(2))
        >>> coded.codes.tolist(), coded.how.scale.tolist()
        ([[1, 0], [1, 0]], [0.8999999761581421, 3.0])
    """
    coded = QUANTIZERS[coding.quantizer](weight.detach(), coding)
    # Artifacts hold nothing but tensors: they are read without the code of the plugin that wrote them.
    if not isinstance(coded, QuantizedWeight) or not isinstance(coded.how, Grid | LookupTable):
        raise CompressionError(
            f"quantizer '{coding.quantizer}' returns codes that an exported model cannot hold: it must return "
            "QuantizedWeight(codes, LookupTable(levels, scale, group)), or a Grid in the place of the table"
        )
    return coded


def encode_linear(weight: Tensor, coding: WeightCoding) -> QuantizedWeight:
    """Return codes of evenly spaced values."""
    grid = fit_grid(weight, coding)
    return QuantizedWeight(LinearQuantizer().encode(weight, grid), grid)


def encode_power_of_two(weight: Tensor, coding: WeightCoding) -> QuantizedWeight:
    """Return codes of powers of two times a scale."""
    blocks = split_blocks(weight, coding)
    table = _power_of_two(blocks, blocks.abs().amax(1), coding)
    table = replace(table, scale=reshape_to_scale(table.scale, weight, coding), group=coding.group)
    return QuantizedWeight(table.encode(weight), table)


def encode_codebook(weight: Tensor, coding: WeightCoding) -> QuantizedWeight:
    """Return codes of a table that is fitted to the weight."""
    reach = split_blocks(weight, coding).abs().amax(1)
    one = torch.ones_like(reach)
    scale = one if coding.granularity == "per_tensor" else torch.where(reach == 0, one, reach)
    table = fit_codebook(weight, reshape_to_scale(scale, weight, coding), coding.group, coding.bits)
    return QuantizedWeight(table.encode(weight), table)


def fit_grid(weight: Tensor, coding: WeightCoding) -> Grid:
    """Return the evenly spaced grid for a weight."""
    quantizer = WEIGHT_QUANTIZERS[coding.scheme]
    blocks = split_blocks(weight.detach(), coding)
    low, high = torch.aminmax(blocks, dim=1)
    if coding.observer == "mse":
        share = search_clipping(blocks, low, high, coding)
        low, high = low * share, high * share
    grid = quantizer.fit(reshape_to_scale(low, weight, coding), reshape_to_scale(high, weight, coding), coding.bits)
    return replace(grid, group=coding.group)


def search_clipping(blocks: Tensor, low: Tensor, high: Tensor, coding: WeightCoding) -> Tensor:
    """Return the share of each block's range whose grid leaves the smallest squared error, ``[B, n] -> [B]``."""
    quantizer = WEIGHT_QUANTIZERS[coding.scheme]
    shares = torch.tensor(SHARES, dtype=low.dtype)
    at_once = max(1, LARGEST_SEARCH // blocks.numel())
    errors = [
        compute_squared_error(blocks, quantizer.fit(low * some[:, None], high * some[:, None], coding.bits)).sum(-1)
        for some in shares.split(at_once)
    ]
    return shares[torch.cat(errors).argmin(0)]


def split_blocks(weight: Tensor, coding: WeightCoding) -> Tensor:
    """Return what shares a scale as rows, ``[C, ...] -> [B, n]``; a shorter last group is filled up with zeros.

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
    """Return the weight that :func:`split_blocks` was given, ``[B, n] -> [C, ...]``."""
    if coding.granularity == "per_group":
        blocks = blocks.view(shape[0], -1)[:, : shape[1:].numel()]
    return blocks.reshape(shape)


def reshape_to_scale(parameter: Tensor, weight: Tensor, coding: WeightCoding) -> Tensor:
    """Return one number a block in the shape of a scale, ``[B] -> []``, ``[C]`` or ``[C, G]``."""
    if coding.granularity == "per_tensor":
        return parameter.view(())
    return parameter.view(len(weight), -1) if coding.granularity == "per_group" else parameter


def load_weight(
    layer: str, entry: Mapping[str, Any], shape: torch.Size, tensors: Mapping[str, Tensor]
) -> QuantizedWeight:
    """Return the codes that :meth:`QuantizedWeight.saved` wrote.

    Raises:
        CompressionError: The tensors do not fit the layer or each other.
        KeyError: A tensor is missing.
    """
    by_table = entry.get("by") == "table"
    parts = ("codes", "scale", "levels" if by_table else "zero_point")
    codes, scale, last = (tensors[f"{layer}.weight_{part}"] for part in parts)
    if codes.shape != shape:
        raise CompressionError(f"layer '{layer}' has another shape: {list(codes.shape)} codes, {list(shape)} weights")
    group = int(entry.get("group", 0))
    blocks = (shape[0], math.ceil(shape[1:].numel() / group)) if group > 0 else None
    if tuple(scale.shape) not in ({blocks} if blocks else {(), (shape[0],)}):
        raise CompressionError(f"layer '{layer}' has {list(scale.shape)} scales for {list(shape)} codes")
    if by_table:
        if last.ndim != 1 or codes.dtype != torch.uint8 or int(codes.max()) >= len(last):
            raise CompressionError(f"layer '{layer}' has codes beyond its table of {list(last.shape)} levels")
        return QuantizedWeight(codes, LookupTable(last, scale, group))
    if last.shape != scale.shape:
        raise CompressionError(f"layer '{layer}' has {list(last.shape)} zero points for {list(scale.shape)} scales")
    limits = torch.iinfo(codes.dtype)
    return QuantizedWeight(codes, Grid(scale, last, limits.min, limits.max, group))


def _power_of_two(blocks: Tensor, reach: Tensor, coding: WeightCoding) -> LookupTable:
    """Return the table of each block, its scale halved where that leaves a smaller squared error."""
    table = fit_power_of_two_table(reach, coding.bits)
    if coding.observer == "minmax":
        return table
    tables = [replace(table, scale=table.scale * shift) for shift in SHIFTS]
    errors = [(one.decode(one.encode(blocks)) - blocks).square().sum(1) for one in tables]
    best = torch.stack(errors).argmin(0)
    return replace(table, scale=torch.stack([one.scale for one in tables]).gather(0, best[None])[0])


_BUILTIN: Mapping[str, WeightQuantizer] = {
    "linear": encode_linear,
    "power_of_two": encode_power_of_two,
    "codebook": encode_codebook,
}
for _name, _quantizer in _BUILTIN.items():
    QUANTIZERS.add(_name, _quantizer)

QUANTIZER_NAMES = tuple(_BUILTIN)
QUANTIZER_CHOICE = RegisteredChoice(QUANTIZERS, first=QUANTIZER_NAMES)
