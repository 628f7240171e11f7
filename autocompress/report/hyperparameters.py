"""Importance of hyperparameters, and parallel coordinates of the front."""

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
import pandas as pd

from autocompress.analysis.importance import ImportanceAnalysis, Share
from autocompress.analysis.pareto import primary_objectives
from autocompress.analysis.selection import Pick
from autocompress.core.formatting import DASH, format_count, format_value, is_finite, label_column
from autocompress.core.run_info import ObjectiveSpec, RunInfo
from autocompress.report.figure_data import escape_hidden

#: Rows of the importance table.
MAX_ROWS = 8
#: Axes of the parallel coordinates, in addition to cost and score.
MAX_AXES = 5
#: Lines of the parallel coordinates: more cannot be told apart.
MAX_LINES = 40
# A hyperparameter with more distinct values has a continuous axis.
_MAX_VALUES = 6
# Size and margins of the parallel coordinates, in pixels.
_WIDTH, _HEIGHT = 900.0, 330.0
_TOP, _BOTTOM, _SIDE = 54.0, 26.0, 62.0


class ImportanceRow(TypedDict):
    """Shares of the variance that one hyperparameter explains, between 0 and 1; None for a cost it cannot change."""

    column: str
    name: str
    score: float
    score_range: str
    cost: float | None
    cost_range: str


class Importance(TypedDict):
    """Importance of hyperparameters: rows, labels of the two objectives, numbers of trials and candidates."""

    rows: list[ImportanceRow]
    interactions: list[str]
    cost: str
    score: str
    trials: int
    count: int


class ParallelAxis(TypedDict):
    """One vertical axis: its position, heading, the height of each line, and tick heights with labels."""

    x: float
    name: str
    spots: list[float | None]
    ticks: list[tuple[float, str]]


def summarize_importance(analysis: ImportanceAnalysis | None, info: RunInfo) -> Importance | None:
    """Return the share of the variance of cost and score that each hyperparameter explains, the largest first.

    None without an analysis, or if nothing explains a hundredth.

    Args:
        analysis: Importance of the hyperparameters; None if there are too few candidates.
        info: Description of the run.
    """
    if analysis is None:
        return None
    cost, score = primary_objectives(info.objectives)
    rows: list[ImportanceRow] = [
        {
            "column": column,
            "name": label_hyperparameter(column),
            "score": share.value,
            "score_range": _format_range(share),
            "cost": analysis.cost[column].value if column in analysis.cost else None,
            "cost_range": _format_range(analysis.cost[column]) if column in analysis.cost else "",
        }
        for column, share in analysis.score.items()
    ]
    rows = sorted((row for row in rows if max(row["cost"] or 0.0, row["score"]) >= 0.01), key=_importance_key)
    if not rows:
        return None
    interactions = [
        f"{label_hyperparameter(one)} and {label_hyperparameter(other)}: {share.value:.0%} {_format_range(share)}"
        for one, other, share in analysis.interactions
    ]
    return {
        "rows": rows[:MAX_ROWS],
        "interactions": interactions,
        "cost": label_column(cost.name),
        "score": label_column(score.name),
        "trials": analysis.trials,
        "count": analysis.candidates,
    }


def _format_range(share: Share) -> str:
    return f"[{100 * share.low:.0f}, {100 * share.high:.0f}]"


def _importance_key(row: ImportanceRow) -> tuple[float, str]:
    return (-max(row["cost"] or 0.0, row["score"]), row["name"])


def label_hyperparameter(column: str) -> str:
    """Return the label of a hyperparameter's column.

    Example:
        >>> label_hyperparameter("prune.structured.pruning_ratio"), label_hyperparameter("distill")
        ('pruning ratio (structured)', 'distill: method')
    """
    section, _, rest = column.partition(".")
    method, _, knob = rest.rpartition(".")
    return f"{knob.replace('_', ' ')} ({method})" if method else f"{section}: method"


def parallel_coordinates(
    front: pd.DataFrame, info: RunInfo, importance: Importance | None, picked: Pick | None
) -> dict[str, object] | None:
    """Return the front as lines over its most important hyperparameters, cost and score; None without a front.

    Args:
        front: Candidates on the front.
        info: Description of the run.
        importance: Result of :func:`summarize_importance`.
        picked: The recommended candidate, if there is one.
    """
    if importance is None or len(front) < 2:
        return None
    cost, score = primary_objectives(info.objectives)
    columns = [row["column"] for row in importance["rows"] if front[row["column"]].map(str).nunique() > 1][:MAX_AXES]
    # Ceiling division: at most MAX_LINES lines, evenly spaced by cost, and always the last one.
    step = max(1, -(-len(front) // MAX_LINES))
    shown = front.iloc[sorted({*range(0, len(front), step), len(front) - 1})]
    is_pick_missing = picked is not None and picked.id not in set(shown["id"]) and picked.id in set(front["id"])
    if picked is not None and is_pick_missing:
        shown = pd.concat([shown, front[front["id"] == picked.id]])
    names = [*columns, cost.name, score.name]
    gap = (_WIDTH - 2 * _SIDE) / (len(names) - 1)
    rails = [
        _parallel_axis(shown, name, _SIDE + gap * index, {cost.name: cost, score.name: score})
        for index, name in enumerate(names)
    ]
    lines = []
    for row, identity in enumerate(shown["id"]):
        spots = [(rail["x"], rail["spots"][row]) for rail in rails]
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in spots if y is not None)
        lines.append({"id": str(identity), "path": path, "pick": picked is not None and identity == picked.id})
    # SVG draws in order: the thick line of the pick comes last, on top.
    lines.sort(key=lambda line: line["pick"])
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "rails": rails,
        "lines": lines,
        "top": _TOP,
        "bottom": _HEIGHT - _BOTTOM,
    }


def _parallel_axis(rows: pd.DataFrame, name: str, x: float, objectives: Mapping[str, ObjectiveSpec]) -> ParallelAxis:
    """Return one vertical axis: the height of each row's line, and the tick labels."""
    record = objectives.get(name)
    values = pd.to_numeric(rows[name], errors="coerce")
    x = round(x, 1)
    head = label_column(name) if record else label_hyperparameter(name)
    texts = ["none" if value is None or value != value else escape_hidden(str(value)) for value in rows[name].tolist()]
    if record is None and (values.nunique() <= _MAX_VALUES or values.isna().any()):
        order = sorted(set(texts), key=lambda text: (text != "none", _parse_number(text), text))
        spots = {text: _pixel_height(index / max(len(order) - 1, 1)) for index, text in enumerate(order)}
        ticks = [(spots[text], _shorten_tick(text)) for text in order] if len(order) <= 9 else []
        return {"x": x, "name": head, "spots": [spots[text] for text in texts], "ticks": ticks}
    log = record is not None and record.kind == "cost" and float(values.min()) > 0
    scaled = np.log10(values) if log else values
    low, high = float(scaled.min()), float(scaled.max())
    if record is not None and record.kind == "score" and record.direction == "minimize":
        # Higher is better, as in the plot of the front.
        low, high = high, low
    places = [
        _pixel_height((value - low) / ((high - low) or 1.0)) if is_finite(value) else None for value in scaled.tolist()
    ]
    least, most = (_pixel_height(float(low > high)), _pixel_height(float(low <= high)))
    ends = [(least, float(values.min())), (most, float(values.max()))]
    ticks = [(y, format_value(value, record) if record else format_count(value)) for y, value in ends]
    return {"x": x, "name": head, "spots": places, "ticks": ticks}


def _pixel_height(share: float) -> float:
    return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)


def _parse_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.inf


def _shorten_tick(text: str) -> str:
    text = f"{_parse_number(text):.4g}" if is_finite(_parse_number(text)) else text or DASH
    return text if len(text) <= 14 else text[:12] + "…"


def split_words(text: str, most: int = 15) -> Sequence[str]:
    """Return a heading as at most two lines.

    Example:
        >>> split_words("pruning ratio (structured)")
        ['pruning ratio', '(structured)']
    """
    if len(text) <= most or " " not in text:
        return [text]
    words = text.split(" ")
    middle = min(
        range(1, len(words)), key=lambda count: abs(len(" ".join(words[:count])) - len(" ".join(words[count:])))
    )
    return [" ".join(words[:middle]), " ".join(words[middle:])]
