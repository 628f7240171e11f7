"""Progress of a search, for progress displays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autocompress.core.records import State
from autocompress.core.run_info import ObjectiveSpec
from autocompress.engine.archive import Archive
from autocompress.engine.spec import SearchSection


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
