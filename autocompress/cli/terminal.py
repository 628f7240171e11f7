"""What a command writes beside its result: log records, progress and notes, through one console on standard error.

Ctrl-C and termination signals: the first stops a search in order, the second is ignored, the third ends at once.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bar, TaskID, TextColumn
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup
from typer.main import get_command

from autocompress.analysis.pareto import primary_objectives
from autocompress.core.formatting import format_duration, format_plural, format_value, label_column
from autocompress.engine.progress import Progress
from autocompress.engine.runner import Events
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


# A log file needs no more than a line now and then.
SECONDS_BETWEEN_LINES = 5.0
# Rows of the front that fit below the bar on a small terminal.
FRONT_ROWS = 8


class SearchDisplay(AbstractContextManager["SearchDisplay"]):
    """Live progress on a terminal; elsewhere a line of text every few seconds.

    Args:
        console: Console that the progress is written to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._bar = Bar(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console)
        self._task: TaskID | None = None
        self._last_line = 0.0

    @property
    def events(self) -> Events:
        """The callbacks to pass to the search."""
        return Events(self._show_phase, self._show_teacher, self._show_progress, self._show_notice)

    def __enter__(self) -> "SearchDisplay":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def _show_phase(self, text: str) -> None:
        if self._live is not None:
            self._live.update(Text(text + " ..."))
        else:
            self._print_line(text)

    def _show_notice(self, text: str) -> None:
        # Text, because the notice may contain brackets, which rich would read as markup.
        self._print_line(Text(f"note: {text}"))

    def _show_teacher(self, done: int, total: int) -> None:
        self._update_bar("training the teacher", done, total)
        if self._live is not None:
            self._live.update(self._bar)
        elif done == total or self._is_line_due():
            self._print_line(f"training the teacher: epoch {done} of {total}")

    def _show_progress(self, progress: Progress) -> None:
        if self._live is not None:
            self._live.update(self._render_progress(progress))
        elif self._is_line_due() or progress.done + progress.failed == progress.total:
            self._print_line(_format_progress(progress))

    def _update_bar(self, text: str, done: int, total: int) -> None:
        if self._task is None:
            self._task = self._bar.add_task(text, total=total)
        self._bar.update(self._task, description=text, completed=done, total=total)

    def _render_progress(self, progress: Progress) -> RenderableType:
        self._update_bar("trials", progress.done + progress.failed, progress.total)
        return Group(self._bar, Text(_format_progress(progress)), self._render_front(progress))

    def _render_front(self, progress: Progress) -> Table:
        cost, score = primary_objectives(progress.objectives)
        table = Table(title="front so far (scores on search_val)", title_justify="left", box=None, pad_edge=False)
        table.add_column("candidate")
        table.add_column(label_column(score.name), justify="right")
        table.add_column(label_column(cost.name), justify="right")
        rows = progress.front
        # A long front is sampled evenly: both of its ends matter more than its length.
        step = max(1, -(-len(rows) // FRONT_ROWS))
        for candidate, score_value, cost_value in rows[::step]:
            table.add_row(candidate, format_value(score_value, score), format_value(cost_value, cost))
        return table

    def _is_line_due(self) -> bool:
        if time.monotonic() - self._last_line < SECONDS_BETWEEN_LINES:
            return False
        self._last_line = time.monotonic()
        return True

    def _print_line(self, text: str | Text) -> None:
        self._console.print(text, soft_wrap=True, highlight=False)


def _format_progress(progress: Progress) -> str:
    remaining = ""
    if progress.limit is not None:
        remaining = f", at most {format_duration(max(progress.limit - progress.elapsed, 0.0))} left"
    failed = f", {progress.failed} failed" if progress.failed else ""
    return (
        f"{progress.done} of {progress.total} trials done, {progress.running} running{failed}; "
        f"{format_plural(progress.candidates, 'candidate')}, {len(progress.front)} on the front, "
        f"hypervolume {progress.hypervolume:.4f}; {format_duration(progress.elapsed)}{remaining}"
    )


class CountDisplay(AbstractContextManager["CountDisplay"]):
    """A progress bar on a terminal; elsewhere a line of text after each step.

    Args:
        console: Console that the progress is written to.
        title: Text beside the bar: ``repeating from scratch``.
        line: Text of a line, with a place for the count: ``repeated {} trainings``.
    """

    def __init__(self, console: Console, title: str, line: str) -> None:
        self._console = console
        self._line = line
        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn())
        self._bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=None)
        self._last_count = -1

    def __enter__(self) -> "CountDisplay":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, done: int, total: int) -> None:
        """Show how many steps are done."""
        self._bar.update(self._task, completed=done, total=total)
        if not self._console.is_terminal and done != self._last_count:
            self._last_count = done
            self._console.print(self._line.format(f"{done} of {total}"), soft_wrap=True, highlight=False)
