"""How candidates stand to each other: who may rank, who is best in one thing, and what a step along the front costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from autocompress.analysis.pareto import axes, by_cost, full_fidelity, numbers, pareto_front
from autocompress.core.formatting import compare_costs, format_difference, is_finite, label_column
from autocompress.core.run_info import Limits, ObjectiveSpec, RunInfo
from autocompress.errors import NoCandidateError


@dataclass(frozen=True)
class Neighbour:
    """The next candidate on the front in one direction: what going there gains and costs.

    Attributes:
        kind: ``cheaper`` or ``better``.
        id: The neighbour.
        cost_ratio: Its cost divided by the pick's.
        score_change: Its score minus the pick's.
        text: The exchange in words: ``t3c2 has 2.1x fewer effective FLOPs and loses 0.4 points of accuracy``.
    """

    kind: Literal["cheaper", "better"]
    id: str
    cost_ratio: float
    score_change: float
    text: str


def neighbours(
    table: pd.DataFrame, info: RunInfo, row: Mapping[str, Any], limits: Limits | None = None
) -> tuple[Neighbour, ...]:
    """Return the next cheaper and the next better candidate on the front, as exchange rates.

    The next cheaper is the best-scored among the cheaper ones, the next better the cheapest among the better ones.

    Args:
        table: Candidates.
        info: Description of the run.
        row: The candidate to compare with.
        limits: Limits that the neighbours keep; those of the run by default.
    """
    objectives = info.objectives
    cost, score = axes(objectives)
    if not (is_finite(row[cost.name]) and is_finite(row[score.name])):
        return ()
    front = pareto_front(rankable(table, objectives), objectives, info.limits if limits is None else limits)
    sign = 1.0 if score.direction == "maximize" else -1.0
    gain = (front[score.name] - row[score.name]) * sign
    cheaper = front[(front[cost.name] < row[cost.name]) & (gain <= 0)]
    better = front[gain > 0]
    found = []
    if len(cheaper):
        found.append(_exchange("cheaper", best_of(cheaper, score, objectives), row, cost, score))
    if len(better):
        found.append(_exchange("better", best_of(better, cost, objectives), row, cost, score))
    return tuple(found)


def rankable(table: pd.DataFrame, objectives: Sequence[ObjectiveSpec]) -> pd.DataFrame:
    """Return the rows that may be chosen: fully trained, finite, and better than the reference score."""
    if not len(table):
        raise NoCandidateError("the run has no candidate yet")
    rows = full_fidelity(table)
    for objective in objectives:
        rows = rows[np.isfinite(numbers(rows, objective.name))]
    score = axes(objectives)[1]
    if score.kind != "score" or score.bounds is None:
        return rows
    values, reference = numbers(rows, score.name), score.bounds[0]
    better: pd.DataFrame = rows[values > reference if score.is_maximized else values < reference]
    return better


def best_of(rows: pd.DataFrame, objective: ObjectiveSpec, objectives: Sequence[ObjectiveSpec]) -> dict[str, Any]:
    """Return the row that is best in one objective; of equals the cheaper one, then the first by id.

    Raises:
        NoCandidateError: No row has a finite value.
    """
    values = numbers(rows, objective.name)
    best = values.max() if objective.direction == "maximize" else values.min()
    if not np.isfinite(best):
        raise NoCandidateError(f"no candidate has a finite {objective.name}")
    return row_at(by_cost(rows[values == best], objectives), 0)


def row_at(table: pd.DataFrame, position: int) -> dict[str, Any]:
    """Return one row as plain Python values."""
    values = {str(name): table[name].iloc[position] for name in table.columns}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}


def _exchange(
    kind: Literal["cheaper", "better"],
    there: Mapping[str, Any],
    here: Mapping[str, Any],
    cost: ObjectiveSpec,
    score: ObjectiveSpec,
) -> Neighbour:
    change = there[score.name] - here[score.name]
    saving = compare_costs(there[cost.name], here[cost.name], cost.name)
    points = f"{format_difference(change, score)} of {label_column(score.name)}"
    if change == 0:
        text = f"{there['id']} has {saving} at the same {label_column(score.name)}"
    elif kind == "cheaper":
        text = f"{there['id']} has {saving} and loses {points}"
    else:
        text = f"{there['id']} gains {points} and has {saving}"
    ratio = there[cost.name] / here[cost.name] if here[cost.name] else float("inf")
    return Neighbour(kind, str(there["id"]), float(ratio), float(change), text)
