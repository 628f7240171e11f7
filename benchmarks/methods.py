"""Each method against its plain counterpart: `python -m benchmarks.methods [--tasks digits ...] [--seeds 5]`.

Every row is trained for real, once per seed, and measured on the test split. A comparison is paired by seed; it holds
if the mean difference exceeds two standard errors. The table is printed and written to reports/benchmarks/methods.md.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.config import Part
from autocompress.distill.attacks import attacked_logits
from autocompress.lab import Lab
from autocompress.measure import Subject, measure
from autocompress.records import Cut
from autocompress.storage import write_atomic
from benchmarks.arena import Arena, Measured, Variant, mean_and_error, run_all

DIGITS = Arena(
    "digits",
    Part("digits"),
    Part.of("cnn", width=8, depth=1, stages=2, block="plain"),
    Part.of("adamw", epochs=20, learning_rate=1e-2),
)
MNIST1D = Arena(
    "mnist1d",
    Part("mnist1d"),
    Part.of("cnn1d", width=8, depth=1, stages=2, block="plain"),
    Part.of("adamw", epochs=15, learning_rate=1e-2),
)
ARENAS = {arena.name: arena for arena in (DIGITS, MNIST1D)}
TEMPERATURES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
BITS = (2, 3, 4, 8)
EPSILON = 0.3


def bits(method: str, weight: int, activation: int | None = None, **settings: Any) -> Cut:
    """Return a cut that quantizes to these bits; activations take as many as weights by default."""
    values = {"weight_bits": weight, "activation_bits": activation or weight, **settings}
    return Cut(quantize=Part.of(method, **values))


def pruned(method: str, ratio: float, **settings: Any) -> Cut:
    """Return a cut that prunes, with the same recovery for every method."""
    recovery = {"recovery_epochs": 6, "recovery_learning_rate": 1e-2}
    return Cut(prune=Part.of(method, pruning_ratio=ratio, **{**recovery, **settings}))


def robustness(place: Lab, model: Any) -> Mapping[str, float]:
    """Return accuracy under FGSM and PGD on the test split."""
    found = {}
    for name, steps in (("fgsm_accuracy", 1), ("pgd_accuracy", 10)):
        logits = attacked_logits(model, place.task, place.splits.test, epsilon=EPSILON, steps=steps)
        found[name] = measure(Subject(logits, place.splits.test.targets), ["accuracy"])["accuracy"]
    return found


def variants(arena: Arena) -> list[Variant]:
    """Return every training of the table with its cuts."""
    soft = Part.of("soft_target", temperature=4.0, alpha=0.9)
    terms = {
        "soft_target": (soft,),
        "logit_standardized": (Part("logit_standardized"),),
        "dkd": (Part("dkd"),),
        "dist": (Part("dist"),),
        "hint": (Part("none"), Part("hint")),
        "attention": (Part("none"), Part("attention")),
        "relational": (Part("none"), Part("relational")),
        "soft_target + hint": (soft, Part("hint")),
    }
    cuts = {
        "": Cut(),
        **{f"minmax {n}": bits("post_training", n) for n in BITS},
        **{f"mse {n}": bits("post_training", n, observer="mse", weight_observer="mse") for n in BITS},
        **{f"adaround {n}": bits("adaround", n) for n in (3, 4)},
        **{f"qat {n}": bits("qat", n) for n in (2, 3)},
        **{f"lsq {n}": bits("lsq", n) for n in (2, 3)},
        **{f"mixed {n}": Cut(quantize=Part.of("mixed_precision", average_bits=float(n))) for n in (3, 4)},
        **{f"uniform {name}": pruned("structured", 0.4, criterion=name) for name in ("l2", "taylor", "random")},
        "adaptive": pruned("adaptive", 0.4),
        "one-shot 90%": pruned("unstructured", 0.9),
        "cubic 90%": pruned("unstructured", 0.9, schedule="cubic"),
        "2:4": Cut(prune=Part.of("n_m", recovery_epochs=6, recovery_learning_rate=1e-2)),
    }
    return [
        Variant("none", cuts, extra=None),
        *(Variant(name, distill=distill) for name, distill in terms.items() if name != "soft_target"),
        Variant("soft_target", distill=terms["soft_target"], extra=robustness),
        *(
            Variant(f"T = {value:g}", distill=(Part.of("soft_target", temperature=value, alpha=0.9),))
            for value in TEMPERATURES
        ),
        Variant("robust", distill=(Part.of("robust", epsilon=EPSILON),), extra=robustness),
        Variant("bfloat16", fit={"precision": "bfloat16"}),
    ]


@dataclass(frozen=True)
class Comparison:
    """Ours against plain: ``(variant, cut)`` each, by one measure."""

    title: str
    ours: tuple[str, str]
    plain: tuple[str, str]
    metric: str = "accuracy"


COMPARISONS = (
    *(
        Comparison(f"{name} over none", (name, ""), ("none", ""))
        for name in ("soft_target", "logit_standardized", "dkd", "dist", "hint", "attention", "relational")
    ),
    Comparison("soft_target + hint over none", ("soft_target + hint", ""), ("none", "")),
    *(Comparison(f"LSQ over post-training, {n} bits", ("none", f"lsq {n}"), ("none", f"minmax {n}")) for n in (2, 3)),
    *(Comparison(f"QAT over post-training, {n} bits", ("none", f"qat {n}"), ("none", f"minmax {n}")) for n in (2, 3)),
    *(Comparison(f"MSE over min-max, {n} bits", ("none", f"mse {n}"), ("none", f"minmax {n}")) for n in (3, 4)),
    *(
        Comparison(f"AdaRound over min-max, {n} bits", ("none", f"adaround {n}"), ("none", f"minmax {n}"))
        for n in (3, 4)
    ),
    *(
        Comparison(f"mixed precision over uniform, BOPs of {n} bits", ("none", f"mixed {n}"), ("none", f"minmax {n}"))
        for n in (3, 4)
    ),
    Comparison("adaptive over uniform pruning", ("none", "adaptive"), ("none", "uniform l2")),
    Comparison("Taylor over random channels", ("none", "uniform taylor"), ("none", "uniform random")),
    Comparison("cubic over one-shot, 90% unstructured", ("none", "cubic 90%"), ("none", "one-shot 90%")),
    Comparison("robust over soft_target, PGD", ("robust", ""), ("soft_target", ""), "pgd_accuracy"),
    Comparison("robust over soft_target, clean", ("robust", ""), ("soft_target", "")),
    Comparison("bfloat16 over float32", ("bfloat16", ""), ("none", "")),
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
        for comparison in COMPARISONS:
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
    parser.add_argument("--tasks", nargs="+", choices=sorted(ARENAS), default=sorted(ARENAS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/methods.md"))
    asked = parser.parse_args()
    arenas = [ARENAS[name] for name in asked.tasks]
    started = time.perf_counter()
    found = run_all(arenas, variants, asked.seeds)
    text = table(found, arenas, asked.seeds)
    write_atomic(asked.out, text)
    print(text)
    print(f"{time.perf_counter() - started:.0f} s; written to {asked.out}")


if __name__ == "__main__":
    main()
