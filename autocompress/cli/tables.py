"""Tables for the terminal."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeGuard

import pandas as pd
from rich.table import Table
from rich.text import Text

from autocompress.analysis.pareto import primary_objectives
from autocompress.core.formatting import format_value, label_column
from autocompress.core.run_info import ObjectiveSpec

# Full precision: what a layer has that was not quantized.
FLOAT_BITS = 32


def front_table(candidates: pd.DataFrame, objectives: Sequence[ObjectiveSpec], marked: str = "") -> Table:
    """Return candidates as a table: id, objectives and the main hyperparameters.

    Args:
        candidates: Rows of the table.
        objectives: Records of the objectives, one column each.
        marked: Id of the candidate that an arrow points at.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("candidate", no_wrap=True)
    for objective in objectives:
        table.add_column(label_column(objective.name), justify="right", no_wrap=True)
    score = primary_objectives(objectives)[1]
    test_column = f"{score.name}_test"
    has_test = test_column in candidates
    if has_test:
        table.add_column("on test", justify="right")
    table.add_column("student")
    table.add_column("distilled")
    table.add_column("pruned", justify="right")
    table.add_column("bits w/a", justify="right")
    for _, row in candidates.iterrows():
        scores = [format_value(row[objective.name], objective) for objective in objectives]
        if has_test:
            scores.append(format_value(row[test_column], score))
        # On a narrow terminal these two are shortened: rows on several lines would hide the front.
        student, distillation, *compression = _hyperparameter_cells(row.to_dict())
        texts = [Text(words, no_wrap=True, overflow="ellipsis") for words in (student, distillation)]
        table.add_row("→" if row["id"] == marked else "", row["id"], *scores, *texts, *compression)
    return table


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return text cells as a table; every column but the first is right-aligned."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _hyperparameter_cells(row: Mapping[Hashable, object]) -> tuple[str, str, str, str]:
    """Return the cells for student, distillation, pruning ratio and bit-widths."""

    def values(section: str, *names: str) -> list[object]:
        return [row.get(f"{section}.{row[section]}.{name}") for name in names]

    sizes = ("width", "depth", "block")
    shape = [
        f"{name}={value}" for name, value in zip(sizes, values("student", *sizes), strict=True) if _has_value(value)
    ]
    (temperature,) = values("distill", "temperature")
    (ratio,) = values("prune", "pruning_ratio")
    details = row.get("details")
    details = details if isinstance(details, Mapping) else {}
    steps = (details.get("prune") or {}).get("path")
    if steps:
        # Progressive pruning may stop before the ratio that was set: show the last one that was accepted.
        ratio = [step["pruning_ratio"] for step in steps if step["kept"]][-1]
    return (
        # pandas stores integers beside missing values as floats.
        " ".join([str(row["student"]), *(size.replace(".0", "") for size in shape)]),
        f"{row['distill']} T={temperature:.1f}" if _is_number(temperature) else str(row["distill"]),
        f"{ratio:.0%}" if _is_number(ratio) else "–",
        _format_bits(details.get("layers") or [], values("quantize", "weight_bits", "activation_bits")),
    )


def _format_bits(layers: Sequence[Mapping[str, int]], settings: Sequence[object]) -> str:
    """Return weight and activation bits: the range over the layers if they are stored, else the setting."""
    texts = []
    for side, setting in zip(("weight_bits", "activation_bits"), settings, strict=True):
        default = int(setting) if _is_number(setting) else FLOAT_BITS
        widths = sorted({int(layer[side]) for layer in layers if side in layer}) or [default]
        texts.append(str(widths[0]) if len(widths) == 1 else f"{widths[0]}–{widths[-1]}")
    return "/".join(texts)


def _has_value(value: object) -> bool:
    # NaN, the missing value of pandas, differs from itself.
    return value is not None and value == value


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and _has_value(value)
