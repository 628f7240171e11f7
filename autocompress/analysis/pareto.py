"""Dominance, hypervolume and knee: pure functions on a table of candidates.

Three rules hold everywhere: a value that is not finite never ranks; duplicates all stay; candidates of different
fidelity never share a front, so the caller narrows a mixed table by :func:`full_fidelity` first.
"""

import re
from collections.abc import Sequence

import moocore
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from autocompress.core.run_info import Limits, ObjectiveSpec
from autocompress.errors import NoCandidateError, UnknownNameError, UsageError, did_you_mean


def dominated(values: ArrayLike, directions: Sequence[str]) -> NDArray[np.bool_]:
    """Return which rows are beaten: ``[N, M]``, M directions -> ``[N]``.

    A row is beaten if another is at least as good everywhere and better somewhere. Equal rows do not beat each
    other, so duplicates stay together; a row with a value that is not finite counts as beaten and beats nothing.

    Raises:
        UsageError: A direction is neither ``maximize`` nor ``minimize``, or their number differs from M.

    Example:
        >>> dominated([[0.9, 10], [0.8, 20], [0.9, 10]], ["maximize", "minimize"]).tolist()
        [False, True, False]
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != len(directions):
        raise UsageError(f"values of shape {list(table.shape)} need {len(directions)} columns, one per direction")
    beaten: NDArray[np.bool_] = np.asarray(~np.isfinite(table).all(axis=1), dtype=bool)
    if not beaten.all():
        maximise = [_maximised(direction) for direction in directions]
        beaten[~beaten] = ~moocore.is_nondominated(table[~beaten], maximise=maximise, keep_weakly=True)
    return beaten


def feasible(table: pd.DataFrame, limits: Limits) -> "pd.Series[bool]":
    """Return a mask of the rows that keep every limit; a value that is not finite keeps none.

    Args:
        table: Candidates.
        limits: Column name to bounds, both included: ``{"effective_flops": {"max": 2e6}}``.

    Raises:
        UnknownNameError: A limit names no column; the message suggests the nearest.
        UsageError: A bound is neither ``max`` nor ``min``.
    """
    keeps = pd.Series(True, index=table.index)
    for name, bounds in limits.items():
        values = numbers(table, name)
        keeps &= np.isfinite(values)
        for bound, limit in bounds.items():
            if bound not in ("max", "min"):
                raise UsageError(f"the limit on '{name}' has the bound '{bound}': use 'max' or 'min'")
            keeps &= values <= limit if bound == "max" else values >= limit
    return keeps


def full_fidelity(table: pd.DataFrame) -> pd.DataFrame:
    """Return the candidates of the search whose training ran to its end, the only ones that may rank."""
    search = table[table["role"] == "search"] if "role" in table else table
    return search[search["complete"].astype(bool)] if "complete" in search else search


def pareto_front(
    table: pd.DataFrame, objectives: Sequence[ObjectiveSpec], limits: Limits | None = None
) -> pd.DataFrame:
    """Return the rows that no other beats, cheapest first.

    Only rows of role ``search`` that keep every limit and whose objectives are all finite take part; every duplicate
    stays. Rows of several fidelities must not be mixed here: pass ``full_fidelity(table)``.

    Args:
        table: Candidates.
        objectives: What to rank by.
        limits: As in :func:`feasible`; none by default.

    Raises:
        UnknownNameError: An objective or a limit names no column.
    """
    rows = table[table["role"] == "search"] if "role" in table else table
    rows = rows[feasible(rows, limits or {})]
    beaten = dominated(_matrix(rows, objectives), [objective.direction for objective in objectives])
    return by_cost(rows[~beaten], objectives)


def by_cost(table: pd.DataFrame, objectives: Sequence[ObjectiveSpec]) -> pd.DataFrame:
    """Return the rows cheapest first; ties by the better score, then by id (``t2c10`` after ``t2c9``)."""
    cost, score = (np.nan_to_num(_signed(table, objective), nan=np.inf) for objective in axes(objectives))
    names = [natural(name) for name in table["id"]] if "id" in table else [()] * len(table)
    return table.iloc[sorted(range(len(table)), key=lambda row: (cost[row], score[row], names[row]))]


def normalise(values: ArrayLike, box: Sequence[float], log: bool = False, clip: bool = True) -> NDArray[np.float64]:
    """Return values in the space where 0 is the box's ideal and 1 its reference: ``[N] -> [N]``, smaller is better.

    Args:
        values: One objective's values; one that is not finite becomes NaN.
        box: [reference (worst), ideal (best)], whichever is larger.
        log: Compare logarithms, as for costs.
        clip: Keep the result inside 0..1.

    Raises:
        UsageError: The box is empty, not finite, or not positive where logarithms are taken.

    Example:
        >>> normalise([1e6, 1e3, 1e9], [1e6, 1e2], log=True).tolist()
        [1.0, 0.25, 1.0]
    """
    worst, best = float(box[0]), float(box[1])
    if not np.isfinite([worst, best]).all() or worst == best or (log and min(worst, best) <= 0):
        raise UsageError(f"box [{worst:g}, {best:g}] needs two different finite bounds, above 0 for a cost")
    points = np.asarray(values, dtype=np.float64)
    points = np.where(np.isfinite(points), points, np.nan)
    if log:
        # A cost of 0 is better than any ideal: its logarithm is -inf, which the clip turns into 0.
        with np.errstate(divide="ignore", invalid="ignore"):
            points, worst, best = np.log10(points), float(np.log10(worst)), float(np.log10(best))
    scaled = (points - best) / (worst - best)
    return np.clip(scaled, 0.0, 1.0) if clip else scaled


def hypervolume(table: pd.DataFrame, objectives: Sequence[ObjectiveSpec]) -> float:
    """Return the share of the declared box that the rows dominate, 0..1 (Zitzler and Thiele 1998).

    The rows are taken as they are: pass a front, or rows that may share one. Rows outside the box add only what lies
    inside it; rows that are not finite add nothing. The box is declared before the search, so values compare.

    Raises:
        UnknownNameError: An objective names no column.
        UsageError: An objective has no usable box.
    """
    if not len(table):
        return 0.0
    space = np.column_stack([_scaled(table, objective) for objective in objectives])
    space = space[np.isfinite(space).all(axis=1)]
    return float(moocore.hypervolume(space, ref=np.ones(len(objectives)))) if len(space) else 0.0


def knee(front: pd.DataFrame, objectives: Sequence[ObjectiveSpec]) -> str:
    """Return the id of the row farthest from the line through the front's two ends, on the ideal's side (Das 1999).

    Distances are measured between the first cost (logarithm) and the first score, each scaled by its box. One row is
    its own knee. Two rows, or a front that does not bulge towards the ideal, have no bend: the row with the smallest
    sum of both scaled values is taken. Remaining ties go to the cheaper row, then to the first id.

    Raises:
        NoCandidateError: The front is empty.
    """
    if not len(front):
        raise NoCandidateError("an empty front has no knee")
    front = by_cost(front, objectives)
    cost, score = (_scaled(front, objective, clip=False) for objective in axes(objectives))
    cost = np.nan_to_num(cost, neginf=-1.0)
    best = int(score.argmin())
    run, rise = cost[best] - cost[0], score[best] - score[0]
    length = float(np.hypot(run, rise)) or 1.0
    bulge = (run * (score[0] - score) - (cost[0] - cost) * rise) / length
    # Rounded, so that points on the line tie at 0 whatever the last bit says.
    order = np.lexsort((np.arange(len(front)), (cost + score).round(9), -bulge.round(9)))
    return str(front["id"].iloc[order[0]])


def axes(objectives: Sequence[ObjectiveSpec]) -> tuple[ObjectiveSpec, ObjectiveSpec]:
    """Return (cost, score): the first of each kind, or the nearest substitute where a kind is missing.

    Raises:
        UsageError: There are no objectives.
    """
    if not objectives:
        raise UsageError("a front needs at least one objective")
    scores = [objective for objective in objectives if objective.kind == "score"]
    costs = [objective for objective in objectives if objective.kind == "cost"]
    score = scores[0] if scores else objectives[0]
    others = [objective for objective in objectives if objective is not score]
    return (costs or others or [score])[0], score


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """Return a key that sorts ``t2c10`` after ``t2c9``."""
    return tuple((int(digits or -1), text) for text, digits in re.findall(r"(\D*)(\d*)", str(name)))


def numbers(table: pd.DataFrame, name: str) -> "pd.Series[float]":
    """Return one column as floats; what is no number becomes NaN.

    Raises:
        UnknownNameError: No column is called so; the message suggests the nearest.
    """
    if name not in table:
        known = [str(column) for column in table.columns if pd.api.types.is_numeric_dtype(table[column])]
        raise UnknownNameError(f"unknown column '{name}': {did_you_mean(name, known)}")
    return pd.to_numeric(table[name], errors="coerce").astype("float64")


def _maximised(direction: str) -> bool:
    if direction not in ("maximize", "minimize"):
        raise UsageError(f"unknown direction '{direction}': use 'maximize' or 'minimize'")
    return direction == "maximize"


def _matrix(table: pd.DataFrame, objectives: Sequence[ObjectiveSpec]) -> NDArray[np.float64]:
    axes(objectives)
    return np.stack([_values(table, objective) for objective in objectives], axis=1)


def _values(table: pd.DataFrame, objective: ObjectiveSpec) -> NDArray[np.float64]:
    return np.asarray(numbers(table, objective.name), dtype=np.float64)


def _signed(table: pd.DataFrame, objective: ObjectiveSpec) -> NDArray[np.float64]:
    values = _values(table, objective)
    return -values if _maximised(objective.direction) else values


def _scaled(table: pd.DataFrame, objective: ObjectiveSpec, clip: bool = True) -> NDArray[np.float64]:
    if objective.bounds is None:
        raise UsageError(f"the objective '{objective.name}' declares no reference and ideal point")
    return normalise(_values(table, objective), objective.bounds, objective.kind == "cost", clip)
