"""The Pareto front of a running search, with scores on ``search_val`` (the split that the search decides on).

Results from workers are validated first: values that are missing or not finite never reach the front or the sampler.
Limits of the run count as constraint violations, for the sampler and for skipping configurations before training. The
progress of a search is summarized for displays.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autocompress.analysis.pareto import compute_hypervolume, is_dominated, normalize_values, primary_objectives
from autocompress.core.config import CompressionConfig
from autocompress.core.formatting import format_duration, format_plural
from autocompress.core.records import Candidate, CompressionRecipe, State, TrialResult
from autocompress.core.run_info import ObjectiveSpec
from autocompress.engine.spec import SearchSection


class Archive:
    """Pareto archive: the non-dominated candidates of complete trials.

    Dominated candidates are dropped, so an update takes as long late in a search as early.

    Args:
        objectives: Objectives of the run, with their bounds.

    Attributes:
        hypervolume: Normalized hypervolume of the front on ``search_val``, between 0 and 1.
    """

    def __init__(self, objectives: Sequence[ObjectiveSpec]) -> None:
        self._objectives = objectives
        self._directions = [objective.direction for objective in objectives]
        self._names = [objective.name for objective in objectives]
        self._ids: list[str] = []
        self._checkpoints: dict[str, str] = {}
        self._points = np.empty((0, len(objectives)))
        self.hypervolume = 0.0

    def objective_value(self, candidate: Candidate, name: str) -> float:
        """Return a score (on ``search_val``) or a cost of a candidate by name."""
        return float(candidate.costs[name] if name in candidate.costs else candidate.scores["search_val"][name])

    def sampler_values(self, candidate: Candidate) -> list[float]:
        """Return a candidate's objectives for the sampler: scores as they are, costs as decimal logarithms.

        Costs span several powers of ten: without the logarithm, a sampler that models hypervolume would distinguish
        only the largest ones.
        """
        return [
            float(np.log10(max(value, 1e-12))) if objective.kind == "cost" else value
            for objective in self._objectives
            for value in [self.objective_value(candidate, objective.name)]
        ]

    def normalize(self, candidate: Candidate) -> NDArray[np.float64]:
        """Return a candidate's normalized objectives, ``[M]``: 0 is the ideal, 1 the reference point; not clipped."""
        row: NDArray[np.float64] = self.normalize_all([candidate])[0]
        return row

    def normalize_all(self, candidates: Sequence[Candidate]) -> NDArray[np.float64]:
        """Return the normalized objectives of several candidates, ``[K, M]``."""
        return self._normalize_points(
            np.array([[self.objective_value(candidate, name) for name in self._names] for candidate in candidates])
        )

    @property
    def score_column(self) -> int:
        """Column of the first score among the objectives."""
        return self._names.index(primary_objectives(self._objectives)[1].name)

    def front_points(self) -> tuple[NDArray[np.float64], list[str]]:
        """Return the normalized objectives of the front, ``[N, M]``, and the checkpoint of each point."""
        return self._normalize_points(self._points), [self._checkpoints[identity] for identity in self._ids]

    def _normalize_points(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        columns = [
            normalize_values(points[:, column], objective.require_bounds(), objective.kind == "cost", clip=False)
            for column, objective in enumerate(self._objectives)
        ]
        return np.column_stack(columns)

    def add(self, candidates: Iterable[Candidate]) -> float:
        """Add the candidates of complete trials that are non-dominated; return the hypervolume that they add."""
        before = self.hypervolume
        candidates = [candidate for candidate in candidates if candidate.complete]
        new = {
            candidate.id: [self.objective_value(candidate, name) for name in self._names] for candidate in candidates
        }
        self._checkpoints.update({candidate.id: candidate.checkpoint for candidate in candidates})
        if not new:
            return 0.0
        points = np.vstack([self._points, np.array(list(new.values()))])
        ids = [*self._ids, *new]
        # Of equal points the first is kept: more of them would not change the hypervolume. The final front, which is
        # computed from the store, holds them all.
        _, first = np.unique(points, axis=0, return_index=True)
        first = np.sort(first)
        keep = first[~is_dominated(points[first], self._directions)]
        self._points, self._ids = points[keep], [ids[index] for index in keep]
        self._checkpoints = {identity: self._checkpoints[identity] for identity in self._ids}
        self.hypervolume = compute_hypervolume(pd.DataFrame(self._points, columns=self._names), self._objectives)
        return self.hypervolume - before

    def list_front(self) -> tuple[tuple[str, float, float], ...]:
        """Return ``(id, first score, first cost)`` of each candidate on the front, the cheapest first."""
        cost, score = (self._names.index(objective.name) for objective in primary_objectives(self._objectives))
        rows = [
            (identity, float(point[score]), float(point[cost]))
            for identity, point in zip(self._ids, self._points, strict=True)
        ]
        return tuple(sorted(rows, key=lambda row: row[2]))


# Failure reason of a job that was interrupted at each attempt. It is stored in the run, and such a failure does not
# count as a failure of the trial itself.
INTERRUPTED_REASON = "interrupted twice"


def validate_result(result: TrialResult, objectives: Collection[str] = ()) -> TrialResult:
    """Return a result without its invalid candidates; a result with no candidate left has failed.

    Args:
        result: Result of a job as the worker returned it.
        objectives: Names that every candidate must have, as a score on ``search_val`` or as a cost.
    """
    valid = tuple(
        candidate
        for candidate in result.candidates
        if _has_finite_values(candidate) and not _list_missing(candidate, objectives)
    )
    if len(valid) == len(result.candidates):
        return result
    missing = sorted({name for candidate in result.candidates for name in _list_missing(candidate, objectives)})
    infinite = sum(not _has_finite_values(candidate) for candidate in result.candidates)
    reasons = [f"{infinite} candidates had scores that are not finite"] if infinite else []
    reasons += [f"candidates had no {', '.join(missing)}"] if missing else []
    reason = "; ".join(filter(None, [result.reason, *reasons]))
    return replace(result, candidates=valid, reason=reason, state=result.state if valid else State.FAILED)


def _list_missing(candidate: Candidate, objectives: Collection[str]) -> list[str]:
    present = {*candidate.costs, *candidate.scores.get("search_val", {})}
    return [name for name in objectives if name not in present]


def _has_finite_values(candidate: Candidate) -> bool:
    values = [value for split in candidate.scores.values() for value in split.values()]
    values += list(candidate.costs.values())
    # A worker may return any object as a value, so the type is checked too. NaN is the number that differs from itself.
    return all(isinstance(value, int | float) and abs(value) != float("inf") and value == value for value in values)


#: Function that returns the costs of each compression recipe of a training without training it; empty if unknown.
CostEstimator: TypeAlias = Callable[[CompressionConfig, Sequence[CompressionRecipe]], Sequence[Mapping[str, float]]]


class CostLimits:
    """Violations of the limits, measured after training or predicted before it.

    Attributes:
        skipped_configs: Number of configurations that cannot meet a cost limit under any compression recipe.
        lowest_costs: Name of each limited cost to the lowest value that was predicted for any configuration.

    Args:
        limits: Bounds by name of a score or cost: ``{name: {"min": ..., "max": ...}}``.
        value: Function that returns a score or cost of a candidate by name.
        estimate_costs: Function that returns costs before training; without it, no violation is predicted.
    """

    def __init__(
        self,
        limits: Mapping[str, Mapping[str, float | None]],
        value: Callable[[Candidate, str], float],
        estimate_costs: CostEstimator | None,
    ) -> None:
        self._limits = limits
        self._value = value
        self._estimate_costs = estimate_costs
        self.skipped_configs = 0
        self.lowest_costs: dict[str, float] = {}

    def measure_violations(self, candidates: Sequence[Candidate]) -> dict[str, float]:
        """Return the violation of each limit by the best candidate of a trial; at most 0 if the limit is met."""
        violations = {}
        for name, limit in self._limits.items():
            values = [self._value(candidate, name) for candidate in candidates]
            if limit.get("max") is not None:
                violations[f"{name} max"] = min(values) - float(limit["max"] or 0)
            if limit.get("min") is not None:
                violations[f"{name} min"] = float(limit["min"] or 0) - max(values)
        return violations

    def predict_violations(self, training: CompressionConfig, recipes: Sequence[CompressionRecipe]) -> dict[str, float]:
        """Return the violation of each upper cost limit by the cheapest recipe; empty if all can be met.

        Scores are known only after training, so their limits are never predicted.
        """
        upper_limits = {name: limit["max"] for name, limit in self._limits.items() if limit.get("max") is not None}
        if self._estimate_costs is None or not upper_limits:
            return {}
        costs = self._estimate_costs(training, recipes)
        violations = {}
        for name, upper_limit in upper_limits.items():
            if costs and name in costs[0]:
                lowest = min(recipe_costs[name] for recipe_costs in costs)
                self.lowest_costs[name] = min(lowest, self.lowest_costs.get(name, lowest))
                violations[f"{name} max"] = lowest - float(upper_limit or 0)
        if all(violation <= 0 for violation in violations.values()):
            return {}
        self.skipped_configs += 1
        return violations


@dataclass(frozen=True)
class Progress:
    """Progress of a search at one moment.

    Attributes:
        done: Number of trials that completed or were stopped early.
        failed: Number of trials that ended without a candidate.
        running: Number of running jobs.
        total: Budget in trials.
        elapsed: Seconds of search so far, those before a resume included.
        limit: Time limit in seconds, or ``None``.
        candidates: Number of candidates in the store.
        hypervolume: Normalized hypervolume of the front on ``search_val``, between 0 and 1.
        front: ``(id, first score, first cost)`` of each candidate on the front, the cheapest first.
        objectives: Objectives of the run.
        is_paused: Whether the search is paused from another process.
    """

    done: int
    failed: int
    running: int
    total: int
    elapsed: float
    limit: float | None
    candidates: int
    hypervolume: float
    front: tuple[tuple[str, float, float], ...]
    objectives: Sequence[ObjectiveSpec]
    is_paused: bool = False

    @property
    def values(self) -> dict[str, float]:
        """The numbers that a log keeps over time, by name."""
        return {
            "hypervolume": self.hypervolume,
            "front": float(len(self.front)),
            "candidates": float(self.candidates),
            "trials": float(self.done),
        }

    def describe(self) -> str:
        """Return the progress in one line."""
        remaining = ""
        if self.limit is not None:
            remaining = f", at most {format_duration(max(self.limit - self.elapsed, 0.0))} left"
        failed = f", {self.failed} failed" if self.failed else ""
        running = "paused from elsewhere" if self.is_paused else f"{self.running} running"
        return (
            f"{self.done} of {self.total} trials done, {running}{failed}; "
            f"{format_plural(self.candidates, 'candidate')}, {len(self.front)} on the front, "
            f"hypervolume {self.hypervolume:.4f}; {format_duration(self.elapsed)}{remaining}"
        )


def summarize_progress(
    counts: Mapping[State, int],
    search: SearchSection,
    elapsed: float,
    candidates: int,
    archive: Archive,
    objectives: Sequence[ObjectiveSpec],
) -> Progress:
    """Return the progress of a search.

    Args:
        counts: Number of trials by state.
        search: Section ``search`` of the spec, which holds the budget.
        elapsed: Seconds of search so far.
        candidates: Number of candidates in the store.
        archive: Archive of the front.
        objectives: Objectives of the run.
    """
    return Progress(
        done=counts[State.COMPLETE] + counts[State.STOPPED],
        failed=counts[State.FAILED] + counts[State.INFEASIBLE],
        running=counts[State.RUNNING],
        total=search.trials,
        elapsed=elapsed,
        limit=None if search.minutes is None else search.minutes * 60,
        candidates=candidates,
        hypervolume=archive.hypervolume,
        front=archive.list_front(),
        objectives=objectives,
    )
