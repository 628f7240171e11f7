"""What the benchmarks share: variants that run as real trials, seeds side by side, means with standard errors."""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from torch import Tensor

from autocompress.backends.local import usable_cores
from autocompress.core.config import CompressionConfig, Part, fingerprint
from autocompress.core.records import Cut, Job
from autocompress.core.registry import TASKS
from autocompress.measure import Subject, measure
from autocompress.trial.pipeline import Setup, TrialPipeline, load_pipeline, reproducible_torch
from autocompress.trial.runner import run_trial
from autocompress.trial.teacher import TeacherRecipe

TEMPERATURES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
SCORES = ("accuracy", "agreement", "kl", "loss")
COSTS = ("bops", "bytes", "effective_flops", "flops", "nonzero_parameters", "parameters")
Extra = Callable[[TrialPipeline, Any, float], Mapping[str, float]]


@dataclass(frozen=True)
class Arena:
    """One task with its teacher and the student that the variants start from.

    Attributes:
        task: The task and its options.
        student: The student's architecture.
        fit: How it is trained.
        teacher: The teacher's architecture and fit; the task's own where ``None``.
        epsilon: Largest change of each number in an attack.
        temperatures: Of the curve of soft targets; none for no curve.
    """

    name: str
    task: Part
    student: Part
    fit: Part
    teacher: tuple[Part, Part] | None = None
    epsilon: float = 0.3
    temperatures: tuple[float, ...] = TEMPERATURES

    def setup(self) -> Setup:
        """Return what a worker needs; the teacher is the task's own by default."""
        student, fit = self.teacher or TASKS.get(self.task.name)(**self.task.values).teacher()
        return Setup(self.task, 0, TeacherRecipe(student, fit), SCORES, COSTS)


@dataclass(frozen=True)
class Variant:
    """One way to make a model: a training and, by name, the cuts from its checkpoint.

    Attributes:
        name: Of the training.
        cuts: Name to cut; ``""`` stands for the uncut parent.
        distill: Terms of the loss.
        fit: Settings that replace the arena's.
        student: Settings that replace the arena's.
        extra: Further measures of each cut's model on the test split.
    """

    name: str
    cuts: Mapping[str, Cut] = field(default_factory=lambda: {"": Cut()})
    distill: tuple[Part, ...] = (Part("none"),)
    fit: Mapping[str, Any] = field(default_factory=dict)
    student: Mapping[str, Any] = field(default_factory=dict)
    extra: Extra | None = None

    def training(self, arena: Arena, seed: int) -> CompressionConfig:
        """Return the training config of one seed."""
        student = Part.of(arena.student.name, **{**arena.student.values, **self.student})
        fit = Part.of(arena.fit.name, **{**arena.fit.values, **self.fit})
        return CompressionConfig(student, self.distill, fit, seed=seed)


Measured = dict[str, dict[str, float]]


def run_variant(arena: Arena, variant: Variant, seed: int) -> Measured:
    """Train once, cut, and measure every cut on the test split: ``{cut: {measure: value}}``.

    Raises:
        TrialError: The training diverged, or a cut failed.
    """
    setup = arena.setup()
    with reproducible_torch():
        place = load_pipeline(setup)
        result = run_trial(Job(seed, variant.training(arena, seed), tuple(variant.cuts.values())), setup)
        if result.reason:
            raise RuntimeError(f"{arena.name} / {variant.name}: {result.reason}")
        teacher = _teacher_on_test(setup)
        found: Measured = {}
        for name, candidate in zip(variant.cuts, result.candidates, strict=True):
            model = place.rebuild(candidate.config, result.checkpoints[candidate.checkpoint]).model
            subject = Subject(place.predict(model, place.splits.test), place.splits.test.targets, teacher)
            found[name] = {**measure(subject, SCORES), **candidate.costs}
            if variant.extra is not None:
                found[name].update(variant.extra(place, model, arena.epsilon))
        return found


@lru_cache(maxsize=1)
def _teacher_on_test(setup: Setup) -> dict[str, Tensor]:
    place = load_pipeline(setup)
    return place.predict(place.teacher.model, place.splits.test)


def run_all(
    arenas: Iterable[Arena], variants: Callable[[Arena], Sequence[Variant]], seeds: int, kept: Path
) -> dict[Any, Measured]:
    """Run every variant of every arena for every seed on all cores: ``{(arena, variant, seed): measured}``.

    Each result is appended to ``kept``, and what stands there already is not run again: delete it for a fresh start.
    """
    jobs = [(arena, variant, seed) for arena in arenas for variant in variants(arena) for seed in range(seeds)]
    known = {
        line["job"]: line["found"] for line in map(json.loads, kept.read_text().splitlines() if kept.exists() else ())
    }
    found: dict[Any, Measured] = {}
    missing = {}
    for job in jobs:
        key, name = (job[0].name, job[1].name, job[2]), job_name(*job)
        if name in known:
            found[key] = known[name]
        else:
            missing[key] = (job, name)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(usable_cores(), get_context("spawn")) as pool, kept.open("a") as file:
        running = {pool.submit(run_variant, *job): (key, name) for key, (job, name) in missing.items()}
        for done in as_completed(running):
            key, name = running[done]
            found[key] = done.result()
            file.write(json.dumps({"job": name, "found": found[key]}) + "\n")
            file.flush()
            print(f"{len(found)}/{len(jobs)} {' '.join(map(str, key))}", flush=True)
    return found


def job_name(arena: Arena, variant: Variant, seed: int) -> str:
    """Return what names a job: everything that its result depends on, but for the code."""
    cuts = [variant.training(arena, seed).to_json()] + [
        [name, *(None if part is None else part.to_json() for part in (cut.prune, cut.quantize))]
        for name, cut in variant.cuts.items()
    ]
    teacher = [part.to_json() for part in arena.teacher or ()]
    return fingerprint([arena.task.to_json(), teacher, cuts, arena.epsilon, variant.extra is not None])


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error.

    Example:
        >>> mean_and_error([1.0, 2.0, 3.0])
        (2.0, 0.5773502691896258)
    """
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else float("nan")
    return statistics.fmean(values), error
