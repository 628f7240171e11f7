"""Quantized embedding tables in an ONNX graph: only codes are stored, and rows are decoded when they are used.

    row numbers -> Gather (codes) -> Cast, Mul -> row
                -> Gather (scales) ------^

Codes of 4 bits or fewer share bytes: two of 3 or 4 bits, four of 2 bits. All intermediate values are small integers,
which float32 holds exactly, so the graph returns the same rows as the torch module.

On a target with the operator GatherBlockQuantized of onnxruntime, one node does all of it from the same bytes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BYTE = 256
#: Operator of onnxruntime that looks up and decodes rows, and the smallest block with one scale that it takes.
GATHER, SMALLEST_BLOCK = "GatherBlockQuantized", 16


class Lookup(nn.Module):
    """Replacement of a quantized embedding table: row indices ``[...]`` to rows ``[..., D]``.

    Args:
        codes: Codes of the rows, ``[R, D]``.
        scale: Scale of each row, ``[R]``.
        zero_point: Code of 0.0 in each row, ``[R]``; ``None`` where codes are indices into ``levels``.
        levels: Value of each code before scaling, ``[L]``; ``None`` where codes are evenly spaced.

    Example:
        >>> codes, scale = torch.tensor([[1, -2, 1], [0, 1, -1]], dtype=torch.int8), torch.tensor([0.5, 2.0])
        >>> Lookup(codes, scale, torch.zeros(2, dtype=torch.int32), None)(torch.tensor([1, 0])).tolist()
        [[0.0, 2.0, -2.0], [0.5, -1.0, 0.5]]
    """

    def __init__(self, codes: Tensor, scale: Tensor, zero_point: Tensor | None, levels: Tensor | None) -> None:
        super().__init__()
        # Stored codes are unsigned: they are shifted to begin at 0.
        offset = int(codes.min())
        shifted = codes.to(torch.int64) - offset
        self.columns = codes.shape[1]
        self.shared = codes_in_byte(int(shifted.max()))
        # Number of values of one code in its byte: 256, 16 or 4.
        self.base = round(BYTE ** (1 / self.shared))
        places = self.base ** torch.arange(self.shared)
        # Zeros fill the last byte of each row.
        filled = F.pad(shifted, (0, -self.columns % self.shared)).unflatten(1, (-1, self.shared))
        self.codes = nn.Buffer((filled * places).sum(-1).to(torch.uint8))
        self.scale = nn.Buffer(scale.float().unsqueeze(1))
        self.places = nn.Buffer(places.float())
        self.levels = None if levels is None else nn.Buffer(levels.float().unsqueeze(1))
        # The zero point in terms of the stored codes; one number for the table if all rows share it.
        zeros = torch.full_like(scale, -offset) if zero_point is None else zero_point.float() - offset
        same = bool((zeros == zeros[0]).all())
        self.zero = float(zeros[0])
        self.zeros = None if same else nn.Buffer(zeros.float().unsqueeze(1))
        self.first = offset

    def fits_blocks(self) -> bool:
        """Return whether GatherBlockQuantized decodes these codes: even steps, and zero points among the codes."""
        zeros = torch.tensor(self.zero) if self.zeros is None else self.zeros
        return self.levels is None and bool((zeros >= 0).all() and (zeros < self.base).all())

    def forward(self, rows: Tensor) -> Tensor:
        """Return the rows at these indices."""
        codes = F.embedding(rows, self.codes).float()
        if self.shared > 1:
            # Digits of the byte in base `base`, by operations that every ONNX runtime has.
            quotients = (codes.unsqueeze(-1) / self.places).floor()
            digits = quotients - self.base * (quotients / self.base).floor()
            codes = digits.flatten(-2)[..., : self.columns]
        if self.levels is not None:
            values = F.embedding((codes + self.first).long(), self.levels).squeeze(-1)
        else:
            values = codes - (self.zero if self.zeros is None else F.embedding(rows, self.zeros))
        return values * F.embedding(rows, self.scale)


class BlockLookup(nn.Module):
    """Replacement of a quantized embedding table by one node of onnxruntime, for the export only.

    Args:
        table: The table; the operator must decode its codes (:meth:`Lookup.fits_blocks`).
    """

    def __init__(self, table: Lookup) -> None:
        super().__init__()
        self.columns, self.stored = table.columns, table.codes.shape[1] * table.shared
        self.bits = 8 // table.shared
        # One block holds a whole row, because every row has one scale.
        self.block = max(SMALLEST_BLOCK, 2 ** (self.columns - 1).bit_length())
        zeros = table.zeros if table.zeros is not None else torch.full_like(table.scale, table.zero)
        self.codes, self.scale = nn.Buffer(table.codes), nn.Buffer(table.scale)
        # Packed along the row like codes; a row has a single one, in the lowest bits of its byte.
        self.zeros = nn.Buffer(zeros.to(torch.uint8))

    def forward(self, rows: Tensor) -> Tensor:
        """Return the rows at these indices, ``[...] -> [..., D]``."""
        emitted: Tensor = torch.onnx.ops.symbolic(
            f"com.microsoft::{GATHER}",
            (self.codes, rows, self.scale, self.zeros),
            {"bits": self.bits, "block_size": self.block, "gather_axis": 0, "quantize_axis": 1},
            dtype=self.scale.dtype,
            shape=(*rows.shape, self.stored),
            version=1,
        )
        return emitted if self.stored == self.columns else emitted[..., : self.columns]


class BagLookup(nn.Module):
    """Replacement of a table whose rows are summed or averaged: row indices ``[B, n]`` to ``[B, D]``.

    Args:
        table: Replacement of the table.
        count: Number of rows of the table.
        bag: Layer that is replaced. Bags of unequal size (``offsets``) and weights of rows need the decoded table,
            which the graph then stores.
    """

    def __init__(self, table: nn.Module, count: int, bag: nn.EmbeddingBag) -> None:
        super().__init__()
        self.table, self.count = table, count
        self.mode, self.last = bag.mode, bag.include_last_offset
        # No row has the index -1, so nothing is masked.
        self.padding = -1 if bag.padding_idx is None else bag.padding_idx

    def forward(self, rows: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Return the sum, mean or maximum of each bag."""
        if offsets is None and weights is None:
            return self._reduce_bags(self.table(rows), (rows != self.padding).unsqueeze(-1))
        decoded = self.table(torch.arange(self.count))
        return F.embedding_bag(
            rows,
            decoded,
            offsets,
            mode=self.mode,
            per_sample_weights=weights,
            include_last_offset=self.last,
            padding_idx=None if self.padding < 0 else self.padding,
        )

    def _reduce_bags(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Return the sum, mean or maximum over rows without padding, ``[B, n, D] -> [B, D]``; 0 for an empty bag."""
        if self.mode == "max":
            largest = rows.masked_fill(~counts, -torch.inf).amax(1)
            # The maximum of an empty bag would be minus infinity.
            return torch.where(counts.any(1), largest, 0.0)
        total = (rows * counts).sum(1)
        # The mean of an empty bag divides zero by 1.
        return total if self.mode == "sum" else total / counts.sum(1).clamp(min=1)


def replace_bags(model: nn.Module) -> None:
    """Replace every ``nn.EmbeddingBag`` inside a model by a lookup and a sum, in place.

    The exporter of torch writes a loop over the examples instead, which is slow and which some runtimes do not read.
    """
    for parent in list(model.modules()):
        for name, bag in parent.named_children():
            if isinstance(bag, nn.EmbeddingBag):
                table = nn.Embedding.from_pretrained(bag.weight, max_norm=bag.max_norm, norm_type=bag.norm_type)
                setattr(parent, name, BagLookup(table, bag.num_embeddings, bag))


def codes_in_byte(largest: int) -> int:
    """Return the number of codes from 0 to ``largest`` that fit into a byte: 1, 2 or 4.

    Example:
        >>> [codes_in_byte(largest) for largest in (255, 15, 3)]
        [1, 2, 4]
    """
    return 4 if largest < 4 else 2 if largest < 16 else 1


def build_lookup(layer: nn.Module, name: str, tensors: Mapping[str, Tensor], *, in_blocks: bool = False) -> nn.Module:
    """Return the module that replaces a quantized embedding table in a graph.

    Args:
        layer: The table.
        name: Name of the table in the model.
        tensors: Tensors of the quantization: ``<name>.weight_codes``, ``.weight_scale`` and the zero point or levels.
        in_blocks: Whether the target has the operator GatherBlockQuantized.

    Raises:
        KeyError: A tensor is missing.
    """
    prefix = f"{name}.weight_"
    lookup = Lookup(
        tensors[prefix + "codes"],
        tensors[prefix + "scale"],
        tensors.get(prefix + "zero_point"),
        tensors.get(prefix + "levels"),
    )
    table: nn.Module = BlockLookup(lookup) if in_blocks and lookup.fits_blocks() else lookup
    return BagLookup(table, len(lookup.codes), layer) if isinstance(layer, nn.EmbeddingBag) else table
