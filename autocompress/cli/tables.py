"""The small tables that the command line prints."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autocompress.analysis.pareto import axes
from autocompress.core.formatting import label, show


def front_table(table: pd.DataFrame, objectives: Sequence[Mapping[str, Any]], marked: str = "") -> Table:
    """Return candidates as a table for the terminal: id, objectives, the main knobs; ``marked`` is pointed at."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("")
    shown.add_column("candidate", no_wrap=True)
    for objective in objectives:
        shown.add_column(label(objective["name"]), justify="right", no_wrap=True)
    test = f"{axes(objectives)[1]['name']}_test"
    if test in table:
        shown.add_column("on test", justify="right")
    shown.add_column("student")
    shown.add_column("distilled")
    shown.add_column("pruned", justify="right")
    shown.add_column("bits w/a", justify="right")
    for _, row in table.iterrows():
        cells = [show(row[objective["name"]], objective) for objective in objectives]
        if test in table:
            cells.append(show(row[test], axes(objectives)[1]))
        # On a narrow terminal knobs are cut short: rows that fold hide the front.
        student, distilled, *cuts = _knobs(row)
        knobs = [Text(words, no_wrap=True, overflow="ellipsis") for words in (student, distilled)]
        shown.add_row("→" if row["id"] == marked else "", row["id"], *cells, *knobs, *cuts)
    return shown


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return text cells as a table for the terminal; every column but the first stands at its right edge."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _knobs(row: Any) -> tuple[str, str, str, str]:
    def of(section: str, method: str, *names: str) -> list[Any]:
        return [row.get(f"{section}.{method}.{name}") for name in names]

    student = row["student"]
    shape = [
        f"{name}={value}"
        for name in ("width", "depth", "block")
        for value in of("student", student, name)
        if _is(value)
    ]
    (temperature,) = of("distill", row["distill"], "temperature")
    (ratio,) = of("prune", row["prune"], "pruning_ratio")
    details = row.get("details")
    details = details if isinstance(details, Mapping) else {}
    path = (details.get("prune") or {}).get("path")
    if path:
        ratio = [step["pruning_ratio"] for step in path if step["kept"]][-1]
    return (
        " ".join([student, *(str(item).replace(".0", "") for item in shape)]),
        f"{row['distill']} T={temperature:.1f}" if _is(temperature) else row["distill"],
        f"{ratio:.0%}" if _is(ratio) else "–",
        _bits(details.get("layers") or [], of("quantize", row["quantize"], "weight_bits", "activation_bits")),
    )


def _bits(layers: Sequence[Mapping[str, Any]], settings: Sequence[Any]) -> str:
    """Return the bits of weights and activations: those that the layers have, or else those that were set."""
    shown = []
    for side, setting in zip(("weight_bits", "activation_bits"), settings, strict=True):
        widths = sorted({int(layer[side]) for layer in layers if side in layer}) or [
            int(setting) if _is(setting) else 32
        ]
        shown.append(str(widths[0]) if len(widths) == 1 else f"{widths[0]}–{widths[-1]}")
    return "/".join(shown)


def _is(value: Any) -> bool:
    return value is not None and value == value


def console(*, stderr: bool = False) -> Console:
    """Return a console; pipes get a fixed width so that tables are not folded."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 160, emoji=False)
