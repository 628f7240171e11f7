"""Inputs in files, of which the rows of a batch are read: data that is larger than the memory.

np.memmap          its file is read in place
large arrays       arrays and tensors of which a copy would fill the memory are written to the cache folder, in chunks
large data sets    the items are written to the cache folder while they are read once

Every process maps the file, so that workers share it; a task that is sent to a worker holds the path alone.
"""

import hashlib
import logging
import math
import mmap
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.core.atomic import create_temporary, open_cache, storage_errors
from autocompress.core.formatting import format_count
from autocompress.core.free_memory import free_memory
from autocompress.core.task import ExampleKeys, Split, Targets
from autocompress.errors import UsageError

logger = logging.getLogger(__name__)

PARQUET = (".parquet", ".pq")
# Share of the free memory that examples may take: splits are copies, and so are those of each worker.
MEMORY_SHARE = 0.3
# Share of the free disk that the file of a data set of unknown length may take.
DISK_SHARE = 0.5
# Items of a data set between two checks of the memory.
CHECKED_ITEMS = 512
# Bytes that are converted, checked and written at once.
CHUNK = 1 << 26
# Seconds between two lines of progress.
PROGRESS_SECONDS = 5.0


@lru_cache(maxsize=64)
def _map_file(path: str, size: int) -> NDArray[np.uint8]:
    """Return the bytes of a file; the size is part of the key, because a file may be replaced."""
    return np.memmap(path, np.uint8, "r")


@dataclass(frozen=True)
class FileArray:
    """An array in a file, read as tensors of single precision or, for indices, int64.

    Attributes:
        path: The file.
        dtype: Type of its values, with their byte order, as NumPy names it.
        shape: Shape, axis 0 the examples.
        strides: Bytes from one element to the next along each axis, as NumPy has them.
        offset: Byte of the first element.
        largest: Largest whole number if the values are indices into a table; None for real numbers.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    largest: int | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Return the examples that ``rows`` selects, ``[B, ...]``.

        Raises:
            UsageError: The file is gone.
        """
        index = rows.numpy() if isinstance(rows, Tensor) else rows
        # A copy: torch takes no memory that cannot be written, nor another byte order.
        return torch.from_numpy(np.array(self.map()[index], self._native, order="C"))

    def is_floating_point(self) -> bool:
        """Return whether the values are read as real numbers."""
        return self.largest is None

    def max(self) -> int:
        """Return the largest index."""
        return self.largest or 0

    def map(self) -> NDArray[Any]:
        """Return the array without reading it.

        Raises:
            UsageError: The file is gone.
        """
        try:
            content = _map_file(str(self.path), self.path.stat().st_size)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{self.path} with the data cannot be read ({' '.join(str(error).split())}); it must stay during the "
                "search, where each worker can read it (AUTOCOMPRESS_CACHE names the folder of written ones)"
            ) from error
        return np.ndarray(self.shape, self.dtype, content, self.offset, self.strides)

    @property
    def _native(self) -> type[np.generic]:
        return np.float32 if self.largest is None else np.int64


Column = Tensor | FileArray


class FileSplit(Split):
    """A split whose inputs, or some of them, are in files; ``take`` reads the rows that it returns.

    ``inputs`` holds the whole split in memory; batches do not.

    Args:
        columns: Inputs of all examples, axis 0 the examples, shared by all splits.
        rows: Numbers of the examples of this split.
        targets: Head name to targets, in the order of ``rows``.
        keys: Groups, times and digests of the examples, in the order of ``rows``.
    """

    columns: tuple[Column, ...]
    rows: Tensor

    def __init__(self, columns: tuple[Column, ...], rows: Tensor, targets: Targets, keys: ExampleKeys) -> None:
        # The base class is a frozen dataclass, whose fields can only be set through its dictionary.
        vars(self).update(columns=columns, rows=rows, targets=targets, keys=keys)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs of the whole split, in memory."""
        return tuple(column[self.rows] for column in self.columns)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"FileSplit({len(self)} examples)"

    def take(self, index: slice | Tensor) -> Split:
        """Return the examples that ``index`` selects along axis 0, in memory."""
        rows, targets = self.rows[index], {head: target[index] for head, target in self.targets.items()}
        return Split(tuple(column[rows] for column in self.columns), targets, self.keys.take(index))

    def select(self, rows: Tensor) -> "FileSplit":
        """Return some of the examples, whose inputs stay where they are."""
        targets = {head: target[rows] for head, target in self.targets.items()}
        return FileSplit(self.columns, self.rows[rows], targets, self.keys.take(rows))


def label_split(split: Split, targets: Targets | None = None, keys: ExampleKeys | None = None) -> Split:
    """Return the same examples with other targets or keys."""
    targets, keys = targets or split.targets, keys or split.keys
    if isinstance(split, FileSplit):
        return FileSplit(split.columns, split.rows, targets, keys)
    return replace(split, targets=targets, keys=keys)


def make_split(columns: tuple[Column, ...], targets: Targets) -> Split:
    """Return all examples as a split: in memory, or with the columns that are in files."""
    if any(isinstance(column, FileArray) for column in columns):
        return FileSplit(columns, torch.arange(len(columns[0])), targets, ExampleKeys())
    return Split(tuple(column for column in columns if isinstance(column, Tensor)), targets)


def list_columns(split: Split) -> tuple[Column, ...]:
    """Return the inputs of a split without reading those in files."""
    return split.columns if isinstance(split, FileSplit) else split.inputs


def locate_memmap(description: str, array: object) -> FileArray | None:
    """Return the part of a file that a memory-mapped array shows; None for another array, or if it has no file.

    Args:
        description: Name of the array, for messages.
        array: Any value.

    Raises:
        UsageError: A value is not finite.
    """
    # Changes of an array in mode "c" are not in the file.
    if not isinstance(array, np.memmap) or array.filename is None or array.mode == "c":
        return None
    mapped: mmap.mmap | None = array._mmap  # type: ignore[attr-defined]
    if mapped is None or array.dtype.kind not in "fiub" or not array.ndim or not array.size:
        return None
    # A map begins at a multiple of the page size, before the array's own offset; views have the offset of their base.
    start = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
    offset = start + array.__array_interface__["data"][0] - np.frombuffer(mapped, np.uint8).ctypes.data
    array.flush()
    whole = FileArray(Path(array.filename).resolve(), array.dtype.str, array.shape, array.strides, offset)
    return check_values(description, whole)


def check_values(description: str, array: FileArray) -> FileArray:
    """Return an array with its largest index, after a pass over all values.

    Raises:
        UsageError: A value is not finite.
    """
    values, largest = array.map(), 0
    is_index = is_index_type(values.dtype, values.ndim)
    for rows in divide_rows(description, values.shape, values.dtype.itemsize):
        chunk = values[rows]
        if is_index:
            largest = max(largest, int(chunk.max()))
        else:
            with np.errstate(over="ignore"):
                check_finite(description, torch.from_numpy(np.array(chunk, np.float32)), rows.start)
    if largest > np.iinfo(np.int64).max:
        raise UsageError(f"{description} has whole numbers above 2^63; give them as real numbers")
    return FileArray(array.path, array.dtype, array.shape, array.strides, array.offset, largest if is_index else None)


def is_index_type(dtype: np.dtype[np.generic], axes: int) -> bool:
    """Return whether values are indices into a table: whole numbers, except bytes along several axes, the pixels."""
    return dtype.kind in "iu" and not (dtype.itemsize == 1 and dtype.kind == "u" and axes > 2)


def check_finite(description: str, values: Tensor, start: int = 0) -> None:
    """Check that all values are finite.

    Args:
        description: Name of the values, for messages.
        values: Real numbers, ``[N, ...]``.
        start: Number of the first example.

    Raises:
        UsageError: One is not; the message has the number of its example.
    """
    is_finite = values.flatten(1).isfinite().all(1) if values.dim() > 1 else values.isfinite()
    if not bool(is_finite.all()):
        raise UsageError(f"{description} is not finite in example {start + int((~is_finite).nonzero()[0])}")


def divide_rows(description: str, shape: tuple[int, ...], itemsize: int) -> Iterator[slice]:
    """Yield the rows of an array in chunks, with a line of progress every few seconds."""
    rows = max(1, CHUNK // max(1, itemsize * math.prod(shape[1:])))
    progress = ReadProgress(description, shape[0])
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))
        progress.update(start + rows)


class ReadProgress:
    """Lines of progress while data are read.

    Args:
        description: Name of the data.
        total: Number of examples; None if it is unknown.
    """

    def __init__(self, description: str, total: int | None) -> None:
        self._description, self._total = description, total
        self._last = time.monotonic()

    def update(self, count: int) -> None:
        """Write a line if the last one is some seconds old.

        Args:
            count: Number of examples so far.
        """
        if time.monotonic() - self._last < PROGRESS_SECONDS:
            return
        self._last = time.monotonic()
        total = "" if self._total is None else f" of {self._total:,}"
        # A warning is shown by default, and hidden by -q; nothing else tells that these minutes are no hang.
        logger.warning("%s: read %s%s examples", self._description, f"{count:,}", total)


def exceeds_memory(size: float) -> bool:
    """Return whether data of so many bytes are kept in a file: they take more than a share of the free memory."""
    free = free_memory()
    return free is not None and size > MEMORY_SHARE * free


def require_memory(description: str, size: float, advice: str) -> None:
    """Check that data that are held in memory fit there, before they are read.

    Args:
        description: Name of the data, for messages.
        size: Bytes.
        advice: What the user can do.

    Raises:
        UsageError: They do not.
    """
    free = free_memory()
    if free is not None and size > free:
        raise UsageError(
            f"{description} takes {format_count(size, 'B')} and {format_count(free, 'B')} of memory are free; {advice}"
        )


def require_file_memory(path: Path) -> None:
    """Check that the content of a file that is read as a whole fits into memory.

    Args:
        path: A text, ``.parquet`` or ``.npz`` file; of a text compressed as ``.gz``, the smaller size counts.

    Raises:
        UsageError: It does not.
    """
    size = path.stat().st_size
    if path.suffix in PARQUET:
        # pandas reads this format by pyarrow.
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path) as table:
            metadata = table.metadata
            groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
            # A column of one value takes some bytes in a file, and eight for each row in memory.
            size = max(sum(group.total_byte_size for group in groups), 8 * metadata.num_rows * metadata.num_columns)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    require_memory(
        str(path), size, "give a part of its rows, or arrays that np.load maps (mmap_mode='r') with a teacher of yours"
    )


def require_disk(description: str, size: float, count: int | None = None) -> None:
    """Check that a file of the cache folder fits on the disk, before it is written.

    Args:
        description: Name of the data, for messages.
        size: Bytes of the file; of what has been read so far if the length of the data is unknown.
        count: Number of the examples so far, if the length is unknown.

    Raises:
        UsageError: It does not.
    """
    folder = open_cache("arrays")
    free = shutil.disk_usage(folder).free
    if size <= free * (1 if count is None else DISK_SHARE):
        return
    read = "" if count is None else f" after {count:,} items"
    raise UsageError(
        f"{description} takes {format_count(size, 'B')}{read}, more than {MEMORY_SHARE:.0%} of the free memory "
        f"({format_count(free_memory(), 'B')}), and a file of it does not fit into {folder} "
        f"({format_count(free, 'B')} are free); give a part of it (itertools.islice), free some, or set "
        "AUTOCOMPRESS_CACHE to another disk"
    )


def compact_values(values: Tensor, axes: int) -> Tensor:
    """Return values in the type that a file has: bytes of pixels and truth values as they are, float32, or int64.

    Args:
        values: One example, or several.
        axes: Number of axes of several examples.
    """
    if values.is_floating_point():
        return values.float()
    return values if values.dtype is torch.bool or (values.dtype is torch.uint8 and axes > 2) else values.long()


class ArrayWriter:
    """A file of the cache folder that examples are appended to; equal content has one file.

    Args:
        first: Some examples ``[B, ...]``, for the shape and the type.

    Raises:
        StorageError: The file cannot be written.
    """

    def __init__(self, first: Tensor) -> None:
        stored = compact_values(first[:1], first.dim()).numpy()
        self._shape, self._dtype = stored.shape[1:], stored.dtype
        self._is_index = is_index_type(stored.dtype, stored.ndim)
        self._folder = open_cache("arrays")
        self._digest = hashlib.blake2b(f"{self._dtype.str}{self._shape}".encode(), digest_size=16)
        self.count, self._largest = 0, 0
        with storage_errors(self._folder):
            handle, self._temporary = create_temporary(self._folder / "array")
            self._file = os.fdopen(handle, "wb")

    def append(self, description: str, examples: Tensor) -> None:
        """Write examples ``[B, ...]``.

        Args:
            description: Name of the data, for messages.
            examples: Examples of the shape of the first ones.

        Raises:
            UsageError: A value is not finite, or has another type than the first ones.
            StorageError: The disk is full.
        """
        values = compact_values(examples, examples.dim())
        if values.is_floating_point():
            check_finite(description, values, self.count)
        stored = values.contiguous().numpy()
        if stored.dtype != self._dtype:
            raise UsageError(f"{description} has {stored.dtype} in example {self.count}, and {self._dtype} before")
        if self._is_index:
            self._largest = max(self._largest, int(stored.max()))
        content = stored.tobytes()
        # Not through a memory map: on a full disk, writing to one kills the process instead of raising an error.
        with storage_errors(self._folder):
            self._file.write(content)
        self._digest.update(content)
        self.count += len(examples)

    def finish(self) -> FileArray:
        """Return the array, whose file is named by its content.

        Raises:
            StorageError: The file cannot be written.
        """
        path = self._folder / f"{self._digest.hexdigest()}.bin"
        with storage_errors(self._folder):
            self._file.close()
            os.replace(self._temporary, path)
        shape = (self.count, *self._shape)
        # Of one example: an empty array has other strides.
        strides = np.empty((1, *self._shape), self._dtype).strides
        largest = self._largest if self._is_index else None
        return FileArray(path, self._dtype.str, shape, strides, 0, largest)

    def close(self) -> None:
        """Remove the file if it was not finished."""
        self._file.close()
        Path(self._temporary).unlink(missing_ok=True)


def write_array(description: str, array: Any, read: Callable[[str, object], Tensor]) -> FileArray:
    """Write an array that is too large for another copy of it to the cache folder, in chunks.

    Args:
        description: Name of the array, for messages.
        array: An array, tensor or sparse matrix with slices along axis 0.
        read: Function that returns a part of it as the tensor of a model.

    Raises:
        UsageError: It does not fit on the disk, or a value cannot be used.
        StorageError: The file cannot be written.
    """
    first = read(description, array[:1])
    stored = compact_values(first, first.dim())
    require_disk(description, array.shape[0] * stored.nbytes)
    with closing(ArrayWriter(first)) as writer:
        for rows in divide_rows(description, tuple(array.shape), first.element_size()):
            writer.append(description, read(description, array[rows]))
        return writer.finish()
