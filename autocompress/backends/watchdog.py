"""A process that outlives another one and ends what that leaves behind, whatever became of it: kill -9 included.

It is run as a script by its path, starts in a few milliseconds and imports nothing but the standard library.
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

#: Seconds that what is left gets to end by itself.
GRACE = 2.0


def guard_group() -> None:
    """Make this process the leader of a group, which ends with it: all that it will start, then."""
    if hasattr(os, "pidfd_open"):
        os.setpgid(0, 0)
        _stay_behind(str(os.getpid()))


def guard_folder(folder: Path) -> "subprocess.Popen[bytes] | None":
    """Let those processes below this one end with it that name a folder when they are called, and the folder too.

    Processes below those end as well.

    Returns:
        The guard, to be killed when it is not needed any more; ``None`` where the system has no means for one.
    """
    return _stay_behind(str(os.getpid()), str(folder)) if hasattr(os, "pidfd_open") else None


def _stay_behind(*arguments: str) -> "subprocess.Popen[bytes]":
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, *arguments],
        # In a session of its own it gets neither Ctrl-C nor what ends the group.
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
    """Wait until a process is gone, and end its group, or what is below it and works in a folder."""
    gone = os.pidfd_open(process)
    # A descriptor stays with its process; a number may be another's by then.
    others = [os.pidfd_open(each) for each in working_in(folder.encode(), process)] if folder else []
    os.write(1, b"!")
    os.close(1)
    select.select([gone], [], [])
    if not folder:
        os.killpg(process, signal.SIGKILL)
        return
    time.sleep(GRACE)
    for other in others:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(other, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def working_in(folder: bytes, root: int) -> list[int]:
    """Return the processes below ``root`` that name a folder in their command line, and all below those."""
    parents, commands = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                commands[int(entry.name)] = (entry / "cmdline").read_bytes()
            except OSError:
                continue

    def belongs(process: int) -> bool:
        line = [process]
        while line[-1] != root:
            if line[-1] not in parents:
                return False
            line.append(parents[line[-1]])
        return any(folder in commands.get(each, b"") for each in line[:-1])

    return [process for process in parents if process != os.getpid() and belongs(process)]


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
