"""What a worker gave back, before anything is made of it: numbers that are not finite never get further."""

from dataclasses import replace

from autocompress.records import Candidate, State, TrialResult


def checked(result: TrialResult) -> TrialResult:
    """Return a result without candidates whose numbers are not finite; with none left it has failed."""
    good = tuple(candidate for candidate in result.candidates if _finite(candidate))
    if len(good) == len(result.candidates):
        return result
    lost = len(result.candidates) - len(good)
    reason = "; ".join(filter(None, [result.reason, f"{lost} candidates had scores that are not finite"]))
    return replace(result, candidates=good, reason=reason, state=result.state if good else State.FAILED)


def _finite(candidate: Candidate) -> bool:
    values = [value for split in candidate.scores.values() for value in split.values()]
    values += list(candidate.costs.values())
    return all(isinstance(value, int | float) and abs(value) != float("inf") and value == value for value in values)
