"""Runs against each other: fronts on the same axes, hypervolume over time, and what each kind of run attains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autocompress.analysis.pareto import Objective, axes, full_fidelity, hypervolume, numbers, pareto_front
from autocompress.errors import UsageError

#: Shares of the teacher's cost at which scores are compared.
SHARES = (0.1, 0.01, 0.001)


@dataclass(frozen=True)
class RunTables:
    """One run, as its store gives it."""

    name: str
    candidates: pd.DataFrame
    trials: pd.DataFrame
    meta: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """How it searched: runs of the same kind are taken together."""
        return str(self.meta.get("mode", "search"))


@dataclass(frozen=True)
class Compared:
    """One run on the common axes.

    Attributes:
        name: The run's.
        kind: How it searched.
        front: ``(cost, score)`` of each candidate on its front, the cheapest first; on ``select_val``.
        curve: ``(seconds, hypervolume)`` after each trial that made a difference.
        hypervolume: Of the front, in the box of the first run.
        seconds: Of the search.
        trainings: Trainings begun.
        at_shares: Best score at each of ``SHARES`` of the teacher's cost; ``None`` where nothing is as cheap.
    """

    name: str
    kind: str
    front: tuple[tuple[float, float], ...]
    curve: tuple[tuple[float, float], ...]
    hypervolume: float
    seconds: float
    trainings: int
    at_shares: tuple[float | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Several runs of one task.

    Attributes:
        cost: The horizontal axis.
        score: The vertical axis.
        runs: In the order asked.
        attained: Kind to the line that half of its runs attain, for the kinds with several runs.
    """

    cost: Objective
    score: Objective
    runs: tuple[Compared, ...]
    attained: Mapping[str, tuple[tuple[float, float], ...]]


def told_apart(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that differ from each other; equal ones are numbered.

    Example:
        >>> told_apart([Path("monday/digits"), Path("tuesday/digits")])
        ['monday/digits', 'tuesday/digits']
        >>> told_apart([Path("reports/digits"), Path("reports/mnist1d"), Path("reports/digits")])
        ['digits', 'mnist1d', 'digits (2)']
    """
    parts = [folder.absolute().parts for folder in folders]
    several = len(set(parts))
    depth = next(
        depth for depth in range(1, max(map(len, parts)) + 1) if len({each[-depth:] for each in parts}) == several
    )
    names: list[str] = []
    for each in parts:
        name = str(Path(*each[-depth:]))
        again = sum(other == each for other in parts[: len(names)])
        names.append(f"{name} ({again + 1})" if again else name)
    return names


def compare_runs(runs: Sequence[RunTables]) -> Comparison:
    """Put runs on common axes: the first cost and the first score of the first run, in its box.

    Raises:
        UsageError: There are fewer than two, one has no candidates, or they searched for different things.
    """
    if len(runs) < 2:
        raise UsageError("compare needs two runs at least: autocompress compare RUN RUN ...")
    first = runs[0].meta.get("objectives", [])
    for run in runs:
        refuse_unlike(runs[0], run)
    cost, score = axes(first)
    compared = tuple(_compared(run, first, cost, score, _teacher_cost(runs[0], cost)) for run in runs)
    kinds: dict[str, list[Compared]] = {}
    for each in compared:
        kinds.setdefault(each.kind, []).append(each)
    attained = {kind: _median_attained(members, score) for kind, members in kinds.items() if len(members) > 1}
    return Comparison(cost, score, compared, attained)


def refuse_unlike(first: RunTables, run: RunTables) -> None:
    """Refuse a run that searched for something else than another one.

    Raises:
        UsageError: It has no candidates, or another task, other objectives or other data.
    """
    if not len(run.candidates):
        raise UsageError(f"{run.name} holds no candidates: there is nothing to compare")
    for what in ("task", "heads"):
        if run.meta.get(what) != first.meta.get(what):
            raise UsageError(f"{run.name} and {first.name} differ in their {what}: their scores do not compare")
    names = [[each["name"] for each in one.meta["objectives"]] for one in (first, run)]
    if names[0] != names[1]:
        raise UsageError(f"{run.name} has the objectives {', '.join(names[1])}, {first.name} {', '.join(names[0])}")
    data = [(one.meta.get("environment") or {}).get("data") for one in (first, run)]
    if data[0] != data[1]:
        raise UsageError(f"{run.name} and {first.name} were searched on different data or splits")


def _compared(
    run: RunTables, objectives: Sequence[Objective], cost: Objective, score: Objective, whole: float | None
) -> Compared:
    full = full_fidelity(run.candidates)
    front = pareto_front(full, objectives)
    points = tuple(zip(numbers(front, cost["name"]).tolist(), numbers(front, score["name"]).tolist(), strict=True))
    best = max if score["direction"] == "maximize" else min
    at_shares = tuple(
        best((s for c, s in points if whole is not None and c <= whole * share), default=None) for share in SHARES
    )
    search = run.trials[run.trials["role"] == "search"]
    trainings = search[~search["further"]] if "further" in search else search
    return Compared(
        run.name,
        run.kind,
        points,
        _curve(full, search, objectives),
        hypervolume(front, objectives),
        float(search["elapsed"].max()),
        len(trainings),
        at_shares,
    )


def _curve(
    full: pd.DataFrame, trials: pd.DataFrame, objectives: Sequence[Objective]
) -> tuple[tuple[float, float], ...]:
    """Return the hypervolume on ``select_val`` over time: measured anew, so that it is that of the common box."""
    curve: list[tuple[float, float]] = [(0.0, 0.0)]
    front = full.iloc[:0]
    told = trials[np.isfinite(numbers(trials, "elapsed"))].sort_values("elapsed")
    for number, seconds in zip(told["number"], numbers(told, "elapsed"), strict=True):
        front = pareto_front(pd.concat([front, full[full["trial"] == number]]), objectives)
        volume = hypervolume(front, objectives)
        if volume > curve[-1][1]:
            curve.append((float(seconds), volume))
    return tuple(curve)


def _teacher_cost(run: RunTables, cost: Objective) -> float | None:
    found = (run.meta.get("teacher") or {}).get("costs", {}).get(cost["name"])
    return None if found is None else float(found)


def _median_attained(runs: Sequence[Compared], score: Objective) -> tuple[tuple[float, float], ...]:
    """Return the points that half of the runs attain (attainment function, Grunert da Fonseca et al. 2001)."""
    maximise = [False, score["direction"] == "maximize"]
    rows = np.array([point for run in runs for point in run.front], dtype=np.float64)
    sets = np.array([number for number, run in enumerate(runs, 1) for _ in run.front])
    signed = rows * np.where(maximise, -1.0, 1.0)
    surface: NDArray[np.float64] = np.asarray(moocore.eaf(signed, sets=sets, percentiles=[50]))
    points = surface[:, :2] * np.where(maximise, -1.0, 1.0)
    return tuple((float(x), float(y)) for x, y in points[np.argsort(points[:, 0])])
