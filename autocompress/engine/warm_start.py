"""Warm start: the trials of an earlier run are the first observations of the surrogate of a new search.

Task and objectives have to agree; the search space may differ. What the new search knows of the earlier one is written
into its own folder, so that it is resumed in the same way also where the earlier run has moved or changed.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.analysis.pareto import is_dominated
from autocompress.core.atomic import write_atomic
from autocompress.core.config import CompressionConfig, Part
from autocompress.core.formatting import format_plural
from autocompress.core.knobs import Choice, FloatRange, IntRange
from autocompress.core.records import Candidate, Role
from autocompress.core.run_info import ObjectiveSpec
from autocompress.core.task import Task
from autocompress.core.untrusted import read_json_file
from autocompress.engine.sampler.acquisition import EarlierTrial
from autocompress.engine.space import Space
from autocompress.errors import UsageError
from autocompress.store.run_store import RunStore
from autocompress.store.schema import StoredTrial

FILE = "warm_start.json"
# The Gaussian process keeps some 240 observations, and a trial has up to three rungs.
MAX_TRIALS = 120
# Costs that the compute cost of an epoch is estimated from, besides those among the objectives.
COMPUTE_COSTS = ("flops", "activations", "layers")


@dataclass(frozen=True)
class WarmStart:
    """What a search takes over from an earlier run.

    Attributes:
        trials: Earlier trials, the oldest first.
        notice: One line for the user: how many trials were taken, and why the others were not.
        run: Folder of the earlier run; None for a search that is resumed, which has copied from it already.
    """

    trials: tuple[EarlierTrial, ...]
    notice: str
    run: Path | None = None


def read_warm_start(run: Path, space: Space, task: Task, objectives: Sequence[ObjectiveSpec]) -> WarmStart:
    """Return what a search of a task may take over from an earlier run.

    Args:
        run: Folder of the earlier run, which need not have ended.
        space: Search space of the new search.
        task: Task of the new search.
        objectives: Objectives of the new search.

    Raises:
        UsageError: The earlier run is of another task, lacks an objective, or has no trial that fits the space.
        RunFolderError: The folder holds no run.
    """
    with RunStore.read(run) as store:
        info = store.run_info()
        stored = [trial for trial in store.read_trials() if trial.job.role is Role.SEARCH]
        candidates = {trial.job.number: store.read_trial_candidates(trial.job.number) for trial in stored}
    _check_task(run, info.task, info.heads, task)
    _check_objectives(run, objectives, [*filter(None, candidates.values())])
    refined = _group_refinements(stored, candidates)
    on_front = find_front(candidates.values(), objectives)
    reasons: Counter[str] = Counter()
    taken: list[EarlierTrial] = []
    for trial in stored:
        if trial.job.base is not None:
            continue
        own = candidates[trial.job.number]
        reason = find_mismatch(trial.job.training, space) if own else "have no result"
        if reason:
            reasons[reason] += 1
            continue
        rungs = _group_rungs([*own, *refined.get(trial.job.training, ())], space, objectives)
        taken.append(EarlierTrial(rungs, trial.job.training in on_front))
    others = [f"{count} {reason}" for reason, count in reasons.most_common()]
    if not taken:
        raise UsageError(f"no trial of {run} fits this search ({'; '.join(others) or 'it has none'})")
    if len(taken) > MAX_TRIALS:
        others.append(f"{len(taken) - MAX_TRIALS} are older than the latest {MAX_TRIALS} and not on the front")
    chosen = _select_latest(taken)
    total = len(taken) + sum(reasons.values())
    left_out = f"; not taken: {', '.join(others)}" if others else ""
    notice = f"the search starts from {len(chosen)} of {format_plural(total, 'trial')} of {run}{left_out}"
    return WarmStart(tuple(chosen), notice, run)


def find_mismatch(training: CompressionConfig, space: Space) -> str:
    """Return why a trial says little about a search space; empty if each of its parts is in the space.

    Hyperparameters of these parts may have other ranges: values outside of them are observations all the same. Only
    the epochs must be searched in the space or equal, because fewer of them are another fidelity.
    """
    parts = [("student", training.student), *(("distill", part) for part in training.distill), ("fit", training.fit)]
    for section, part in parts:
        settings = space.sections[section].get(part.name)
        if settings is None:
            return f"with {section}.{part.name}, which is not in this search space"
        epochs = settings.get("epochs")
        is_searched = isinstance(epochs, FloatRange | IntRange | Choice)
        if section == "fit" and not is_searched and part.values.get("epochs") != epochs:
            return f"with {part.values.get('epochs')} epochs, and not {epochs}"
    return ""


def write_warm_start(folder: Path, start: WarmStart) -> None:
    """Write a warm start into the folder of the new run."""
    content = {"notice": start.notice, "trials": [_trial_to_json(trial) for trial in start.trials]}
    write_atomic(folder / FILE, json.dumps(content))


def load_warm_start(folder: Path) -> WarmStart | None:
    """Return what a run was started from; None if it was started without an earlier run.

    Raises:
        RunFolderError: The file was changed.
    """
    path = folder / FILE
    if not os.path.lexists(path):
        return None

    def convert(content: Any) -> WarmStart:
        return WarmStart(tuple(map(_trial_from_json, content["trials"])), str(content["notice"]))

    return read_json_file(path, convert)


def _check_task(run: Path, name: str, heads: Mapping[str, int], task: Task) -> None:
    if name != task.name:
        raise UsageError(f"{run} was a search of the task '{name}', and this is one of '{task.name}'")
    if dict(heads) != dict(task.heads):
        raise UsageError(f"the heads of {run} are {dict(heads)}, and those of this search are {dict(task.heads)}")


def _check_objectives(run: Path, objectives: Sequence[ObjectiveSpec], trials: Sequence[Sequence[Candidate]]) -> None:
    names = {name for trial in trials for name in (*trial[0].costs, *trial[0].scores.get("search_val", {}))}
    missing = [objective.name for objective in objectives if trials and objective.name not in names]
    if missing:
        raise UsageError(f"{run} has not measured {', '.join(missing)}, which this search is for")


def _group_refinements(
    stored: Sequence[StoredTrial], candidates: Mapping[int, Sequence[Candidate]]
) -> dict[CompressionConfig, list[Candidate]]:
    """Return the candidates of refinements by the training that their checkpoint comes from."""
    groups: dict[CompressionConfig, list[Candidate]] = {}
    for trial in stored:
        if trial.job.base is not None:
            groups.setdefault(trial.job.training, []).extend(candidates[trial.job.number])
    return groups


def find_front(
    trials: Iterable[Sequence[Candidate]], objectives: Sequence[ObjectiveSpec], split: str = "search_val"
) -> set[CompressionConfig]:
    """Return the trainings with a candidate on the front of the given objectives.

    Args:
        trials: Candidates of each trial.
        objectives: Objectives of the front.
        split: Split of the scores: a search sees those of ``search_val``, its final front has those of ``select_val``.
    """
    complete = [candidate for trial in trials for candidate in trial if candidate.complete]
    if not complete:
        return set()
    names = [objective.name for objective in objectives]
    points = np.array([[_read_value(candidate, name, split) for name in names] for candidate in complete])
    dominated = is_dominated(points, [objective.direction for objective in objectives])
    return {candidate.config.training for candidate, is_out in zip(complete, dominated, strict=True) if not is_out}


def _read_value(candidate: Candidate, name: str, split: str) -> float:
    value = candidate.costs.get(name, candidate.scores.get(split, {}).get(name))
    # A value that is not finite is never on a front.
    return float("nan") if value is None else float(value)


def _group_rungs(
    candidates: Sequence[Candidate], space: Space, objectives: Sequence[ObjectiveSpec]
) -> tuple[tuple[Candidate, ...], ...]:
    """Return the candidates by their epochs, the fewest first, without compression recipes that the space lacks."""
    recipes = {(recipe.prune, recipe.quantize) for recipe in space.compression_grid()}
    rungs: dict[tuple[bool, int], list[Candidate]] = {}
    for candidate in candidates:
        is_parent = candidate.config.prune is None and candidate.config.quantize is None
        # Compression at a rung is measured again at the end.
        if is_parent or (candidate.complete and (candidate.config.prune, candidate.config.quantize) in recipes):
            rung = rungs.setdefault((candidate.complete, candidate.epochs), [])
            rung.append(_reduce_candidate(candidate, objectives, is_parent=is_parent))
    return tuple(tuple(rungs[key]) for key in sorted(rungs))


def _reduce_candidate(candidate: Candidate, objectives: Sequence[ObjectiveSpec], *, is_parent: bool) -> Candidate:
    """Return a candidate with the values that the surrogate reads."""
    names = {objective.name for objective in objectives} | set(COMPUTE_COSTS if is_parent else ())
    scores = {name: value for name, value in candidate.scores.get("search_val", {}).items() if name in names}
    costs = {name: value for name, value in candidate.costs.items() if name in names}
    return replace(candidate, id="", scores={"search_val": scores}, costs=costs, details={}, checkpoint="")


def _select_latest(trials: Sequence[EarlierTrial]) -> list[EarlierTrial]:
    """Return the latest trials in their order, those on the front before all others."""
    latest = sorted(range(len(trials)), key=lambda index: (trials[index].is_on_front, index), reverse=True)
    return [trials[index] for index in sorted(latest[:MAX_TRIALS])]


def _trial_to_json(trial: EarlierTrial) -> dict[str, Any]:
    return {
        "is_on_front": trial.is_on_front,
        "training": trial.rungs[0][0].config.training.to_json(),
        "candidates": [list(map(_candidate_to_json, rung)) for rung in trial.rungs],
    }


def _candidate_to_json(candidate: Candidate) -> dict[str, Any]:
    config = candidate.config
    return {
        "prune": None if config.prune is None else config.prune.to_json(),
        "quantize": None if config.quantize is None else config.quantize.to_json(),
        "epochs": candidate.epochs,
        "complete": candidate.complete,
        "scores": dict(candidate.scores["search_val"]),
        "costs": dict(candidate.costs),
    }


def _trial_from_json(data: Mapping[str, Any]) -> EarlierTrial:
    training = CompressionConfig.from_json(data["training"])
    rungs = tuple(tuple(_candidates_from_json(rung, training)) for rung in data["candidates"])
    if not rungs or not all(rungs):
        raise ValueError("a trial without candidates")
    return EarlierTrial(rungs, bool(data["is_on_front"]))


def _candidates_from_json(rows: Sequence[Mapping[str, Any]], training: CompressionConfig) -> Iterator[Candidate]:
    for row in rows:
        prune, quantize = (None if row[name] is None else Part.from_json(row[name]) for name in ("prune", "quantize"))
        scores, costs = ({name: float(value) for name, value in row[kind].items()} for kind in ("scores", "costs"))
        config = replace(training, prune=prune, quantize=quantize)
        yield Candidate(
            "", -1, config, int(row["epochs"]), {"search_val": scores}, costs, complete=bool(row["complete"])
        )
