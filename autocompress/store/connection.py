"""The file of a store: opened by one writer behind a lock that the kernel frees, and by any number of readers."""

import os
import sqlite3
from pathlib import Path

from filelock import FileLock, Timeout

from autocompress.core.atomic import storage_errors, write_atomic
from autocompress.errors import RunFolderError, StorageError
from autocompress.store.schema import seal_of

DATABASE = "study.db"


def connect(path: Path) -> sqlite3.Connection:
    """Open a store's file, which is made if it is not there.

    Raises:
        StorageError: It cannot be opened.
        RunFolderError: It is no database, or a damaged one.
    """
    try:
        connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        connection.create_function("seal_of", -1, seal_of, deterministic=True)
        # Journal mode is a property of the file, so Optuna's connections share it.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
    except sqlite3.OperationalError as reason:
        raise StorageError(f"cannot open {path} ({reason}); check that the folder can be written") from None
    except sqlite3.DatabaseError as damage:
        raise RunFolderError(f"{path} is not a study ({damage}); point at a folder under reports/") from None
    except UnicodeDecodeError:
        # SQLite says which words of its schema it does not understand, and these are no text any more.
        raise damaged(path, "its schema cannot be read") from None
    return connection


def damaged(path: Path, what: str) -> RunFolderError:
    """Return the error of a store that is not as it was written."""
    return RunFolderError(f"{path} is damaged ({what}); run `sqlite3 {DATABASE} .recover` on a copy, or start anew")


def require_run(folder: Path) -> None:
    """Refuse a folder that holds no run.

    Raises:
        RunFolderError: It is not there, or has no store.
    """
    if not folder.is_dir():
        raise RunFolderError(f"{folder} does not exist; runs lie under reports/, see `ls reports`")
    if not (folder / DATABASE).is_file():
        raise RunFolderError(f"{folder} is not a run folder: it has no {DATABASE}")


def acquire(folder: Path) -> FileLock:
    """Lock a run folder for writing, until the lock is released or this process ends.

    Raises:
        RunFolderError: Another process has it.
        StorageError: The folder cannot be written.
    """
    path = folder / ".lock"
    lock = FileLock(path)
    try:
        with storage_errors(folder):
            lock.acquire(timeout=0)
    except Timeout:
        owner = (folder / ".driver").read_text() if (folder / ".driver").exists() else "unknown"
        raise RunFolderError(f"{folder} is in use by process {owner}; wait for it, or stop it first") from None
    write_atomic(folder / ".driver", str(os.getpid()))
    return lock


def taken(folder: Path) -> RunFolderError:
    """Return the error of a search that would begin where a run lies."""
    return RunFolderError(f"{folder} already holds a run; add --resume to continue it, or --name another")
