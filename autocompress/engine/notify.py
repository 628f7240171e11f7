"""The command of ``search.notify``, which runs when a search has ended."""

import logging
import shlex
import subprocess
from pathlib import Path
from typing import Literal

from autocompress.core.commands import run_command
from autocompress.engine.spec import Source
from autocompress.store.schema import DATABASE

logger = logging.getLogger(__name__)

#: How a search has ended.
EndState = Literal["finished", "failed", "interrupted"]
#: Words of the command that are replaced.
RUN, STATE = "{run}", "{state}"
# Seconds after which the command is killed: the search itself has ended, and its caller waits.
TIMEOUT = 60.0


def check_notify(source: Source) -> None:
    """Check that the command comes from the user: the spec in a run folder may be someone else's.

    Raises:
        SpecError: The spec is that of a run folder and names a command.
    """
    if source.spec.search.notify is not None and (Path(source.name).parent / DATABASE).is_file():
        raise source.make_error(
            ("search", "notify"),
            f"a run folder may not name a command to run; remove it, or copy {source.name} elsewhere after reading it",
        )


def run_notify(command: str | None, run: Path, state: EndState) -> None:
    """Run the command, if there is one; a failure is logged as a warning, because the search itself has ended.

    No shell is started. ``{run}`` and ``{state}`` are replaced, and the command gets the environment variables
    ``AUTOCOMPRESS_RUN`` and ``AUTOCOMPRESS_STATE``.

    Args:
        command: The command; None for none.
        run: The run folder.
        state: End of the search.
    """
    if command is not None and (problem := _run_command(command, run, state)):
        logger.warning("search.notify %s: %s", problem, command)


def _run_command(command: str, run: Path, state: EndState) -> str:
    """Return why the command failed; empty if it did not."""
    # Split before the values are put in, which may contain spaces.
    words = [word.replace(RUN, str(run)).replace(STATE, state) for word in shlex.split(command)]
    environment = {"AUTOCOMPRESS_RUN": str(run), "AUTOCOMPRESS_STATE": state}
    try:
        done = run_command(words, TIMEOUT, environment)
    except subprocess.TimeoutExpired:
        return f"did not end within {TIMEOUT:g} s and was killed"
    except OSError as error:
        return f"cannot be run ({error.strerror})"
    return f"failed ({done.failure})" if done.failure else ""
