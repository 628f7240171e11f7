"""What the benchmarks share: variants that run as real trials, seeds side by side, means with standard errors."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

from pebble import ProcessPool

from autocompress.backends.local import usable_cores
from autocompress.config import CompressionConfig, Part
from autocompress.distill.teacher import TeacherRecipe
from autocompress.lab import Lab, Setup, lab, settled
from autocompress.measure import Subject, measure
from autocompress.records import Cut, Job
from autocompress.registry import TASKS
from autocompress.trial import run_trial

SCORES = ("accuracy", "agreement", "kl", "loss")
COSTS = ("bops", "bytes", "effective_flops", "flops", "nonzero_parameters", "parameters")
Extra = Callable[[Lab, Any], Mapping[str, float]]


@dataclass(frozen=True)
class Arena:
    """One task with its teacher and the student that the variants start from.

    Attributes:
        task: The task and its options.
        student: The student's architecture.
        fit: How it is trained.
        teacher: The teacher's architecture and fit; the task's own where ``None``.
    """

    name: str
    task: Part
    student: Part
    fit: Part
    teacher: tuple[Part, Part] | None = None

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
    with settled():
        place = lab(setup)
        result = run_trial(Job(seed, variant.training(arena, seed), tuple(variant.cuts.values())), setup)
        if result.reason:
            raise RuntimeError(f"{arena.name} / {variant.name}: {result.reason}")
        teacher = place.predict(place.teacher.model, place.splits.test)
        found: Measured = {}
        for name, candidate in zip(variant.cuts, result.candidates, strict=True):
            model = place.rebuild(candidate.config, result.checkpoints[candidate.checkpoint]).model
            subject = Subject(place.predict(model, place.splits.test), place.splits.test.targets, teacher)
            found[name] = {**measure(subject, SCORES), **candidate.costs}
            if variant.extra is not None:
                found[name].update(variant.extra(place, model))
        return found


def run_all(arenas: Iterable[Arena], variants: Callable[[Arena], Sequence[Variant]], seeds: int) -> dict[Any, Measured]:
    """Run every variant of every arena for every seed on all cores: ``{(arena, variant, seed): measured}``."""
    jobs = [(arena, variant, seed) for arena in arenas for variant in variants(arena) for seed in range(seeds)]
    found: dict[Any, Measured] = {}
    with ProcessPool(usable_cores(), context=get_context("spawn")) as pool:
        running = {pool.schedule(run_variant, args=job): (job[0].name, job[1].name, job[2]) for job in jobs}
        for done in as_completed(running):
            key = running[done]
            found[key] = done.result()
            print(f"{len(found)}/{len(jobs)} {' '.join(map(str, key))}", flush=True)
    return found


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error.

    Example:
        >>> mean_and_error([1.0, 2.0, 3.0])
        (2.0, 0.5773502691896258)
    """
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else float("nan")
    return statistics.fmean(values), error


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean of positive values."""
    return math.exp(statistics.fmean(math.log(value) for value in values))
