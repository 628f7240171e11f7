"""Arrays in NPZ files that may come from elsewhere: declared sizes are compared with the file before they are read."""

import math
import os
import zipfile
from collections.abc import Container, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from autocompress.core.formatting import format_count
from autocompress.core.untrusted import check_data_file

Array: TypeAlias = NDArray[Any]
SUFFIX = ".npy"


def read_arrays(path: Path, names: Container[str] | None = None) -> dict[str, Array]:
    """Return arrays of an NPZ file by name; no pickled object is read.

    Args:
        path: The file.
        names: Names of the arrays to read; others are skipped. None reads all.

    Raises:
        OSError: The file cannot be read, or is no regular file.
        ValueError: It is no NPZ file, is damaged, or its arrays take more memory than the machine has.
    """
    check_data_file(path)
    with _damage_errors(), zipfile.ZipFile(path) as archive:
        members = {entry.filename.removesuffix(SUFFIX): entry for entry in archive.infolist()}
        members = {name: entry for name, entry in members.items() if names is None or name in names}
        check_memory(sum(entry.file_size for entry in members.values()))
        arrays = {}
        for name, entry in members.items():
            with archive.open(entry) as file:
                read_header(file, entry.file_size)
            with archive.open(entry) as file:
                arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
        return arrays


def list_arrays(path: Path) -> tuple[str, ...]:
    """Return the names of the arrays of an NPZ file; raises as :func:`read_arrays`."""
    check_data_file(path)
    with _damage_errors(), zipfile.ZipFile(path) as archive:
        return tuple(name.removesuffix(SUFFIX) for name in archive.namelist())


def open_array(path: Path, name: str) -> tuple[IO[bytes], tuple[int, ...], "np.dtype[Any]"]:
    """Return an array of an NPZ file as a stream at its first value, with its shape and type.

    Raises:
        OSError: The file cannot be read, or is no regular file.
        ValueError: The file or the array is damaged, or the array is in Fortran's order.
    """
    check_data_file(path)
    # The file stays open until the stream is closed, also without the archive.
    with _damage_errors(), zipfile.ZipFile(path) as archive, ExitStack() as on_error:
        entry = archive.getinfo(f"{name}{SUFFIX}")
        file = on_error.enter_context(archive.open(entry))
        shape, is_fortran, dtype = read_header(file, entry.file_size)
        if is_fortran:
            raise ValueError(f"{name} is in Fortran's order; write it with numpy.ascontiguousarray")
        on_error.pop_all()
        return file, shape, dtype


def read_header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, "np.dtype[Any]"]:
    """Return shape, order and type of an array in NumPy's format, whose values must fill the rest of the file.

    Args:
        file: Stream at the beginning of the array.
        size: Bytes of header and values.

    Raises:
        ValueError: The values have another size than the header says, or are pickled objects.
    """
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which could run code when they are read")
    declared, stored = math.prod(shape) * dtype.itemsize, size - file.tell()
    if declared != stored or min(shape, default=0) < 0:
        raise ValueError(f"an array of the shape {list(shape)} takes {declared:,} bytes, and the file has {stored:,}")
    return shape, is_fortran, dtype


@contextmanager
def _damage_errors() -> Iterator[None]:
    """Turn what zipfile and NumPy raise for damaged files into a ValueError of one line."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # of many kinds: zlib.error, TokenError, NotImplementedError, SyntaxError, ...
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def check_memory(size: int) -> None:
    """Check that arrays of a size in bytes fit into the memory of this machine.

    Raises:
        ValueError: They do not.
    """
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # other systems have no such numbers
        return
    if size > total:
        raise ValueError(
            f"its arrays take {format_count(size, 'B')}, and this machine has {format_count(total, 'B')} of memory"
        )
