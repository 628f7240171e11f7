"""Validation of results from workers: values that are missing or not finite never reach the front or the sampler."""

from collections.abc import Collection
from dataclasses import replace

from autocompress.core.records import Candidate, State, TrialResult

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
