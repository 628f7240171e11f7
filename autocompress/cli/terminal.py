"""What a command writes beside its result: log records, progress and notes, through one console on standard error.

Ctrl-C and termination signals: the first stops a search in order, the second is ignored, the third ends at once.
"""

import codecs
import logging
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer.core import TyperGroup
from typer.main import get_command

import autocompress
from autocompress.core.untrusted import escape_controls
from autocompress.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

PACKAGE = "autocompress"
QUIET = -1
# A pipe has no width of its own: a row of a table stays on one line there.
PIPE_WIDTH = 2000
_LEVELS = {QUIET: logging.ERROR, 0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG}
_COUNT = f"{PACKAGE}.verbosity"


# Plain forms of the characters that messages and tables use.
_PLAIN = {"→": "->", "–": "-", "—": "-", "…": "...", "×": "x", "·": ".", "±": "+-", "≤": "<=", "≥": ">="}


def replace_unprintable(stream: Any) -> None:
    """Let a stream replace characters that its encoding lacks, instead of ending the command with an error.

    Example:
        >>> import io
        >>> stream = io.TextIOWrapper(io.BytesIO(), "ascii")
        >>> replace_unprintable(stream)
        >>> _ = stream.write("1–2 → ✓")
        >>> stream.flush()
        >>> stream.buffer.getvalue()
        b'1-2 -> ?'
    """
    codecs.register_error("plain", _write_plain)
    # Streams of tests and notebooks have no such method, and write any character.
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="plain")


def _write_plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end


def print_text(text: object = "", *, file: TextIO | None = None, end: str = "\n", flush: bool = False) -> None:
    """Print a text whose control characters are shown as escape sequences; commands print nothing in another way."""
    print(escape_controls(str(text)), file=file, end=end, flush=flush)


def print_prose(text: str, *, stderr: bool = False) -> None:
    """Print a paragraph: wrapped at words on a terminal, with later lines indented; as one line in a pipe.

    Args:
        text: The paragraph, which may begin with blanks.
        stderr: Whether it goes to standard error.
    """
    stream = sys.stderr if stderr else sys.stdout
    if stream.isatty():
        # Paths and commands are copied, so they stay whole.
        text = textwrap.fill(
            text,
            shutil.get_terminal_size().columns,
            subsequent_indent=" " * (len(text) - len(text.lstrip()) + 2),
            break_long_words=False,
            break_on_hyphens=False,
        )
    print_text(text, file=stream)


def make_console(*, stderr: bool = False, quiet: bool = False) -> "Console":
    """Return a console on standard output or standard error; a pipe does not wrap.

    Control characters of texts are shown as escape sequences; those of colours and of the cursor are rich's own.
    """
    from rich.console import Console
    from rich.segment import Segment

    class PlainTextConsole(Console):
        def render(self, renderable: "RenderableType", options: "ConsoleOptions | None" = None) -> Iterator["Segment"]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(escape_controls(segment.text), segment.style)

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return PlainTextConsole(stderr=stderr, quiet=quiet, width=width, emoji=False)


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
    from rich.logging import RichHandler

    logger = logging.getLogger(PACKAGE)
    if logger.getEffectiveLevel() > logging.WARNING:
        return make_console(stderr=True, quiet=True)
    consoles = [handler.console for handler in logger.handlers if isinstance(handler, RichHandler)]
    return consoles[0] if consoles else make_console(stderr=True)


def print_version(is_asked: bool) -> None:
    """Print the version of the package and end the program, if it was asked for."""
    if is_asked:
        print_text(f"autocompress {autocompress.__version__}")
        raise typer.Exit


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


# Ctrl-C, `kill` and schedulers, a terminal that is closed.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
STOPPING = b"\nstopping: the page of the results so far is being written; press Ctrl-C again to skip it\n"

Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None


class StopSignals(AbstractContextManager["StopSignals"]):
    """Turns signals that ask a process to end into :class:`KeyboardInterrupt`; for the main thread."""

    def __init__(self) -> None:
        self._received: list[int] = []
        self._previous_handlers: dict[int, Handler] = {}

    @property
    def exit_code(self) -> int:
        """The shell's exit code for the first signal: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self._received[0] if self._received else signal.SIGINT)

    def __enter__(self) -> "StopSignals":
        self._previous_handlers = {number: signal.signal(number, self._handle_signal) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)
        if len(self._received) == 2:
            # os.write instead of print: a signal may arrive while another print holds the stream's lock.
            os.write(2, STOPPING)
            return
        raise KeyboardInterrupt


def is_interactive() -> bool:
    """Return whether a question on the terminal can be answered."""
    return sys.stdin.isatty() and sys.stdout.isatty()
