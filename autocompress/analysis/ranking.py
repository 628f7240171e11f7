"""Ranking of candidates: rankable rows, the best row in one objective, and exchange rates between neighbours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from autocompress.analysis.pareto import full_fidelity, numeric_column, pareto_front, primary_objectives, sort_by_cost
from autocompress.core.formatting import compare_costs, format_difference, is_finite, label_column
from autocompress.core.run_info import Limits, ObjectiveSpec, RunInfo
from autocompress.errors import NoCandidateError

#: Column name to the value of one candidate; pandas does not know the types of columns.
Row: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Neighbour:
    """The next candidate on the front in one direction, with the exchange rate.

    Attributes:
        kind: ``cheaper`` or ``better``.
        id: Id of the neighbour.
        cost_ratio: Cost of the neighbour divided by the cost of the pick.
        score_change: Score of the neighbour minus the score of the pick.
        text: Exchange rate in words: ``t3c2 has 2.1x fewer effective FLOPs and loses 0.4 points of accuracy``.
    """

    kind: Literal["cheaper", "better"]
    id: str
    cost_ratio: float
    score_change: float
    text: str


def find_neighbours(
    table: pd.DataFrame, info: RunInfo, row: Row, limits: Limits | None = None
) -> tuple[Neighbour, ...]:
    """Return the next cheaper and the next better candidate on the front, as exchange rates.

    The next cheaper candidate has the best score among the cheaper ones, the next better one the lowest cost among the
    better ones.

    Args:
        table: Candidates.
        info: Description of the run.
        row: Candidate to compare with.
        limits: Limits of the neighbours; those of the run by default.
    """
    objectives = info.objectives
    cost, score = primary_objectives(objectives)
    if not (is_finite(row[cost.name]) and is_finite(row[score.name])):
        return ()
    front = pareto_front(select_rankable(table, objectives), objectives, info.limits if limits is None else limits)
    # A positive gain is an improvement in either direction of the score.
    sign = 1.0 if score.direction == "maximize" else -1.0
    gain = (front[score.name] - row[score.name]) * sign
    cheaper = front[(front[cost.name] < row[cost.name]) & (gain <= 0)]
    better = front[gain > 0]
    exchanges = []
    if len(cheaper):
        exchanges.append(_describe_exchange("cheaper", best_of(cheaper, score, objectives), row, cost, score))
    if len(better):
        exchanges.append(_describe_exchange("better", best_of(better, cost, objectives), row, cost, score))
    return tuple(exchanges)


def select_rankable(table: pd.DataFrame, objectives: Sequence[ObjectiveSpec]) -> pd.DataFrame:
    """Return the rows that may be selected: completely trained, finite, and better than the reference score."""
    if not len(table):
        raise NoCandidateError("the run has no candidate yet")
    rows = full_fidelity(table)
    for objective in objectives:
        rows = rows[np.isfinite(numeric_column(rows, objective.name))]
    score = primary_objectives(objectives)[1]
    # Without a score among the objectives there is no reference score to be better than.
    if score.kind != "score" or score.bounds is None:
        return rows
    values, reference = numeric_column(rows, score.name), score.bounds[0]
    better: pd.DataFrame = rows[values > reference if score.is_maximized else values < reference]
    return better


def best_of(rows: pd.DataFrame, objective: ObjectiveSpec, objectives: Sequence[ObjectiveSpec]) -> Row:
    """Return the best row in one objective; ties go to the cheaper row, then to the first id.

    Raises:
        NoCandidateError: No row has a finite value.
    """
    values = numeric_column(rows, objective.name)
    best = values.max() if objective.direction == "maximize" else values.min()
    if not np.isfinite(best):
        raise NoCandidateError(f"no candidate has a finite {objective.name}")
    return row_at(sort_by_cost(rows[values == best], objectives), 0)


def row_at(table: pd.DataFrame, position: int) -> Row:
    """Return one row as plain Python values."""
    values = {str(name): table[name].iloc[position] for name in table.columns}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}


def _describe_exchange(
    kind: Literal["cheaper", "better"],
    other: Row,
    pick: Row,
    cost: ObjectiveSpec,
    score: ObjectiveSpec,
) -> Neighbour:
    change = other[score.name] - pick[score.name]
    saving = compare_costs(other[cost.name], pick[cost.name], cost.name)
    points = f"{format_difference(change, score)} of {label_column(score.name)}"
    if change == 0:
        text = f"{other['id']} has {saving} at the same {label_column(score.name)}"
    elif kind == "cheaper":
        text = f"{other['id']} has {saving} and loses {points}"
    else:
        text = f"{other['id']} gains {points} and has {saving}"
    # A free pick would divide by zero.
    ratio = other[cost.name] / pick[cost.name] if pick[cost.name] else float("inf")
    return Neighbour(kind, str(other["id"]), float(ratio), float(change), text)
