"""Distillation against none on text and recommenders, with the temperature curve of soft targets on text."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from autocompress.core.config import Part
from autocompress.core.registry import TASKS
from autocompress.core.task import Task
from benchmarks.benchmark_tasks import LANGID, RANKING, RATINGS, build_reviews
from benchmarks.comparison import COLUMNS, Pairing, format_header, format_pairings, wrap_paragraph
from benchmarks.variants import BenchmarkTask, Measurements, ResultKey, Variant, run_all

ALPHA = 0.9
# 4 is the default; a recommender may be offered 1 alone.
DIST_TEMPERATURES = {"ratings": (1.0, 4.0), "ranking": (1.0,), "langid": (4.0,), "reviews": (4.0,)}


def build_variants(benchmark: BenchmarkTask) -> list[Variant]:
    """Return the trials of a task: without distillation, with soft targets and with correlations."""
    terms = {"none": Part("none")}
    for value in DIST_TEMPERATURES[benchmark.name]:
        terms[f"dist, T = {value:g}"] = Part("dist") if value == 4.0 else Part.of("dist", temperature=value)
    if benchmark.metric == "accuracy":
        terms["logit_standardized"] = Part("logit_standardized")
    for value in benchmark.temperatures:
        terms[f"soft_target, T = {value:g}"] = Part.of("soft_target", temperature=value, alpha=ALPHA)
    return [Variant(name, distill=(term,)) for name, term in terms.items()]


def list_pairings(benchmark: BenchmarkTask) -> list[Pairing]:
    """Return the comparison of each distillation with none."""
    return [
        Pairing(f"{variant.name} over none", (variant.name, ""), ("none", ""))
        for variant in build_variants(benchmark)
        if variant.name != "none"
    ]


def describe_task(benchmark: BenchmarkTask) -> str:
    """Return a list entry with the number of examples, the student and the training settings of a task."""
    task: Task = TASKS.get(benchmark.task.name)(**benchmark.task.values)
    splits = task.splits(0)
    parts = ", ".join(
        f"{name} {part.name} ({', '.join(f'{key} {value}' for key, value in part.values.items())})"
        for name, part in (("student", benchmark.student), ("fit", benchmark.fit))
    )
    return f"- {benchmark.name}: {len(splits.train):,} training and {len(splits.test):,} test examples, {parts}"


def format_table(
    results: Mapping[ResultKey, Measurements], benchmarks: Sequence[BenchmarkTask], seeds: int
) -> list[str]:
    """Return the lines of the Markdown table."""
    lines = [
        "# Distillation against none, text and recommenders",
        "",
        wrap_paragraph(
            f"""Primary score on the test split times 100, mean and standard error over {seeds} seeds; the gain is
            paired by seed, positive is better, and a star marks one beyond two standard errors. Student and
            epochs are the same in both columns. Soft targets have alpha {ALPHA:g}."""
        ),
        "",
        *(describe_task(benchmark) for benchmark in benchmarks),
        "",
        *format_header(COLUMNS),
    ]
    for benchmark in benchmarks:
        lines += format_pairings(results, benchmark, list_pairings(benchmark), seeds)
    return lines


def run_section(reviews: Path | None, seeds: int, results_file: Path, workers: int) -> str:
    """Run the benchmark and return its page; the reviews are left out without their file."""
    benchmarks = [RATINGS, *([build_reviews(reviews)] if reviews else []), LANGID, RANKING]
    results = run_all(benchmarks, build_variants, seeds, results_file, workers)
    return "\n".join([*format_table(results, benchmarks, seeds), ""])
