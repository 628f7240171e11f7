"""Names that a search space may use, as rows: tasks, methods with their hyperparameters, objectives, modes, spaces."""

from autocompress.core.heads import as_head
from autocompress.core.registry import OBJECTIVES, TARGETS, TASKS
from autocompress.engine.space import MODES, SECTIONS
from autocompress.engine.spec import list_shipped_spaces

Rows = list[dict[str, str]]


def list_tasks() -> Rows:
    """Return every task with its heads and metrics."""
    rows = []
    for name in TASKS:
        task = TASKS.get(name)
        # A task for user files has no heads before it has read them, and a brought model neither heads nor metrics.
        heads = [f"{head} ({as_head(size).describe()})" for head, size in getattr(task, "heads", {}).items()]
        described = ", ".join(heads) or "from the data"
        metrics = ", ".join(getattr(task, "metrics", ()))
        rows.append({"task": name, "what it is": _first_line(task.__doc__), "heads": described, "metrics": metrics})
    return rows


def list_methods() -> Rows:
    """Return every method of every section: one row for it, then one for each hyperparameter."""
    rows = []
    for section, registry in SECTIONS.items():
        for name in registry:
            method = registry.get(name)
            row = {"section": section, "method": name}
            meaning = _first_line(method.__doc__)
            rows.append({**row, "hyperparameter": "", "range": "", "default": "", "meaning": meaning})
            rows += [
                {
                    **row,
                    "hyperparameter": knob.name,
                    "range": str(knob.domain),
                    "default": str(knob.default),
                    "meaning": _first_line(knob.doc),
                }
                for knob in method.config.knobs().values()
            ]
    return rows


def list_objectives() -> Rows:
    """Return every objective with its direction and unit."""
    return [
        {
            "objective": objective.name,
            "kind": objective.kind,
            "direction": objective.direction,
            "unit": objective.unit,
            "what it is": _first_line(objective.doc),
        }
        for objective in map(OBJECTIVES.get, OBJECTIVES)
    ]


def list_modes() -> Rows:
    """Return every mode of a search."""
    return [{"mode": name, "meaning": mode.summary} for name, mode in MODES.items()]


def list_spaces() -> Rows:
    """Return every search space that is included in autocompress."""
    return [{"space": name, "file": str(path)} for name, path in list_shipped_spaces().items()]


def list_targets() -> Rows:
    """Return every target, with the command that installs it."""
    rows = []
    for name in TARGETS:
        target = TARGETS.get(name)
        described, installed = _first_line(target.__doc__), target.describe_installation()
        rows.append({"target": name, "what it is": described, "installed": installed})
    return rows


LISTINGS = {
    "tasks": list_tasks,
    "methods": list_methods,
    "objectives": list_objectives,
    "modes": list_modes,
    "spaces": list_spaces,
    "targets": list_targets,
}


def _first_line(text: str | None) -> str:
    # Docstrings are reStructuredText; its marks for code mean nothing on a terminal.
    return (text or "").strip().partition("\n")[0].replace("``", "")
