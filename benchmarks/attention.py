"""Attention transfer against none at several weights; attention heads and tokens pruned against the whole model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from autocompress.core.config import Part
from autocompress.core.knobs import Leaf
from autocompress.core.records import CompressionRecipe
from autocompress.core.registry import TASKS
from benchmarks.benchmark_tasks import DIGITS, LANGID, MNIST1D
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


def build_transformer() -> BenchmarkTask:
    """Return names with a transformer as the student; nothing is distilled, so its teacher is not trained."""
    student = Part.of("transformer", layers=2, attention_heads=4, head_size=8, pooling="mean")
    return replace(LANGID, student=student, teacher=(student, Part.of("adamw", epochs=0)))


def build_cuts(benchmark: BenchmarkTask) -> list[Variant]:
    """Return the whole model, and those with fewer heads or tokens, trained for an epoch less and then fine-tuned."""
    recovery: Mapping[str, Leaf] = {"recovery_epochs": 1, "recovery_learning_rate": 3e-3}
    prunes = {
        f"heads, {ratio:.0%}, {criterion}": Part.of("heads", pruning_ratio=ratio, criterion=criterion, **recovery)
        for ratio in (0.25, 0.5)
        for criterion in ("gradient", "confidence", "random")
    }
    prunes |= {
        f"tokens, {ratio:.0%}": Part.of("tokens", pruning_ratio=ratio, **recovery) for ratio in (0.25, 0.5, 0.75, 0.9)
    }
    cuts = {name: CompressionRecipe(prune=part) for name, part in prunes.items()}
    return [Variant("whole", fit={"epochs": int(str(benchmark.fit.values["epochs"])) + 1}), Variant("pruned", cuts)]


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


def format_cuts(results: Mapping[ResultKey, Measurements], benchmark: BenchmarkTask, seeds: int) -> list[str]:
    """Return the lines of the table of pruned transformers."""
    whole, pruned = build_cuts(benchmark)
    length = TASKS.get(benchmark.task.name)(**benchmark.task.values).inputs[0].shape[0]
    lines = [
        "## Heads and tokens of a transformer",
        "",
        wrap_paragraph(
            f"""Names by language, {length} positions with padding; two layers of four heads of eight numbers,
            trained for 3 epochs and fine-tuned for one after pruning, against 4 epochs of the whole model. The last
            column is the ratio of the FLOPs."""
        ),
        "",
        *format_header([*COLUMNS, "FLOPs"]),
    ]
    pairings = [Pairing(name, (pruned.name, name), (whole.name, ""), ("flops",)) for name in pruned.cuts]
    return [*lines, *format_pairings(results, benchmark, pairings, seeds)]


def run_section(seeds: int, results_file: Path, workers: int) -> str:
    """Run the benchmark and return its page."""
    benchmarks, transformer = build_tasks(), build_transformer()
    results = run_all(benchmarks, build_variants, seeds, results_file, workers)
    pruned = run_all([transformer], build_cuts, seeds, results_file, workers)
    lines = [*format_table(results, benchmarks, seeds), "", *format_cuts(pruned, transformer, seeds), ""]
    return "\n".join(lines)
