"""A detector of drawn shapes, searched and exported: `python -m benchmarks.detection [--images 600 --seeds 1]`.

Squares, discs, triangles and crosses, one to four of them and of 12 to 40 pixels, are drawn in random greys on images
of noise, 96 x 96 pixels, and written with COCO's annotations. The shipped space `detection` is searched on them with
the changes of `--set`; the teacher is trained for 40 epochs in floating point. The row shows the teacher and
the candidate that the shipped rule recommends, at most 1 point of mAP lost on the selection split, among the candidates
with at most 8 bits and at most half of the teacher's multiply-accumulates (MACs); mAP is that of the test split. It is
exported, verified, and loaded from its files with pickle disabled; the share of boxes is that of pipeline.py on the
image files which the searched model predicts too.
"""

import argparse
import json
import pickle
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image, ImageDraw

import autocompress
from autocompress.core.atomic import write_atomic
from autocompress.core.formatting import format_count, format_duration, format_factor
from autocompress.export import pipeline
from autocompress.export.artifact import load_artifact
from autocompress.export.candidate import export_candidate
from benchmarks.common import append_row, describe_benchmark, load_rows

SIDE = 96
# Prefix of the columns of bits.
BITS = "quantize.post_training."
SHAPES = ("square", "disc", "triangle", "cross")


@dataclass(frozen=True)
class DrawnTask:
    """A task on drawn images, and the figure that a search of its shipped space is to reach.

    Attributes:
        space: Name of the task and of its space.
        title: Title of the report.
        scores: Columns of the primary score and of a second one.
        labels: Names of both scores in the table.
        share: Largest share of the teacher's multiply-accumulates.
        agreement: Title of the share of predictions from files that are those of the model.
        write: Function of an empty folder, a number of images and a seed that writes the data and returns the folder.
    """

    space: str
    title: str
    scores: tuple[str, str]
    labels: tuple[str, str]
    share: float
    agreement: str
    write: Callable[[Path, int, int], Path]


def write_shapes(folder: Path, count: int, seed: int) -> Path:
    """Write images of shapes with COCO's annotations, and return the folder.

    Args:
        folder: An empty folder.
        count: Number of images.
        seed: Seed of the drawing.
    """
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    images: list[Mapping[str, object]] = []
    annotations: list[Mapping[str, object]] = []
    for number in range(count):
        image = Image.fromarray(random.integers(0, 256, (SIDE, SIDE), dtype=np.uint8))
        for box in draw_boxes(random):
            kind = int(random.integers(len(SHAPES)))
            draw_shape(image, SHAPES[kind], box, int(random.integers(256)))
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": kind + 1, "bbox": box}
            annotations.append(entry)
        name = f"{number:04}.png"
        image.save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
    categories = [{"id": number, "name": name} for number, name in enumerate(SHAPES, 1)]
    record = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(record))
    return folder


def draw_boxes(random: np.random.Generator) -> list[list[int]]:
    """Return one to four boxes of an image that do not overlap: x, y, width and height."""
    boxes: list[list[int]] = []
    wanted = int(random.integers(1, 5))
    # A box that overlaps another one is drawn again, a few times.
    for _ in range(20):
        width, height = (int(value) for value in random.integers(12, 41, 2))
        x, y = int(random.integers(0, SIDE - width)), int(random.integers(0, SIDE - height))
        is_free = all(
            x >= left + across or left >= x + width or y >= top + down or top >= y + height
            for left, top, across, down in boxes
        )
        if is_free and len(boxes) < wanted:
            boxes.append([x, y, width, height])
    return boxes


def draw_shape(image: Image.Image, name: str, box: list[int], grey: int) -> None:
    """Draw a shape that fills a box."""
    x, y, width, height = box
    right, bottom = x + width - 1, y + height - 1
    draw = ImageDraw.Draw(image)
    if name == "square":
        draw.rectangle((x, y, right, bottom), fill=grey)
    elif name == "disc":
        draw.ellipse((x, y, right, bottom), fill=grey)
    elif name == "triangle":
        draw.polygon([(x, bottom), (right, bottom), (x + width // 2, y)], fill=grey)
    else:
        draw.rectangle((x + width // 3, y, right - width // 3, bottom), fill=grey)
        draw.rectangle((x, y + height // 3, right, bottom - height // 3), fill=grey)


DETECTION = DrawnTask(
    "detection",
    "A detector of drawn shapes",
    ("mean_ap", "mean_ap_50"),
    ("mAP", "at 0.5"),
    0.5,
    "same boxes from files",
    write_shapes,
)


def measure_seed(drawn: DrawnTask, seed: int, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the row of one data set and search.

    Args:
        drawn: The task.
        seed: Seed of the drawing and of the search.
        arguments: Options of the command line.
        folder: An empty folder.
    """
    data = drawn.write(folder / "data", arguments.images, seed)
    settings = [f"task.{drawn.space}.path={data}", f"search.seed={seed}", *arguments.set]
    front = autocompress.search(drawn.space, name=f"shapes-{seed}", runs=arguments.runs, overrides=settings)
    teacher = front.info.teacher
    most = drawn.share * teacher.costs["flops"]
    selected = front.pick(where=f"flops <= {most:.0f} and {BITS}weight_bits <= 8")
    exported = export_candidate(front.folder, selected.id)
    assert exported.verification is not None
    load_without_pickle(exported.folder, next((data / "images").iterdir()))
    row, tested, (first, second) = selected.row, teacher.scores["test"], drawn.scores
    return {
        "seed": seed,
        "images": arguments.images,
        "teacher": tested[first],
        "teacher_second": tested[second],
        "teacher_macs": teacher.costs["flops"] / 2,
        "teacher_bytes": teacher.costs["bytes"],
        "id": selected.id,
        "score": row[f"{first}_test"],
        "score_second": row[f"{second}_test"],
        "macs": row["flops"] / 2,
        "bytes": row["bytes"],
        "bits": f"{row[f'{BITS}weight_bits']:.0f}/{row[f'{BITS}activation_bits']:.0f}",
        "agreement": min(exported.verification.pipeline_agreement.values()),
        "seconds": front.info.seconds or 0.0,
    }


def load_without_pickle(folder: Path, image: Path) -> None:
    """Load an exported model as a module and as a pipeline, and predict one file, while unpickling raises an error.

    Raises:
        AssertionError: A file was unpickled.
    """
    refused = AssertionError("a file was unpickled")
    with mock.patch.multiple(pickle, loads=mock.Mock(side_effect=refused), load=mock.Mock(side_effect=refused)):
        load_artifact(folder)
        pipeline.load(folder).predict(image)


def format_table(drawn: DrawnTask, rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of the rows."""
    first, second = drawn.labels
    titles = [
        *("seed", "images", f"teacher: {first} ({second})", "candidate", "bits", f"{first} ({second})", "difference"),
        *("MACs", "bytes", drawn.agreement, "search"),
    ]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        macs, size = (
            f"{format_count(row[f'teacher_{name}'])} → {format_count(row[name])} "
            f"({format_factor(row[f'teacher_{name}'] / row[name])})"
            for name in ("macs", "bytes")
        )
        lines.append(
            f"| {row['seed']} | {row['images']} | {row['teacher']:.4f} ({row['teacher_second']:.4f}) | {row['id']} "
            f"| {row['bits']} | {row['score']:.4f} ({row['score_second']:.4f}) "
            f"| {row['score'] - row['teacher']:+.4f} | {macs} | {size} | {row['agreement']:.2%} "
            f"| {format_duration(row['seconds'])} |"
        )
    return "\n".join(lines)


def run_benchmark(drawn: DrawnTask, document: str | None) -> None:
    """Measure each seed of the command line, store its row at once, and write the table.

    Args:
        drawn: The task.
        document: Docstring of the benchmark.
    """
    name = f"benchmarks.{drawn.space}"
    parser = argparse.ArgumentParser(description=document)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change keys of the space")
    parser.add_argument("--runs", type=Path, default=Path("reports"))
    parser.add_argument("--rows", type=Path, default=Path(f"reports/{drawn.space}.jsonl"))
    parser.add_argument("--out", type=Path, default=Path(f"reports/benchmarks/{drawn.space}.md"))
    arguments = parser.parse_args()
    for seed in range(arguments.seeds):
        if seed not in {row["seed"] for row in load_rows(arguments.rows)}:
            with tempfile.TemporaryDirectory() as folder:
                append_row(arguments.rows, measure_seed(drawn, seed, arguments, Path(folder)))
    table = format_table(drawn, load_rows(arguments.rows))
    options = ["--images", str(arguments.images), "--seeds", str(arguments.seeds)]
    command = shlex.join([*options, *(["--set", *arguments.set] if arguments.set else [])])
    parts = [f"# {drawn.title}", f"`python -m {name} {command}`", describe_benchmark(document), table]
    write_atomic(arguments.out, "\n\n".join(parts) + "\n")
    print(table)


if __name__ == "__main__":
    run_benchmark(DETECTION, __doc__)
