"""What tells a training from others, and what it is seeded with."""

from autocompress.core.config import Part, fingerprint
from autocompress.core.records import Job


def seed_of(search_seed: int, number: int) -> int:
    """Return the seed of a training: equal for the same search and number, on every machine and after every resume."""
    return int(fingerprint([search_seed, number]), 16) % 2**31


def key_of(job: Job, amortized: bool) -> str:
    """Return what equal trainings share, whatever their seeds; where each is one candidate, its cut belongs to it."""
    training = job.training.unseeded()
    if amortized:
        return fingerprint(training)
    parts: list[Part | None] = [job.cuts[0].prune, job.cuts[0].quantize]
    return fingerprint([training, [None if part is None else part.to_json() for part in parts]])
