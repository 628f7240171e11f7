"""Packing of n-bit codes into bytes without padding between codes: a 3-bit layer takes 3 bits per weight."""

import numpy as np
import torch
from torch import Tensor


def count_packed_bytes(count: int, bits: int) -> int:
    """Return the number of bytes that ``count`` codes of ``bits`` bits take.

    Example:
        >>> count_packed_bytes(10, 3)
        4
    """
    return (count * bits + 7) // 8


def pack_codes(codes: Tensor, bits: int, offset: int = 0) -> Tensor:
    """Return integer codes as a packed stream of bits, ``[...] -> uint8 [packed_bytes(n, bits)]``.

    Args:
        codes: Integers from ``offset`` to ``offset + 2**bits - 1``, any shape.
        bits: Number of bits per code, 1 to 8.
        offset: Smallest code, which is stored as zero.

    Raises:
        ValueError: ``bits`` is not 1 to 8, or a code does not fit.

    Example:
        >>> pack_codes(torch.tensor([1, 2, 3]), bits=2).tolist()
        [57]
    """
    _check_bits(bits)
    shifted = codes.detach().cpu().to(torch.int64).numpy().ravel() - offset
    if shifted.size and not 0 <= shifted.min() <= shifted.max() < 2**bits:
        raise ValueError(f"codes from {shifted.min() + offset} to {shifted.max() + offset} do not fit {bits} bits")
    # One row of bits per code, the least significant first; `packbits` then concatenates the rows.
    planes = np.unpackbits(shifted.astype(np.uint8)[:, None], axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(planes, bitorder="little"))


def unpack_codes(packed: Tensor, bits: int, shape: tuple[int, ...], offset: int, dtype: torch.dtype) -> Tensor:
    """Return the codes that :func:`pack_codes` stored, ``uint8 [packed_bytes(n, bits)] -> shape``.

    Raises:
        ValueError: ``bits`` is not 1 to 8, or the length of the stream does not match the shape.
    """
    _check_bits(bits)
    count = int(np.prod(shape, dtype=np.int64))
    size = count_packed_bytes(count, bits)
    if packed.dtype != torch.uint8 or tuple(packed.shape) != (size,):
        raise ValueError(f"{count} codes of {bits} bits take {size} bytes, got {list(packed.shape)}")
    planes = np.unpackbits(packed.cpu().numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    # Codes have at most 8 bits, so each row of bits packs to exactly one byte.
    shifted = np.packbits(planes, axis=1, bitorder="little").reshape(shape)
    return (torch.from_numpy(shifted).to(torch.int64) + offset).to(dtype)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"codes have 1 to 8 bits, not {bits}")
