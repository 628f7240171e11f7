"""Commands of the user, without a shell and killed when their time is up, and further processes of this Python."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class CommandResult:
    """What a command has written.

    Attributes:
        code: Exit code.
        output: Standard output.
        errors: Standard error.
    """

    code: int
    output: str
    errors: str

    @property
    def failure(self) -> str:
        """Why the command failed; empty if it did not."""
        if not self.code:
            return ""
        # The last line of what it wrote to standard error names the reason in most tools.
        return (self.errors.strip().splitlines() or [f"exit code {self.code}"])[-1]


def run_command(words: Sequence[str], timeout: float, environment: Mapping[str, str] | None = None) -> CommandResult:
    """Run a command without a shell and without standard input.

    Args:
        words: Program and arguments.
        timeout: Seconds after which the command is killed.
        environment: Variables besides those of this process.

    Raises:
        subprocess.TimeoutExpired: It did not end in time.
        OSError: It cannot be started.
    """
    with subprocess.Popen(
        words,
        env={**os.environ, **(environment or {})},
        # A password that ssh asks for would be read from the user's terminal.
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            # The command is often a script: killing it alone would leave the program that hangs running.
            with suppress(ProcessLookupError):
                if sys.platform == "win32":
                    process.kill()
                else:
                    os.killpg(process.pid, signal.SIGKILL)
            raise
    return CommandResult(process.returncode, output, errors)


def python_command() -> list[str]:
    """Return the start of a command of this Python that imports nothing from the current folder.

    ``-c`` and ``-m`` import from there before the standard library, and the current folder is often an artifact or a
    run folder from elsewhere. Where this process imports from there itself, its children may, too.
    """
    return [sys.executable] if _imports_current_folder() else [sys.executable, "-P"]


@contextmanager
def import_safely() -> Iterator[None]:
    """Let processes that :mod:`multiprocessing` starts in the body import as :func:`python_command` says."""
    name = "PYTHONSAFEPATH"
    if _imports_current_folder() or name in os.environ:
        yield
        return
    # The command line of these processes cannot be changed otherwise.
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name, None)


def _imports_current_folder() -> bool:
    with suppress(FileNotFoundError):
        return os.getcwd() in map(os.path.abspath, sys.path)
    # The current folder was deleted.
    return False
