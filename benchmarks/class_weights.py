"""Class weights and thresholds on imbalanced classes: `python -m benchmarks.class_weights [--seeds 5]`.

A table of two overlapping classes, 5% of its rows rare, is learned by the default network of the task `tabular` with
and without `class_weights: balanced`, at the threshold 0.5 and at the one with the best balanced accuracy on both
validation splits. Scores are those of the test split, in points; differences are paired by seed, with their standard
error.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import make_classification

from autocompress.core.atomic import write_atomic
from autocompress.core.config import Part
from autocompress.measure.heads import measure
from autocompress.measure.objectives import Subject
from autocompress.measure.thresholds import choose_threshold, set_thresholds
from autocompress.tasks.folds import join_splits
from autocompress.tasks.tabular import Tabular
from autocompress.training.fit import FitRequest, fit, predict
from autocompress.trial.pipeline import reproducible_torch
from benchmarks.common import describe_benchmark
from benchmarks.variants import mean_and_error

SCORES = ("balanced_accuracy", "f1_macro", "accuracy")
ROWS, COLUMNS, RARE = 2500, 20, 0.05
WEIGHTS, THRESHOLDS = ("none", "balanced"), ("0.5", "chosen")


def write_table(folder: Path) -> Path:
    """Write the imbalanced table, and return its path."""
    numbers, labels = make_classification(
        ROWS, COLUMNS, n_informative=8, weights=[1 - RARE], class_sep=0.8, flip_y=0.02, random_state=0
    )
    frame = pd.DataFrame(numbers, columns=[f"x{index}" for index in range(COLUMNS)])
    frame["label"] = np.where(labels == 1, "rare", "common")
    path = folder / "imbalanced.csv"
    frame.to_csv(path, index=False)
    return path


def measure_seed(task: Tabular, weights: str, seed: int) -> dict[str, Mapping[str, float]]:
    """Return the scores on the test split by threshold."""
    splits = task.splits(0)
    student, settings = task.teacher()
    torch.manual_seed(seed)
    model = task.build(student)
    optimizer = Part.of(settings.name, **{**settings.values, "class_weights": weights})
    fit(model, FitRequest(task, splits.train, optimizer, seed=seed))
    validation, test = (
        Subject(predict(model, task, part), part.targets, heads=task.heads)
        for part in (join_splits([splits.search_val, splits.select_val]), splits.test)
    )
    (head,) = task.heads
    chosen = choose_threshold(validation, head, SCORES[0])
    return {"0.5": measure(test, SCORES), "chosen": measure(set_thresholds(test, {head: chosen}), SCORES)}


def format_table(results: Mapping[tuple[str, str], Sequence[Mapping[str, float]]]) -> str:
    """Return the table: mean and standard error, and the paired difference to the first row.

    Args:
        results: Class weights and threshold to the scores of each seed.
    """
    lines = [f"| class weights | threshold | {' | '.join(SCORES)} |", "|---|---|" + "---|" * len(SCORES)]
    plain = results[WEIGHTS[0], THRESHOLDS[0]]
    for (weights, threshold), rows in results.items():
        cells = []
        for score in SCORES:
            mean, error = mean_and_error([100 * row[score] for row in rows])
            pairs = zip(rows, plain, strict=True)
            gain, gain_error = mean_and_error([100 * (row[score] - before[score]) for row, before in pairs])
            difference = "" if rows is plain else f" ({gain:+.1f} ± {gain_error:.1f})"
            cells.append(f"{mean:.1f} ± {error:.1f}{difference}")
        lines.append(f"| {weights} | {threshold} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/class_weights.md"))
    arguments = parser.parse_args()
    results: dict[tuple[str, str], list[Mapping[str, float]]] = {}
    with reproducible_torch(), tempfile.TemporaryDirectory() as folder:
        task = Tabular(write_table(Path(folder)), target="label")
        for weights in WEIGHTS:
            for seed in range(arguments.seeds):
                for threshold, scores in measure_seed(task, weights, seed).items():
                    results.setdefault((weights, threshold), []).append(scores)
    command = f"`python -m benchmarks.class_weights --seeds {arguments.seeds}`"
    parts = ["# Class weights and thresholds", command, describe_benchmark(__doc__), format_table(results)]
    text = "\n\n".join(parts) + "\n"
    write_atomic(arguments.out, text)
    print(text)


if __name__ == "__main__":
    main()
