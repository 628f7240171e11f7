"""Files that are whole or absent: written aside, synced, renamed; and files that one process holds."""

import errno
import hashlib
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.errors import StorageError

if TYPE_CHECKING:
    from filelock import FileLock

if sys.platform != "win32":
    import fcntl

# What file systems without locks answer: a network folder without its lock service, some FUSE file systems.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# No permission; a folder, a file or a link where another kind is needed; a disk that fails.
NO_FILE = (
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.EBUSY, errno.EIO),
)


def cache_folder() -> Path:
    """Return where teachers and decoded data are kept: ``$AUTOCOMPRESS_CACHE``, or the user's cache folder."""
    # Imported here: reading a run uses no cache.
    from platformdirs import user_cache_path

    chosen = os.environ.get("AUTOCOMPRESS_CACHE")
    return Path(chosen) if chosen else user_cache_path("autocompress")


def open_cache(name: str) -> Path:
    """Return a folder of the cache; it is created for the user alone.

    Args:
        name: Name of the folder: ``teachers``.

    Raises:
        StorageError: It cannot be written, is no folder, belongs to someone else, or others may write to it.
    """
    folder = cache_folder() / name
    with storage_errors(folder):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        except FileExistsError:
            raise StorageError(
                f"{folder} is no folder; remove it, or set AUTOCOMPRESS_CACHE to another folder"
            ) from None
        _require_private(folder)
    return folder


def _require_private(folder: Path) -> None:
    # Windows has access lists instead, which only the user's own profile grants.
    if not hasattr(os, "geteuid"):
        return
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise StorageError(
            f"{folder} is a link or belongs to another user, so it is not used; remove it, or set AUTOCOMPRESS_CACHE"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StorageError(
            f"other users may write to {folder}, so it is not used; remove it, or chmod 700 it if you trust it"
        )
    if status.st_mode & 0o077:
        # Earlier versions let others read it.
        folder.chmod(0o700)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the system's complaints about ``path`` into a :class:`StorageError` that says what is needed."""
    try:
        yield
    except OSError as reason:
        # A full disk, a full quota and a file-size limit have the same remedy.
        if reason.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError(f"no space left for {path}; free some and run again with --resume") from reason
        if reason.errno in NO_FILE:
            raise StorageError(f"{path} cannot be written ({reason.strerror}); choose another folder") from reason
        raise


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that a crash leaves the old one or the new one, never half of either.

    Raises:
        StorageError: No space is left, or the folder cannot be written.
    """
    content = data.encode() if isinstance(data, str) else data
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = create_temporary(path)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                # Before the rename, so that after a crash the new name never refers to a file without its content.
                os.fsync(file.fileno())
            os.replace(aside, path)
            # Without it, a power failure may undo the rename after a row that names the file was stored.
            sync_folder(path.parent)
        except BaseException:
            # Also after Ctrl-C: no temporary file stays behind.
            Path(aside).unlink(missing_ok=True)
            raise


def require_writable(folder: Path) -> None:
    """Check that files can be written in a folder, before the work whose result goes there.

    A trial file is created and removed, because permissions do not tell of a read-only file system.

    Args:
        folder: The folder; the nearest folder above it where it does not exist yet.

    Raises:
        StorageError: Nothing can be written there.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    with storage_errors(folder):
        handle, aside = create_temporary(existing / "trial")
        os.close(handle)
        Path(aside).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a new or renamed file survives a power failure only after that."""
    # Other systems do not open folders.
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_lock(path: Path) -> "FileLock":
    """Return a lock that the kernel releases when its process ends; the caller acquires it.

    Where the file system has no locks, versions of ``filelock`` differ: an error, a wait without end, or a file whose
    existence is the lock and which a killed process leaves behind.

    Raises:
        StorageError: The file system has no locks, or the folder cannot be written.
    """
    if sys.platform != "win32":
        with storage_errors(path.parent):
            # A file of its own, because trying the lock itself could make another process believe that it is held.
            handle, aside = create_temporary(path)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as reason:
                if reason.errno not in NO_LOCKS:
                    raise
                raise StorageError(
                    f"the file system of {path.parent} has no locks ({reason.strerror}), so two processes could write "
                    "there at once; choose a folder on a local disk"
                ) from None
            finally:
                os.close(handle)
                Path(aside).unlink(missing_ok=True)
    # Imported here: a reader needs no lock.
    from filelock import FileLock

    return FileLock(path)


def create_temporary(path: Path) -> tuple[int, str]:
    """Create an empty file beside ``path``, and return its descriptor and its path.

    The permissions are those of any new file of the user: ``tempfile.mkstemp`` would let its owner alone read it, and
    a shared folder needs what the umask allows.
    """
    while True:
        # In the same folder, because a rename is atomic within one file system only.
        aside = str(path.parent / f".{path.name}.{secrets.token_hex(4)}")
        with suppress(FileExistsError):
            return os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666), aside


def create_temporary_folder(path: Path) -> Path:
    """Create an empty folder beside ``path`` with the permissions of any new folder of the user, and return it."""
    while True:
        aside = path.parent / f".{path.name}.{secrets.token_hex(4)}"
        with suppress(FileExistsError):
            aside.mkdir()
            return aside


def compute_sha256(data: bytes) -> str:
    """Return the hexadecimal SHA-256 digest of ``data``."""
    return hashlib.sha256(data).hexdigest()


def compute_file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 digest of a file, read piece by piece."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
