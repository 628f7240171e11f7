"""Each method against its plain counterpart: `python -m benchmarks.methods [--tasks digits mnist1d cifar10]`.

Every row is trained for real, once per seed, and measured on the test split. A comparison is paired by seed; it holds
if the mean difference exceeds two standard errors. The table is printed and written to reports/benchmarks/methods.md.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from autocompress.core.atomic import write_atomic
from autocompress.core.config import Part
from autocompress.core.method import Context
from autocompress.core.records import Cut
from autocompress.core.registry import PRUNE, TASKS
from autocompress.distill.attacks import predict_under_attack
from autocompress.measure import Subject, layer_costs, measure
from autocompress.measure.cost import count_flops
from autocompress.trial.pipeline import TrialPipeline
from benchmarks.arena import TEMPERATURES, Arena, Measured, Variant, mean_and_error, run_all

RECOVERY = {"recovery_epochs": 6, "recovery_learning_rate": 1e-2}
# Every student has 20 times fewer parameters than its teacher, or fewer still.
DIGITS = Arena(
    "digits",
    Part("digits"),
    Part.of("cnn", width=8, depth=1, stages=2, block="plain"),
    Part.of("adamw", epochs=20, learning_rate=1e-2),
)
MNIST1D = Arena(
    "mnist1d",
    Part("mnist1d"),
    Part.of("cnn1d", width=8, depth=1, stages=3, block="plain"),
    Part.of("adamw", epochs=15, learning_rate=1e-2),
)
BITS = ((2, 2), (3, 3), (4, 4), (3, 8), (4, 8), (8, 8))
LOW = ((2, 2), (3, 3))
ROUNDED = ((3, 8), (4, 8))
SMALLER = 0.65
# What is pruned is another student: one of several layers, which differ in how much they can spare.
WIDE = {"width": 16}
RESIDUAL = {"width": 12, "depth": 2, "block": "residual"}


def cifar10(folder: Path, limit: int) -> Arena:
    """Return CIFAR-10 with so many training images of each class; a teacher of width 16, a plain student of 8."""
    return Arena(
        "cifar10",
        Part.of("images", path=str(folder), limit=limit, views=8),
        Part.of("cnn", width=8, depth=1, stages=3, block="plain"),
        Part.of("adamw", epochs=15, learning_rate=1e-2, batch_size=64, precision="bfloat16"),
        (
            Part.of("cnn", width=16, depth=2, stages=3, block="residual"),
            Part.of("adamw", epochs=25, learning_rate=4e-3, batch_size=64, precision="auto"),
        ),
        epsilon=0.1,
        temperatures=(),
    )


def bits(method: str, weight: int, activation: int, **settings: Any) -> Cut:
    """Return a cut that quantizes weights and activations to these bits."""
    return Cut(quantize=Part.of(method, weight_bits=weight, activation_bits=activation, **settings))


def pruned(method: str, ratio: float, **settings: Any) -> Cut:
    """Return a cut that prunes, with the same recovery for every method unless told otherwise."""
    return Cut(prune=Part.of(method, pruning_ratio=ratio, **{**RECOVERY, **settings}))


def robustness(place: TrialPipeline, model: Any, epsilon: float) -> Mapping[str, float]:
    """Return accuracy under FGSM and PGD on the test split."""
    found = {}
    for name, steps in (("fgsm_accuracy", 1), ("pgd_accuracy", 10)):
        logits = predict_under_attack(model, place.task, place.splits.test, epsilon=epsilon, steps=steps)
        found[name] = measure(Subject(logits, place.splits.test.targets), ["accuracy"])["accuracy"]
    return found


@lru_cache
def removed_flops(arena: Arena, ratio: float) -> float:
    """Return the share of the student's FLOPs that uniform pruning of the residual student removes."""
    task = TASKS.get(arena.task.name)(**arena.task.values)
    student = Part.of(arena.student.name, **{**arena.student.values, **RESIDUAL})
    model, method = task.build(student), PRUNE.get("structured")
    cut, _ = method.apply(model, method.config.of({"pruning_ratio": ratio}), Context(task.example()))
    before, after = (count_flops(layer_costs(each.eval(), task.example())) for each in (model, cut))
    return 1 - after / before


def variants(arena: Arena) -> list[Variant]:
    """Return every training of the table with its cuts."""
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
    minmax = {"observer": "minmax", "weight_observer": "minmax", "bias_correction": False}
    squares = {"observer": "mse", "weight_observer": "mse"}
    quantized = {
        "": Cut(),
        **{f"minmax {w}/{a}": bits("post_training", w, a, **minmax) for w, a in BITS},
        **{f"mse {w}/{a}": bits("post_training", w, a, **{**minmax, **squares}) for w, a in BITS},
        **{f"tuned {w}/{a}": bits("post_training", w, a, **squares, bias_correction=True) for w, a in BITS},
        **{f"adaround {w}/{a}": bits("adaround", w, a) for w, a in ROUNDED},
        **{f"qat {w}/{a}": bits("qat", w, a) for w, a in LOW},
        **{f"lsq {w}/{a}": bits("lsq", w, a) for w, a in LOW},
        **{f"mixed {n}/{n}": Cut(quantize=Part.of("mixed_precision", budget_bits=float(n))) for n in (3, 4)},
    }
    alone, sparse = {"recovery_epochs": 0}, {"criterion": "l1", "scope": "global"}
    cut = {
        "": Cut(),
        **{f"channels 50% {name}": pruned("structured", 0.5, criterion=name) for name in ("taylor", "random")},
        **{
            f"channels 50% {name}, no recovery": pruned("structured", 0.5, criterion=name, **alone)
            for name in ("taylor", "random")
        },
        **{f"weights 80% {name}": pruned("unstructured", 0.8, criterion=name) for name in ("taylor", "random")},
        "uniform": pruned("structured", SMALLER),
        "adaptive": pruned("adaptive", removed_flops(arena, SMALLER)),
        "one-shot 90%": pruned("unstructured", 0.9, **sparse, recovery_epochs=16),
        "cubic 90%": pruned("unstructured", 0.9, **sparse, schedule="cubic", steps=8, step_epochs=1, recovery_epochs=9),
        "2:4": Cut(prune=Part.of("n_m", **RECOVERY)),
    }
    return [
        Variant("none", quantized),
        Variant("residual", cut, student=RESIDUAL),
        Variant("wide", {name: cut[name] for name in ("", "one-shot 90%", "cubic 90%")}, student=WIDE),
        *(Variant(name, distill=distill) for name, distill in terms.items()),
        Variant("soft_target", distill=(soft,), extra=robustness),
        *(
            Variant(f"T = {value:g}", distill=(Part.of("soft_target", temperature=value, alpha=0.9),))
            for value in arena.temperatures
        ),
        Variant("robust", distill=(Part.of("robust", epsilon=arena.epsilon),), extra=robustness),
        Variant("float32", fit={"precision": "float32"}),
        Variant("bfloat16", fit={"precision": "bfloat16"}),
    ]


@dataclass(frozen=True)
class Comparison:
    """Ours against plain: ``(variant, cut)`` each, by one measure."""

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


def table(found: Mapping[Any, Measured], arenas: Sequence[Arena], seeds: int) -> str:
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
    for arena in arenas:
        known = {variant.name for variant in variants(arena)}
        for comparison in COMPARISONS:
            if comparison.ours[0] not in known:
                continue
            ours, plain = (
                [found[arena.name, variant, seed][cut] for seed in range(seeds)]
                for variant, cut in (comparison.ours, comparison.plain)
            )
            scores = [[100 * row[comparison.metric] for row in rows] for rows in (ours, plain)]
            mean, error = mean_and_error([a - b for a, b in zip(*scores, strict=True)])
            star = " *" if abs(mean) > 2 * error else ""
            cost = mean_and_error(
                [a["effective_flops"] / b["effective_flops"] for a, b in zip(ours, plain, strict=True)]
            )[0]
            shown = ["{:.1f} ± {:.1f}".format(*mean_and_error(values)) for values in scores]
            lines.append(
                f"| {arena.name} | {comparison.title} | {shown[0]} | {shown[1]} | {mean:+.1f} ± {error:.1f}{star} "
                f"| {cost:.2f} |"
            )
    lines += ["", "| task | training | cut | accuracy | effective FLOPs | bytes |", "|---|---|---|---|---|---|"]
    for arena in arenas:
        for variant in variants(arena):
            for cut in variant.cuts:
                rows = [found[arena.name, variant.name, seed][cut] for seed in range(seeds)]
                accuracy, error = mean_and_error([100 * row["accuracy"] for row in rows])
                flops, size = (mean_and_error([row[cost] for row in rows])[0] for cost in ("effective_flops", "bytes"))
                lines.append(
                    f"| {arena.name} | {variant.name} | {cut or 'uncut'} | {accuracy:.1f} ± {error:.1f} "
                    f"| {flops:,.0f} | {size:,.0f} |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=("cifar10", "digits", "mnist1d"), default=["digits", "mnist1d"])
    parser.add_argument("--cifar10", type=Path, help="folder with train/ and test/, class folders in each")
    parser.add_argument("--limit", type=int, default=500, help="CIFAR-10 training images of each class")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/methods.md"))
    asked = parser.parse_args()
    if "cifar10" in asked.tasks and asked.cifar10 is None:
        parser.error("the task cifar10 needs --cifar10 FOLDER")
    arenas = [arena for arena in (DIGITS, MNIST1D) if arena.name in asked.tasks]
    if "cifar10" in asked.tasks:
        arenas.append(cifar10(asked.cifar10, asked.limit))
    started = time.perf_counter()
    found = run_all(arenas, variants, asked.seeds, asked.out.with_suffix(".jsonl"))
    text = table(found, arenas, asked.seeds)
    write_atomic(asked.out, text)
    print(text)
    print(f"{time.perf_counter() - started:.0f} s; written to {asked.out}")


if __name__ == "__main__":
    main()
