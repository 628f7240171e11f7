"""Commands of the user: started without a shell, and killed with all that they started when their time is up."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
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
