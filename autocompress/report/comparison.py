"""Comparison of runs: fronts on common axes, hypervolume over time, and the median attainment of each mode."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import moocore
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autocompress.analysis.pareto import (
    compute_hypervolume,
    full_fidelity,
    numeric_column,
    pareto_front,
    primary_objectives,
    scale_points,
)
from autocompress.core.run_info import ObjectiveSpec, RunInfo
from autocompress.errors import UsageError

#: Fractions of the teacher's cost at which scores are compared.
SHARES = (0.1, 0.01, 0.001)


@dataclass(frozen=True)
class RunTables:
    """Tables and description of one run."""

    name: str
    candidates: pd.DataFrame
    trials: pd.DataFrame
    info: RunInfo

    @property
    def kind(self) -> str:
        """Mode of the search; runs of the same mode are combined."""
        return self.info.mode or "search"


@dataclass(frozen=True)
class ComparedRun:
    """One run on the common axes.

    Attributes:
        name: Name of the run.
        kind: Mode of the search.
        front: ``(cost, score)`` of each candidate on its front, the cheapest first; scores on ``select_val``.
        curve: ``(seconds, hypervolume)`` after each trial that increased the hypervolume.
        hypervolume: Hypervolume of the front with the reference point of the first run.
        seconds: Duration of the search.
        trials: Number of trials that were started.
        at_shares: Best score at each of ``SHARES`` of the teacher's cost; ``None`` if no candidate is as cheap.
    """

    name: str
    kind: str
    front: tuple[tuple[float, float], ...]
    curve: tuple[tuple[float, float], ...]
    hypervolume: float
    seconds: float
    trials: int
    at_shares: tuple[float | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Several runs of one task.

    Attributes:
        cost: The horizontal axis.
        score: The vertical axis.
        runs: Runs in the order of the arguments.
        attained: Mode to the median attainment of its runs, for modes with several runs.
    """

    cost: ObjectiveSpec
    score: ObjectiveSpec
    runs: tuple[ComparedRun, ...]
    attained: Mapping[str, tuple[tuple[float, float], ...]]


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest trailing parts of paths that are distinct; equal paths are numbered.

    Example:
        >>> distinct_names([Path("monday/digits"), Path("tuesday/digits")])
        ['monday/digits', 'tuesday/digits']
        >>> distinct_names([Path("reports/digits"), Path("reports/mnist1d"), Path("reports/digits")])
        ['digits', 'mnist1d', 'digits (2)']
    """
    parts = [folder.absolute().parts for folder in folders]
    distinct = len(set(parts))
    depth = next(
        depth for depth in range(1, max(map(len, parts)) + 1) if len({path[-depth:] for path in parts}) == distinct
    )
    names: list[str] = []
    for path in parts:
        name = str(Path(*path[-depth:]))
        repeats = sum(other == path for other in parts[: len(names)])
        names.append(f"{name} ({repeats + 1})" if repeats else name)
    return names


def compare_runs(runs: Sequence[RunTables]) -> Comparison:
    """Put runs on common axes: the first cost and the first score of the first run, with its reference point.

    Raises:
        UsageError: There are fewer than two, one has no candidates, or they searched for different things.
    """
    if len(runs) < 2:
        raise UsageError("compare needs at least two runs: autocompress compare RUN RUN ...")
    first = runs[0].info.objectives
    for run in runs:
        check_comparable(runs[0], run)
    cost, score = primary_objectives(first)
    # All runs are measured with the objectives and the teacher of the first one.
    compared = tuple(_compare_run(run, first, cost, score, _teacher_cost(runs[0], cost)) for run in runs)
    kinds: dict[str, list[ComparedRun]] = {}
    for member in compared:
        kinds.setdefault(member.kind, []).append(member)
    attained = {kind: _median_attainment(members, score) for kind, members in kinds.items() if len(members) > 1}
    return Comparison(cost, score, compared, attained)


def check_comparable(first: RunTables, run: RunTables) -> None:
    """Refuse runs that cannot be compared.

    Raises:
        UsageError: ``run`` has no candidates, or another task, other objectives or other data than ``first``.
    """
    if not len(run.candidates):
        raise UsageError(f"{run.name} has no candidates to compare")
    for what in ("task", "heads"):
        if getattr(run.info, what) != getattr(first.info, what):
            raise UsageError(f"{run.name} and {first.name} differ in their {what}: their scores do not compare")
    names = [[objective.name for objective in tables.info.objectives] for tables in (first, run)]
    if names[0] != names[1]:
        raise UsageError(f"{run.name} has the objectives {', '.join(names[1])}, {first.name} {', '.join(names[0])}")
    data = [one.info.environment.data for one in (first, run)]
    if data[0] != data[1]:
        raise UsageError(f"{run.name} and {first.name} were searched on different data or splits")


def _compare_run(
    run: RunTables, objectives: Sequence[ObjectiveSpec], cost: ObjectiveSpec, score: ObjectiveSpec, whole: float | None
) -> ComparedRun:
    full = full_fidelity(run.candidates)
    front = pareto_front(full, objectives)
    points = tuple(
        zip(numeric_column(front, cost.name).tolist(), numeric_column(front, score.name).tolist(), strict=True)
    )
    # A run has no score at a cost that none of its candidates is below.
    best = max if score.direction == "maximize" else min
    at_shares = tuple(
        best((s for c, s in points if whole is not None and c <= whole * share), default=None) for share in SHARES
    )
    search = run.trials[run.trials["role"] == "search"]
    # Jobs that only compress an earlier checkpoint further are not trials of their own.
    trials = search[~search["further"]] if "further" in search else search
    return ComparedRun(
        run.name,
        run.kind,
        points,
        _hypervolume_curve(full, search, objectives),
        compute_hypervolume(front, objectives),
        float(search["elapsed"].max()),
        len(trials),
        at_shares,
    )


def _hypervolume_curve(
    full: pd.DataFrame, trials: pd.DataFrame, objectives: Sequence[ObjectiveSpec]
) -> tuple[tuple[float, float], ...]:
    """Return the hypervolume on ``select_val`` over time, computed again with the common reference point."""
    curve: list[tuple[float, float]] = [(0.0, 0.0)]
    # Scaled once: tables are slow to filter, and there is one front for each trial.
    points = scale_points(full, objectives)
    is_finite, owners, front = np.isfinite(points).all(axis=1), full["trial"].to_numpy(), points[:0]
    hypervolume = moocore.Hypervolume(ref=np.ones(len(objectives)))
    finished = trials[np.isfinite(numeric_column(trials, "elapsed"))].sort_values("elapsed")
    for number, seconds in zip(finished["number"], numeric_column(finished, "elapsed"), strict=True):
        own = points[is_finite & (owners == number)]
        if not len(own):
            continue
        front = np.asarray(moocore.filter_dominated(np.vstack([front, own])))
        volume = float(hypervolume(front))
        if volume > curve[-1][1]:
            curve.append((float(seconds), volume))
    return tuple(curve)


def _teacher_cost(run: RunTables, cost: ObjectiveSpec) -> float | None:
    value = run.info.teacher.costs.get(cost.name)
    return None if value is None else float(value)


def _median_attainment(runs: Sequence[ComparedRun], score: ObjectiveSpec) -> tuple[tuple[float, float], ...]:
    """Return the median attainment of several runs (attainment function, Grunert da Fonseca et al. 2001)."""
    maximise = [False, score.direction == "maximize"]
    rows = np.array([point for run in runs for point in run.front], dtype=np.float64)
    sets = np.array([number for number, run in enumerate(runs, 1) for _ in run.front])
    # moocore minimizes every objective: flip the sign of those that are maximized.
    signed = rows * np.where(maximise, -1.0, 1.0)
    surface: NDArray[np.float64] = np.asarray(moocore.eaf(signed, sets=sets, percentiles=[50]))
    points = surface[:, :2] * np.where(maximise, -1.0, 1.0)
    return tuple((float(x), float(y)) for x, y in points[np.argsort(points[:, 0])])
