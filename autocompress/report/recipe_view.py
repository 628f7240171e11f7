"""How a candidate was made, for its card: order of operations, steps of progressive methods, layer sensitivities."""

from collections.abc import Iterable, Mapping

from autocompress.core.formatting import DASH, is_finite

MAX_ROWS = 40
_TITLES = {
    "path": "Path, step by step",
    "sensitivity": "Sensitivity of each layer",
}
_SECTIONS = {"start": "pruning of the teacher", "prune": "pruning", "quantize": "quantization"}


def format_order(details: Mapping[str, object]) -> str:
    """Return the operations in order.

    Example:
        >>> format_order({"order": ["train 20 epochs", "prune (structured)"]})
        'train 20 epochs \u2192 prune (structured)'
    """
    steps = details.get("order")
    return " \u2192 ".join(str(step) for step in steps) if isinstance(steps, list) else ""


def report_tables(details: Mapping[str, object]) -> list[dict[str, object]]:
    """Return the tables reported by methods: ``title``, ``columns``, ``rows`` of texts, number of ``hidden`` rows."""
    tables = []
    for section, report in _method_reports(details):
        for name, title in _TITLES.items():
            rows = report.get(name)
            if isinstance(rows, list) and rows and all(isinstance(row, Mapping) for row in rows):
                # Nested values do not fit into a cell.
                columns = [
                    column
                    for column in dict.fromkeys(key for row in rows for key in row)
                    if not any(isinstance(row.get(column), Mapping | list) for row in rows)
                ]
                tables.append(
                    {
                        "title": f"{title} ({_SECTIONS[section]})",
                        "columns": [str(column).replace("_", " ") for column in columns],
                        "rows": [[_format_cell(row.get(column)) for column in columns] for row in rows[:MAX_ROWS]],
                        "hidden": max(len(rows) - MAX_ROWS, 0),
                    }
                )
    return tables


def _method_reports(details: Mapping[str, object]) -> Iterable[tuple[str, Mapping[str, object]]]:
    start = details.get("start")
    for report in start.values() if isinstance(start, Mapping) else ():
        if isinstance(report, Mapping):
            yield "start", report
    pruning = details.get("prune")
    if isinstance(pruning, Mapping):
        yield "prune", pruning
    yield "quantize", details


def _format_cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return DASH
    return f"{value:.4g}" if is_finite(value) else str(value)
