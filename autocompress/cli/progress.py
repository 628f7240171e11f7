"""Progress of a running search, of repeats and of measurements."""

import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bar, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from autocompress.analysis.pareto import primary_objectives
from autocompress.core.formatting import format_epochs, format_value, label_column

# The engine loads torch, which commands that only read a run do without.
if TYPE_CHECKING:
    from autocompress.engine.archive import Progress
    from autocompress.engine.runner import Events

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
    def events(self) -> "Events":
        """The callbacks to pass to the search."""
        from autocompress.engine.runner import Events

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

    def _show_teacher(self, done: float, total: int) -> None:
        text = f"training the teacher: {format_epochs(done, total)}"
        self._update_bar(text, done, total)
        if self._live is not None:
            self._live.update(self._bar)
        elif done in (0, total) or self._is_line_due():
            self._print_line(text)

    def _show_progress(self, progress: "Progress") -> None:
        if self._live is not None:
            self._live.update(self._render_progress(progress))
        elif progress.is_paused or self._is_line_due() or progress.done + progress.failed == progress.total:
            self._print_line(progress.describe())

    def _update_bar(self, text: str, done: float, total: int) -> None:
        if self._task is None:
            self._task = self._bar.add_task(text, total=total)
        self._bar.update(self._task, description=text, completed=done, total=total)

    def _render_progress(self, progress: "Progress") -> RenderableType:
        self._update_bar("trials", progress.done + progress.failed, progress.total)
        return Group(self._bar, Text(progress.describe()), self._render_front(progress))

    def _render_front(self, progress: "Progress") -> Table:
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
        # A terminal wraps at words; a log has one line for each text.
        self._console.print(text, soft_wrap=not self._console.is_terminal, highlight=False)


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
