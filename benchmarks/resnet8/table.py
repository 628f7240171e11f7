"""The page of ResNet-8: points of each way, sizes at equal accuracy, and the published points beside ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import describe_benchmark, describe_processor
from benchmarks.variants import format_mean

TITLES = {
    "float": "ResNet-8 in floating point (the teacher)",
    "w8a8": "ResNet-8 in 8 bits",
    "w8a8_trained": "ResNet-8 in 8 bits, trained on",
    "whole": "ResNet-8 in 6 to 3 bits, by layer or the same in all, without training",
    "joint": "joint search: pruning and bits",
    "plinio": "PLiNIO's MPS, the public code of Motetti et al.",
}
#: Accuracy in percent of the publication in floating point.
PUBLISHED_FLOAT = 86.1
#: Kilobytes and accuracies that were read off the figure of Motetti et al. 2024 (arXiv:2407.01054), to 0.3 points.
PUBLISHED = {
    "w8a8": [(77.0, 86.3)],
    "w4a8": [(38.7, 85.5)],
    "w2a8": [(19.3, 71.8)],
    "joint": [(59.7, 86.2), (26.7, 84.4), (15.3, 81.9), (5.9, 72.8), (2.9, 62.0)],
    "sequential": [(33.9, 85.3), (22.3, 84.2), (13.2, 79.0), (9.7, 75.8), (8.9, 66.8)],
}
#: Kilobytes that the publication saves at the accuracy of its own 8 bits, in percent.
PUBLISHED_SAVING = 47.5
GOAL_SHARE, GOAL_SAVING = 2 / 3, 65.0
#: What was tried beside the settings of the page.
NOTES = """\
## What was tried

One seed. Each way had a thread of two for itself; the other one was busy with other searches. MPS searches for half
of its time and fine-tunes for the other half, with two strengths of the size; its choice of bits has 100 times the
authors' learning rate, because its steps are so few, and was not tuned further. With six epochs instead of the
authors' hundreds, its row is no statement on their method. The seconds of the joint search contain its preparation
and the scores of its front on the test images. The teacher is trained for few epochs, too, so that losses against it
are smaller than against a network that is trained to its end; it was trained before images that look like others of
another split were left out.

In a first run, on a machine that was busy with two other jobs, PLiNIO had 263 seconds of processor time and reached
65.5% at 37.1 kB, and the joint search had 398 seconds: 27.8 kB 79.4%, 18.9 kB 76.3%, 9.8 kB 70.1%, 2.7 kB 58.6%.

An earlier space of the joint search in the same 10 minutes, one seed: 2 epochs of a student and 2 of a training under
rounding, shares 0, 0.15, 0.3, 0.45, 0.6 and 0.7, post-training quantization to 8, 6 and 5 bits, learned steps with 4, 3
and 2 bits. Its front: 3.7 kB 62.5%, 4.6 kB 63.9%, 8.0 kB 69.9%, 14.9 kB 74.5%, 23.6 kB 76.9%, 37.8 kB 77.3%.

Bits by layer are not trained in these rows. Measured apart, on the whole network after one epoch as a student, with
two epochs under rounding (one seed; kilobytes and test accuracy): learned steps with 2 bits in all layers 19.3 kB
75.6%, with 3 bits 29.0 kB 78.0%; the same training with bits by layer (`mixed_precision` with `epochs`), 2.4 on
average 23.2 kB 78.3%, 3.0 on average 29.0 kB 79.2%. In the place of learned steps, it did not help the search in 10
minutes (its front had 2.2 kB 58.4%, 9.8 kB 70.2%, 18.9 kB 76.8%, 23.6 kB 77.1%): the sensitivities took as long as an
epoch, so fewer models were tried. They are measured on fewer examples since.

Channels that are removed where they matter least (`allocation: adaptive, budget: parameters`) leave more accuracy
than the same share in every layer: after one epoch as a student, in floating point and with the size of 8 bits, 37.6
kB 78.0% against 37.8 kB 76.9%, and 19.2 kB 72.9% against 19.6 kB 72.0%. The search of the table does not use them;
they take some 45 seconds more for each student.

Both together in 10 minutes (shares 0, 0.3, 0.5 and 0.7, budgets of 2.2, 2.6 and 3.2 bits, 256 examples) do not help
either: 2.2 kB 57.7%, 4.3 kB 60.3%, 9.6 kB 71.6%, 14.4 kB 72.5%, and nothing larger.

No method of the catalogue assigns bits to single channels."""

Points = Sequence[Mapping[str, Any]]


def find_size(points: Points, accuracy: float) -> float | None:
    """Return the kilobytes of the smallest model with at least this test accuracy; ``None`` without one.

    Example:
        >>> find_size([{"kilobytes": 20.0, "test": 0.8}, {"kilobytes": 9.0, "test": 0.7}], 0.75)
        20.0
    """
    return min((point["kilobytes"] for point in points if point["test"] >= accuracy), default=None)


def list_front(points: Points) -> list[Mapping[str, Any]]:
    """Return the points that no smaller one matches in validation accuracy, from small to large."""
    front: list[Mapping[str, Any]] = []
    for point in sorted(points, key=lambda point: (point["kilobytes"], -point["val"])):
        if not front or point["val"] > front[-1]["val"]:
            front.append(point)
    return front


def format_page(rows: Sequence[Mapping[str, Any]], document: str | None) -> str:
    """Return the page in Markdown.

    Args:
        rows: Stored rows, one for each way and seed.
        document: Docstring of the benchmark.
    """
    groups = {way: [row for row in rows if row["way"] == way] for way in TITLES}
    settings = rows[0]["settings"]
    images = (
        "44,000 of the 50,000 images train"
        if settings["limit"] is None
        else f"at most {settings['limit']} images of each class"
    )
    lines = [
        "# ResNet-8 on CIFAR-10: accuracy against kilobytes",
        "",
        "`python -m benchmarks.resnet8`",
        "",
        describe_benchmark(document),
        "",
        f"Measured on one thread of: {describe_processor()}. {settings['seconds'] / 60:g} minutes for each way and "
        f"seed, {settings['teacher_epochs']} epochs of the teacher, {settings['epochs']} epochs of a student, "
        f"{2 * settings['epochs']} of a training under rounding; {images}, the others calibrate and validate.",
        "",
        "| way | seeds | seconds | of the processor | models | best test accuracy | its kB | remark |",
        "|" + "---|" * 8,
        *(_format_way(way, group) for way, group in groups.items() if group),
        "",
        *_format_fronts(groups),
        *_format_savings(groups),
        *_format_published(groups),
        NOTES,
        "",
    ]
    return "\n".join(lines)


def _format_way(way: str, rows: Points) -> str:
    best = [max(row["points"], key=lambda point: point["val"]) for row in rows if row["points"]]
    errors = "; ".join(dict.fromkeys(row["error"] for row in rows if row["error"])).replace("|", "/")
    epochs = [row["epochs"] for row in rows if row["epochs"]]
    processor = [row["processor_seconds"] for row in rows if "processor_seconds" in row]
    remark = "; ".join(filter(None, [f"{sum(epochs) / len(epochs):.1f} epochs in all" if epochs else "", errors]))
    cells = [
        TITLES[way],
        str(len(rows)),
        f"{sum(row['seconds'] for row in rows) / len(rows):.0f}",
        f"{sum(processor) / len(processor):.0f}" if processor else "–",
        f"{sum(len(row['points']) for row in rows) / len(rows):.1f}",
        _format_mean([100 * point["test"] for point in best], 1) if best else "–",
        _format_mean([point["kilobytes"] for point in best], 1) if best else "–",
        remark,
    ]
    return f"| {' | '.join(cells)} |"


def _format_fronts(groups: Mapping[str, Points]) -> list[str]:
    lines = [
        "## Models",
        "",
        "| way | seed | kB | test accuracy | below the reference, points |",
        "|---|---|---|---|---|",
    ]
    for way, rows in groups.items():
        for row in rows:
            reference = _reference_accuracy(groups, row["seed"])
            for point in list_front(row["points"]):
                figures = [point["kilobytes"], 100 * point["test"], 100 * (reference - point["test"])]
                lines.append(f"| {TITLES[way]} | {row['seed']} | {' | '.join(f'{figure:.1f}' for figure in figures)} |")
    return [*lines, ""]


def _format_savings(groups: Mapping[str, Points]) -> list[str]:
    lines = [
        "## At the accuracy of the own 8 bits",
        "",
        f"Kilobytes that are saved at no less than the test accuracy of ResNet-8 in 8 bits (the better one); the "
        "joint search counts with the whole network in fewer bits, here and in the next table. "
        f"Goal: {GOAL_SAVING:.0f}%; "
        f"Motetti et al. publish {PUBLISHED_SAVING}%.",
        "",
        "| way | seeds | allowed loss, points | kB | saved |",
        "|---|---|---|---|---|",
    ]
    for way in ("joint", "plinio"):
        pairs = [
            (_own_points(groups, row), eight) for row in groups[way] if (eight := _find_eight_bits(groups, row["seed"]))
        ]
        for loss in (0.0, 0.5, 1.0, 2.0) if pairs else ():
            sizes = [find_size(points, reference["test"] - loss / 100) for points, reference in pairs]
            saved = [
                100 * (1 - size / reference["kilobytes"])
                for size, (_, reference) in zip(sizes, pairs, strict=True)
                if size is not None
            ]
            share = f"{_format_mean(saved, 1)}%" if saved else "–"
            lines.append(f"| {TITLES[way]} | {len(pairs)} | {loss:g} | {_format_sizes(sizes)} | {share} |")
    return [*lines, ""]


def _format_published(groups: Mapping[str, Points]) -> list[str]:
    lines = [
        "## At the losses of the published points",
        "",
        f"Each published point of the joint method loses some points against its own network in floating point "
        f"({PUBLISHED_FLOAT}%). The table has the kilobytes of the smallest model that loses no more here against the "
        "reference, the best of the teacher and the networks in 8 bits, and the ratio of both sizes. "
        f"Goal: {GOAL_SHARE:.2f}.",
        "",
        "| published kB | accuracy | loss, points | joint search, kB | ratio | PLiNIO here, kB | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for kilobytes, accuracy in PUBLISHED["joint"]:
        cells = [f"{kilobytes:.1f}", f"{accuracy:.1f}", f"{PUBLISHED_FLOAT - accuracy:.1f}"]
        for way in ("joint", "plinio"):
            loss = (PUBLISHED_FLOAT - accuracy) / 100
            sizes = [find_size(row["points"], _reference_accuracy(groups, row["seed"]) - loss) for row in groups[way]]
            ratios = [size / kilobytes for size in sizes if size is not None]
            cells += [_format_sizes(sizes), _format_mean(ratios, 2) if ratios else "–"]
        lines.append(f"| {' | '.join(cells)} |")
    others = "; ".join(
        f"{name} {', '.join(f'{size} kB {accuracy}%' for size, accuracy in PUBLISHED[name])}"
        for name in ("w8a8", "w4a8", "w2a8", "sequential")
    )
    return [*lines, "", f"The other published points: {others}.", ""]


def _format_mean(values: Sequence[float], digits: int) -> str:
    """Return the mean, with its standard error where there is one."""
    return format_mean(values, digits) if len(values) > 1 else f"{values[0]:.{digits}f}"


def _format_sizes(sizes: Sequence[float | None]) -> str:
    """Return the mean of the sizes of the seeds, and in how many of them no model qualifies."""
    found = [size for size in sizes if size is not None]
    if not found:
        return "none"
    missing = f", none in {len(sizes) - len(found)}" if len(found) < len(sizes) else ""
    return _format_mean(found, 1) + missing


def _own_points(groups: Mapping[str, Points], row: Mapping[str, Any]) -> Points:
    """Return the front of a row; that of the joint search contains the whole network with fewer bits."""
    whole = groups["whole"] if row["way"] == "joint" else ()
    return list_front([point for part in (row, *whole) for point in part["points"]])


def _reference_accuracy(groups: Mapping[str, Points], seed: int) -> float:
    """Return the best test accuracy of the teacher and of the networks in 8 bits with this seed."""
    points = [point for row in groups["float"] for point in row["points"]]
    eight = _find_eight_bits(groups, seed)
    return max((float(point["test"]) for point in [*points, *([eight] if eight else [])]), default=float("nan"))


def _find_eight_bits(groups: Mapping[str, Points], seed: int) -> Mapping[str, Any] | None:
    """Return the network in 8 bits with the better test accuracy: at once, or trained on with this seed."""
    rows = [*groups["w8a8"], *(row for row in groups["w8a8_trained"] if row["seed"] == seed)]
    # A network that was trained on is measured in floating point as well, which is larger.
    points = [min(row["points"], key=lambda point: float(point["kilobytes"])) for row in rows if row["points"]]
    return max(points, key=lambda point: float(point["test"]), default=None)
