"""Variants of methods that run as real trials in parallel, and means with standard errors over seeds."""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

from torch import Tensor, nn

from autocompress.backends.local import usable_cores
from autocompress.core.config import CompressionConfig, Part, fingerprint
from autocompress.core.knobs import Leaf
from autocompress.core.records import CompressionRecipe, Job
from autocompress.core.registry import TASKS
from autocompress.measure import measure
from autocompress.trial.pipeline import Setup, TrialPipeline, load_pipeline, reproducible_torch
from autocompress.trial.runner import run_trial
from autocompress.trial.teacher import TeacherRecipe

TEMPERATURES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
SCORES = ("accuracy", "agreement", "kl", "loss")
COSTS = ("bops", "bytes", "effective_flops", "flops", "nonzero_parameters", "parameters")
ExtraMeasures = Callable[[TrialPipeline, nn.Module, float], Mapping[str, float]]


@dataclass(frozen=True)
class BenchmarkTask:
    """A task with its teacher and the default student of the variants.

    Attributes:
        name: Name in tables.
        task: Task with its options.
        student: Architecture of the student.
        fit: Training settings of the student.
        teacher: Architecture and training settings of the teacher; those of the task where ``None``.
        epsilon: Largest change of each input value in an attack.
        temperatures: Temperatures of the curve of soft targets; empty for no curve.
        metric: Primary score of the task.
        unit: Factor of the primary score in tables: 100 for points.
    """

    name: str
    task: Part
    student: Part
    fit: Part
    teacher: tuple[Part, Part] | None = None
    epsilon: float = 0.3
    temperatures: tuple[float, ...] = TEMPERATURES
    metric: str = "accuracy"
    unit: float = 100.0

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the scores of each candidate, the primary one included."""
        return tuple(dict.fromkeys((self.metric, *SCORES)))

    def build_setup(self) -> Setup:
        """Return the setup of a worker."""
        student, fit = self.teacher or TASKS.get(self.task.name)(**self.task.values).teacher()
        return Setup(self.task, 0, TeacherRecipe(student, fit), self.scores, COSTS)


@dataclass(frozen=True)
class Variant:
    """A trial and the candidates that are made from its checkpoint.

    Attributes:
        name: Name of the trial.
        cuts: Compression recipe by name of the candidate; ``""`` is the name of the uncompressed model.
        distill: Distillation terms of the loss.
        fit: Training settings that replace those of the benchmark task.
        student: Architecture settings that replace those of the benchmark task.
        extra: Function with additional measures of each candidate on the test split.
    """

    name: str
    cuts: Mapping[str, CompressionRecipe] = field(default_factory=lambda: {"": CompressionRecipe()})
    distill: tuple[Part, ...] = (Part("none"),)
    fit: Mapping[str, Leaf] = field(default_factory=dict)
    student: Mapping[str, Leaf] = field(default_factory=dict)
    extra: ExtraMeasures | None = None

    def build_config(self, benchmark: BenchmarkTask, seed: int) -> CompressionConfig:
        """Return the training config of one seed."""
        student = Part.of(benchmark.student.name, **{**benchmark.student.values, **self.student})
        fit = Part.of(benchmark.fit.name, **{**benchmark.fit.values, **self.fit})
        return CompressionConfig(student, self.distill, fit, seed=seed)


# Value by candidate and measure.
Measurements = dict[str, dict[str, float]]
# Benchmark task, variant and seed.
ResultKey = tuple[str, str, int]


def run_variant(benchmark: BenchmarkTask, variant: Variant, seed: int) -> Measurements:
    """Train once, compress, and measure each candidate on the test split: ``{candidate: {measure: value}}``.

    Raises:
        RuntimeError: The training diverged, or a compression step failed.
    """
    setup = benchmark.build_setup()
    with reproducible_torch():
        pipeline = load_pipeline(setup)
        result = run_trial(Job(seed, variant.build_config(benchmark, seed), tuple(variant.cuts.values())), setup)
        if result.reason:
            raise RuntimeError(f"{benchmark.name} / {variant.name}: {result.reason}")
        teacher = _teacher_test_logits(setup)
        results: Measurements = {}
        for name, candidate in zip(variant.cuts, result.candidates, strict=True):
            model = pipeline.rebuild(candidate.config, result.checkpoints[candidate.checkpoint]).model
            subject = pipeline.build_subject(model, pipeline.splits.test, teacher, benchmark.scores)
            results[name] = {**measure(subject, benchmark.scores), **candidate.costs}
            # Candidates are selected by this score, never by the one on the test split.
            results[name]["select_val"] = candidate.scores["select_val"][benchmark.metric]
            if variant.extra is not None:
                results[name].update(variant.extra(pipeline, model, benchmark.epsilon))
        return results


@lru_cache(maxsize=1)
def _teacher_test_logits(setup: Setup) -> dict[str, Tensor]:
    pipeline = load_pipeline(setup)
    return pipeline.predict(pipeline.teacher.model, pipeline.splits.test)


def run_all(
    benchmarks: Iterable[BenchmarkTask],
    variants: Callable[[BenchmarkTask], Sequence[Variant]],
    seeds: int,
    results_file: Path,
    workers: int = 0,
) -> dict[ResultKey, Measurements]:
    """Run every variant of every benchmark task for every seed: ``{(task, variant, seed): measurements}``.

    Each result is appended to ``results_file``. Results in that file are not computed again; delete it to start anew.

    Args:
        benchmarks: The benchmark tasks.
        variants: Function that returns the variants of a benchmark task.
        seeds: Number of seeds.
        results_file: File of JSON lines with the results.
        workers: Number of processes; 0 for one process per usable core.
    """
    jobs = [
        (benchmark, variant, seed)
        for benchmark in benchmarks
        for variant in variants(benchmark)
        for seed in range(seeds)
    ]
    stored = {
        line["job"]: line["found"]
        for line in map(json.loads, results_file.read_text().splitlines() if results_file.exists() else ())
    }
    results: dict[ResultKey, Measurements] = {}
    pending = {}
    for job in jobs:
        key, name = (job[0].name, job[1].name, job[2]), fingerprint_job(*job)
        if name in stored:
            results[key] = stored[name]
        else:
            pending[key] = (job, name)
    results_file.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers or usable_cores(), get_context("spawn")) as pool, results_file.open("a") as file:
        running = {pool.submit(run_variant, *job): (key, name) for key, (job, name) in pending.items()}
        for completed in as_completed(running):
            key, name = running[completed]
            results[key] = completed.result()
            file.write(json.dumps({"job": name, "found": results[key]}) + "\n")
            file.flush()
            print(f"{len(results)}/{len(jobs)} {' '.join(map(str, key))}", flush=True)
    return results


def fingerprint_job(benchmark: BenchmarkTask, variant: Variant, seed: int) -> str:
    """Return the fingerprint of everything that the result of a job depends on, except the code."""
    cuts = [variant.build_config(benchmark, seed).to_json()] + [
        [name, *(None if part is None else part.to_json() for part in (cut.prune, cut.quantize))]
        for name, cut in variant.cuts.items()
    ]
    teacher = [part.to_json() for part in benchmark.teacher or ()]
    return fingerprint([benchmark.task.to_json(), teacher, cuts, benchmark.epsilon, variant.extra is not None])


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error.

    Example:
        >>> mean_and_error([1.0, 2.0, 3.0])
        (2.0, 0.5773502691896258)
    """
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else float("nan")
    return statistics.fmean(values), error


def format_mean(values: Sequence[float], digits: int) -> str:
    """Return the mean and its standard error, which is 0 for one value, with some digits after the point.

    Example:
        >>> format_mean([1.0, 2.0, 3.0], 2), format_mean([1.0], 1)
        ('2.00 ± 0.58', '1.0 ± 0.0')
    """
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f} ± {error if len(values) > 1 else 0.0:.{digits}f}"
