"""Predictions from raw input, for every shipped search space: `python -m benchmarks.raw_input`.

Each task is that of a shipped search space. A small model of the same family is trained for a few epochs, quantized to
8 bits and exported. Its pipeline.py then predicts the test split from raw input (image files, texts, ids with features,
series), and the table shows the share of examples with the prediction of the torch module that was exported, of several
heads the smallest. The accuracy is that of the few epochs; of boxes it is mAP.

`images`, `text` and `reviews` need `AUTOCOMPRESS_TEST_DATA`: a folder with `cifar10_jpeg.zip` and
`clothing_reviews.csv.gz`.
"""

import argparse
import os
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autocompress.core.atomic import write_atomic
from autocompress.core.config import CompressionConfig, Part
from autocompress.core.heads import as_head
from autocompress.core.method import Context
from autocompress.core.registry import QUANTIZE, TASKS
from autocompress.core.task import Split, Task
from autocompress.export.artifact import Deployable, write_artifact
from autocompress.export.verify import Metric, verify, verify_pipeline
from autocompress.models.from_teacher import NAME as FROM_TEACHER
from autocompress.tasks.detection import DetectionTask
from autocompress.tasks.images import Digits
from autocompress.tasks.module import bring_model
from autocompress.tasks.segmentation import Segmentation
from autocompress.tasks.signals import Signals
from autocompress.tasks.tabular import Tabular
from autocompress.tasks.tagging import Tagging
from autocompress.tasks.tensors import Tensors
from autocompress.training.fit import FitRequest, fit, predict
from autocompress.trial.pipeline import RebuiltCandidate, reproducible_torch
from benchmarks.common import append_row, describe_benchmark, load_rows

DATA = Path(os.environ.get("AUTOCOMPRESS_TEST_DATA", ""))
REVIEWS = {"path": DATA / "clothing_reviews.csv.gz", "text": "Review Text"}
# Images of each class and part, so that the decoding takes seconds.
IMAGES = 150


@dataclass(frozen=True)
class Case:
    """A shipped search space with a small model.

    Attributes:
        load: Function of an empty folder that returns the task.
        student: The model.
        fit: Its training.
        activation_bits: Bits of the quantized activations; weights have 8.
    """

    load: Callable[[Path], Task]
    student: Part
    fit: Part
    activation_bits: int = 8


def _load_images(folder: Path) -> Task:
    """Return a part of CIFAR-10 as JPEG files, resized to 24 x 24 pixels."""
    counts: Counter[str] = Counter()
    with zipfile.ZipFile(DATA / "cifar10_jpeg.zip") as archive:
        for name in archive.namelist():
            counts[os.path.dirname(name)] += 1
            if counts[os.path.dirname(name)] <= IMAGES:
                archive.extract(name, folder)
    return TASKS.get("images")(path=str(folder / "cifar10"), size=24)


def _load_module(folder: Path) -> Task:
    """Return a brought model of the digits, as a task of arrays in memory."""
    splits = Digits().splits(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    train, test = ((split.inputs[0], split.targets["label"]) for split in (splits.train, splits.test))
    return bring_model(model, Tensors(train, test))


def _load_tagging(folder: Path) -> Task:
    """Return the small generated sentences of people and places."""
    return TASKS.get("tagging")(path=str(Tagging.write_sample(folder)))


def _load_tabular(folder: Path) -> Task:
    """Return the small generated table of two classes, with a missing column and a category."""
    return TASKS.get("tabular")(path=str(Tabular.write_sample(folder)))


def _load_segmentation(folder: Path) -> Task:
    """Return the small generated images with a class for each pixel."""
    return TASKS.get("segmentation")(path=str(Segmentation.write_sample(folder)))


def _load_detection(folder: Path) -> Task:
    """Return the small generated images of squares and rings with their boxes."""
    return TASKS.get("detection")(path=str(DetectionTask.write_sample(folder)))


def _load_signals(folder: Path) -> Task:
    """Return the small generated series of three frequencies."""
    return TASKS.get("signals")(path=str(Signals.write_sample(folder)))


def _load(name: str, **options: Any) -> Callable[[Path], Task]:
    return lambda folder: TASKS.get(name)(**options)


TEXT_CNN = Part.of("text_cnn", embedding=16, width=32, depth=1)
ADAMW = Part.of("adamw", epochs=2, learning_rate=5e-3, batch_size=128)
RECOMMEND = Part.of("adamw", epochs=3, learning_rate=1e-2, weight_decay=0.1, batch_size=512)
DETECTOR = Part.of("detector", width=8, depth=1, stages=4, stem_stride=2)
CASES: Mapping[str, Case] = {
    "digits": Case(_load("digits"), Part.of("cnn", width=8, depth=1, stages=2), Part.of("adamw", epochs=8)),
    "mnist1d": Case(_load("mnist1d"), Part.of("cnn1d", width=8, depth=1, stages=2), Part.of("adamw", epochs=8)),
    "images": Case(_load_images, Part.of("cnn", width=8, depth=1, stages=2), ADAMW),
    "segmentation": Case(_load_segmentation, Part.of("unet", width=8), Part.of("adamw", epochs=8)),
    "detection": Case(_load_detection, DETECTOR, Part.of("adamw", epochs=24, learning_rate=4e-3, batch_size=16)),
    "langid": Case(_load("langid"), TEXT_CNN, ADAMW),
    "langid_kind": Case(_load("langid_kind"), TEXT_CNN, ADAMW),
    "text": Case(_load("text", **REVIEWS, labels="Rating"), TEXT_CNN, ADAMW),
    "reviews": Case(_load("text", **REVIEWS, labels=["Rating", "Recommended IND", "Department Name"]), TEXT_CNN, ADAMW),
    "entities": Case(_load("entities"), TEXT_CNN, ADAMW),
    "tagging": Case(_load_tagging, TEXT_CNN, ADAMW),
    "tabular": Case(_load_tabular, Part.of("table_mlp", width=16), Part.of("adamw", epochs=8, batch_size=16)),
    "signals": Case(_load_signals, Part.of("cnn1d", width=8, depth=1, stages=2), Part.of("adamw", epochs=8)),
    "ratings": Case(_load("ratings"), Part.of("interaction", embedding=8, width=32, depth=1), RECOMMEND),
    "ranking": Case(_load("ranking"), Part.of("two_tower", embedding=32, depth=0, tower=32), RECOMMEND),
    "recommendation": Case(
        _load("recommendation"),
        Part.of("two_tower", embedding=24, depth=0, tower=24, sharing="shared_bottom"),
        RECOMMEND,
    ),
    "module": Case(_load_module, Part(FROM_TEACHER), Part.of("adamw", epochs=8)),
}


def measure_case(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Return the shares of equal predictions of one case, the smallest over its heads.

    Args:
        name: Name of the case.
        seed: Seed of the splits and of the training.
        folder: An empty folder.
    """
    case = CASES[name]
    task = case.load(folder)
    splits = task.splits(seed)
    torch.manual_seed(seed)
    model = task.build(case.student)
    fit(model, FitRequest(task, splits.train, case.fit, seed=seed))
    deployable = _quantize(task, case, model.eval(), splits.calibration, seed)
    artifact = write_artifact(folder / "artifact", deployable, {})
    outputs = predict(deployable.model, task, splits.test)
    predictions = {head: as_head(task.heads[head]).predict(values) for head, values in outputs.items()}
    metric = Metric("mean_ap" if "boxes" in task.heads else "accuracy", task.heads)
    accuracy = (
        metric.by_head(outputs, splits.test.targets)
        if metric.name == "mean_ap"
        else {name: float((own == splits.test.targets[name]).double().mean()) for name, own in predictions.items()}
    )
    # No tolerance: the table shows what there is.
    found = verify(artifact, splits.test, task.heads, accuracy, predictions, tolerance=1, agreement=0, metric=metric)
    raw = verify_pipeline(artifact, task.list_test_examples(seed), task.heads, predictions, agreement=0)
    return {
        "case": name,
        "seed": seed,
        "examples": len(splits.test),
        "raw": min(raw.values()),
        "onnx": min(found.agreement.values()),
        "accuracy": min(accuracy.values()),
    }


def _quantize(task: Task, case: Case, model: nn.Module, calibration: Split, seed: int) -> Deployable:
    """Return the model with 8-bit weights and activations, and all that its artifact holds."""
    part = Part.of("post_training", weight_bits=8, activation_bits=case.activation_bits)
    method = QUANTIZE.get(part.name)
    context = Context(task.example(), (calibration.take(slice(0, 256)).inputs,))
    quantized, state = method.apply(model, method.config.of(part.values), context)
    config = CompressionConfig(case.student, (), case.fit, None, part, seed)
    return Deployable.from_task(task, seed, config, RebuiltCandidate(model, quantized, None, state))


def format_table(rows: list[dict[str, Any]]) -> str:
    """Return the table: the smallest share over the seeds of each case."""
    lines = [
        "| space | seeds | test examples | raw input = module | model.onnx = module | accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for name in CASES:
        group = [row for row in rows if row["case"] == name]
        if group:
            raw, onnx = (min(row[column] for row in group) for column in ("raw", "onnx"))
            accuracy = sum(row["accuracy"] for row in group) / len(group)
            lines.append(
                f"| {name} | {len(group)} | {group[0]['examples']:,} | {raw:.2%} | {onnx:.2%} | {accuracy:.3f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark, store each row at once, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spaces", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rows", type=Path, default=Path("reports/raw_input.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/raw_input.md"))
    arguments = parser.parse_args()
    with reproducible_torch():
        for seed in range(arguments.seeds):
            measured = {(row["case"], row["seed"]) for row in load_rows(arguments.rows)}
            for name in arguments.spaces:
                if (name, seed) not in measured:
                    with tempfile.TemporaryDirectory() as folder:
                        append_row(arguments.rows, measure_case(name, seed, Path(folder)))
    table = format_table(load_rows(arguments.rows))
    lines = ["# Predictions from raw input", "", describe_benchmark(__doc__), "", table, ""]
    write_atomic(arguments.out, "\n".join(lines))
    print(table)


if __name__ == "__main__":
    main()
