"""Progress of a search in a notebook: one cell output that is replaced, made of plain HTML."""

import html
import sys
import time
from collections.abc import Callable
from importlib import import_module

from autocompress.analysis.pareto import primary_objectives
from autocompress.core.formatting import format_epochs, format_value, label_column
from autocompress.engine.archive import Progress
from autocompress.engine.runner import Events

# Seconds between two updates: each one is sent to the browser.
INTERVAL = 1.0
# Rows of the front that are shown; a longer one is sampled evenly.
FRONT_ROWS = 8


def find_display() -> Callable[[str], object] | None:
    """Return a function that shows HTML in the place of what it showed before; None outside of a notebook.

    Notebooks of Jupyter and of marimo are known.
    """
    # A notebook has imported its library before the user can call anything.
    if (marimo := sys.modules.get("marimo")) is not None and marimo.running_in_notebook():
        return lambda text: marimo.output.replace(marimo.Html(text))
    if "IPython" not in sys.modules:
        return None
    shell = import_module("IPython").get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    module = import_module("IPython.display")
    handle = module.display(module.HTML(""), display_id=True)
    return lambda text: handle.update(module.HTML(text))


class NotebookProgress:
    """Receives the events of a search and shows them.

    Args:
        show: Function that shows HTML in the place of the one before.
    """

    def __init__(self, show: Callable[[str], object]) -> None:
        self._show = show
        self._notices: list[str] = []
        self._body = ""
        self._shown_at = 0.0

    @property
    def events(self) -> Events:
        """The callbacks to pass to the search."""
        return Events(self.show_phase, self.show_teacher, self.show_progress, self.show_notice)

    def show_phase(self, text: str) -> None:
        """Show the phase that begins."""
        self._update(f"<p>{html.escape(text)} …</p>", is_final=True)

    def show_teacher(self, done: float, total: int) -> None:
        """Show the epochs of the teacher."""
        bar = f'<progress value="{done}" max="{total}"></progress>'
        self._update(f"<p>{bar} training the teacher: {format_epochs(done, total)}</p>", is_final=done in (0, total))

    def show_progress(self, progress: Progress) -> None:
        """Show the trials and the front so far."""
        done = progress.done + progress.failed
        bar = f'<progress value="{done}" max="{progress.total}"></progress>'
        cost, score = primary_objectives(progress.objectives)
        step = max(1, -(-len(progress.front) // FRONT_ROWS))
        cells = [
            (html.escape(name), format_value(value, score), format_value(price, cost))
            for name, value, price in progress.front[::step]
        ]
        rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells)
        head = f"<tr><th>candidate</th><th>{label_column(score.name)}</th><th>{label_column(cost.name)}</th></tr>"
        table = f"<table>{head}{rows}</table>" if rows else ""
        text = f"<p>{bar} {html.escape(progress.describe())}</p>{table}"
        self._update(text, is_final=progress.is_paused or done == progress.total)

    def show_notice(self, text: str) -> None:
        """Show a remark; it stays."""
        self._notices.append(f"<p>note: {html.escape(text)}</p>")
        self._update(self._body, is_final=True)

    def _update(self, body: str, *, is_final: bool) -> None:
        self._body = body
        now = time.monotonic()
        if is_final or now - self._shown_at >= INTERVAL:
            self._shown_at = now
            self._show("".join(self._notices) + body)
