"""What a worker gave back, before anything is made of it: numbers that are missing or not finite never get further."""

from collections.abc import Collection
from dataclasses import replace

from autocompress.core.records import Candidate, State, TrialResult

# Why a job failed whose executions were both cut off: that says nothing of the job.
INTERRUPTED = "interrupted twice"


def checked(result: TrialResult, objectives: Collection[str] = ()) -> TrialResult:
    """Return a result without candidates whose numbers are missing or not finite; with none left it has failed.

    Args:
        result: As a worker gave it back.
        objectives: What every candidate must have, as a score on search_val or as a cost.
    """
    good = tuple(each for each in result.candidates if _finite(each) and not _missing(each, objectives))
    if len(good) == len(result.candidates):
        return result
    missing = sorted({name for each in result.candidates for name in _missing(each, objectives)})
    infinite = sum(not _finite(each) for each in result.candidates)
    found = [f"{infinite} candidates had scores that are not finite"] if infinite else []
    found += [f"candidates had no {', '.join(missing)}"] if missing else []
    reason = "; ".join(filter(None, [result.reason, *found]))
    return replace(result, candidates=good, reason=reason, state=result.state if good else State.FAILED)


def _missing(candidate: Candidate, objectives: Collection[str]) -> list[str]:
    there = {*candidate.costs, *candidate.scores.get("search_val", {})}
    return [name for name in objectives if name not in there]


def _finite(candidate: Candidate) -> bool:
    values = [value for split in candidate.scores.values() for value in split.values()]
    values += list(candidate.costs.values())
    return all(isinstance(value, int | float) and abs(value) != float("inf") and value == value for value in values)
