"""Attention transfer against none at several weights."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from autocompress.core.config import Part
from autocompress.core.knobs import Leaf
from benchmarks.benchmark_tasks import DIGITS, MNIST1D
from benchmarks.comparison import COLUMNS, Pairing, format_header, format_pairings, wrap_paragraph
from benchmarks.variants import BenchmarkTask, Measurements, ResultKey, Variant, run_all

# With the squared distance summed over positions, the weight of Zagoruyko and Komodakis 2017 is about 10 on 8x8 maps.
WEIGHTS = (0.01, 1.0, 10.0, 100.0)
RESIDUAL: Mapping[str, Leaf] = {"depth": 1, "block": "residual"}


def build_tasks() -> list[BenchmarkTask]:
    """Return digits and MNIST-1D with residual students, whose stages match those of the teacher."""
    result = []
    for base, epochs in ((DIGITS, 12), (MNIST1D, 8)):
        student = Part.of(base.student.name, **{**base.student.values, **RESIDUAL})
        fit = Part.of(base.fit.name, **{**base.fit.values, "epochs": epochs})
        result.append(replace(base, student=student, fit=fit))
    return result


def build_variants(benchmark: BenchmarkTask) -> list[Variant]:
    """Return the trials of a task: no distillation, and attention at each weight."""
    terms = {f"attention, weight {weight:g}": Part.of("attention", weight=weight) for weight in WEIGHTS}
    return [Variant("none"), *(Variant(name, distill=(Part("none"), term)) for name, term in terms.items())]


def format_table(
    results: Mapping[ResultKey, Measurements], benchmarks: Sequence[BenchmarkTask], seeds: int
) -> list[str]:
    """Return the lines of the Markdown table."""
    lines = [
        "# Attention transfer against none",
        "",
        wrap_paragraph(
            f"""Accuracy on the test split in percent, mean and standard error over {seeds} seeds; the gain is paired by
            seed, and a star marks one beyond two standard errors. Residual students of width 8, 12
            epochs on digits, 8 on MNIST-1D."""
        ),
        "",
        *format_header(COLUMNS),
    ]
    for benchmark in benchmarks:
        pairings = [
            Pairing(f"{variant.name} over none", (variant.name, ""), ("none", ""))
            for variant in build_variants(benchmark)[1:]
        ]
        lines += format_pairings(results, benchmark, pairings, seeds)
    return lines


def run_section(seeds: int, results_file: Path, workers: int) -> str:
    """Run the benchmark and return its page."""
    benchmarks = build_tasks()
    results = run_all(benchmarks, build_variants, seeds, results_file, workers)
    return "\n".join([*format_table(results, benchmarks, seeds), ""])
