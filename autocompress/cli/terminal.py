"""What a command writes beside its result: log records, progress and notes, through one console on standard error."""

import logging
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from autocompress.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

PACKAGE = "autocompress"
QUIET = -1
# A pipe has no width of its own; tables need about this much to stay on one line per row.
PIPE_WIDTH = 160
_LEVELS = {QUIET: logging.ERROR, 0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG}
_COUNT = f"{PACKAGE}.verbosity"


def make_console(*, stderr: bool = False) -> "Console":
    """Return a console on standard output or standard error; a pipe gets a fixed width."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else PIPE_WIDTH, emoji=False)


def configure_logging(verbosity: int = 0) -> None:
    """Send the log records of the package to standard error.

    Args:
        verbosity: Lowest level shown: -1 errors, 0 warnings, 1 information, 2 debugging.
    """
    from rich.logging import RichHandler

    handler = RichHandler(console=make_console(stderr=True), show_path=False, log_time_format="%H:%M:%S")
    logger = logging.getLogger(PACKAGE)
    # A second call replaces the handler: -v after the verb, or another command in the same process.
    logger.handlers = [handler]
    logger.setLevel(_LEVELS[min(verbosity, max(_LEVELS))])
    logger.propagate = False


def progress_console() -> "Console":
    """Return the console for progress and notes: the one that logs are written to, or a silent one with ``--quiet``.

    Progress display and log records share one console, so that a record is printed above a live display and does not
    break it.
    """
    from rich.console import Console
    from rich.logging import RichHandler

    logger = logging.getLogger(PACKAGE)
    if logger.getEffectiveLevel() > logging.WARNING:
        return Console(quiet=True)
    consoles = [handler.console for handler in logger.handlers if isinstance(handler, RichHandler)]
    return consoles[0] if consoles else make_console(stderr=True)


class VerbosityGroup(TyperGroup):
    """A group of commands that accepts ``-v`` and ``-q`` before and after the name of a command."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for command in (self, *self.commands.values()):
            # An application of its own turns the declaration into parameters, in every version of typer.
            declaration = typer.Typer(add_completion=False)
            declaration.command()(_declare_options)
            command.params += get_command(declaration).params


def _count_verbose(context: typer.Context, count: int) -> None:
    if count:
        # `info` is shared by the contexts of the group and of the command: `-v search -v` counts as two.
        previous = context.meta.get(_COUNT, 0)
        if previous == QUIET:
            raise UsageError("--verbose and --quiet exclude each other")
        context.meta[_COUNT] = previous + count
        configure_logging(previous + count)


def _set_quiet(context: typer.Context, quiet: bool) -> None:
    if quiet:
        if context.meta.get(_COUNT, 0) > 0:
            raise UsageError("--verbose and --quiet exclude each other")
        context.meta[_COUNT] = QUIET
        configure_logging(QUIET)


def _declare_options(
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose",
            "-v",
            count=True,
            show_default=False,
            callback=_count_verbose,
            expose_value=False,
            help="Log what happens; -vv logs details.",
        ),
    ] = 0,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            show_default=False,
            callback=_set_quiet,
            expose_value=False,
            help="Show errors only: no progress, notes or warnings.",
        ),
    ] = False,
) -> None:
    """Declare the two options as typer reads them; never called."""
