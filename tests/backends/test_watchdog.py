import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from autocompress.backends.watchdog import find_processes, guard_folder
from tests.backends.test_local import alive, until

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the system has no descriptors of processes")

# Starts one more, says which, does what is asked, and waits.
PARENT = """\
import subprocess, sys
from pathlib import Path
from autocompress.backends.watchdog import guard_folder, guard_group
before, after, *arguments = sys.argv[1:]
exec(before)
child = subprocess.Popen([sys.executable, "-c", "input()", *arguments], stdin=subprocess.PIPE)
exec(after)
print(child.pid, flush=True)
input()
"""


@contextmanager
def family(before: str = "", after: str = "", *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """Start a process that starts one more."""
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, before, after, *arguments],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            yield process, child
        finally:
            process.kill()
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def test_what_a_process_has_started_ends_with_its_group() -> None:
    with family(before="guard_group()") as (process, child):
        assert alive(child)
        process.kill()
        until(lambda: not alive(child), 120)


@pytest.mark.slow
def test_what_works_in_a_folder_ends_with_the_process_above_it_and_so_does_the_folder(tmp_path: Path) -> None:
    gone, spared = tmp_path / "gone", tmp_path / "spared"
    gone.mkdir()
    spared.mkdir()
    with (
        family("", "guard_folder(Path(arguments[0]))", str(gone)) as (process, child),
        family("", "", str(spared)) as (_, other),
    ):
        process.kill()
        until(lambda: not alive(child) and not gone.exists(), 120)
        assert alive(other)
        assert spared.exists()


def test_only_what_is_below_a_process_works_in_its_folder(tmp_path: Path) -> None:
    with family("", "", str(tmp_path)) as (process, child):
        assert sorted(find_processes(str(tmp_path).encode(), os.getpid())) == sorted([process.pid, child])
        assert find_processes(str(tmp_path).encode(), process.pid) == [child]
        assert find_processes(b"nowhere", os.getpid()) == []


def test_a_guard_that_is_not_needed_any_more_leaves_everything_as_it_is(tmp_path: Path) -> None:
    guard = guard_folder(tmp_path)
    assert guard is not None
    guard.kill()
    guard.wait()
    assert tmp_path.is_dir()
