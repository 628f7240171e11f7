"""Checks of what comes from elsewhere: names that become paths, files that are read, and texts that are shown.

A run folder, an artifact and a cache may be copied from a stranger. Every name in them passes :func:`check_name`, every
path below them is built by :func:`join_inside`, every file in them is read by :func:`read_regular_file`, and every text
is shown through :func:`escape_controls`. Files of data pass :func:`check_data_file`.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic_core import from_json

from autocompress.errors import RunFolderError, UsageError

LARGEST_NAME = 128
LARGEST_JSON = 2**26
# Lists and mappings of a JSON text take about a hundred bytes each, other values about sixty, though two characters may
# write one: 64 MiB of them would take gigabytes.
LARGEST_CONTAINERS, LARGEST_VALUES = 2**20, 2**22
# What records raise that are read from JSON of another form.
CONTENT_ERRORS = (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError)
# Bytes of the header of a safetensors file: some fifty thousand tensors.
LARGEST_HEADER = 2**23
T = TypeVar("T")
# No separator, no leading dot or dash: neither another folder, nor a hidden file, nor an option of a command.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# C0 and C1 controls but for tab and line feed, line and paragraph separators, and the marks that reorder text.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# A file below this size cannot exhaust the memory, however few of its blocks exist.
SMALL_FILE = 2**26


def is_name(value: object) -> bool:
    """Return whether a value is a name of letters, digits, ``.``, ``_`` and ``-`` that begins with a letter or digit.

    Example:
        >>> is_name("t12r0c7"), is_name("../../app"), is_name("-rf"), is_name(7)
        (True, False, False, False)
    """
    return isinstance(value, str) and len(value) <= LARGEST_NAME and _NAME.fullmatch(value) is not None


def check_name(value: object, kind: str) -> str:
    """Return a name that was read from a file.

    Args:
        value: The name.
        kind: Kind of the name, for the message: ``candidate id``.

    Raises:
        RunFolderError: It is no name.
    """
    if not isinstance(value, str) or not is_name(value):
        raise RunFolderError(
            f"{show_value(value)} is no {kind}: it has letters, digits, '.', '_' and '-' only; "
            "autocompress did not write this, so do not use the folder"
        )
    return value


def show_value(value: object) -> str:
    r"""Return a value from elsewhere as it may stand in a message: quoted, short, on one line.

    Example:
        >>> show_value("a" * 100 + "\x1b[2J") == repr("a" * 60) + "..."
        True
    """
    text = value if isinstance(value, str) else str(value)[:200]
    return escape_controls(repr(text[:60])) + ("..." if len(text) > 60 else "")


def join_inside(folder: Path, *names: str) -> Path:
    """Return a path below a folder; nothing on the way from the folder to it is a link.

    Args:
        folder: The folder, which may itself be a link that the user made.
        names: Names below it, one for each level.

    Raises:
        RunFolderError: A name leads elsewhere, or a link stands in its place.
    """
    path = Path(folder)
    for name in names:
        if name in ("", ".", "..") or "\0" in name or any(mark and mark in name for mark in (os.sep, os.altsep)):
            raise RunFolderError(f"{show_value(name)} is no name of a file in {folder}")
        path /= name
        if path.is_symlink():
            raise RunFolderError(f"{path} is a link, and links in this folder are not followed; put the files there")
    return path


def require_regular(paths: Iterable[Path]) -> None:
    """Check that each path is a regular file or does not exist.

    Raises:
        RunFolderError: A path is a link, a folder, a device or a pipe.
    """
    for path in paths:
        try:
            mode = path.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not stat.S_ISREG(mode):
            raise RunFolderError(f"{path} is no regular file; autocompress did not write it, so do not use the folder")


def read_regular_file(path: Path, limit: int | None = None, *, follows_links: bool = False) -> bytes:
    """Return the content of a regular file; no pipe or device is waited for.

    Args:
        path: Path of the file.
        limit: Largest size in bytes; None for no limit.
        follows_links: Whether the path may be a link, as files of data often are.

    Raises:
        OSError: The file cannot be read, is not regular, is larger, or consists mostly of holes.
    """
    with _open_regular_file(path, follows_links) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit:,} bytes", str(path))
        # One byte more than the size tells a file that grows while it is read.
        content = file.read(size + 1)
    if len(content) > size:
        raise OSError(errno.EBUSY, "another program writes to it", str(path))
    return content


def check_json_size(content: bytes | str) -> None:
    """Check that a JSON text has at most about a million lists and mappings, and four million values.

    Commas and brackets in strings count as well.

    Raises:
        ValueError: It has more.

    Example:
        >>> check_json_size("[" + "[]," * 2**20 + "[]]")
        Traceback (most recent call last):
        ValueError: more than 1,048,576 lists and mappings
    """
    if len(content) <= LARGEST_CONTAINERS:
        return
    content = content.encode() if isinstance(content, str) else content
    if content.count(b"[") + content.count(b"{") > LARGEST_CONTAINERS:
        raise ValueError(f"more than {LARGEST_CONTAINERS:,} lists and mappings")
    if content.count(b",") > LARGEST_VALUES:
        raise ValueError(f"more than {LARGEST_VALUES:,} values")


def parse_json(content: bytes | str) -> Any:
    """Return the value of a JSON text from elsewhere.

    Raises:
        ValueError: It is no JSON, or has too many values.
    """
    check_json_size(content)
    return from_json(content)


def read_json_file(path: Path, convert: Callable[[Any], T]) -> T:
    """Return what a function makes of a JSON file of a run folder.

    Args:
        path: Path of the file.
        convert: Function of the content.

    Raises:
        RunFolderError: The file cannot be read, or the function fails on its content.
    """
    try:
        return convert(parse_json(read_regular_file(path, LARGEST_JSON)))
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read ({error.strerror}); remove it") from error
    except (*CONTENT_ERRORS, UsageError) as error:
        reason = escape_controls(" ".join(str(error).split())[:200])
        raise RunFolderError(f"{path} is damaged ({type(error).__name__}: {reason}); remove it") from error


def check_tensor_header(content: bytes) -> None:
    """Check the size of the header of a safetensors file, which names each tensor.

    A tensor without elements takes some fifty bytes in the file, and about a kilobyte in memory.

    Args:
        content: Content of the file, or its first eight bytes.

    Raises:
        ValueError: It is too large.
    """
    size = int.from_bytes(content[:8], "little")
    if size > LARGEST_HEADER:
        raise ValueError(f"a header of {size:,} bytes; at most {LARGEST_HEADER:,} are read")


def check_data_file(path: Path | str) -> None:
    """Check that a file of data, which may be a link, can be given to a library that reads it.

    Raises:
        OSError: The file cannot be read, is not regular, or consists mostly of holes.
        ValueError: It is a safetensors file with too large a header.
    """
    with _open_regular_file(Path(path), follows_links=True) as file:
        if Path(path).suffix == ".safetensors":
            check_tensor_header(file.read(8))


def _open_regular_file(path: Path, follows_links: bool) -> BinaryIO:
    # Without O_NONBLOCK, opening a pipe would wait for a writer. Windows has neither flag.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    flags |= 0 if follows_links else getattr(os, "O_NOFOLLOW", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if _is_sparse(file.fileno(), status):
            raise OSError(errno.EFBIG, "a sparse file, most of whose bytes do not exist", str(path))
    except BaseException:
        file.close()
        raise
    return file


def _is_sparse(descriptor: int, status: os.stat_result) -> bool:
    if status.st_size <= SMALL_FILE or not hasattr(os, "SEEK_HOLE"):
        return False
    # Some file systems report no blocks for files without holes, so both are asked for.
    has_hole = os.lseek(descriptor, 0, os.SEEK_HOLE) < status.st_size
    os.lseek(descriptor, 0, os.SEEK_SET)
    return has_hole and status.st_blocks * 512 < status.st_size // 2


def is_newer(content: bytes, newest: int) -> bool:
    """Return whether JSON of another form has a ``format`` above the newest that this version reads.

    Example:
        >>> is_newer(b'{"format": 3, "new": 1}', 2), is_newer(b'{"format": 2}', 2), is_newer(b"{", 2)
        (True, False, False)
    """
    try:
        record = parse_json(content)
    except ValueError:
        return False
    version = record.get("format") if isinstance(record, dict) else None
    return isinstance(version, int) and version > newest


def escape_controls(text: str, *, keeps_lines: bool = True) -> str:
    r"""Return a text whose control characters and marks that reorder text are shown as escape sequences.

    Args:
        text: The text.
        keeps_lines: Whether line feeds and tabs stay.

    Example:
        >>> escape_controls("\x1b[2J t0c0\r")
        '\\x1b[2J t0c0\\r'
        >>> escape_controls("one\ntwo", keeps_lines=False)
        'one\\ntwo'
    """
    text = _CONTROLS.sub(_escape_character, text)
    return text if keeps_lines else text.replace("\n", "\\n").replace("\t", " ")


def _escape_character(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
