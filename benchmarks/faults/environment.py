"""Faults of the system that a search runs on: disk, descriptors, processes, shared memory, clock, locks.

A small disk is a tmpfs in a mount namespace of its own, which ends with its process; without the right to make one,
these rows say so.
"""

import ctypes
import errno
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.faults.injection import (
    TRIALS_QUERY,
    FaultResult,
    drive,
    fork_process,
    import_driver,
    query_store,
    use_light_workers,
)
from benchmarks.faults.workers import run_jobs
from benchmarks.mock_trials import MockEvaluator

NEW_MOUNTS = 0x00020000
#: What a process says where the kernel refuses the namespace.
NOT_PERMITTED = 77


@dataclass(frozen=True)
class Ending:
    """The end of a search in a process of its own.

    Attributes:
        code: Exit code as the command line gives it; 0 for a search that ends by itself.
        message: Message of the error, or of the exception that is no message.
        trials: Number of trials in the store at the end.
        seconds: Seconds from the fault, or from the start, to the end.
    """

    code: int
    message: str
    trials: int
    seconds: float

    def describe(self) -> str:
        """Return the end in a few words."""
        return f"exit {self.code}, {self.trials} trials" + (f", '{self.message}'" if self.message else "")


def run_isolated(folder: Path, prepare: Callable[[], None], search: Callable[[], object]) -> Ending:
    """Run a search in a forked process, and return its end.

    Args:
        folder: The run folder.
        prepare: Function that changes the process first: limits, mounts, patches.
        search: Function that searches.
    """
    from autocompress.errors import AutocompressError

    import_driver()
    note = folder.parent / "ending"
    started, process = time.monotonic(), fork_process()
    if not process:
        code = 70
        try:
            use_light_workers()
            prepare()
            text = ""
            try:
                search()
                code = 0
            except AutocompressError as error:
                code, text = error.exit_code, str(error)
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
            # Counted here: a mount of this process is gone after it.
            trials = len(query_store(folder, TRIALS_QUERY))
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            note.write_text(f"{trials}\n{text.replace(str(folder), 'FOLDER')}")
        except PermissionError:
            code = NOT_PERMITTED
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    count, _, text = note.read_text().partition("\n") if note.exists() else ("0", "", "nothing")
    note.unlink(missing_ok=True)
    return Ending(code, text, int(count), time.monotonic() - started)


def mount_tmpfs(folder: Path, size: str) -> None:
    """Mount a small disk for this process alone.

    Raises:
        PermissionError: The kernel does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_MOUNTS):
        raise PermissionError(ctypes.get_errno(), "unshare")
    commands = (["mount", "--make-rprivate", "/"], ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)])
    for command in commands:
        if subprocess.run(command, check=False, capture_output=True).returncode:
            raise PermissionError(errno.EPERM, "mount")


def remount_read_only(folder: Path) -> None:
    """Make the disk of this process read-only, as the kernel does after an error of the disk."""
    # Open files that are written to would keep the kernel from it; a bind mount is remounted in any case.
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)


def _search(folder: Path, trials: int, seconds: float = 0.0, workers: int = 1) -> Callable[[], object]:
    evaluator = MockEvaluator(folder.parent / "log", seconds)
    return lambda: drive(folder, trials, workers, evaluator, "search.sampler=random", "search.minutes=1")


def _after_results(count: int, action: Callable[[], None]) -> Callable[[], None]:
    """Return a function that makes this process do something once it has stored some results."""

    def prepare() -> None:
        from autocompress.store.run_store import RunStore

        original, calls = RunStore.record_result, 0

        def record_result(self: RunStore, *arguments: Any, **keywords: Any) -> None:
            nonlocal calls
            original(self, *arguments, **keywords)
            calls += 1
            if calls == count:
                action()

        RunStore.record_result = record_result  # type: ignore[method-assign]

    return prepare


def fill_disk(folder: Path) -> FaultResult:
    """Row 8: no space left on a disk of 300 KB, and files that may not grow; the search is resumed with more space."""

    def limit_files() -> None:
        # The hard limit stays, so that the end of the process can be noted.
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))

    full = run_isolated(folder, lambda: mount_tmpfs(folder, "300k"), _search(folder, 500))
    other = folder.parent / "limited"
    other.mkdir()
    limited = run_isolated(other, limit_files, _search(other, 500))
    resumed = run_isolated(other, lambda: None, _search(other, limited.trials + 1))
    expected = "clean stop, exit 3, store readable, the message says what is needed"
    if full.code == NOT_PERMITTED:
        return FaultResult(expected, "not measured: a disk of its own needs the right to mount", False)
    measured = f"full: {full.describe()}; limited: {limited.describe()}; resumed: {resumed.describe()}"
    stops = (full, limited)
    held = all(end.code == 3 and end.trials > 0 and "space" in end.message for end in stops) and not resumed.code
    return FaultResult(expected, measured, held)


def lose_folder(folder: Path) -> FaultResult:
    """Row 28: the run folder is deleted, made read-only or loses its checkpoints during a search."""

    def delete() -> None:
        shutil.rmtree(folder)

    def prepare_read_only() -> None:
        mount_tmpfs(folder, "64m")
        _after_results(3, lambda: remount_read_only(folder))()

    def delete_checkpoints() -> None:
        for name in ("checkpoints", "paused"):
            shutil.rmtree(folder / name, ignore_errors=True)

    deleted = run_isolated(folder, _after_results(3, delete), _search(folder, 20, 0.01))
    is_gone = not folder.exists()
    folder.mkdir(exist_ok=True)
    read_only = run_isolated(folder, prepare_read_only, _search(folder, 20, 0.01))
    other = folder.parent / "other"
    other.mkdir()
    without = run_isolated(other, _after_results(6, delete_checkpoints), _search(other, 20, 0.01))
    measured = f"deleted: {deleted.describe()}; read-only: {read_only.describe()}; checkpoints: {without.describe()}"
    held = deleted.code == 1 and "deleted" in deleted.message and is_gone and read_only.code == 3
    # A paused trial without its state starts anew.
    held &= (without.code, without.trials) == (0, 20)
    return FaultResult(
        "exit 1 or 3 with the reason, nothing is created again; without paused states the search goes on",
        measured,
        held,
    )


def exhaust_system(folder: Path) -> FaultResult:
    """Row 32: 64 file descriptors, no further process, a full /dev/shm."""

    def limit_descriptors() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    def limit_processes() -> None:
        # The kernel's own limit does not hold for root.
        refusal = BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        for name in ("multiprocessing.util.spawnv_passfds", "os.fork"):
            mock.patch(name, side_effect=refusal).start()

    def fill_shared_memory() -> None:
        mount_tmpfs(Path("/dev/shm"), "64k")
        Path("/dev/shm/full").write_bytes(bytes(65_536))

    ends = {}
    for name, prepare in (
        ("descriptors", limit_descriptors),
        ("processes", limit_processes),
        ("/dev/shm", fill_shared_memory),
    ):
        own = folder.parent / name.replace("/", "_")
        own.mkdir()
        ends[name] = run_isolated(own, prepare, _search(own, 6, 0.0, 2))
    measured = "; ".join(f"{name}: {end.describe()} after {end.seconds:.1f} s" for name, end in ends.items())
    held = ends["/dev/shm"].code == 0 and ends["descriptors"].code in (0, 1) and ends["processes"].code == 1
    return FaultResult("goes on, or exit 1 with the reason", measured, held)


def jump_clock(folder: Path) -> FaultResult:
    """Row 33: a clock that jumps by up to a day back and forth at every look."""
    # Jumps of one length, back and forth, would cancel out between two looks.
    real, draw = time.time, random.Random(0)

    def jumping() -> float:
        return real() + draw.uniform(-86_400, 86_400)

    def prepare() -> None:
        mock.patch("time.time", jumping).start()

    end = run_isolated(folder, prepare, _search(folder, 8, 0.02))
    rows = query_store(folder, "SELECT elapsed FROM ac_trials WHERE elapsed IS NOT NULL ORDER BY elapsed")
    times = [row[0] for row in rows]
    measured = f"{end.describe()}; elapsed times from {times[0]:.2f} to {times[-1]:.2f} s" if times else end.describe()
    held = not end.code and end.trials == 8 and 0 <= times[0] <= times[-1] < 60
    return FaultResult("limits and durations are those of a monotonic clock", measured, held)


def stop_worker(folder: Path, limit: float = 2.0) -> FaultResult:
    """Row 34: a worker that is stopped (SIGSTOP) for longer than its limit."""
    from autocompress.backends.base import TrialLimits
    from autocompress.backends.local import Local

    evaluator = MockEvaluator(folder / "log", 0.0, {1: "stop"})
    results = run_jobs(Local(2, TrialLimits(seconds=limit)), evaluator, 4)
    late, left = results[1].seconds - limit, len(evaluator.living_processes())
    measured = f"{results[1].reason}; {late:.2f} s late, {left} processes left, {len(results)} of 4 results received"
    return FaultResult(
        "timed out within limit + 3 s, no process left", measured, 0 <= late <= 3 and not left and len(results) == 4
    )


def refuse_locks(folder: Path) -> FaultResult:
    """Row 35: a file system without locks."""
    import fcntl

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    def prepare() -> None:
        mock.patch.object(fcntl, "flock", flock).start()

    ends = []
    for code in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
        own = folder.parent / str(code)
        own.mkdir()
        ends.append(run_isolated(own, prepare, _search(own, 3)))
    measured = "; ".join(end.describe() for end in ends)
    held = all(end.code == 3 and "locks" in end.message and end.seconds < 5 for end in ends)
    return FaultResult("refused in a second, by name", measured, held)
