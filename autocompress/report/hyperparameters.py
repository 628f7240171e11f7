"""Importance of hyperparameters, and parallel coordinates of the front."""

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autocompress.analysis.pareto import full_fidelity, numeric_column, primary_objectives
from autocompress.analysis.selection import Pick
from autocompress.core.formatting import DASH, format_count, format_value, is_finite, label_column
from autocompress.core.run_info import ObjectiveSpec, RunInfo
from autocompress.report.figure_data import SECTIONS, escape_hidden

#: Rows of the importance table.
MAX_ROWS = 8
#: Axes of the parallel coordinates, in addition to cost and score.
MAX_AXES = 5
#: Lines of the parallel coordinates: more cannot be told apart.
MAX_LINES = 40
# Fewer candidates say nothing about importance.
_MIN_CANDIDATES = 12
# A hyperparameter with more distinct values is divided into bins with equally many candidates.
_MAX_VALUES, _BINS = 6, 5
# Size and margins of the parallel coordinates, in pixels.
_WIDTH, _HEIGHT = 900.0, 330.0
_TOP, _BOTTOM, _SIDE = 54.0, 26.0, 62.0


class ImportanceRow(TypedDict):
    """Shares of the variance that one hyperparameter explains, between 0 and 1."""

    column: str
    name: str
    cost: float
    score: float


class Importance(TypedDict):
    """Importance of hyperparameters: rows, labels of the two objectives, number of candidates."""

    rows: list[ImportanceRow]
    cost: str
    score: str
    count: int


class ParallelAxis(TypedDict):
    """One vertical axis: its position, heading, the height of each line, and tick heights with labels."""

    x: float
    name: str
    spots: list[float | None]
    ticks: list[tuple[float, str]]


def compute_importance(candidates: pd.DataFrame, info: RunInfo) -> Importance | None:
    """Return the share of the variance of cost and score that each hyperparameter explains, the largest first.

    The share is epsilon squared (Kelley 1935): the variance between groups of fully trained candidates with equal
    values of the hyperparameter, corrected for the variance that as many random groups would have. Costs enter as
    logarithms; hyperparameters with many values are divided into fifths. None if there are too few candidates.

    Args:
        candidates: All candidates.
        info: Description of the run.
    """
    table = full_fidelity(candidates)
    cost, score = primary_objectives(info.objectives)
    if not len(table):
        return None
    # A cost of zero has no logarithm; such rows are left out below.
    with np.errstate(divide="ignore", invalid="ignore"):
        costs = np.log10(np.asarray(numeric_column(table, cost.name), dtype=np.float64))
    scores = np.asarray(numeric_column(table, score.name), dtype=np.float64)
    fit = np.isfinite(costs) & np.isfinite(scores)
    if fit.sum() < _MIN_CANDIDATES:
        return None
    table = table[fit]
    rows: list[ImportanceRow] = []
    for column in varying_columns(table):
        groups = _group_values(table[column])
        rows.append(
            {
                "column": column,
                "name": label_hyperparameter(column),
                "cost": epsilon_squared(groups, costs[fit]),
                "score": epsilon_squared(groups, scores[fit]),
            }
        )
    rows = sorted((row for row in rows if max(row["cost"], row["score"]) >= 0.01), key=_importance_key)[:MAX_ROWS]
    return (
        {"rows": rows, "cost": label_column(cost.name), "score": label_column(score.name), "count": len(table)}
        if rows
        else None
    )


def _importance_key(row: ImportanceRow) -> tuple[float, str]:
    return (-max(row["cost"], row["score"]), row["name"])


def varying_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns of hyperparameters, and of the choice between methods, with more than one value."""
    columns = [str(name) for name in table.columns if str(name).partition(".")[0] in SECTIONS]
    return [name for name in columns if table[name].map(str).nunique() > 1]


def label_hyperparameter(column: str) -> str:
    """Return the label of a hyperparameter's column.

    Example:
        >>> label_hyperparameter("prune.structured.pruning_ratio"), label_hyperparameter("distill")
        ('pruning ratio (structured)', 'distill: method')
    """
    section, _, rest = column.partition(".")
    method, _, knob = rest.rpartition(".")
    return f"{knob.replace('_', ' ')} ({method})" if method else f"{section}: method"


def epsilon_squared(groups: NDArray[np.int64], values: NDArray[np.float64]) -> float:
    """Return epsilon squared of groups: 0 if they explain nothing, 1 if everything.

    Args:
        groups: Group index of each value, shape ``[N]``.
        values: Values, shape ``[N]``.

    Example:
        >>> epsilon_squared(np.array([0, 0, 1, 1]), np.array([1.0, 1.0, 2.0, 2.0]))
        1.0
    """
    count = len(np.unique(groups))
    total = float(((values - values.mean()) ** 2).sum())
    if total == 0.0 or count < 2 or count >= len(values):
        return 0.0
    within = sum(
        float(((values[groups == group] - values[groups == group].mean()) ** 2).sum()) for group in np.unique(groups)
    )
    by_chance = (count - 1) * within / (len(values) - count)
    return max(0.0, (total - within - by_chance) / total)


def _group_values(column: "pd.Series") -> NDArray[np.int64]:
    values = pd.to_numeric(column, errors="coerce")
    if values.nunique() > _MAX_VALUES and values.notna().sum() == column.notna().sum():
        quantiles = pd.qcut(values, _BINS, labels=False, duplicates="drop")
        # A missing value is a group of its own: the method does not have this hyperparameter.
        return np.asarray(quantiles.fillna(-1), dtype=np.int64)
    return np.asarray(pd.factorize(column.map(str))[0], dtype=np.int64)


def parallel_coordinates(
    front: pd.DataFrame, info: RunInfo, importance: Importance | None, picked: Pick | None
) -> dict[str, object] | None:
    """Return the front as lines over its most important hyperparameters, cost and score; None without a front.

    Args:
        front: Candidates on the front.
        info: Description of the run.
        importance: Result of :func:`compute_importance`.
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
