"""Calibration data, how much: ``python -m benchmarks.calibration [--seeds 3] [--draws 4]``.

A student is trained for each task and seed and quantized after training, with calibration sets of several sizes that
are drawn from the training split. Each entry is the change of the accuracy on the test split against the float student
in points, mean and standard error over seeds (of each seed, the mean over the draws). The last row has the task's own
calibration split. Weights and inputs have the bits of the column; all other settings are the defaults of
``post_training``.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import torch

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.registry import QUANTIZE
from autocompress.quantize import fold_batch_norm
from autocompress.trial.pipeline import CALIBRATION_BATCH, load_pipeline, reproducible_torch
from benchmarks.benchmark_tasks import DIGITS, MNIST1D
from benchmarks.common import append_row, describe_benchmark, load_rows
from benchmarks.variants import BenchmarkTask, mean_and_error

TASKS = (DIGITS, MNIST1D)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
#: Bits of weights and of inputs.
BITS = ((8, 8), (8, 4), (4, 4))


class Row(TypedDict):
    """Accuracy of one quantized student; a size of 0 is the task's own calibration split."""

    task: str
    seed: int
    draw: int
    size: int
    bits: list[int]
    float: float
    accuracy: float


def measure(benchmark: BenchmarkTask, seed: int, draws: int) -> list[Row]:
    """Train a student, and quantize it with each calibration set."""
    with reproducible_torch():
        pipeline = load_pipeline(benchmark.build_setup())
        splits = pipeline.splits
        training = CompressionConfig(benchmark.student, (Part("none"),), benchmark.fit, seed=seed)
        model = fold_batch_norm(pipeline.train(training).model.eval(), pipeline.task.example())

        def score(student: torch.nn.Module) -> float:
            correct = [
                (values.argmax(dim=1) == splits.test.targets[head]).float().mean()
                for head, values in pipeline.predict(student, splits.test).items()
            ]
            return float(torch.stack(correct).mean())

        before, rows = score(model), list[Row]()
        method = QUANTIZE.get("post_training")
        for draw in range(draws):
            order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(1000 * seed + draw))
            sets = {size: splits.train.take(order[:size]) for size in SIZES}
            if draw == 0:
                sets[0] = splits.calibration
            for size, split in sets.items():
                batches = list(split.batches(CALIBRATION_BATCH))
                context = replace(
                    pipeline.build_context(training),
                    calibration=tuple(batch.inputs for batch in batches),
                    targets=tuple(batch.targets for batch in batches),
                )
                for weight, activation in BITS:
                    settings = method.config.of({"weight_bits": weight, "activation_bits": activation})
                    accuracy = score(method.apply(model, settings, context)[0])
                    rows.append(
                        Row(
                            task=benchmark.name,
                            seed=seed,
                            draw=draw,
                            size=size,
                            bits=[weight, activation],
                            float=before,
                            accuracy=accuracy,
                        )
                    )
        return rows


def format_table(rows: list[Row]) -> list[str]:
    """Return one table in Markdown for each task."""
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        floats = mean_and_error(list({row["seed"]: 100 * row["float"] for row in own}.values()))
        lines += [f"\n## {task}\n", f"The float student has {floats[0]:.2f} ± {floats[1]:.2f}% on test.\n"]
        lines += [f"| examples | {' | '.join(f'{weight}/{activation} bits' for weight, activation in BITS)} |"]
        lines += ["|---" * (len(BITS) + 1) + "|"]
        for size in (*SIZES, 0):
            cells = []
            for bits in BITS:
                by_seed: dict[int, list[float]] = {}
                for row in own:
                    if row["size"] == size and row["bits"] == list(bits):
                        by_seed.setdefault(row["seed"], []).append(100 * (row["accuracy"] - row["float"]))
                mean, error = mean_and_error([statistics.fmean(values) for values in by_seed.values()])
                cells.append(f"{mean:+.2f} ± {error:.2f}")
            lines.append(f"| {size or 'calibration split'} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Measure what is not stored yet, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/calibration.md"))
    arguments = parser.parse_args()
    file = arguments.out.with_suffix(".jsonl")
    stored = {(row["task"], row["seed"]) for row in load_rows(file)}
    for benchmark in TASKS:
        for seed in range(arguments.seeds):
            if (benchmark.name, seed) not in stored:
                for row in measure(benchmark, seed, arguments.draws):
                    append_row(file, dict(row))
    rows = [Row(**row) for row in load_rows(file)]  # type: ignore[typeddict-item]
    command = f"`python -m benchmarks.calibration --seeds {arguments.seeds} --draws {arguments.draws}`"
    text = "\n".join(
        ["# Calibration data, how much", "", command, "", describe_benchmark(__doc__), *format_table(rows), ""]
    )
    arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
