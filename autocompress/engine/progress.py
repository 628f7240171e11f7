"""How a search stands, for whoever shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autocompress.core.records import State
from autocompress.engine.archive import Archive
from autocompress.engine.spec import SearchSection


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


def progress(
    counts: Mapping[State, int],
    search: SearchSection,
    elapsed: float,
    candidates: int,
    archive: Archive,
    objectives: Sequence[Mapping[str, Any]],
) -> Progress:
    """Return how a search stands.

    Args:
        counts: Trials by state.
        search: What it may spend.
        elapsed: Seconds so far.
        candidates: How many are in the store.
        archive: The front so far.
        objectives: Their records.
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
        front=archive.front(),
        objectives=objectives,
    )
