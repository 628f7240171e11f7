"""Each method against its plain counterpart: `python -m benchmarks.methods [--sections methods distillation ...]`.

Every row is a real trial per seed, measured on the test split. A comparison is paired by seed and significant if the
mean difference exceeds two standard errors. Each section is printed and written to reports/benchmarks/methods.md or
methods_SECTION.md:

methods        every method on images and signals (--tasks, --cifar10)
temperature    causes of the loss from soft targets at high temperatures, digits
distillation   distillation against none on text and recommenders (--reviews)
compression    pruning and quantization together against each alone (--reviews)
sharing        two tasks in one model against one model each, text
attention      attention transfer at several weights
efficiency     training time to a stated score (--cifar10, --limit)
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from torch import nn

from autocompress.core.atomic import write_atomic
from autocompress.core.config import Part
from autocompress.core.knobs import Leaf
from autocompress.core.method import Context
from autocompress.core.records import CompressionRecipe
from autocompress.core.registry import PRUNE, TASKS
from autocompress.distill.attacks import predict_under_attack
from autocompress.measure import Subject, layer_costs, measure
from autocompress.measure.cost import count_flops
from autocompress.trial.pipeline import TrialPipeline
from benchmarks import attention, distillation, joint_compression, task_sharing, temperature, training_efficiency
from benchmarks.benchmark_tasks import DIGITS, MNIST1D, build_cifar10
from benchmarks.variants import TEMPERATURES, BenchmarkTask, Measurements, ResultKey, Variant, mean_and_error, run_all

RECOVERY = {"recovery_epochs": 6, "recovery_learning_rate": 1e-2}
BITS = ((2, 2), (3, 3), (4, 4), (3, 8), (4, 8), (8, 8))
LOW = ((2, 2), (3, 3))
ROUNDED = ((3, 8), (4, 8))
SMALLER = 0.65
# Pruning is measured on students of several layers, which differ in how much can be removed.
WIDE: dict[str, Leaf] = {"width": 16}
RESIDUAL: dict[str, Leaf] = {"width": 12, "depth": 2, "block": "residual"}


def quantize(method: str, weight: int, activation: int, **settings: Leaf) -> CompressionRecipe:
    """Return a recipe that quantizes weights and activations to these bits."""
    return CompressionRecipe(quantize=Part.of(method, weight_bits=weight, activation_bits=activation, **settings))


def prune(method: str, ratio: float, **settings: Leaf) -> CompressionRecipe:
    """Return a recipe that prunes, with the same recovery for every method unless ``settings`` change it."""
    return CompressionRecipe(prune=Part.of(method, pruning_ratio=ratio, **{**RECOVERY, **settings}))


def measure_robustness(pipeline: TrialPipeline, model: nn.Module, epsilon: float) -> Mapping[str, float]:
    """Return accuracy under FGSM and PGD on the test split."""
    results = {}
    for name, steps in (("fgsm_accuracy", 1), ("pgd_accuracy", 10)):
        logits = predict_under_attack(model, pipeline.task, pipeline.splits.test, epsilon=epsilon, steps=steps)
        results[name] = measure(Subject(logits, pipeline.splits.test.targets), ["accuracy"])["accuracy"]
    return results


@lru_cache
def compute_removed_flops(benchmark: BenchmarkTask, ratio: float) -> float:
    """Return the share of the student's FLOPs that uniform pruning of the residual student removes."""
    task = TASKS.get(benchmark.task.name)(**benchmark.task.values)
    student = Part.of(benchmark.student.name, **{**benchmark.student.values, **RESIDUAL})
    model, method = task.build(student), PRUNE.get("structured")
    cut, _ = method.apply(model, method.config.of({"pruning_ratio": ratio}), Context(task.example()))
    before, after = (
        count_flops(layer_costs(candidate_model.eval(), task.example())) for candidate_model in (model, cut)
    )
    return 1 - after / before


def build_variants(benchmark: BenchmarkTask) -> list[Variant]:
    """Return every trial of the table with its candidates."""
    soft = Part.of("soft_target", temperature=4.0, alpha=0.9)
    terms = {
        "logit_standardized": (Part("logit_standardized"),),
        "dkd": (Part("dkd"),),
        "dist": (Part("dist"),),
        "hint": (Part("none"), Part("hint")),
        "attention": (Part("none"), Part("attention")),
        "relational": (Part("none"), Part("relational")),
        "dist + relational": (Part("dist"), Part("relational")),
    }
    minmax: dict[str, Leaf] = {"observer": "minmax", "weight_observer": "minmax", "bias_correction": False}
    squares: dict[str, Leaf] = {"observer": "mse", "weight_observer": "mse"}
    quantized = {
        "": CompressionRecipe(),
        **{f"minmax {w}/{a}": quantize("post_training", w, a, **minmax) for w, a in BITS},
        **{f"mse {w}/{a}": quantize("post_training", w, a, **{**minmax, **squares}) for w, a in BITS},
        **{f"tuned {w}/{a}": quantize("post_training", w, a, **squares, bias_correction=True) for w, a in BITS},
        **{f"adaround {w}/{a}": quantize("adaround", w, a) for w, a in ROUNDED},
        **{f"qat {w}/{a}": quantize("qat", w, a) for w, a in LOW},
        **{f"lsq {w}/{a}": quantize("lsq", w, a) for w, a in LOW},
        **{
            f"mixed {n}/{n}": CompressionRecipe(quantize=Part.of("mixed_precision", budget_bits=float(n)))
            for n in (3, 4)
        },
    }
    alone, sparse = {"recovery_epochs": 0}, {"criterion": "l1", "scope": "global"}
    cut = {
        "": CompressionRecipe(),
        **{f"channels 50% {name}": prune("structured", 0.5, criterion=name) for name in ("taylor", "random")},
        **{
            f"channels 50% {name}, no recovery": prune("structured", 0.5, criterion=name, **alone)
            for name in ("taylor", "random")
        },
        **{f"weights 80% {name}": prune("unstructured", 0.8, criterion=name) for name in ("taylor", "random")},
        "uniform": prune("structured", SMALLER),
        "adaptive": prune("adaptive", compute_removed_flops(benchmark, SMALLER)),
        "one-shot 90%": prune("unstructured", 0.9, **sparse, recovery_epochs=16),
        "cubic 90%": prune("unstructured", 0.9, **sparse, schedule="cubic", steps=8, step_epochs=1, recovery_epochs=9),
        "2:4": CompressionRecipe(prune=Part.of("n_m", **RECOVERY)),
    }
    return [
        Variant("none", quantized),
        Variant("residual", cut, student=RESIDUAL),
        Variant("wide", {name: cut[name] for name in ("", "one-shot 90%", "cubic 90%")}, student=WIDE),
        *(Variant(name, distill=distill) for name, distill in terms.items()),
        Variant("soft_target", distill=(soft,), extra=measure_robustness),
        *(
            Variant(f"T = {value:g}", distill=(Part.of("soft_target", temperature=value, alpha=0.9),))
            for value in benchmark.temperatures
        ),
        Variant("robust", distill=(Part.of("robust", epsilon=benchmark.epsilon),), extra=measure_robustness),
        Variant("float32", fit={"precision": "float32"}),
        Variant("bfloat16", fit={"precision": "bfloat16"}),
    ]


@dataclass(frozen=True)
class Comparison:
    """Comparison of a method with its plain counterpart by one measure.

    Attributes:
        title: Title of the row.
        ours: Variant and candidate of the method.
        plain: Variant and candidate of the plain counterpart.
        metric: Measure that is compared.
    """

    title: str
    ours: tuple[str, str]
    plain: tuple[str, str]
    metric: str = "accuracy"


NONE = ("none", "")
COMPARISONS = (
    *(
        Comparison(f"{name} over none", (name, ""), NONE)
        for name in (
            "soft_target",
            "logit_standardized",
            "dkd",
            "dist",
            "hint",
            "attention",
            "relational",
            "dist + relational",
        )
    ),
    *(Comparison(f"soft_target, T = {value:g}, over none", (f"T = {value:g}", ""), NONE) for value in TEMPERATURES),
    *(
        Comparison(f"{name} over {what}, {w}/{a} bits", ("none", f"{cut} {w}/{a}"), ("none", f"{plain} {w}/{a}"))
        for w, a in LOW
        for name, cut in (("LSQ", "lsq"), ("QAT", "qat"))
        for what, plain in (("min-max post-training", "minmax"), ("tuned post-training", "tuned"))
    ),
    *(
        Comparison(f"{name} over min-max, {w}/{a} bits", ("none", f"{cut} {w}/{a}"), ("none", f"minmax {w}/{a}"))
        for name, cut, pairs in (("MSE range", "mse", BITS), ("AdaRound", "adaround", ROUNDED))
        for w, a in pairs
        if w in (3, 4)
    ),
    *(
        Comparison(
            f"mixed precision over {what} uniform, BOPs of {n} bits", ("none", f"mixed {n}/{n}"), ("none", plain)
        )
        for n in (3, 4)
        for what, plain in (("tuned", f"tuned {n}/{n}"), ("min-max", f"minmax {n}/{n}"))
    ),
    Comparison("adaptive over uniform pruning, equal FLOPs", ("residual", "adaptive"), ("residual", "uniform")),
    *(
        Comparison(f"Taylor over random, {what}", ("residual", ours), ("residual", ours.replace("taylor", "random")))
        for what, ours in (
            ("channels", "channels 50% taylor"),
            ("channels before recovery", "channels 50% taylor, no recovery"),
            ("weights", "weights 80% taylor"),
        )
    ),
    *(
        Comparison(
            f"cubic over one-shot, 90% of the weights, {student}", (student, "cubic 90%"), (student, "one-shot 90%")
        )
        for student in ("wide", "residual")
    ),
    Comparison("robust over soft_target, PGD", ("robust", ""), ("soft_target", ""), "pgd_accuracy"),
    Comparison("robust over soft_target, clean", ("robust", ""), ("soft_target", "")),
    Comparison("bfloat16 over float32", ("bfloat16", ""), ("float32", "")),
)


def format_tables(results: Mapping[ResultKey, Measurements], benchmarks: Sequence[BenchmarkTask], seeds: int) -> str:
    """Return the Markdown tables: comparisons, then every row with its costs."""
    lines = [
        "# Methods against their plain counterparts",
        "",
        f"Test accuracy in percent (PGD accuracy where said), mean and standard error over {seeds} seeds; the",
        "difference is paired by seed, and a star marks one beyond two standard errors.",
        "",
        "| task | comparison | ours | plain | difference | effective FLOPs, ours / plain |",
        "|---|---|---|---|---|---|",
    ]
    for benchmark in benchmarks:
        names = {variant.name for variant in build_variants(benchmark)}
        for comparison in COMPARISONS:
            if comparison.ours[0] not in names:
                continue
            ours, plain = (
                [results[benchmark.name, variant, seed][cut] for seed in range(seeds)]
                for variant, cut in (comparison.ours, comparison.plain)
            )
            scores = [[100 * row[comparison.metric] for row in rows] for rows in (ours, plain)]
            mean, error = mean_and_error([a - b for a, b in zip(*scores, strict=True)])
            star = " *" if abs(mean) > 2 * error else ""
            cost = mean_and_error(
                [a["effective_flops"] / b["effective_flops"] for a, b in zip(ours, plain, strict=True)]
            )[0]
            cells = ["{:.1f} ± {:.1f}".format(*mean_and_error(values)) for values in scores]
            lines.append(
                f"| {benchmark.name} | {comparison.title} | {cells[0]} | {cells[1]} | {mean:+.1f} ± {error:.1f}{star} "
                f"| {cost:.2f} |"
            )
    lines += ["", "| task | trial | candidate | accuracy | effective FLOPs | bytes |", "|---|---|---|---|---|---|"]
    for benchmark in benchmarks:
        for variant in build_variants(benchmark):
            for cut in variant.cuts:
                rows = [results[benchmark.name, variant.name, seed][cut] for seed in range(seeds)]
                accuracy, error = mean_and_error([100 * row["accuracy"] for row in rows])
                flops, size = (mean_and_error([row[cost] for row in rows])[0] for cost in ("effective_flops", "bytes"))
                lines.append(
                    f"| {benchmark.name} | {variant.name} | {cut or 'uncompressed'} | {accuracy:.1f} ± {error:.1f} "
                    f"| {flops:,.0f} | {size:,.0f} |"
                )
    return "\n".join(lines) + "\n"


SECTIONS = ("methods", "temperature", "distillation", "compression", "sharing", "attention", "efficiency")


def build_argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=["methods"])
    parser.add_argument("--tasks", nargs="+", choices=("cifar10", "digits", "mnist1d"), default=["digits", "mnist1d"])
    parser.add_argument("--cifar10", type=Path, help="folder with train/ and test/, class folders in each")
    parser.add_argument("--limit", type=int, default=500, help="CIFAR-10 training images of each class")
    parser.add_argument("--reviews", type=Path, help="CSV file of the space `reviews`")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 for one per usable core")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/methods.md"))
    return parser


def run_methods(arguments: argparse.Namespace, results_file: Path) -> str:
    """Run the comparison of each method with its plain counterpart and return its page."""
    benchmarks = [benchmark for benchmark in (DIGITS, MNIST1D) if benchmark.name in arguments.tasks]
    if "cifar10" in arguments.tasks:
        benchmarks.append(build_cifar10(arguments.cifar10, arguments.limit))
    results = run_all(benchmarks, build_variants, arguments.seeds, results_file, arguments.workers)
    return format_tables(results, benchmarks, arguments.seeds)


def run_section(section: str, arguments: argparse.Namespace, results_file: Path) -> str:
    """Run one section and return its page.

    Args:
        section: Name of the section.
        arguments: Options of the command line.
        results_file: File of JSON lines with the results; stored ones are not computed again.
    """
    seeds, workers, reviews = arguments.seeds, arguments.workers, arguments.reviews
    pages: Mapping[str, Callable[[], str]] = {
        "methods": lambda: run_methods(arguments, results_file),
        "temperature": lambda: temperature.run_section(seeds, results_file),
        "distillation": lambda: distillation.run_section(reviews, seeds, results_file, workers),
        "compression": lambda: joint_compression.run_section(reviews, seeds, results_file, workers),
        "sharing": lambda: task_sharing.run_section(seeds, results_file),
        "attention": lambda: attention.run_section(seeds, results_file, workers),
        "efficiency": lambda: training_efficiency.run_section(arguments.cifar10, arguments.limit, seeds, results_file),
    }
    return pages[section]()


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = build_argument_parser()
    arguments = parser.parse_args()
    sections = dict.fromkeys(arguments.sections)
    is_cifar10_read = "efficiency" in sections or ("methods" in sections and "cifar10" in arguments.tasks)
    if is_cifar10_read and arguments.cifar10 is None:
        parser.error("the task cifar10 and the section efficiency need --cifar10 FOLDER")
    for section in sections:
        started, out = time.perf_counter(), arguments.out
        if section != "methods":
            out = out.with_stem(f"{out.stem}_{section}")
        text = run_section(section, arguments, out.with_suffix(".jsonl"))
        write_atomic(out, text)
        print(text)
        print(f"{time.perf_counter() - started:.0f} s; written to {out}")


if __name__ == "__main__":
    main()
