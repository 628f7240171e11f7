"""Copies: the trials behind the front of an earlier run, which a warm start takes over with their weights.

A trial is copied where training it again would give the same model: task, data, teacher and measured values are those
of the earlier run, the same versions of torch and autocompress made it, and the search space holds its configuration.
Where one of these differs, the trials of the front are trained again (``autocompress.engine.repeats``).
"""

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from autocompress.core.config import CompressionConfig
from autocompress.core.formatting import format_plural
from autocompress.core.records import Candidate, Job, Role, State, TrialResult
from autocompress.core.run_info import RunInfo
from autocompress.core.untrusted import read_regular_file
from autocompress.engine.archive import Archive
from autocompress.engine.repeats import move_into_space
from autocompress.engine.sampler.encoding import Encoding
from autocompress.engine.space import Space
from autocompress.engine.warm_start import find_front, find_mismatch
from autocompress.store.run_store import RunStore
from autocompress.trial.pipeline import Setup, load_pipeline
from autocompress.trial.runner import VALIDATION

logger = logging.getLogger(__name__)

#: Libraries whose version decides what a trial gives.
LIBRARIES = ("torch", "autocompress")


def copy_front(run: Path, store: RunStore, space: Space, setup: Setup) -> str:
    """Copy the trials of an earlier front into the store of a search that has no trial yet.

    Args:
        run: Folder of the earlier run.
        store: Store of the new search, which holds its teacher already.
        space: Search space of the new search.
        setup: Setup of the new search.

    Returns:
        One line for the user: how many trials were copied, or why none was.
    """
    with RunStore.read(run) as earlier:
        info = store.run_info()
        difference = find_difference(info, earlier.run_info())
        if difference:
            return f"nothing is copied from {run}, because {difference}; the trials of its front are trained again"
        groups = _group_jobs(earlier, info, space)
        curves = earlier.trial_table().set_index("number")["curve"]
        archive, numbers, count = Archive(info.objectives), dict[int, int](), 0
        for jobs in groups:
            results = [_read_result(earlier, job, curves[job.number], space) for job in jobs]
            if not all(_can_rebuild(setup, result) for result in results):
                continue
            count += 1
            for job, result in zip(jobs, results, strict=True):
                if not any(candidate.complete for candidate in result.candidates):
                    continue
                numbers[job.number] = len(numbers)
                store.add_job(_renumber_job(job, numbers), None)
                copy = _renumber_result(result, numbers)
                archive.add(copy.candidates)
                # Results of 0 seconds of search: the driver knows a copy by it.
                store.record_result(copy, elapsed=0.0, hypervolume=archive.hypervolume)
    logger.info("%d of %d trials of the front of %s copied", count, len(groups), run)
    return f"copied with weights from the front of {run}: {format_plural(count, 'trial')} of {len(groups)}"


def find_difference(info: RunInfo, earlier: RunInfo) -> str:
    """Return what differs between two runs, so that equal trials of them may give different models; empty if nothing.

    Args:
        info: Description of the new run, with its teacher.
        earlier: Description of the earlier run.
    """
    if not info.environment.data or info.environment.data != earlier.environment.data:
        return "its data differ"
    differing = [name for name in info.setup if info.setup[name] != earlier.setup.get(name)]
    if differing or info.setup.keys() != earlier.setup.keys():
        return f"its {', '.join(differing) or 'setup'} differ" + "s" * (len(differing) == 1)
    for name in LIBRARIES:
        new, old = (one.environment.versions.get(name) for one in (info, earlier))
        if new != old:
            return f"it was made with {name} {old}, and this is {new}"
    measured = [({split: one.teacher.scores.get(split) for split in VALIDATION}, one.teacher.costs)
                for one in (info, earlier)]  # fmt: skip
    return "its teacher differs" if measured[0] != measured[1] else ""


def _group_jobs(run: RunStore, info: RunInfo, space: Space) -> list[list[Job]]:
    """Return the jobs of each complete trial of the front that the space holds: the trial, then its refinements."""
    stored = [trial for trial in run.read_trials() if trial.job.role is Role.SEARCH and trial.state is State.COMPLETE]
    candidates = [run.read_trial_candidates(trial.job.number) for trial in stored]
    # Those that the search saw on its front, and those of the final front, which the user saw.
    on_front = set[CompressionConfig]().union(*(find_front(candidates, info.objectives, split) for split in VALIDATION))
    groups: dict[CompressionConfig, list[Job]] = {}
    for trial in stored:
        if trial.job.training in on_front:
            groups.setdefault(trial.job.training, []).append(trial.job)
    encoding = Encoding(space)
    return [
        jobs
        for training, jobs in groups.items()
        if jobs[0].base is None
        and not find_mismatch(training, space)
        and move_into_space(training, space, encoding) == training
    ]


def _read_result(run: RunStore, job: Job, curve: Sequence[Mapping[str, float]], space: Space) -> TrialResult:
    """Return the result of a stored job without the compression recipes that the space lacks."""
    grid = {(recipe.prune, recipe.quantize) for recipe in space.compression_grid()}
    candidates = tuple(
        _drop_test_split(candidate)
        for candidate in run.read_trial_candidates(job.number)
        if (candidate.config.prune, candidate.config.quantize) in grid
    )
    # A checkpoint that a refinement only reads belongs to the job before it.
    names = {candidate.checkpoint for candidate in candidates if candidate.checkpoint.startswith(f"t{job.number}p")}
    weights = {}
    for name in names:
        with suppress(OSError):
            weights[name] = read_regular_file(run.checkpoint_path(name))
    return TrialResult(job.number, State.COMPLETE, candidates, 0.0, "", tuple(curve), weights)


def _drop_test_split(candidate: Candidate) -> Candidate:
    """Return a candidate without what was read from the test split, which a search does not know before its end."""
    scores = {split: values for split, values in candidate.scores.items() if split in VALIDATION}
    examples = {split: text for split, text in candidate.details.get("examples", {}).items() if split in VALIDATION}
    details = {**candidate.details, **({"examples": examples} if "examples" in candidate.details else {})}
    return replace(candidate, scores=scores, details=details)


def _can_rebuild(setup: Setup, result: TrialResult) -> bool:
    """Return whether the checkpoints of a result are there and fit its candidates."""
    own = {candidate.checkpoint: candidate for candidate in result.candidates if candidate.complete}
    own = {name: candidate for name, candidate in own.items() if name.startswith(f"t{result.number}p")}
    try:
        for name, candidate in own.items():
            load_pipeline(setup).rebuild(candidate.config, result.checkpoints[name])
    except Exception as error:  # A file from elsewhere may hold anything; what cannot be rebuilt is trained again.
        logger.warning("checkpoint of trial %d cannot be copied: %s", result.number, error)
        return False
    return True


def _renumber_job(job: Job, numbers: Mapping[int, int]) -> Job:
    base = None if job.base is None else replace(job.base, checkpoint=_renumber_name(job.base.checkpoint, numbers))
    return replace(job, number=numbers[job.number], base=base)


def _renumber_result(result: TrialResult, numbers: Mapping[int, int]) -> TrialResult:
    number = numbers[result.number]
    candidates = tuple(
        replace(
            candidate,
            id=_renumber_name(candidate.id, numbers),
            trial=number,
            checkpoint=candidate.checkpoint and _renumber_name(candidate.checkpoint, numbers),
        )
        for candidate in result.candidates
    )
    weights = {_renumber_name(name, numbers): content for name, content in result.checkpoints.items()}
    return replace(result, number=number, candidates=candidates, checkpoints=weights)


def _renumber_name(name: str, numbers: Mapping[int, int]) -> str:
    """Return the name of a candidate or checkpoint with the new number of its trial.

    Example:
        >>> _renumber_name("t12c7", {12: 0})
        't0c7'
    """
    return re.sub(r"^t(\d+)", lambda match: f"t{numbers[int(match[1])]}", name)
