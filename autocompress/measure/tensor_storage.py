"""The stored form of tensors: how an exported model writes them, and the exact bytes that they take on disk.

Each tensor is written in the smallest of these forms.

    dense   every value; floating-point tensors without zeros
    codes   integers as a stream of n-bit codes, no bits for one repeated value
    n_m     the most frequent value left out: of every M values N positions and values (2:4 sparsity and the like)
    mask    the same with one bit for each value, and the other values
    csr     the same with the length of each row and the column of each other value (compressed sparse rows)

The value that is left out is 0.0 in floating-point tensors, and the most frequent code in integer ones: with an
asymmetric grid zero has a code of its own. Names of the file's tensors are that of the tensor for its values, and
``<name>::mask``, ``<name>::positions``, ``<name>::columns`` and ``<name>::lengths`` for the others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from autocompress.errors import ArtifactError

# A file may come from anywhere: sizes and widths beyond these bounds are refused.
Count = Annotated[int, Field(ge=0, le=2**31)]
Shape = Annotated[tuple[Count, ...], Field(max_length=8)]
NumberName = Literal["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"]
# A tensor that takes hardly any bytes is bounded in size: a damaged file must not ask for all memory.
LARGEST_CONSTANT = 2**24
LARGEST_EXPANSION = 1024
# The same for all such tensors of a file together, in bytes in memory.
LARGEST_UNPACKED, LARGEST_TOTAL_EXPANSION = 2**28, 64
# Group lengths that are tried for N:M.
GROUPS = (4, 8)
MAX_CODE_BITS = 8
MAX_INDEX_BITS = 32

Codes = NDArray[np.int64]


class Packed(BaseModel):
    """The stored form of one tensor.

    Attributes:
        form: Name of the form.
        bits: Bits of a code; zero for one repeated value, and for floating-point tensors, whose values stay whole.
        offset: The smallest code, which is stored as zero.
        shape: Shape of the tensor.
        dtype: Type of the tensor.
        omitted: The value that is left out.
        present: Number of values that are stored.
        group: M of N:M.
        width: N of N:M, or the bits of a row's length for ``csr``.
    """

    # An unknown entry or a value of another type is an error: the file is damaged or of another version.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    form: Literal["codes", "n_m", "mask", "csr"] = "codes"
    bits: Annotated[int, Field(ge=0, le=MAX_CODE_BITS)]
    offset: int
    shape: Shape
    dtype: NumberName
    omitted: int = 0
    present: Count = 0
    group: Annotated[int, Field(ge=0, le=max(GROUPS))] = 0
    width: Annotated[int, Field(ge=0, le=MAX_INDEX_BITS)] = 0

    @property
    def is_integer(self) -> bool:
        """Whether the values are codes."""
        return not self.dtype.startswith(("float", "bfloat"))

    @model_validator(mode="after")
    def _check_form(self) -> Self:
        if not self.is_integer and (self.form == "codes" or self.bits):
            raise ValueError(f"values of type {self.dtype} are not codes")
        return self


@dataclass(frozen=True)
class _Plan:
    """A form with its bytes; ``form`` is None for a dense tensor."""

    form: Packed | None
    nbytes: int


def count_stored_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes that a file takes for these tensors, without its header.

    Example:
        >>> count_stored_bytes({"weight": torch.zeros(8, 8), "bias": torch.ones(8)})
        32
    """
    owners, _ = _find_owners(tensors)
    return sum(_plan_storage(tensors[name]).nbytes for name in owners)


def pack_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Packed], dict[str, str]]:
    """Return the tensors of the file, the forms of those that are not dense, and aliases of tensors that share memory.

    Integer tensors take as many bits as their range needs: a 3-bit layer takes 3 bits per weight.
    """
    stored: dict[str, Tensor] = {}
    packed: dict[str, Packed] = {}
    owners, aliases = _find_owners(tensors)
    for name in owners:
        tensor = tensors[name].detach().cpu()
        form = _plan_storage(tensor).form
        if form is None:
            # safetensors refuses tensors that are not contiguous or share memory.
            stored[name] = tensor.contiguous().clone()
            continue
        packed[name] = form
        parts = _pack_tensor(tensor, form)
        stored |= {f"{name}{suffix}": part for suffix, part in parts.items() if part.numel()}
    return stored, packed, aliases


def unpack_tensors(
    stored: Mapping[str, Tensor], packed: Mapping[str, Packed], aliases: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return the tensors that :func:`pack_tensors` was given.

    Raises:
        ArtifactError: A part is missing, has the wrong length or a value out of range, or an alias has no owner.
    """
    _check_total(stored, packed)
    parts = {name: tensor for name, tensor in stored.items() if "::" not in name}
    tensors = {name: tensor for name, tensor in parts.items() if name not in packed}
    for name, form in packed.items():
        try:
            tensors[name] = _unpack_tensor(name, stored, form)
        except (IndexError, OverflowError, RuntimeError, ValueError) as error:
            raise ArtifactError(f"model.safetensors: '{name}': {error}") from error
    # After unpacking, because the owner may be a packed tensor.
    for name, owner in aliases.items():
        if owner not in tensors:
            raise ArtifactError(f"model.safetensors lacks '{owner}'")
        tensors[name] = tensors[owner]
    return tensors


def count_packed_bytes(count: int, bits: int) -> int:
    """Return the number of bytes that ``count`` codes of ``bits`` bits take.

    Example:
        >>> count_packed_bytes(10, 3)
        4
    """
    return (count * bits + 7) // 8


def _check_total(stored: Mapping[str, Tensor], packed: Mapping[str, Packed]) -> None:
    """Check what all tensors take in memory before any is unpacked: many small forms may declare large ones."""
    unpacked = sum(math.prod(form.shape) * getattr(torch, form.dtype).itemsize for form in packed.values())
    nbytes = sum(tensor.nbytes for tensor in stored.values())
    if unpacked > max(LARGEST_UNPACKED, LARGEST_TOTAL_EXPANSION * nbytes):
        raise ArtifactError(
            f"model.safetensors: its {nbytes:,} bytes declare tensors of {unpacked:,}; it was changed, or has "
            "another use of zeros than autocompress writes"
        )


def pack_codes(codes: Tensor, bits: int, offset: int = 0) -> Tensor:
    """Return integer codes as a packed stream of bits, ``[...] -> uint8 [count_packed_bytes(n, bits)]``.

    Args:
        codes: Integers from ``offset`` to ``offset + 2**bits - 1``, any shape.
        bits: Number of bits per code, 1 to 32.
        offset: Smallest code, which is stored as zero.

    Raises:
        ValueError: ``bits`` is not 1 to 32, or a code does not fit.

    Example:
        >>> pack_codes(torch.tensor([1, 2, 3]), bits=2).tolist()
        [57]
    """
    _check_bits(bits)
    shifted = codes.detach().cpu().to(torch.int64).numpy().ravel() - offset
    if shifted.size and not 0 <= shifted.min() <= shifted.max() < 2**bits:
        raise ValueError(f"codes from {shifted.min() + offset} to {shifted.max() + offset} do not fit {bits} bits")
    # One row of bits per code, the least significant first; `packbits` then concatenates the rows.
    rows = shifted.astype("<u4").view(np.uint8).reshape(-1, 4)
    planes = np.unpackbits(rows, axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(planes, bitorder="little"))


def unpack_codes(packed: Tensor, bits: int, shape: tuple[int, ...], offset: int, dtype: torch.dtype) -> Tensor:
    """Return the codes that :func:`pack_codes` stored, ``uint8 [count_packed_bytes(n, bits)] -> shape``.

    Raises:
        ValueError: ``bits`` is not 1 to 32, or the length of the stream does not match the shape.
    """
    _check_bits(bits)
    count = int(np.prod(shape, dtype=np.int64))
    size = count_packed_bytes(count, bits)
    if packed.dtype != torch.uint8 or tuple(packed.shape) != (size,):
        raise ValueError(f"{count} codes of {bits} bits take {size} bytes, got {list(packed.shape)}")
    planes = np.unpackbits(packed.cpu().numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    rows = np.zeros((count, 4), np.uint8)
    columns = np.packbits(planes, axis=1, bitorder="little")
    rows[:, : columns.shape[1]] = columns
    shifted = rows.view("<u4").reshape(shape).astype(np.int64)
    return (torch.from_numpy(shifted) + offset).to(dtype)


def _find_owners(tensors: Mapping[str, Tensor]) -> tuple[list[str], dict[str, str]]:
    """Return the names that are stored, and the owner of each name that shares another one's memory (tied weights)."""
    owners: dict[tuple[object, ...], str] = {}
    aliases: dict[str, str] = {}
    names = []
    for name, tensor in tensors.items():
        owner = owners.setdefault((tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()), name)
        # Empty tensors have no memory to share, whatever their address.
        if owner != name and tensor.numel():
            aliases[name] = owner
        else:
            names.append(name)
    return names, aliases


def _plan_storage(tensor: Tensor) -> _Plan:
    """Return the smallest form of a tensor; of equal ones the simplest."""
    tensor = tensor.detach().cpu()
    count = tensor.numel()
    dense = _Plan(None, tensor.nbytes)
    if not count or tensor.is_complex():
        return dense
    if tensor.is_floating_point():
        bits, offset, omitted, value_bytes = 0, 0, 0, tensor.element_size()
        is_kept = tensor != 0
    else:
        offset, high = int(tensor.min()), int(tensor.max())
        bits, value_bytes = (high - offset).bit_length(), 0
        if bits > MAX_CODE_BITS:
            return dense
        dense = _Plan(_form(tensor, "codes", bits, offset), count_packed_bytes(count, bits))
        if bits == 0:
            return dense if count <= LARGEST_CONSTANT else _Plan(None, tensor.nbytes)
        shifted = tensor.to(torch.int64).ravel() - offset
        omitted = int(torch.bincount(shifted).argmax()) + offset
        is_kept = tensor != omitted
    present = int(is_kept.count_nonzero())
    # Positions take at least 3/8 of a bit for each value (1:8), so that nothing can be saved beyond this share.
    if present >= count * (1 - 0.375 / (bits or 8 * value_bytes)):
        return dense
    plans = [dense]
    matrix = _as_matrix(is_kept)

    def add_plan(form: str, index_bytes: int, values: int, **extra: int) -> None:
        nbytes = index_bytes + (count_packed_bytes(values, bits) if bits else values * value_bytes)
        if count <= max(LARGEST_CONSTANT, LARGEST_EXPANSION * nbytes):
            plans.append(_Plan(_form(tensor, form, bits, offset, omitted=omitted, present=present, **extra), nbytes))

    for group in GROUPS:
        if matrix.shape[1] % group == 0:
            width = int(matrix.unflatten(1, (-1, group)).sum(-1).max())
            slots = count // group * width
            if 0 < width < group:
                positions = count_packed_bytes(slots, (group - 1).bit_length())
                add_plan("n_m", positions, slots, group=group, width=width)
    add_plan("mask", count_packed_bytes(count, 1), present)
    width = int(matrix.sum(1).max()).bit_length()
    columns = count_packed_bytes(present, _index_bits(matrix.shape[1]))
    add_plan("csr", columns + count_packed_bytes(len(matrix), width), present, width=width)
    return min(plans, key=lambda plan: plan.nbytes)


def _form(tensor: Tensor, form: str, bits: int, offset: int, **extra: int) -> Packed:
    dtype = str(tensor.dtype).removeprefix("torch.")
    values = {"form": form, "bits": bits, "offset": offset, "shape": tuple(tensor.shape), "dtype": dtype, **extra}
    return Packed.model_validate(values)


def _as_matrix(tensor: Tensor) -> Tensor:
    """Return a tensor as rows, ``[D, C, ...] -> [D, C ...]``, with inputs last, as N:M patterns lie along inputs."""
    if tensor.ndim < 2:
        return tensor.reshape(1, -1)
    return tensor.movedim(1, -1).reshape(len(tensor), -1)


def _from_matrix(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    if len(shape) < 2:
        return matrix.reshape(tuple(shape))
    return matrix.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous()


def _index_bits(count: int) -> int:
    """Return the bits of a number below ``count``."""
    return max(1, (count - 1).bit_length())


def _pack_tensor(tensor: Tensor, form: Packed) -> dict[str, Tensor]:
    """Return the parts of a tensor by the suffix of their names."""
    if form.form == "codes":
        return {"": pack_codes(tensor, form.bits, form.offset)} if form.bits else {}
    matrix = _as_matrix(tensor)
    is_kept = matrix != form.omitted
    if form.form == "n_m":
        groups = is_kept.unflatten(1, (-1, form.group))
        # Stable, so that kept values come first and in order; the slots after them hold values that are left out.
        positions = torch.argsort(groups.to(torch.uint8), dim=-1, descending=True, stable=True)[..., : form.width]
        values = matrix.unflatten(1, (-1, form.group)).gather(-1, positions)
        parts = {"::positions": pack_codes(positions, _index_bits(form.group))}
    else:
        values = matrix[is_kept]
        if form.form == "mask":
            parts = {"::mask": pack_codes(is_kept, 1)}
        else:
            columns = is_kept.nonzero()[:, 1]
            parts = {"::columns": pack_codes(columns, _index_bits(matrix.shape[1]))}
            if form.width:
                parts["::lengths"] = pack_codes(is_kept.sum(1), form.width)
    return {"": pack_codes(values, form.bits, form.offset) if form.bits else values.flatten().clone(), **parts}


def _unpack_tensor(name: str, stored: Mapping[str, Tensor], form: Packed) -> Tensor:
    dtype = getattr(torch, form.dtype)
    count = torch.Size(form.shape).numel()
    parts = {
        suffix: stored.get(f"{name}{suffix}") for suffix in ("", "::mask", "::positions", "::columns", "::lengths")
    }
    nbytes = sum(part.nbytes for part in parts.values() if part is not None)
    if count > max(LARGEST_CONSTANT, LARGEST_EXPANSION * nbytes):
        raise ValueError(f"it is too large: {count} values from {nbytes} bytes")
    if form.form == "codes" and not form.bits:
        return torch.full(form.shape, form.offset, dtype=dtype)

    def read_codes(suffix: str, size: int, bits: int, offset: int = 0) -> Tensor:
        if size == 0 or bits == 0:
            return torch.full((size,), offset)
        part = parts[suffix]
        if part is None:
            raise ArtifactError(f"model.safetensors lacks '{name}{suffix}'")
        return unpack_codes(part, bits, (size,), offset, torch.int64)

    def read_values(size: int) -> Tensor:
        if form.is_integer:
            return read_codes("", size, form.bits, form.offset).to(dtype)
        values = parts[""] if size else torch.zeros(0, dtype=dtype)
        if values is None or values.dtype != dtype or tuple(values.shape) != (size,):
            raise ValueError(f"{size} values of type {form.dtype} are missing")
        return values

    if form.form == "codes":
        return read_values(count).view(form.shape)
    rows = form.shape[0] if len(form.shape) > 1 else 1
    matrix = torch.full((rows, count // max(rows, 1)), form.omitted, dtype=dtype)
    if form.form == "n_m":
        if not 0 < form.width < form.group or matrix.shape[1] % form.group:
            raise ValueError(f"groups of {form.group} do not fit rows of {matrix.shape[1]}")
        slots = count // form.group * form.width
        positions = read_codes("::positions", slots, _index_bits(form.group)).view(rows, -1, form.width)
        matrix.view(rows, -1, form.group).scatter_(-1, positions, read_values(slots).view(positions.shape))
    elif form.form == "mask":
        is_kept = read_codes("::mask", count, 1).bool().view(matrix.shape)
        if int(is_kept.sum()) != form.present:
            raise ValueError(f"the mask keeps {int(is_kept.sum())} values instead of {form.present}")
        matrix[is_kept] = read_values(form.present)
    else:
        lengths = read_codes("::lengths", rows, form.width)
        columns = read_codes("::columns", form.present, _index_bits(matrix.shape[1]))
        if int(lengths.sum()) != form.present or (form.present and int(columns.max()) >= matrix.shape[1]):
            raise ValueError(f"rows and columns do not fit a matrix of shape {list(matrix.shape)}")
        matrix[torch.arange(rows).repeat_interleave(lengths), columns] = read_values(form.present)
    return _from_matrix(matrix, form.shape)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= MAX_INDEX_BITS:
        raise ValueError(f"codes have 1 to {MAX_INDEX_BITS} bits, not {bits}")
