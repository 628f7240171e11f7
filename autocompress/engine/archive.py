"""The front so far, on search_val: what the search has reached, updated at each tell."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autocompress.analysis.pareto import axes, dominated, hypervolume, normalise
from autocompress.core.records import Candidate


class Archive:
    """Non-dominated candidates of a search, kept small so that an update costs the same at any age.

    Args:
        objectives: Records as they stand in the run's description, the ``box`` included.

    Attributes:
        hypervolume: Of the front on search_val, as a share of the box: 0 to 1.
    """

    def __init__(self, objectives: Sequence[Mapping[str, Any]]) -> None:
        self._objectives = objectives
        self._directions = [objective["direction"] for objective in objectives]
        self._names = [objective["name"] for objective in objectives]
        self._ids: list[str] = []
        self._checkpoints: dict[str, str] = {}
        self._points = np.empty((0, len(objectives)))
        self.hypervolume = 0.0

    def value(self, candidate: Candidate, name: str) -> float:
        """Return one score (on search_val) or cost of a candidate."""
        return float(candidate.costs[name] if name in candidate.costs else candidate.scores["search_val"][name])

    def values(self, candidate: Candidate) -> list[float]:
        """Return what the sampler is told: scores as they are, costs as decimal logarithms.

        Costs spread over several powers of ten, and a sampler that weighs hypervolume would see the largest only.
        """
        return [
            float(np.log10(max(value, 1e-12))) if objective["kind"] == "cost" else value
            for objective in self._objectives
            for value in [self.value(candidate, objective["name"])]
        ]

    def normalised(self, candidate: Candidate) -> NDArray[np.float64]:
        """Return a candidate's objectives where 0 is the ideal and 1 the reference, ``[M]``, not clipped."""
        row: NDArray[np.float64] = self.all_normalised([candidate])[0]
        return row

    def all_normalised(self, candidates: Sequence[Candidate]) -> NDArray[np.float64]:
        """Return the same of several candidates, ``[K, M]``."""
        return self._normalised(np.array([[self.value(each, name) for name in self._names] for each in candidates]))

    @property
    def score_column(self) -> int:
        """Where the first score stands among the objectives."""
        return self._names.index(axes(self._objectives)[1]["name"])

    def normalised_front(self) -> tuple[NDArray[np.float64], list[str]]:
        """Return the front as :meth:`normalised` does, ``[N, M]``, and the checkpoint of each point."""
        return self._normalised(self._points), [self._checkpoints[identity] for identity in self._ids]

    def _normalised(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        columns = [
            normalise(points[:, place], record["box"], record["kind"] == "cost", clip=False)
            for place, record in enumerate(self._objectives)
        ]
        return np.column_stack(columns)

    def add(self, candidates: Iterable[Candidate]) -> float:
        """Let complete candidates onto the front, and off it those that they beat; return the hypervolume they add."""
        before = self.hypervolume
        candidates = [candidate for candidate in candidates if candidate.complete]
        new = {candidate.id: [self.value(candidate, name) for name in self._names] for candidate in candidates}
        self._checkpoints.update({candidate.id: candidate.checkpoint for candidate in candidates})
        if not new:
            return 0.0
        points = np.vstack([self._points, np.array(list(new.values()))])
        ids = [*self._ids, *new]
        # Equal points add nothing to a front that is only looked at, so one of them is kept.
        _, first = np.unique(points, axis=0, return_index=True)
        first = np.sort(first)
        keep = first[~dominated(points[first], self._directions)]
        self._points, self._ids = points[keep], [ids[index] for index in keep]
        self._checkpoints = {identity: self._checkpoints[identity] for identity in self._ids}
        self.hypervolume = hypervolume(pd.DataFrame(self._points, columns=self._names), self._objectives)
        return self.hypervolume - before

    def front(self) -> tuple[tuple[str, float, float], ...]:
        """Return ``(id, score, cost)`` of each candidate on the front, the cheapest first."""
        cost, score = (self._names.index(objective["name"]) for objective in axes(self._objectives))
        rows = [
            (identity, float(point[score]), float(point[cost]))
            for identity, point in zip(self._ids, self._points, strict=True)
        ]
        return tuple(sorted(rows, key=lambda row: row[2]))
