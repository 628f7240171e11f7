"""What a search space can name, as rows: tasks, methods with their knobs, objectives, modes, shipped spaces."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from autocompress.core.registry import OBJECTIVES, TASKS
from autocompress.engine.modes import MODES
from autocompress.engine.space import SECTIONS
from autocompress.engine.spec import shipped_spaces

Rows = list[dict[str, str]]
_LEADING = ("section", "method")


def tasks() -> Rows:
    """Return every task with its heads and metrics."""
    found = []
    for name in TASKS:
        task = TASKS.get(name)
        # A task that reads a user's files learns its heads from them.
        known = getattr(task, "heads", {})
        heads = ", ".join(f"{head} ({classes})" for head, classes in known.items()) or "from the data"
        metrics = ", ".join(task.metrics)
        found.append({"task": name, "what it is": _first_line(task), "heads": heads, "metrics": metrics})
    return found


def methods() -> Rows:
    """Return every method of every section: a row for itself, then one for each knob with its range and default."""
    found = []
    for section, registry in SECTIONS.items():
        for name in registry:
            method = registry.get(name)
            row = {"section": section, "method": name}
            found.append({**row, "knob": "", "range": "", "default": "", "meaning": _first_line(method)})
            found += [
                {
                    **row,
                    "knob": knob.name,
                    "range": str(knob.domain),
                    "default": str(knob.default),
                    "meaning": knob.doc,
                }
                for knob in method.config.knobs().values()
            ]
    return found


def objectives() -> Rows:
    """Return every objective with its direction and unit."""
    found = [OBJECTIVES.get(name) for name in OBJECTIVES]
    return [
        {
            "objective": each.name,
            "kind": each.kind,
            "direction": each.direction,
            "unit": each.unit,
            "what it is": each.doc,
        }
        for each in found
    ]


def modes() -> Rows:
    """Return every mode of a search: as it is meant, and the simpler ones to compare it with."""
    return [{"mode": name, "how it goes about": mode.meaning} for name, mode in MODES.items()]


def spaces() -> Rows:
    """Return every search space that ships with autocompress."""
    return [{"space": name, "file": str(path)} for name, path in shipped_spaces().items()]


def table(rows: Sequence[Mapping[str, str]]) -> Table:
    """Return rows as a table for the terminal."""
    shown = Table(*(rows[0] if rows else ()), box=None, pad_edge=False, header_style="bold")
    for row in rows:
        # A knob stands below its method, whose name it need not repeat.
        shown.add_row(*("" if row.get("knob") and name in _LEADING else value for name, value in row.items()))
    return shown


def _first_line(described: object) -> str:
    return (described.__doc__ or "").strip().partition("\n")[0]
