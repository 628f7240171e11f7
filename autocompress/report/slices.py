"""Slices: the score against each of the most important hyperparameters, with its partial dependence, as data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import pandas as pd

from autocompress.analysis.importance import Dependence, ImportanceAnalysis, is_numeric
from autocompress.analysis.pareto import full_fidelity, numeric_column, primary_objectives
from autocompress.analysis.selection import Pick
from autocompress.core.formatting import format_value
from autocompress.core.run_info import ObjectiveSpec, RunInfo
from autocompress.report.figure_data import escape_hidden

#: Number of panels; the distillation temperature has one in addition where it varies.
MAX_PANELS = 6
#: Candidates of one panel that are not on the front: more make a browser slow.
MAX_POINTS = 500
#: From this ratio of largest to smallest value, an axis is logarithmic.
LOG_RATIO = 20.0


@dataclass(frozen=True)
class SlicePoints:
    """Candidates of one group: ids, values of the hyperparameter, and scores."""

    ids: Sequence[str]
    values: Sequence[float | str]
    scores: Sequence[float]


@dataclass(frozen=True)
class Slice:
    """The score against one hyperparameter.

    Attributes:
        column: Column of the hyperparameter.
        groups: ``other``, ``front`` and ``pick`` to their candidates.
        dependence: Partial dependence of the score on the hyperparameter, if a forest was fitted.
        is_category: Whether the values are texts.
        is_log: Whether the axis is logarithmic.
        total: Number of fully trained candidates that have the hyperparameter.
    """

    column: str
    groups: Mapping[str, SlicePoints]
    dependence: Dependence | None
    is_category: bool
    is_log: bool
    total: int

    @property
    def shown(self) -> int:
        """Number of candidates in the groups."""
        return sum(len(points.ids) for points in self.groups.values())


class DependenceRow(TypedDict):
    """One value of a hyperparameter and the predicted score with its interval, as texts."""

    value: str
    score: str


def select_slices(columns: Sequence[str], table: pd.DataFrame) -> list[str]:
    """Return the columns that get a panel: the first ones of ``columns``, and the temperature where it varies.

    Args:
        columns: Columns of hyperparameters, the most important first.
        table: Candidates.
    """
    present = [name for name in columns if name in table and table[name].nunique() > 1]
    shown = present[:MAX_PANELS]
    names = [str(name) for name in table.columns]
    temperatures = [
        name for name in names if name.startswith("distill.") and name.rpartition(".")[2].endswith("temperature")
    ]
    return [*shown, *(name for name in temperatures if name not in shown and table[name].nunique() > 1)]


def build_slices(
    candidates: pd.DataFrame,
    front: pd.DataFrame,
    info: RunInfo,
    importance: ImportanceAnalysis | None,
    columns: Sequence[str],
    picked: Pick | None = None,
) -> list[Slice]:
    """Return a slice for each column that :func:`select_slices` chooses.

    Args:
        candidates: All candidates; those that are fully trained are shown.
        front: Candidates on the front.
        info: Description of the run.
        importance: Importance with the partial dependence, if there are enough candidates.
        columns: Columns of hyperparameters, the most important first.
        picked: The recommended candidate, if there is one.
    """
    table = full_fidelity(candidates)
    if not len(table) or not info.objectives:
        return []
    score = primary_objectives(info.objectives)[1].name
    table = table[np.isfinite(numeric_column(table, score))]
    dependence = {} if importance is None else importance.dependence
    chosen = None if picked is None else picked.id
    return [
        _build_slice(table[table[name].notna()], name, score, set(front["id"]), chosen, dependence.get(name))
        for name in select_slices(columns, table)
    ]


def _build_slice(
    table: pd.DataFrame,
    column: str,
    score: str,
    front: set[str],
    picked: str | None,
    dependence: Dependence | None,
) -> Slice:
    is_category = not is_numeric(table[column])
    numbers = pd.Series(dtype="float64") if is_category else pd.to_numeric(table[column])
    is_log = bool(not is_category and numbers.min() > 0 and numbers.max() / numbers.min() >= LOG_RATIO)
    is_front, is_pick = table["id"].isin(front), table["id"] == picked
    other = table[~is_front & ~is_pick]
    # An evenly spaced part of the rows has candidates of all trials, because the rows are sorted by trial.
    step = max(1, -(-len(other) // MAX_POINTS))
    rows = {"other": other.iloc[::step], "front": table[is_front & ~is_pick], "pick": table[is_pick]}
    groups = {
        name: SlicePoints(
            part["id"].map(str).tolist(),
            part[column].map(lambda value: escape_hidden(str(value))).tolist()
            if is_category
            else pd.to_numeric(part[column]).astype("float64").tolist(),
            numeric_column(part, score).round(6).tolist(),
        )
        for name, part in rows.items()
    }
    return Slice(column, groups, dependence, is_category, is_log, len(table))


def tabulate_dependence(dependence: Dependence, score: ObjectiveSpec) -> list[DependenceRow]:
    """Return the partial dependence as texts, one row per value of the hyperparameter."""
    return [
        DependenceRow(
            value=escape_hidden(value) if isinstance(value, str) else f"{value:.4g}",
            score=f"{format_value(mean, score)} [{format_value(low, score)}, {format_value(high, score)}]",
        )
        for value, mean, low, high in zip(
            dependence.values, dependence.mean, dependence.low, dependence.high, strict=True
        )
    ]
