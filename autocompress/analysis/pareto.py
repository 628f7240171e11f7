"""Dominance, hypervolume and knee: pure functions on a table of candidates.

Three rules hold everywhere: a value that is not finite is never ranked; all duplicates stay; candidates of different
fidelity never share a front, so the caller filters a mixed table by :func:`full_fidelity` first.
"""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from autocompress.core.run_info import Limits, ObjectiveSpec
from autocompress.errors import NoCandidateError, UnknownNameError, UsageError, did_you_mean


def is_dominated(values: ArrayLike, directions: Sequence[str]) -> NDArray[np.bool_]:
    """Return a mask of the dominated rows, ``[N, M]`` with M directions -> ``[N]``.

    A row is dominated if another row is at least as good in every column and better in one. Equal rows do not
    dominate each other, so duplicates stay. A row with a value that is not finite is dominated and dominates none.

    Raises:
        UsageError: A direction is neither ``maximize`` nor ``minimize``, or their number differs from M.

    Example:
        >>> is_dominated([[0.9, 10], [0.8, 20], [0.9, 10]], ["maximize", "minimize"]).tolist()
        [False, True, False]
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != len(directions):
        raise UsageError(f"values of shape {list(table.shape)} need {len(directions)} columns, one per direction")
    dominated: NDArray[np.bool_] = np.asarray(~np.isfinite(table).all(axis=1), dtype=bool)
    if not dominated.all():
        signs = np.where([_check_direction(direction) for direction in directions], -1.0, 1.0)
        dominated[~dominated] = _find_dominated(table[~dominated] * signs)
    return dominated


def _find_dominated(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return a mask of the dominated rows of finite values, ``[N, M] -> [N]``; smaller is better."""
    if points.shape[1] != 2:
        # Imported here: with two objectives, which is the usual number, reading a run should not wait for it.
        import moocore

        # Weakly dominated rows are kept, so that duplicates of a front point stay.
        return np.asarray(~moocore.is_nondominated(points, keep_weakly=True), dtype=bool)
    levels, level = np.unique(points[:, 0], return_inverse=True)
    least = np.full(len(levels), np.inf)
    np.minimum.at(least, level, points[:, 1])
    # Smallest second value among the rows with a smaller first one.
    earlier = np.concatenate([[np.inf], np.minimum.accumulate(least)[:-1]])
    return np.asarray((earlier[level] <= points[:, 1]) | (least[level] < points[:, 1]), dtype=bool)


def is_feasible(table: pd.DataFrame, limits: Limits) -> "pd.Series[bool]":
    """Return a mask of the rows that satisfy every limit; a value that is not finite satisfies none.

    Args:
        table: Candidates.
        limits: Column name to bounds, both included: ``{"effective_flops": {"max": 2e6}}``.

    Raises:
        UnknownNameError: A limit names no column; the message suggests the nearest.
        UsageError: A bound is neither ``max`` nor ``min``.
    """
    mask = pd.Series(True, index=table.index)
    for name, bounds in limits.items():
        values = numeric_column(table, name)
        mask &= np.isfinite(values)
        for bound, limit in bounds.items():
            if bound not in ("max", "min"):
                raise UsageError(f"the limit on '{name}' has the bound '{bound}': use 'max' or 'min'")
            mask &= values <= limit if bound == "max" else values >= limit
    return mask


def full_fidelity(table: pd.DataFrame) -> pd.DataFrame:
    """Return the candidates of the search with complete training, the only ones that are ranked."""
    mask = _is_searched(table)
    return table[mask & table["complete"].astype(bool) if "complete" in table else mask]


def _is_searched(table: pd.DataFrame) -> "pd.Series[bool]":
    # Masks are joined before rows are taken: a copy of a table with a hundred columns takes milliseconds.
    return table["role"] == "search" if "role" in table else pd.Series(True, index=table.index)


def pareto_front(
    table: pd.DataFrame, objectives: Sequence[ObjectiveSpec], limits: Limits | None = None
) -> pd.DataFrame:
    """Return the non-dominated rows, cheapest first.

    Only rows with the role ``search`` that satisfy every limit and have finite objectives take part; duplicates stay.
    Rows of different fidelity must not be mixed: pass ``full_fidelity(table)``.

    Args:
        table: Candidates.
        objectives: Objectives of the front.
        limits: Limits as in :func:`is_feasible`; none by default.

    Raises:
        UnknownNameError: An objective or a limit names no column.
    """
    # Limits apply before dominance: an infeasible row must not exclude a feasible one.
    positions = np.flatnonzero(_is_searched(table) & is_feasible(table, limits or {}))
    values = _objective_matrix(table, objectives)[positions]
    dominated = is_dominated(values, [objective.direction for objective in objectives])
    return sort_by_cost(table.iloc[positions[~dominated]], objectives)


def sort_by_cost(table: pd.DataFrame, objectives: Sequence[ObjectiveSpec]) -> pd.DataFrame:
    """Return the rows cheapest first; ties by better score, fewer bytes, and id (``t2c10`` after ``t2c9``)."""
    cost, score = (
        np.nan_to_num(_values_to_minimize(table, objective), nan=np.inf) for objective in primary_objectives(objectives)
    )
    # Weights of 4 bits with inputs of 8 have the effective FLOPs of the reverse, at half of the size.
    size = np.nan_to_num(numeric_column(table, "bytes"), nan=np.inf) if "bytes" in table else np.zeros(len(table))
    names = [natural_key(name) for name in table["id"]] if "id" in table else [()] * len(table)
    return table.iloc[sorted(range(len(table)), key=lambda row: (cost[row], score[row], size[row], names[row]))]


def normalize_values(
    values: ArrayLike, bounds: Sequence[float], log: bool = False, clip: bool = True
) -> NDArray[np.float64]:
    """Return values scaled so that 0 is the ideal and 1 the reference point, ``[N] -> [N]``; smaller is better.

    Args:
        values: Values of one objective; a value that is not finite becomes NaN.
        bounds: Reference (worst) and ideal (best) value.
        log: Whether to scale logarithms, as for costs.
        clip: Whether to clip the result to 0..1.

    Raises:
        UsageError: The bounds are equal, not finite, or not positive where logarithms are taken.

    Example:
        >>> normalize_values([1e6, 1e3, 1e9], [1e6, 1e2], log=True).tolist()
        [1.0, 0.25, 1.0]
    """
    worst, best = float(bounds[0]), float(bounds[1])
    if not np.isfinite([worst, best]).all() or worst == best or (log and min(worst, best) <= 0):
        raise UsageError(f"bounds [{worst:g}, {best:g}] must be two different finite values, above 0 for a cost")
    points = np.asarray(values, dtype=np.float64)
    points = np.where(np.isfinite(points), points, np.nan)
    if log:
        # A cost of 0 is better than any ideal: its logarithm is -inf, which clipping turns into 0.
        with np.errstate(divide="ignore", invalid="ignore"):
            points, worst, best = np.log10(points), float(np.log10(worst)), float(np.log10(best))
    scaled = (points - best) / (worst - best)
    return np.clip(scaled, 0.0, 1.0) if clip else scaled


def compute_hypervolume(table: pd.DataFrame, objectives: Sequence[ObjectiveSpec]) -> float:
    """Return the normalized hypervolume that the rows dominate, 0..1 (Zitzler and Thiele 1998).

    Rows beyond the bounds count with their clipped values; rows that are not finite do not count. Bounds are declared
    before the search, so hypervolumes of one task are comparable.

    Raises:
        UnknownNameError: An objective names no column.
        UsageError: An objective has no usable bounds.
    """
    if not len(table):
        return 0.0
    space = scale_points(table, objectives)
    space = space[np.isfinite(space).all(axis=1)]
    # Imported here: reading a run should not wait for it.
    import moocore

    return float(moocore.hypervolume(space, ref=np.ones(len(objectives)))) if len(space) else 0.0


def scale_points(table: pd.DataFrame, objectives: Sequence[ObjectiveSpec]) -> NDArray[np.float64]:
    """Return the objectives of the rows scaled by their bounds and clipped, ``[N, M]``: 0 is the ideal value.

    Raises:
        UnknownNameError: An objective names no column.
        UsageError: An objective has no usable bounds.
    """
    return np.column_stack([_scale_by_bounds(table, objective) for objective in objectives])


def find_knee(front: pd.DataFrame, objectives: Sequence[ObjectiveSpec]) -> str:
    """Return the id of the row farthest from the line through both ends of the front, towards the ideal (Das 1999).

    Distances are measured in the first cost (logarithm) and the first score, each scaled by its bounds. A single row
    is the knee. Two rows, or a front that is not convex towards the ideal, have no knee: the row with the smallest sum
    of both scaled values is returned. Ties go to the cheaper row, then to the first id.

    Raises:
        NoCandidateError: The front is empty.
    """
    if not len(front):
        raise NoCandidateError("an empty front has no knee")
    front = sort_by_cost(front, objectives)
    cost, score = (_scale_by_bounds(front, objective, clip=False) for objective in primary_objectives(objectives))
    # A cost of 0 has the logarithm -inf; -1 keeps distances finite and still lies beyond the ideal.
    cost = np.nan_to_num(cost, neginf=-1.0)
    best = int(score.argmin())
    run, rise = cost[best] - cost[0], score[best] - score[0]
    length = float(np.hypot(run, rise)) or 1.0
    bulge = (run * (score[0] - score) - (cost[0] - cost) * rise) / length
    # Rounding makes points on the line tie at 0 despite rounding errors in the last bit.
    order = np.lexsort((np.arange(len(front)), (cost + score).round(9), -bulge.round(9)))
    return str(front["id"].iloc[order[0]])


def primary_objectives(objectives: Sequence[ObjectiveSpec]) -> tuple[ObjectiveSpec, ObjectiveSpec]:
    """Return (cost, score): the first objective of each kind; another objective takes the place of a missing kind.

    Raises:
        UsageError: There are no objectives.
    """
    if not objectives:
        raise UsageError("a front needs at least one objective")
    scores = [objective for objective in objectives if objective.kind == "score"]
    costs = [objective for objective in objectives if objective.kind == "cost"]
    score = scores[0] if scores else objectives[0]
    # With scores only, the second score takes the place of the cost.
    others = [objective for objective in objectives if objective is not score]
    return (costs or others or [score])[0], score


def natural_key(name: str) -> tuple[tuple[int, str], ...]:
    """Return a key that sorts ``t2c10`` after ``t2c9``."""
    return tuple((int(digits or -1), text) for text, digits in re.findall(r"(\D*)(\d*)", str(name)))


def numeric_column(table: pd.DataFrame, name: str) -> "pd.Series[float]":
    """Return one column as floats; a value that is not a number becomes NaN.

    Raises:
        UnknownNameError: There is no such column; the message suggests the nearest.
    """
    if name not in table:
        names = [str(column) for column in table.columns if pd.api.types.is_numeric_dtype(table[column])]
        raise UnknownNameError(f"unknown column '{name}': {did_you_mean(name, names)}")
    return pd.to_numeric(table[name], errors="coerce").astype("float64")


def _check_direction(direction: str) -> bool:
    if direction not in ("maximize", "minimize"):
        raise UsageError(f"unknown direction '{direction}': use 'maximize' or 'minimize'")
    return direction == "maximize"


def _objective_matrix(table: pd.DataFrame, objectives: Sequence[ObjectiveSpec]) -> NDArray[np.float64]:
    # Only the check is needed: without objectives, stacking would fail with an unclear message.
    primary_objectives(objectives)
    return np.stack([_objective_values(table, objective) for objective in objectives], axis=1)


def _objective_values(table: pd.DataFrame, objective: ObjectiveSpec) -> NDArray[np.float64]:
    return np.asarray(numeric_column(table, objective.name), dtype=np.float64)


def _values_to_minimize(table: pd.DataFrame, objective: ObjectiveSpec) -> NDArray[np.float64]:
    values = _objective_values(table, objective)
    return -values if _check_direction(objective.direction) else values


def _scale_by_bounds(table: pd.DataFrame, objective: ObjectiveSpec, clip: bool = True) -> NDArray[np.float64]:
    return normalize_values(
        _objective_values(table, objective), objective.require_bounds(), objective.kind == "cost", clip
    )
