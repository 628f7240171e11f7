"""Cross-fitting: the finalists of a search are trained again in every fold of the data, and so is the teacher.

Every example outside of the test split is held out once. Its out-of-fold predictions replace those on the validation
splits where the recommendation compares a finalist with the teacher: on small data, several times as many examples. The
comparison is of recipes: the exported model is trained by the same recipe on the training split of the search. Finished
trainings are stored in the run folder, so that an interrupted cross-fitting continues.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from autocompress.analysis.certification import FOLDS
from autocompress.analysis.confirmation import select_for_confirmation
from autocompress.analysis.latency import describe_simulation
from autocompress.analysis.selection import select_candidate
from autocompress.backends.base import Backend
from autocompress.core.atomic import write_atomic
from autocompress.core.config import CompressionConfig, Part, fingerprint
from autocompress.core.example_scores import ExampleScores, Kind
from autocompress.core.records import CompressionRecipe, Job, TrialResult
from autocompress.core.registry import WorkerPlugins
from autocompress.core.task import Splits, Task
from autocompress.core.untrusted import join_inside, read_json_file
from autocompress.engine.spec import Source
from autocompress.errors import NoCandidateError, UsageError
from autocompress.store.run_store import RunStore
from autocompress.tasks.folds import make_fold
from autocompress.trial.pipeline import Setup, reproducible_torch
from autocompress.trial.runner import TrialRunner, teacher_record
from autocompress.trial.teacher import TeacherRecipe

logger = logging.getLogger(__name__)

# Candidates that are trained in every fold: the recommended one and its neighbours on the front.
FINALISTS = 5
FOLDER = "folds"
HELD_OUT = "select_val"


def check_folds(source: Source, task: Task, splits: Splits, teacher: TeacherRecipe) -> None:
    """Check that the finalists of a task can be trained in folds.

    Raises:
        SpecError: The order of the examples matters, there are fewer groups than folds, or the teacher is not trained
            by the search.
    """
    count = source.spec.splits.folds
    if count is None:
        return
    key = ("splits", "folds")
    if source.spec.splits.time is not None or not getattr(task, "has_folds", True):
        raise source.make_error(
            key, f"the examples of the task '{task.name}' are in order of time, and a fold would train on later ones"
        )
    if teacher.transfer is not None or not float(teacher.fit.values.get("epochs", 1) or 0):
        message = "the teacher must be trained again in every fold, and this one comes trained; leave folds out"
        raise source.make_error(key, message)
    if source.spec.pick.confidence is None:
        raise source.make_error(key, "out-of-fold predictions certify a loss, and pick.confidence is null; set it")
    try:
        make_fold(task, splits, 0, count, source.spec.split_seed)
    except UsageError as error:
        raise source.make_error(key, str(error)) from None


@dataclass(frozen=True)
class FoldRunner:
    """The function that a backend calls in its workers: each job is a training in one fold.

    Attributes:
        setup: Setup of the run.
        plugins: The plugins that the run uses.
        fold_of_job: Number of a job to its fold.
        count: Number of folds.
    """

    setup: Setup
    plugins: WorkerPlugins
    fold_of_job: Mapping[int, int]
    count: int

    def make_runner(self, fold: int) -> TrialRunner:
        """Return the runner of the jobs of a fold."""
        return TrialRunner(replace(self.setup, fold=(fold, self.count)), self.plugins)

    def prepare(self) -> None:
        """Prepare this process for the first fold."""
        self.make_runner(min(self.fold_of_job.values(), default=0)).prepare()

    def __call__(self, job: Job) -> TrialResult:
        """Run one job in its fold and return its result."""
        return self.make_runner(self.fold_of_job[job.number])(job)


def cross_fit(
    setup: Setup,
    backend: Backend,
    store: RunStore,
    count: int,
    on_phase: Callable[[str], None] = lambda text: None,
) -> str:
    """Train the finalists and the teacher in every fold, store their out-of-fold scores, and return a notice.

    Args:
        setup: Setup of the run.
        backend: Backend of the run, which is not open.
        store: The open store of the run.
        count: Number of folds.
        on_phase: Receiver of one line at the start of each phase.
    """
    finalists = select_finalists(store)
    if not finalists:
        return ""
    with reproducible_torch():
        teachers = []
        for fold in range(count):
            on_phase(f"cross-fitting: the teacher of fold {fold + 1} of {count}")
            teachers.append(teacher_record(replace(setup, fold=(fold, count))))
    trainings = FoldTrainings(join_inside(store.folder, FOLDER), finalists, count, on_phase)
    if trainings.waiting:
        runner = FoldRunner(setup, backend.collect_plugins(setup.task.name), trainings.fold_of_job, count)
        with backend.open(store.folder):
            backend.prepare(runner)
            backend.run(trainings.ask, runner, trainings.tell)
    return store_out_of_fold_scores(store, trainings, teachers)


def select_finalists(store: RunStore) -> dict[str, CompressionConfig]:
    """Return the configs of the recommended candidate and of its neighbours on the front, by id."""
    table, info = store.candidate_table(), store.run_info()
    try:
        picked = select_candidate(table, info).id
    except NoCandidateError:
        return {}
    # Candidates without a kernel are not recommended, so they need no certificate.
    is_simulated = np.array([bool(text) for text in describe_simulation(table, info.target.precisions)], np.bool_)
    rows = table[~is_simulated | (table["id"] == picked).to_numpy()]
    ids = select_for_confirmation(rows, info, picked, FINALISTS)
    return {identity: store.read_candidate(identity).config for identity in ids}


@dataclass
class FoldTrainings:
    """Asks for the missing trainings of the finalists in the folds and stores their results: callbacks of a backend.

    Finalists of the same trial share its trainings.

    Args:
        folder: Folder of the stored results.
        finalists: Config of each finalist by its id.
        count: Number of folds.
        on_phase: Receiver of one line for each finished training.

    Attributes:
        jobs: Job of each training, with its fold and the path of its result.
        waiting: Jobs that have no result yet.
        reasons: Reasons of trainings that failed.
    """

    folder: Path
    finalists: Mapping[str, CompressionConfig]
    count: int
    on_phase: Callable[[str], None] = lambda text: None
    jobs: list[tuple[Job, int, Path]] = field(default_factory=list)
    waiting: list[Job] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        recipes: dict[str, list[CompressionRecipe]] = {}
        trainings: dict[str, CompressionConfig] = {}
        for config in self.finalists.values():
            key = fingerprint(config.training.to_json_without_seed())
            trainings[key] = config.training
            recipes.setdefault(key, []).append(CompressionRecipe(config.prune, config.quantize))
        # One fold after the other: a worker loads the data and the teacher of a fold once.
        for fold in range(self.count):
            for key, training in trainings.items():
                seeded = replace(training, seed=int(fingerprint(["fold", key, self.count, fold]), 16) % 2**31)
                job = Job(len(self.jobs), seeded, tuple(dict.fromkeys(recipes[key])))
                parts = [[part and part.to_json() for part in (r.prune, r.quantize)] for r in job.recipes]
                name = f"{self.count}-{fold}-{fingerprint([seeded.to_json(), parts])}.json"
                self.jobs.append((job, fold, join_inside(self.folder, name)))
        self.waiting = [job for job, _, path in self.jobs if not path.is_file()]

    @property
    def fold_of_job(self) -> dict[int, int]:
        """Number of each job to its fold."""
        return {job.number: fold for job, fold, _ in self.jobs}

    def ask(self) -> Job | None:
        """Return the next training, or None if none is missing."""
        return self.waiting.pop(0) if self.waiting else None

    def tell(self, job: Job, result: TrialResult) -> None:
        """Store the scores of a training, without its weights."""
        if result.reason:
            self.reasons.append(result.reason)
        candidates: list[JsonValue] = [
            {
                "recipe": _describe_recipe(candidate.config),
                "scores": dict(candidate.scores[HELD_OUT]),
                "examples": candidate.details.get("examples", {}).get(HELD_OUT, ""),
            }
            for candidate in result.candidates
        ]
        path = self.jobs[job.number][2]
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, json.dumps({"seconds": result.seconds, "candidates": candidates}))
        finished = sum(other.is_file() for _, _, other in self.jobs)
        self.on_phase(f"cross-fitting: {finished} of {len(self.jobs)} trainings")

    def read_results(self, identity: str) -> list[dict[str, Any]]:
        """Return the scores of a finalist in each fold, in their order; fewer where a training failed."""
        config = self.finalists[identity]
        key = fingerprint(config.training.to_json_without_seed())
        results: list[dict[str, Any]] = []
        for job, _, path in self.jobs:
            if fingerprint(job.training.to_json_without_seed()) != key or not path.is_file():
                continue
            entries = read_json_file(path, lambda content: [_check_entry(entry) for entry in content["candidates"]])
            results += [entry for entry in entries if entry["recipe"] == _describe_recipe(config)][:1]
        return results

    def sum_seconds(self) -> float:
        """Return the seconds of all trainings."""
        files = [path for _, _, path in self.jobs if path.is_file()]
        return sum(read_json_file(path, lambda content: float(content["seconds"])) for path in files)


def _check_entry(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry of a file of results, whose values have the types that are written."""
    scores = {str(name): None if value is None else float(value) for name, value in entry["scores"].items()}
    return {"recipe": entry["recipe"], "scores": scores, "examples": str(entry["examples"])}


def _describe_recipe(config: CompressionConfig) -> list[JsonValue]:
    def describe(part: Part | None) -> JsonValue:
        # Through JSON, because tuples are lists after reading.
        return None if part is None else json.loads(json.dumps(part.to_json()))

    return [describe(config.prune), describe(config.quantize)]


def store_out_of_fold_scores(
    store: RunStore, trainings: FoldTrainings, teachers: Sequence[Mapping[str, Mapping[str, Any]]]
) -> str:
    """Store the out-of-fold scores of the teacher and of each finalist with a result in every fold; return a notice."""
    info = store.run_info()
    texts = [str(teacher["examples"].get(HELD_OUT, "")) for teacher in teachers]
    goal = pool_folds([teacher["scores"][HELD_OUT] for teacher in teachers], texts)
    scores: dict[str, dict[str, dict[str, float]]] = {}
    examples: dict[str, dict[str, str]] = {}
    for identity in trainings.finalists:
        results = trainings.read_results(identity)
        if len(results) < trainings.count:
            continue
        pooled = pool_folds([result["scores"] for result in results], [result["examples"] for result in results])
        if pooled is not None:
            scores[identity], examples[identity] = {FOLDS: pooled[0]}, {FOLDS: pooled[1]}
    if goal is None or not scores:
        reasons = "; ".join(dict.fromkeys(trainings.reasons)) or "no scores of single examples are stored"
        return f"cross-fitting gave no out-of-fold scores ({reasons}): the validation splits decide"
    store.add_scores(scores, examples)
    teacher = replace(
        info.teacher,
        scores={**info.teacher.scores, FOLDS: goal[0]},
        examples={**info.teacher.examples, FOLDS: goal[1]},
    )
    store.update_run_info(replace(info, teacher=teacher))
    left_out = sorted(set(trainings.finalists) - set(scores))
    failed = f"; {', '.join(left_out)} failed in a fold and cannot be recommended" if left_out else ""
    return (
        f"{', '.join(scores)} were trained again in {trainings.count} folds, each with a teacher of its own: "
        f"{len(trainings.jobs)} trainings of {trainings.sum_seconds():.0f} s in all. The recommendation compares their "
        f"out-of-fold predictions{failed}"
    )


def pool_folds(scores: Sequence[Mapping[str, float]], texts: Sequence[str]) -> tuple[dict[str, float], str] | None:
    """Return the mean scores of the folds, weighted by examples, and the packed scores of all examples.

    The result is None where a fold stored no scores of single examples.

    Args:
        scores: Scores of one model in each fold, by name.
        texts: Packed scores of the held-out examples of each fold.
    """
    parts = [part for text in texts if text and (part := ExampleScores.unpack(text)) is not None]
    if len(parts) < len(texts) or not parts:
        return None
    weights = np.array([part.examples for part in parts], np.float64)
    means = {
        name: float(np.average([fold[name] for fold in scores], weights=weights))
        for name in scores[0]
        if all(name in fold for fold in scores)
    }
    kinds = {part.kind for part in parts}
    total = int(weights.sum())
    if "replicates" in kinds:
        if len(kinds) > 1:
            return None
        # Draws of different folds are independent, so any pairing of them will do.
        draws = min(len(part.values) for part in parts)
        values = np.average([part.values[:draws] for part in parts], axis=0, weights=weights)
        return means, ExampleScores("replicates", total, values).pack()
    kind: Kind = "bits" if kinds == {"bits"} else "shares"
    return means, ExampleScores(kind, total, np.concatenate([part.values for part in parts])).pack()
