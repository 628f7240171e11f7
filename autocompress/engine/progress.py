"""How a search stands, for whoever shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Progress:
    """How a search stands, for whoever shows it.

    Attributes:
        done: Trainings that came to an end with candidates, or were stopped.
        failed: Trials that gave none.
        running: Jobs under way.
        total: Trials that the budget allows.
        elapsed: Seconds since the search began, earlier runs included.
        limit: Seconds that the budget allows, or ``None``.
        candidates: Candidates in the store.
        hypervolume: Of the front on search_val, between 0 and 1.
        front: ``(id, first score, first cost)`` of each candidate on it, the cheapest first.
        objectives: Their records.
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
    objectives: Sequence[Mapping[str, Any]]
