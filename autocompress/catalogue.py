"""What a search space can name, as tables: tasks, methods with their knobs, objectives, modes, shipped spaces."""

from rich.table import Table

from autocompress.engine.modes import MODES
from autocompress.engine.space import SECTIONS
from autocompress.engine.spec import shipped_spaces
from autocompress.registry import OBJECTIVES, TASKS


def tasks() -> Table:
    """Return every task with its heads and metrics."""
    table = _table("task", "what it is", "heads", "metrics")
    for name in TASKS:
        task = TASKS.get(name)
        # A task that reads a user's files learns its heads from them.
        known = getattr(task, "heads", {})
        heads = ", ".join(f"{head} ({classes})" for head, classes in known.items()) or "from the data"
        table.add_row(name, _first_line(task), heads, ", ".join(task.metrics))
    return table


def methods() -> Table:
    """Return every method of every section with its knobs, their ranges and defaults."""
    table = _table("section", "method", "knob", "range", "default", "meaning")
    for section, registry in SECTIONS.items():
        for name in registry:
            method = registry.get(name)
            table.add_row(section, name, "", "", "", _first_line(method))
            for knob in method.config.knobs().values():
                table.add_row("", "", knob.name, str(knob.domain), str(knob.default), knob.doc)
    return table


def objectives() -> Table:
    """Return every objective with its direction and unit."""
    table = _table("objective", "kind", "direction", "unit", "what it is")
    for name in OBJECTIVES:
        found = OBJECTIVES.get(name)
        table.add_row(name, found.kind, found.direction, found.unit, found.doc)
    return table


def modes() -> Table:
    """Return every mode of a search: as it is meant, and the simpler ones to compare it with."""
    table = _table("mode", "how it goes about")
    for name, mode in MODES.items():
        table.add_row(name, mode.meaning)
    return table


def spaces() -> Table:
    """Return every search space that ships with autocompress."""
    table = _table("space", "file")
    for name, path in shipped_spaces().items():
        table.add_row(name, str(path))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    return table


def _first_line(described: object) -> str:
    return (described.__doc__ or "").strip().partition("\n")[0]
