"""Attacks and defences: `python -m benchmarks.attacks [--parts text ratings ranking front] [--seeds 3]`.

Mean and standard error over seeds, measured on the test split, which contains no attack by itself. Text: accuracy of
names by language, clean and after changes of the embeddings (PGD) or replaced characters (HotFlip). Ratings and
ranking: students of teachers that were trained on the same poisoned data, scored on real users; the prediction shift of
an attack is the difference of the pushed rating to that of the clean row. Front: a search over three objectives, and
one over two.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import autocompress
from autocompress.core.atomic import write_atomic
from autocompress.core.config import CompressionConfig, Part
from autocompress.engine.runner import make_plan
from autocompress.engine.spec import load_spec
from autocompress.measure import measure
from autocompress.measure.shilling import PUSHED
from autocompress.tasks.shilling import PoisonedRanking, PoisonedRatings
from autocompress.training.fit import predict
from autocompress.trial.pipeline import TrialPipeline, load_pipeline, reproducible_torch
from benchmarks.common import append_row, load_rows
from benchmarks.variants import mean_and_error

SOFT = Part.of("soft_target", alpha=0.9, temperature=2.0)
TERMS: Mapping[str, Mapping[str, Part]] = {
    "text": {
        "soft_target": SOFT,
        "robust, PGD": Part.of("robust", epsilon=0.3, steps=2, temperature=2.0),
        "robust, HotFlip": Part.of("robust", attack="hotflip", substitutions=2, temperature=2.0),
    },
    "ratings": {"none": Part("none"), "soft_target": SOFT, "robust": Part.of("robust", epsilon=0.1, steps=2)},
    "ranking": {"none": Part("none"), "soft_target": SOFT, "robust": Part.of("robust", epsilon=0.1, steps=2)},
}
TEXT = (
    "teacher.student={text_cnn: {embedding: 16, width: 48, depth: 1, block: parallel}}",
    "teacher.fit={adamw: {epochs: 5, learning_rate: 6e-3, batch_size: 128}}",
)
# Teachers of recommenders: smaller than the default ones, so that several seeds are quick.
RECOMMENDERS = {
    "ratings": (
        "teacher.student={interaction: {embedding: 16, width: 64, depth: 1, bottom: 1}}",
        "teacher.fit={adamw: {epochs: 4, learning_rate: 5e-3, weight_decay: 1.0, batch_size: 256}}",
    ),
    "ranking": (
        "teacher.student={two_tower: {embedding: 48, depth: 0, tower: 48}}",
        "teacher.fit={adamw: {epochs: 8, learning_rate: 1e-2, weight_decay: 0.08, batch_size: 256}}",
    ),
}
STUDENTS = {
    "text": (
        Part.of("text_cnn", embedding=16, width=24, depth=1),
        Part.of("adamw", epochs=4, learning_rate=1e-2, batch_size=128),
    ),
    "ratings": (
        Part.of("interaction", embedding=8, width=32, depth=1, bottom=1),
        Part.of("adamw", epochs=4, learning_rate=5e-3, weight_decay=1.0, batch_size=256),
    ),
    "ranking": (
        Part.of("two_tower", embedding=32, depth=0, tower=32),
        Part.of("adamw", epochs=8, learning_rate=1.5e-2, weight_decay=0.08, batch_size=256),
    ),
}
RATING_SCORES, RANKING_SCORES = ("rmse", "pushed_rating"), ("ndcg_at_10", "pushed_hit_rate_at_10")


def load_space(space: str, seed: int, *overrides: str) -> TrialPipeline:
    """Return the pipeline of a shipped space with changes."""
    changes = [f"split_seed={seed}", f"teacher.seed={seed}", "search.backend=serial", *overrides]
    return load_pipeline(make_plan(load_spec(space, changes)).setup)


def build_config(part: str, term: Part, seed: int) -> CompressionConfig:
    """Return the config of a student."""
    student, fit = STUDENTS[part]
    return CompressionConfig(student, (term,), fit, seed=seed)


def measure_text(seed: int) -> dict[str, dict[str, float]]:
    """Return the scores of each term on names."""
    pipeline = load_space("langid", seed, *TEXT)
    names = ("accuracy", "pgd_accuracy", "hotflip_accuracy")
    results = {}
    for name, term in TERMS["text"].items():
        model = pipeline.train(build_config("text", term, seed)).model
        subject = pipeline.build_subject(model, pipeline.splits.test, {}, names)
        results[name] = measure(subject, names)
    return results


def measure_shilling(
    part: str, attacks: Sequence[str], scores: Sequence[str], seed: int
) -> dict[str, dict[str, float]]:
    """Return the scores of each term under each attack, and without an attack.

    Args:
        part: ``ratings`` or ``ranking``.
        attacks: Attacks of the task.
        scores: Score of real users, and score of the pushed item.
        seed: Seed of splits, teacher and students.
    """
    changes = (*RECOMMENDERS[part], f"objectives=[{scores[0]}, bytes]")
    clean = load_space(part, seed, *changes)
    results = {}
    for attack in attacks:
        task = f"task={{poisoned_{part}: {{attack: {attack}}}}}"
        poisoned = load_space(part, seed, task, *changes)
        assert isinstance(poisoned.task, PoisonedRatings | PoisonedRanking)
        test = poisoned.splits.test
        pushed = poisoned.task.push_item(test, poisoned.splits.train)
        for name, term in TERMS[part].items():
            for start, pipeline in (("clean", clean), (attack, poisoned)):
                if f"{start}, {name}" in results:
                    continue
                model = pipeline.train(build_config(part, term, seed)).model
                subject = poisoned.build_subject(model, test, {}, scores[:1])
                outputs = {PUSHED: predict(model, poisoned.task, pushed)}
                results[f"{start}, {name}"] = measure(replace(subject, attacked=outputs), scores)
    return results


FRONT = (
    "search.backend=serial",
    "search.minutes=null",
    "teacher.student={cnn: {width: 16, depth: 1, block: residual}}",
    "teacher.fit={adamw: {epochs: 15, learning_rate: 6e-3}}",
    "fit.adamw.epochs=9",
    "distill={soft_target: {temperature: 2, alpha: 0.9}, "
    "robust: {epsilon: {low: 0.05, high: 0.4}, steps: 2, alpha: {low: 0.3, high: 1.0}}}",
    "prune={none: }",
    "quantize={none: , post_training: {weight_bits: [8, 4], activation_bits: 8}}",
)


def measure_front(seed: int, trials: int, runs: Path) -> dict[str, dict[str, float]]:
    """Return the best scores on the front of a search over three objectives and of one over two."""
    results = {}
    for name, objectives, limit in (
        ("accuracy, pgd_accuracy, effective_flops", "[accuracy, pgd_accuracy, effective_flops]", "{}"),
        ("accuracy, effective_flops", "[accuracy, effective_flops]", "{pgd_accuracy: {min: 0}}"),
    ):
        overrides = [*FRONT, f"objectives={objectives}", f"limits={limit}", f"search.seed={seed}"]
        folder = f"attacks-{seed}-{objectives.count(',')}"
        front = autocompress.search("digits", name=folder, runs=runs, trials=trials, overrides=overrides)
        rows = front.to_pandas()
        exact = rows[rows["accuracy"] >= rows["accuracy"].max() - 0.05]
        results[name] = {
            "candidates": float(len(rows)),
            "best accuracy": float(rows.sort_values("accuracy")["accuracy_test"].iloc[-1]),
            "best PGD accuracy": float(rows.sort_values("pgd_accuracy")["pgd_accuracy_test"].iloc[-1]),
            "its accuracy": float(rows.sort_values("pgd_accuracy")["accuracy_test"].iloc[-1]),
            "best PGD accuracy within 5 points": float(exact.sort_values("pgd_accuracy")["pgd_accuracy_test"].iloc[-1]),
        }
    return results


TITLES = {
    "text": "Names by language: changed embeddings and replaced characters",
    "ratings": "Ratings: fake users that push an item",
    "ranking": "Ranking: fake users that push an item",
    "front": "Digits: robust accuracy as a third objective",
}


def format_tables(rows: Sequence[Mapping[str, object]], describe: str) -> str:
    """Return the page: one table for each part that was measured."""
    lines = ["# Attacks and defences", "", describe, ""]
    for part, title in TITLES.items():
        entries = [row["scores"] for row in rows if row["part"] == part]
        scores = [entry for entry in entries if isinstance(entry, Mapping)]
        if not scores:
            continue
        columns = list(next(iter(scores[0].values())))
        lines += [f"## {title}", "", f"Number of seeds: {len(scores)}.", ""]
        lines += [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
        for name in scores[0]:
            cells = [_format_cell([entry[name][column] for entry in scores]) for column in columns]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _format_cell(values: Sequence[float]) -> str:
    mean, error = mean_and_error(values)
    # One seed has no error.
    return f"{mean:.3f} ± {error:.3f}" if len(values) > 1 else f"{mean:.3f}"


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=16, help="trials of a search over the front")
    parser.add_argument("--runs", type=Path, default=Path("reports"))
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/attacks.md"))
    arguments = parser.parse_args()
    file = arguments.out.with_suffix(".jsonl")
    done = {(row["part"], row["seed"]) for row in load_rows(file)}
    functions: dict[str, Callable[[int], dict[str, dict[str, float]]]] = {
        "text": measure_text,
        "ratings": lambda seed: measure_shilling("ratings", ("bandwagon", "average"), RATING_SCORES, seed),
        "ranking": lambda seed: measure_shilling("ranking", ("bandwagon",), RANKING_SCORES, seed),
        "front": lambda seed: measure_front(seed, arguments.trials, arguments.runs),
    }
    with reproducible_torch():
        for seed in range(arguments.seeds):
            for part in arguments.parts:
                if (part, seed) not in done:
                    scores = functions[part](seed)
                    print(part, seed, scores, flush=True)
                    append_row(file, {"part": part, "seed": seed, "scores": scores})
    describe = " ".join((__doc__ or "").split("\n\n")[1].split())
    text = format_tables(load_rows(file), describe)
    write_atomic(arguments.out, text)
    print(text)


if __name__ == "__main__":
    main()
