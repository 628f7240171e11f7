"""A guard process that ends the processes of a driver or worker after its death, kill -9 included.

It is run as a script by its path, starts in a few milliseconds and imports the standard library only.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

#: Seconds in which the remaining processes may end by themselves.
GRACE = 2.0


def guard_group() -> None:
    """Make this process the leader of a group whose processes are killed when it ends."""
    if hasattr(os, "pidfd_open"):
        os.setpgid(0, 0)
        _start_guard(str(os.getpid()))


def guard_folder(folder: Path) -> "subprocess.Popen[bytes] | None":
    """Start a guard that kills certain descendants of this process, and deletes a folder, when this process ends.

    Args:
        folder: The folder; processes whose command line names it are killed, and their descendants.

    Returns:
        The guard process, to be killed when it is not needed any more; ``None`` if the system does not support one.
    """
    return _start_guard(str(os.getpid()), str(folder)) if hasattr(os, "pidfd_open") else None


def _start_guard(*arguments: str) -> "subprocess.Popen[bytes]":
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, *arguments],
        # In its own session the guard gets neither Ctrl-C nor the signal that kills the group.
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert guard.stdout is not None
    with guard.stdout as ready:
        ready.read(1)
    return guard


def main(process: int, folder: str = "") -> None:
    """Wait until a process ends; then kill its group, or its descendants that work in a folder.

    Args:
        process: Process id to watch.
        folder: Path that the command lines of the descendants name; empty to kill the group.
    """
    watched = os.pidfd_open(process)
    # A descriptor keeps pointing at its process; a process id may be reused by then.
    others = [os.pidfd_open(number) for number in find_processes(folder.encode(), process)] if folder else []
    os.write(1, b"!")
    os.close(1)
    select.select([watched], [], [])
    if not folder:
        os.killpg(process, signal.SIGKILL)
        return
    time.sleep(GRACE)
    for other in others:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(other, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def find_processes(folder: bytes, root: int) -> list[int]:
    """Return the descendants of ``root`` whose command line names a folder, and all descendants of those."""
    parents, commands = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                commands[int(entry.name)] = (entry / "cmdline").read_bytes()
            except OSError:
                continue

    def is_inside(process: int) -> bool:
        ancestry = [process]
        while ancestry[-1] != root:
            if ancestry[-1] not in parents:
                return False
            ancestry.append(parents[ancestry[-1]])
        return any(folder in commands.get(number, b"") for number in ancestry[:-1])

    return [process for process in parents if process != os.getpid() and is_inside(process)]


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
