"""Which knobs matter: what each explains of the differences between candidates, and the front knob by knob."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autocompress.analysis.pareto import Objective, axes, full_fidelity, numbers
from autocompress.analysis.selection import Pick
from autocompress.core.formatting import DASH, finite, human, label, show
from autocompress.report.table_view import SECTIONS, visible

SHOWN = 8
#: Axes of the parallel coordinates beside cost and score.
AXES = 5
#: Lines of the parallel coordinates: more cannot be followed.
LINES = 40
_FEWEST = 12
_VALUES, _BINS = 6, 5
_WIDTH, _HEIGHT = 900.0, 330.0
_TOP, _BOTTOM, _SIDE = 54.0, 26.0, 62.0


def importance(candidates: pd.DataFrame, meta: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what each knob explains of the cost's and the score's differences, the most telling first.

    Told is epsilon squared (Kelley 1935): the share of the variance among fully trained candidates that lies between
    the groups with equal values of the knob, less what as many groups would show by chance. Costs are compared by their
    logarithms, knobs with many values by fifths. None where there are too few candidates.

    Args:
        candidates: Every candidate.
        meta: What the study says about the run.
    """
    table = full_fidelity(candidates)
    cost, score = axes(meta["objectives"])
    if not len(table):
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        costs = np.log10(np.asarray(numbers(table, cost["name"]), dtype=np.float64))
    scores = np.asarray(numbers(table, score["name"]), dtype=np.float64)
    fit = np.isfinite(costs) & np.isfinite(scores)
    if fit.sum() < _FEWEST:
        return None
    table = table[fit]
    rows: list[dict[str, Any]] = []
    for column in knobs(table):
        groups = _groups(table[column])
        shares = {"cost": explained(groups, costs[fit]), "score": explained(groups, scores[fit])}
        rows.append({"column": column, "name": told(column), **shares})
    rows = sorted((row for row in rows if max(row["cost"], row["score"]) >= 0.01), key=_most)[:SHOWN]
    return (
        {"rows": rows, "cost": label(cost["name"]), "score": label(score["name"]), "count": len(table)}
        if rows
        else None
    )


def _most(row: Mapping[str, Any]) -> tuple[float, str]:
    return (-max(row["cost"], row["score"]), row["name"])


def knobs(table: pd.DataFrame) -> list[str]:
    """Return the columns of knobs, and of the choice between methods, that differ between rows."""
    found = [str(name) for name in table.columns if str(name).partition(".")[0] in SECTIONS]
    return [name for name in found if table[name].map(str).nunique() > 1]


def told(column: str) -> str:
    """Return a knob's column as it is read.

    Example:
        >>> told("prune.structured.pruning_ratio"), told("distill")
        ('pruning ratio (structured)', 'distill: method')
    """
    section, _, rest = column.partition(".")
    method, _, knob = rest.rpartition(".")
    return f"{knob.replace('_', ' ')} ({method})" if method else f"{section}: method"


def explained(groups: NDArray[np.int64], values: NDArray[np.float64]) -> float:
    """Return epsilon squared of groups: 0 explains nothing, 1 everything.

    Example:
        >>> explained(np.array([0, 0, 1, 1]), np.array([1.0, 1.0, 2.0, 2.0]))
        1.0
    """
    count = len(np.unique(groups))
    total = float(((values - values.mean()) ** 2).sum())
    if total == 0.0 or count < 2 or count >= len(values):
        return 0.0
    within = sum(
        float(((values[groups == each] - values[groups == each].mean()) ** 2).sum()) for each in np.unique(groups)
    )
    by_chance = (count - 1) * within / (len(values) - count)
    return max(0.0, (total - within - by_chance) / total)


def _groups(column: "pd.Series[Any]") -> NDArray[np.int64]:
    values = pd.to_numeric(column, errors="coerce")
    if values.nunique() > _VALUES and values.notna().sum() == column.notna().sum():
        cut = pd.qcut(values, _BINS, labels=False, duplicates="drop")
        return np.asarray(cut.fillna(-1), dtype=np.int64)
    return np.asarray(pd.factorize(column.map(str))[0], dtype=np.int64)


def parallel(
    front: pd.DataFrame, meta: Mapping[str, Any], told_of: Mapping[str, Any] | None, picked: Pick | None
) -> dict[str, Any] | None:
    """Return the front as lines over the knobs that matter most, the cost and the score; None where there is no front.

    Args:
        front: The front.
        meta: What the study says about the run.
        told_of: What :func:`importance` says.
        picked: The recommended candidate, if there is one.
    """
    if told_of is None or len(front) < 2:
        return None
    cost, score = axes(meta["objectives"])
    columns = [row["column"] for row in told_of["rows"] if front[row["column"]].map(str).nunique() > 1][:AXES]
    step = max(1, -(-len(front) // LINES))
    kept = front.iloc[sorted({*range(0, len(front), step), len(front) - 1})]
    mine = picked is not None and picked.id not in set(kept["id"]) and picked.id in set(front["id"])
    if picked is not None and mine:
        kept = pd.concat([kept, front[front["id"] == picked.id]])
    names = [*columns, cost["name"], score["name"]]
    gap = (_WIDTH - 2 * _SIDE) / (len(names) - 1)
    rails = [
        _rail(kept, name, _SIDE + gap * place, {cost["name"]: cost, score["name"]: score})
        for place, name in enumerate(names)
    ]
    lines = []
    for row, identity in enumerate(kept["id"]):
        spots = [(rail["x"], rail["spots"][row]) for rail in rails]
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in spots if y is not None)
        lines.append({"id": str(identity), "path": path, "pick": picked is not None and identity == picked.id})
    lines.sort(key=lambda line: line["pick"])
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "rails": rails,
        "lines": lines,
        "top": _TOP,
        "bottom": _HEIGHT - _BOTTOM,
    }


def _rail(rows: pd.DataFrame, name: str, x: float, objectives: Mapping[str, Objective]) -> dict[str, Any]:
    """Return one axis: where each row crosses it, and what is written beside it."""
    record = objectives.get(name)
    values = pd.to_numeric(rows[name], errors="coerce")
    x = round(x, 1)
    head = label(name) if record else told(name)
    texts = ["none" if value is None or value != value else visible(str(value)) for value in rows[name].tolist()]
    if record is None and (values.nunique() <= _VALUES or values.isna().any()):
        order = sorted(set(texts), key=lambda text: (text != "none", _number(text), text))
        spots = {text: _height(place / max(len(order) - 1, 1)) for place, text in enumerate(order)}
        ticks = [(spots[text], _short(text)) for text in order] if len(order) <= 9 else []
        return {"x": x, "name": head, "spots": [spots[text] for text in texts], "ticks": ticks}
    log = record is not None and record["kind"] == "cost" and float(values.min()) > 0
    scaled = np.log10(values) if log else values
    low, high = float(scaled.min()), float(scaled.max())
    if record is not None and record["kind"] == "score" and record["direction"] == "minimize":
        # Up is better, as in the plot.
        low, high = high, low
    places = [_height((value - low) / ((high - low) or 1.0)) if finite(value) else None for value in scaled.tolist()]
    least, most = (_height(float(low > high)), _height(float(low <= high)))
    ends = [(least, float(values.min())), (most, float(values.max()))]
    ticks = [(y, show(value, record) if record else human(value)) for y, value in ends]
    return {"x": x, "name": head, "spots": places, "ticks": ticks}


def _height(share: float) -> float:
    return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.inf


def _short(text: str) -> str:
    text = f"{_number(text):.4g}" if finite(_number(text)) else text or DASH
    return text if len(text) <= 14 else text[:12] + "…"


def split_words(text: str, most: int = 15) -> Sequence[str]:
    """Return a head on two lines at most.

    Example:
        >>> split_words("pruning ratio (structured)")
        ['pruning ratio', '(structured)']
    """
    if len(text) <= most or " " not in text:
        return [text]
    words = text.split(" ")
    cut = min(range(1, len(words)), key=lambda place: abs(len(" ".join(words[:place])) - len(" ".join(words[place:]))))
    return [" ".join(words[:cut]), " ".join(words[cut:])]
