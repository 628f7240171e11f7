"""Control of a running search from another process: a file in its run folder, which the driver looks for.

A file works on every machine that shares the folder, needs no signal and no port, and is there after a crash.
"""

import os
from pathlib import Path

from autocompress.core.atomic import storage_errors, write_atomic
from autocompress.errors import UsageError
from autocompress.store.run_store import RunStore
from autocompress.store.schema import read_owner

PAUSE = "pause"


def is_pause_requested(folder: Path) -> bool:
    """Return whether a search is to hand out no more jobs for now."""
    return os.path.lexists(folder / PAUSE)


def request_pause(folder: Path) -> None:
    """Let a running search pause when the segments of trials that are running have ended.

    Raises:
        UsageError: The search has ended.
        StorageError: The folder cannot be written.
    """
    with RunStore.read(folder) as store:
        if store.run_info().is_finished:
            raise UsageError(f"{folder} has ended; there is nothing to pause")
    write_atomic(folder / PAUSE, "")


def cancel_pause(folder: Path) -> bool:
    """Let a paused search go on; return whether it was paused.

    Raises:
        StorageError: The folder cannot be written.
    """
    is_paused = is_pause_requested(folder)
    with storage_errors(folder):
        (folder / PAUSE).unlink(missing_ok=True)
    return is_paused


def find_driver(folder: Path) -> int | None:
    """Return the id of the process on this machine that runs the search of a folder; None if there is none."""
    process = read_owner(folder)
    if process is None:
        return None
    try:
        # Signal 0 is not delivered: the call only fails if the process does not exist or belongs to another user.
        os.kill(process, 0)
    except PermissionError:
        return process
    except OSError:
        return None
    return process
