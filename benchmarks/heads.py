"""Attention heads removed from a transformer: `python -m benchmarks.heads`.

Languages of short texts (task `langid`). One transformer is trained for each seed; of its copies each loses a share of
its heads by one criterion, and is fine-tuned. Beside it: feed-forward channels removed by `structured` pruning, and a
transformer that has fewer heads from the start. FLOPs are those of one text, accuracy is that of the test split. The
table is printed and written to reports/benchmarks/heads.md.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch

from autocompress.core.atomic import write_atomic
from autocompress.core.config import CompressionConfig, Part
from autocompress.core.registry import TASKS
from autocompress.measure import layer_costs
from autocompress.measure.cost import count_flops
from autocompress.trial.pipeline import TrialPipeline, reproducible_torch
from autocompress.trial.teacher import Teacher
from benchmarks.common import append_row, load_rows
from benchmarks.variants import format_mean

SHAPE = {"layers": 2, "attention_heads": 8, "head_size": 8}
RATIOS = (0.5, 0.75)
EXAMPLES = 4000
CRITERIA = ("gradient", "confidence", "random")


def list_prunings(recovery_epochs: int) -> Iterator[tuple[str, float, Part | None]]:
    """Return label, ratio and pruning of each row."""
    yield "not pruned", 0.0, None
    recovery = {"recovery_epochs": recovery_epochs, "recovery_learning_rate": 2e-3}
    for ratio in RATIOS:
        for criterion in CRITERIA:
            yield f"heads, {criterion}", ratio, Part.of("heads", pruning_ratio=ratio, criterion=criterion, **recovery)
        yield "structured", ratio, Part.of("structured", pruning_ratio=ratio, **recovery)


def measure_seed(seed: int, epochs: int, recovery_epochs: int, file: Path) -> None:
    """Train the transformers of one seed and append one row for each candidate."""
    task = TASKS.get("langid")()
    splits = task.splits(0)
    splits = replace(splits, train=splits.train.take(slice(0, EXAMPLES)))
    fit = Part.of("adamw", epochs=epochs, learning_rate=3e-3)
    # Nothing is distilled, so the teacher is never run.
    teacher = Teacher(task.build(Part.of("transformer", **SHAPE)), {}, Path())
    pipeline = TrialPipeline(task, splits, teacher)
    example = task.example()
    for heads in (8, 4, 2):
        student = Part.of("transformer", **{**SHAPE, "attention_heads": heads})
        training = CompressionConfig(student, (Part("none"),), fit, seed=seed)
        model = pipeline.train(training).model
        variants = list_prunings(recovery_epochs) if heads == 8 else [(f"trained with {heads} heads", 0.0, None)]
        for label, ratio, part in variants:
            pruned, _ = pipeline.prune(model, training, part)
            logits = pipeline.predict(pruned, splits.test)
            head = next(iter(logits))
            accuracy = float((logits[head].argmax(1) == splits.test.targets[head]).double().mean())
            flops = count_flops(layer_costs(pruned, example))
            row = {"seed": seed, "label": label, "ratio": ratio, "flops": flops, "accuracy": accuracy}
            append_row(file, row)
            print(json.dumps(row), flush=True)


def format_table(rows: list[dict[str, float | str]]) -> str:
    """Return the table with mean and standard error over the seeds."""
    lines = ["| transformer | ratio | FLOPs, share | accuracy, % |", "|---|---|---|---|"]
    full = next(float(row["flops"]) for row in rows if row["label"] == "not pruned")
    for key in dict.fromkeys((row["label"], row["ratio"]) for row in rows):
        chosen = [row for row in rows if (row["label"], row["ratio"]) == key]
        scores = [100 * float(row["accuracy"]) for row in chosen]
        share = fmean(float(row["flops"]) for row in chosen) / full
        lines.append(f"| {key[0]} | {key[1]:g} | {share:.2f} | {format_mean(scores, 2)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark, print its table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--recovery-epochs", type=int, default=2)
    parser.add_argument("--rows", type=Path, default=Path("runs/benchmarks/heads.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/heads.md"))
    arguments = parser.parse_args()
    done = {row["seed"] for row in load_rows(arguments.rows)}
    with reproducible_torch():
        for seed in range(arguments.seeds):
            if seed not in done:
                torch.manual_seed(seed)
                measure_seed(seed, arguments.epochs, arguments.recovery_epochs, arguments.rows)
    rows = load_rows(arguments.rows)
    text = "\n".join(
        [
            "# Attention heads of a transformer",
            "",
            f"Task `langid`, {EXAMPLES} examples, 2 layers of 8 heads, {arguments.epochs} epochs, then",
            f"{arguments.recovery_epochs} of recovery, no distillation; mean and standard error of the accuracy over",
            f"{len({row['seed'] for row in rows})} seeds.",
            "",
            format_table(rows),
            "",
        ]
    )
    print(text)
    write_atomic(arguments.out, text.encode())


if __name__ == "__main__":
    main()
