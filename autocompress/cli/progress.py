"""What the command line shows while a search runs."""

import time
from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bar, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from autocompress.analysis.pareto import axes
from autocompress.core.formatting import duration, label, plural, show
from autocompress.engine.progress import Progress
from autocompress.engine.runner import Events

SECONDS_BETWEEN_LINES = 5.0
ROWS = 8


class SearchDisplay(AbstractContextManager["SearchDisplay"]):
    """Live progress on a terminal, a plain line now and then elsewhere.

    Args:
        console: Where to write.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._bar = Bar(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console)
        self._task: TaskID | None = None
        self._last_line = 0.0
        self._phase = ""

    @property
    def events(self) -> Events:
        """The callbacks to give to the search."""
        return Events(self._on_phase, self._on_teacher, self._on_progress, self._on_notice)

    def __enter__(self) -> "SearchDisplay":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def _on_phase(self, text: str) -> None:
        self._phase = text
        if self._live is not None:
            self._live.update(Text(text + " ..."))
        else:
            self._console.print(text, soft_wrap=True, highlight=False)

    def _on_notice(self, text: str) -> None:
        (self._console if self._live is None else self._live.console).print(
            Text(f"note: {text}"), soft_wrap=True, highlight=False
        )

    def _on_teacher(self, done: int, total: int) -> None:
        self._advance("training the teacher", done, total)
        if self._live is not None:
            self._live.update(self._bar)
        elif done == total or self._due():
            self._line(f"training the teacher: epoch {done} of {total}")

    def _on_progress(self, progress: Progress) -> None:
        if self._live is not None:
            self._live.update(self._screen(progress))
        elif self._due() or progress.done + progress.failed == progress.total:
            self._line(_summary(progress))

    def _advance(self, text: str, done: int, total: int) -> None:
        if self._task is None:
            self._task = self._bar.add_task(text, total=total)
        self._bar.update(self._task, description=text, completed=done, total=total)

    def _screen(self, progress: Progress) -> RenderableType:
        self._advance("trials", progress.done + progress.failed, progress.total)
        return Group(self._bar, Text(_summary(progress)), self._front(progress))

    def _front(self, progress: Progress) -> Table:
        cost_of, score_of = axes(progress.objectives)
        table = Table(title="front so far (search_val)", title_justify="left", box=None, pad_edge=False)
        table.add_column("candidate")
        table.add_column(label(score_of["name"]), justify="right")
        table.add_column(label(cost_of["name"]), justify="right")
        rows = progress.front
        step = max(1, -(-len(rows) // ROWS))
        for identity, score, cost in rows[::step]:
            table.add_row(identity, show(score, score_of), show(cost, cost_of))
        return table

    def _due(self) -> bool:
        if time.monotonic() - self._last_line < SECONDS_BETWEEN_LINES:
            return False
        self._last_line = time.monotonic()
        return True

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False)


def _summary(progress: Progress) -> str:
    left = ""
    if progress.limit is not None:
        left = f", at most {duration(max(progress.limit - progress.elapsed, 0.0))} left"
    failed = f", {progress.failed} failed" if progress.failed else ""
    return (
        f"{progress.done} of {progress.total} trials done, {progress.running} running{failed}; "
        f"{plural(progress.candidates, 'candidate')}, {len(progress.front)} on the front, "
        f"hypervolume {progress.hypervolume:.4f}; {duration(progress.elapsed)}{left}"
    )


class CountDisplay(AbstractContextManager["CountDisplay"]):
    """A bar on a terminal, a line after each step elsewhere.

    Args:
        console: Where to write.
        doing: What is done: ``repeating from scratch``.
        done: What of each is done: ``repeated {} trainings``.
    """

    def __init__(self, console: Console, doing: str, done: str) -> None:
        self._console = console
        self._done = done
        columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn())
        self._bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=None)
        self._said = -1

    def __enter__(self) -> "CountDisplay":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def progress(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` are done."""
        self._bar.update(self._task, completed=done, total=total)
        if not self._console.is_terminal and done != self._said:
            self._said = done
            self._console.print(self._done.format(f"{done} of {total}"), soft_wrap=True, highlight=False)
