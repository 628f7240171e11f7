"""What a trained transformer should lose at equal FLOPs: `python -m benchmarks.hidden_size`.

The BERT-like classifier of `benchmarks.pretrained` (4 layers, hidden size 192, 4 heads), brought with
`from_pretrained`. Each row removes one part of it, or several, by the ratios of `student.from_teacher`: hidden size,
attention heads and feed-forward width (`pruning_ratio`), or layers (`depth_ratio`, evenly spread). Every student is
fine-tuned in the same way on 8,000 names, without distillation. FLOPs are those of one text, accuracy is that of the
test split.

Rows are stored at once, so that a run resumes.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch

from autocompress.core.atomic import write_atomic
from autocompress.core.config import CompressionConfig, Part
from autocompress.measure import layer_costs
from autocompress.measure.cost import count_flops
from autocompress.tasks.module import bring_model
from autocompress.trial.pipeline import TrialPipeline, reproducible_torch
from autocompress.trial.teacher import Teacher
from benchmarks.common import append_row, describe_benchmark, describe_processor, load_rows
from benchmarks.pretrained import bring_bert
from benchmarks.variants import format_mean

RATE, EXAMPLES = 1e-3, 8_000
# Ratios of hidden size, of heads and feed-forward width, and of layers; rows of one group have similar FLOPs.
ARMS: Mapping[str, tuple[float, float, float]] = {
    "nothing": (0.0, 0.0, 0.0),
    "hidden size 1/2": (0.5, 0.0, 0.0),
    "heads and width 1/2": (0.0, 0.5, 0.0),
    "layers 1/2": (0.0, 0.0, 0.5),
    "hidden size 3/4": (0.75, 0.0, 0.0),
    "heads and width 3/4": (0.0, 0.75, 0.0),
    "layers 3/4": (0.0, 0.0, 0.75),
    "hidden size 1/2, heads and width 1/2": (0.5, 0.5, 0.0),
    "hidden size 1/2, layers 1/2": (0.5, 0.0, 0.5),
    "heads and width 1/2, layers 1/2": (0.0, 0.5, 0.5),
    "hidden size 1/2, heads and width 1/2, layers 1/2": (0.5, 0.5, 0.5),
}


def measure_arm(pipeline: TrialPipeline, label: str, seed: int, epochs: int) -> dict[str, float | str]:
    """Return FLOPs and accuracy of a student without some parts of the teacher, before and after its fine-tuning."""
    hidden, width, layers = ARMS[label]
    student = Part.of(
        "from_teacher", hidden_ratio=hidden, pruning_ratio=width, depth_ratio=layers, depth_selection="spread"
    )
    row: dict[str, float | str] = {"label": label, "seed": seed}
    for name, count in (("before", 0), ("accuracy", epochs)):
        fit = Part.of("adamw", epochs=count, learning_rate=RATE, weight_decay=0.05)
        model = pipeline.train(CompressionConfig(student, (Part("none"),), fit, seed=seed)).model
        outputs = pipeline.predict(model, pipeline.splits.test)
        (head,) = outputs
        row[name] = float((outputs[head].argmax(1) == pipeline.splits.test.targets[head]).double().mean())
        row["flops"] = count_flops(layer_costs(model, pipeline.task.example()))
        row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    return row


def format_table(rows: list[dict[str, float | str]]) -> str:
    """Return the table, with mean and standard error over the seeds."""
    lines = [
        "| removed | FLOPs, share | parameters, share | accuracy before, % | accuracy, % |",
        "|---|---|---|---|---|",
    ]
    (full, *_) = (row for row in rows if row["label"] == "nothing")
    for label in ARMS:
        chosen = [row for row in rows if row["label"] == label]
        if not chosen:
            continue
        shares = [f"{float(chosen[0][name]) / float(full[name]):.2f}" for name in ("flops", "parameters")]
        scores = [100 * float(row["accuracy"]) for row in chosen]
        before = fmean(100 * float(row["before"]) for row in chosen)
        lines.append(f"| {label} | {' | '.join(shares)} | {before:.1f} | {format_mean(scores, 2)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every student without a stored row, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("reports/pretrained"), help="folder of the teacher")
    parser.add_argument("--rows", type=Path, default=Path("runs/benchmarks/hidden_size.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/hidden_size.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = {(row["label"], row["seed"]) for row in load_rows(options.rows)}
    (options.work / "bert").mkdir(parents=True, exist_ok=True)
    brought = bring_bert(options.work / "bert")
    with reproducible_torch():
        task = bring_model(brought.teacher, brought.data)
        # Nothing is distilled, so the teacher is never run.
        teacher = Teacher(task.build(Part("from_teacher")), {}, Path())
        splits = task.splits(0)
        splits = replace(splits, train=splits.train.take(slice(0, EXAMPLES)))
        pipeline = TrialPipeline(task, splits, teacher)
        for seed in range(options.seeds):
            for label in ARMS:
                if (label, seed) not in done:
                    row = measure_arm(pipeline, label, seed, options.epochs)
                    append_row(options.rows, row)
                    print(json.dumps(row), flush=True)
    rows = load_rows(options.rows)
    text = "\n".join(
        [
            "# Hidden size, width, heads or layers",
            "",
            describe_benchmark(__doc__),
            f"`python -m benchmarks.hidden_size` on {describe_processor()}: {options.epochs} epochs, learning rate",
            f"{RATE:g}, mean and standard error over {options.seeds} seeds.",
            "",
            format_table(rows),
            "",
        ]
    )
    print(text)
    write_atomic(options.out, text)


if __name__ == "__main__":
    main()
