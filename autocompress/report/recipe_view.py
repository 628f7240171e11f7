"""What a candidate's card tells of how it was made: the order of operations, the path of steps, the sensitivities."""

from collections.abc import Iterable, Mapping
from typing import Any

from autocompress.core.formatting import DASH, finite

ROWS = 40
_TITLES = {
    "path": "Path, step by step",
    "sensitivity": "Sensitivity of each layer",
}
_SECTIONS = {"start": "cut of the teacher", "prune": "pruning", "quantize": "quantization"}


def order(details: Mapping[str, Any]) -> str:
    """Return the operations in their order.

    Example:
        >>> order({"order": ["train 20 epochs", "prune (structured)"]})
        'train 20 epochs \u2192 prune (structured)'
    """
    told = details.get("order")
    return " \u2192 ".join(str(step) for step in told) if isinstance(told, list) else ""


def tables(details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tables that methods reported: ``title``, ``columns``, ``rows`` of texts, how many are ``hidden``."""
    found = []
    for section, report in _reports(details):
        for name, title in _TITLES.items():
            rows = report.get(name)
            if isinstance(rows, list) and rows and all(isinstance(row, Mapping) for row in rows):
                columns = [
                    column
                    for column in dict.fromkeys(key for row in rows for key in row)
                    if not any(isinstance(row.get(column), Mapping | list) for row in rows)
                ]
                found.append(
                    {
                        "title": f"{title} ({_SECTIONS[section]})",
                        "columns": [str(column).replace("_", " ") for column in columns],
                        "rows": [[_text(row.get(column)) for column in columns] for row in rows[:ROWS]],
                        "hidden": max(len(rows) - ROWS, 0),
                    }
                )
    return found


def _reports(details: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    start = details.get("start")
    for report in start.values() if isinstance(start, Mapping) else ():
        if isinstance(report, Mapping):
            yield "start", report
    if isinstance(details.get("prune"), Mapping):
        yield "prune", details["prune"]
    yield "quantize", details


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return DASH
    return f"{value:.4g}" if finite(value) else str(value)
