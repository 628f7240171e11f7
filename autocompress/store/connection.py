"""The database file of a store: one writer holds a lock that the kernel releases, readers need none."""

import logging
import os
import sqlite3
from pathlib import Path

from filelock import FileLock, Timeout

from autocompress.core.atomic import storage_errors, write_atomic
from autocompress.errors import RunFolderError, StorageError
from autocompress.store.schema import seal_of

DATABASE = "study.db"

logger = logging.getLogger(__name__)


def open_database(path: Path) -> sqlite3.Connection:
    """Open the database of a store, and create it if it does not exist.

    Raises:
        StorageError: The file cannot be opened.
        RunFolderError: It is not a database, or a damaged one.
    """
    try:
        # No implicit transactions: the store begins and ends its own.
        connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        connection.create_function("seal_of", -1, seal_of, deterministic=True)
        # Journal mode is a property of the file, so Optuna's connections share it.
        connection.execute("PRAGMA journal_mode=WAL")
        # A committed transaction survives a power failure.
        connection.execute("PRAGMA synchronous=FULL")
    except sqlite3.OperationalError as reason:
        raise StorageError(f"cannot open {path} ({reason}); check that the folder can be written") from None
    except sqlite3.DatabaseError as damage:
        raise RunFolderError(f"{path} is not a study ({damage}); point at a folder under reports/") from None
    except UnicodeDecodeError:
        # SQLite quotes the broken part of its schema in the error, and the bytes are not valid text.
        raise damage_error(path, "its schema cannot be read") from None
    return connection


def damage_error(path: Path, damage: str) -> RunFolderError:
    """Return the error for a store whose content differs from what was written."""
    return RunFolderError(
        f"{path} is damaged ({damage}); run `sqlite3 {DATABASE} .recover` on a copy, or start a new run"
    )


def require_run(folder: Path) -> None:
    """Raise an error if a folder holds no run.

    Raises:
        RunFolderError: The folder does not exist, or has no store.
    """
    if not folder.is_dir():
        raise RunFolderError(f"{folder} does not exist; runs lie under reports/, see `ls reports`")
    if not (folder / DATABASE).is_file():
        raise RunFolderError(f"{folder} is not a run folder: it has no {DATABASE}")


def acquire_lock(folder: Path) -> FileLock:
    """Lock a run folder for writing until the lock is released or this process ends.

    Raises:
        RunFolderError: Another process holds the lock.
        StorageError: The folder cannot be written.
    """
    # The kernel releases the lock of a killed process, so no stale lock remains.
    path = folder / ".lock"
    lock = FileLock(path)
    try:
        with storage_errors(folder):
            lock.acquire(timeout=0)
    except Timeout:
        owner = (folder / ".driver").read_text() if (folder / ".driver").exists() else "unknown"
        raise RunFolderError(f"{folder} is in use by process {owner}; wait for it, or stop it first") from None
    write_atomic(folder / ".driver", str(os.getpid()))
    logger.debug("%s: locked for writing", folder)
    return lock


def existing_run_error(folder: Path) -> RunFolderError:
    """Return the error for a new search in a folder that holds a run."""
    return RunFolderError(f"{folder} already holds a run; add --resume to continue it, or --name another")
