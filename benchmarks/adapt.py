"""Adaptation to recent data: `python -m benchmarks.adapt [--seeds 3] [--minutes 1]`.

For each seed a student is trained under distillation and quantized, as in a search. Then its data changes: digits
become overexposed or noisy, and generated ratings drift in the order of time. The student is adapted with 432 recent
images or 8,000 recent ratings, with and without labels, and scored on later examples that no stage has seen (359
images, 8,000 ratings): unchanged, with statistics and ranges estimated again, and after fine-tuning. "kept" is the
stage that the adaptation selects, on recent examples only; "earlier" are test examples from before the change, before
and after.

Rows are stored, so that more seeds can be added later.
"""

import argparse
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autocompress.core.atomic import write_atomic
from autocompress.core.config import CompressionConfig, Part
from autocompress.core.registry import TASKS
from autocompress.core.task import InputSpec, Split, Splits
from autocompress.measure import measure
from autocompress.tasks.base import Supervised, stratify_examples
from autocompress.trial.adapt import FINE_TUNED, REESTIMATED, UNCHANGED, AdaptRequest, adapt_candidate
from autocompress.trial.pipeline import (
    RebuiltCandidate,
    Setup,
    TrialPipeline,
    load_pipeline,
    reproducible_torch,
)
from autocompress.trial.recent_data import RecentData
from autocompress.trial.teacher import TeacherRecipe
from benchmarks.common import append_row, describe_benchmark, load_rows
from benchmarks.variants import mean_and_error

OUT = Path("reports/benchmarks/adapt.md")
STAGES = (UNCHANGED, REESTIMATED, FINE_TUNED)
QUANTIZATIONS = {
    "int8": Part.of("post_training", weight_bits=8, activation_bits=8),
    "4-bit": Part.of("post_training", weight_bits=4, activation_bits=8),
}
# Mean and deviation of the digits' pixels, by which the task normalizes them.
PIXEL_MEAN, PIXEL_DEVIATION = 0.3, 0.38


@dataclass(frozen=True)
class Row:
    """Scores of one adaptation on later examples.

    Attributes:
        task: Task with its change.
        bits: Quantization of the student.
        labels: Whether the recent examples had labels.
        seed: Seed of student, change and adaptation.
        examples: Number of recent examples.
        metric: Name of the score.
        teacher: Score of the unchanged teacher on the later examples.
        scores: Score by stage on the later examples.
        selected: The stage that was kept.
        earlier: Score before and after on the test split from before the change.
        seconds: Seconds of the adaptation.
    """

    task: str
    bits: str
    labels: bool
    seed: int
    examples: int
    metric: str
    teacher: float
    scores: dict[str, float]
    selected: str
    earlier: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Change:
    """A task and a change of its data.

    Attributes:
        name: Name in the table.
        task: The task.
        student: Architecture of the student.
        fit: Training of the student.
        recent: Function of the pipeline and the seed that returns recent and later examples.
        is_ordered: Whether the recent examples are in the order of time.
    """

    name: str
    task: Part
    student: Part
    fit: Part
    recent: Callable[[TrialPipeline, int], tuple[Split, Split]]
    is_ordered: bool = False


def change_images(kind: str) -> Callable[[TrialPipeline, int], tuple[Split, Split]]:
    """Return a function that changes images that the student has not seen: the validation splits and the test split."""

    def draw_images(pipeline: TrialPipeline, seed: int) -> tuple[Split, Split]:
        generator = torch.Generator().manual_seed(seed)
        (head,) = pipeline.task.heads
        parts = (pipeline.splits.search_val, pipeline.splits.select_val)
        images = torch.cat([part.inputs[0] for part in parts])
        recent = Split(
            (change_pixels(images, kind, generator),), {head: torch.cat([part.targets[head] for part in parts])}
        )
        test = pipeline.splits.test
        return recent, Split((change_pixels(test.inputs[0], kind, generator),), test.targets)

    return draw_images


def change_pixels(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Return normalized images, overexposed or with Gaussian noise on each pixel."""
    pixels = images * PIXEL_DEVIATION + PIXEL_MEAN
    # Overexposed strokes are saturated: more than half of their levels become white.
    change = torch.tensor(0.5) if kind == "brightness" else 0.3 * torch.randn(pixels.shape, generator=generator)
    pixels = pixels + change
    return (pixels.clamp(0, 1) - PIXEL_MEAN) / PIXEL_DEVIATION


USERS, ITEMS, FACTORS = 400, 300, 6
RATINGS, EARLY_SHARE, RECENT_SHARE = 40_000, 0.6, 0.2


@TASKS.register("drifting_ratings")
class DriftingRatings(Supervised):
    """Generated ratings from 1 to 5 whose item biases and user tastes drift in the order of time.

    A random walk moves the bias of each item, and the tastes of each user turn from one set of factors to another
    (temporal dynamics as in Koren 2009). The task has the first 60% of the ratings; the others come later.

    Args:
        seed: Seed of the generator.
    """

    name = "drifting_ratings"
    inputs = (InputSpec((), vocabulary=USERS), InputSpec((), vocabulary=ITEMS))
    heads: Mapping[str, int] = {"rating": 5}
    labels: Mapping[str, list[str]] = {"rating": ["1", "2", "3", "4", "5"]}
    levels: Mapping[str, Tensor] = {"rating": torch.arange(1.0, 6.0)}
    metrics = ("rmse", "accuracy", "loss", "kl", "agreement", "retention")

    def __init__(self, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        time = np.linspace(0, 1, RATINGS)
        users, items = random.integers(USERS, size=RATINGS), random.integers(ITEMS, size=RATINGS)
        first, last, item_factors = (random.normal(size=(count, FACTORS)) for count in (USERS, USERS, ITEMS))
        angle = time * np.pi / 2
        tastes = np.cos(angle)[:, None] * first[users] + np.sin(angle)[:, None] * last[users]
        preference = (tastes * item_factors[items]).sum(1) / np.sqrt(FACTORS)
        bias = 0.4 * random.normal(size=ITEMS)[items] + 1.0 * random.normal(size=ITEMS)[items] * time
        values = 3.0 + 0.8 * preference + bias + 0.4 * random.normal(size=RATINGS)
        classes = np.clip(np.round(values), 1, 5).astype(np.int64) - 1
        self.examples = Split((torch.from_numpy(users), torch.from_numpy(items)), {"rating": torch.from_numpy(classes)})

    def splits(self, seed: int) -> Splits:
        """Return five splits of the early ratings."""
        early = self.examples.take(slice(0, int(EARLY_SHARE * RATINGS)))
        return stratify_examples(early.inputs, early.targets, seed)

    def teacher(self) -> tuple[Part, Part]:
        """Return a wide model of pairwise interactions, and its training config."""
        return (
            Part.of("interaction", embedding=32, width=128, depth=2),
            Part.of("adamw", epochs=8, learning_rate=5e-3, weight_decay=1.0, batch_size=256),
        )


def draw_ratings(pipeline: TrialPipeline, seed: int) -> tuple[Split, Split]:
    """Return the ratings after the early ones, and those after these."""
    assert isinstance(pipeline.task, DriftingRatings)
    examples = pipeline.task.examples
    bounds = [int(share * RATINGS) for share in (EARLY_SHARE, EARLY_SHARE + RECENT_SHARE)]
    return examples.take(slice(*bounds)), examples.take(slice(bounds[1], None))


DIGITS_FIT = Part.of("adamw", epochs=20, learning_rate=1e-2, batch_size=64)
DIGITS_STUDENT = Part.of("cnn", width=8, depth=1, stages=2)
CHANGES = {
    "digits, brightness": Change(
        "digits, brightness", Part("digits"), DIGITS_STUDENT, DIGITS_FIT, change_images("brightness")
    ),
    "digits, noise": Change("digits, noise", Part("digits"), DIGITS_STUDENT, DIGITS_FIT, change_images("noise")),
    "ratings, drift": Change(
        "ratings, drift",
        Part("drifting_ratings"),
        Part.of("interaction", embedding=8, width=32, depth=1),
        Part.of("adamw", epochs=6, learning_rate=5e-3, weight_decay=0.5, batch_size=256),
        draw_ratings,
        is_ordered=True,
    ),
}


def run(change: Change, seed: int, minutes: float) -> Iterator[Row]:
    """Train a student, and adapt it in each way.

    Args:
        change: The task and the change of its data.
        seed: Seed of student, change and adaptation.
        minutes: Time limit of each adaptation in minutes.
    """
    task = replace_seed(change.task, seed)
    student, fit = TASKS.get(task.name)(**task.values).teacher()
    setup = Setup(task, seed, TeacherRecipe(student, fit, seed), ("accuracy",), ("bytes",))
    with reproducible_torch():
        pipeline = load_pipeline(setup)
        distill = (Part.of("soft_target", temperature=2.0, alpha=0.5),)
        training = CompressionConfig(change.student, distill, change.fit, seed=seed)
        trained = pipeline.train(training)
        recent, later = change.recent(pipeline, seed)
        for bits, quantize in QUANTIZATIONS.items():
            model, state = pipeline.quantize(trained.model, training, quantize)
            candidate = RebuiltCandidate(trained.model, model, None, state)
            for labels in (True, False):
                request = AdaptRequest(
                    pipeline.task,
                    replace(training, quantize=quantize),
                    candidate,
                    RecentData(recent, labels, change.is_ordered),
                    pipeline.teacher.model,
                    minutes,
                    seed=seed,
                )
                yield measure_adaptation(change, bits, request, pipeline, later)


def replace_seed(task: Part, seed: int) -> Part:
    """Return a task whose data is generated by a seed; other tasks as they are."""
    return Part.of(task.name, seed=seed) if task.name == DriftingRatings.name else task


def measure_adaptation(change: Change, bits: str, request: AdaptRequest, pipeline: TrialPipeline, later: Split) -> Row:
    """Adapt a candidate, and return its scores on later examples and on the earlier test split."""
    metric = pipeline.task.metrics[0]

    def score(model: torch.nn.Module, split: Split) -> float:
        return measure(pipeline.build_subject(model, split, {}, [metric]), [metric])[metric]

    adapted = adapt_candidate(request)
    return Row(
        change.name,
        bits,
        request.recent.is_labelled,
        request.seed,
        len(request.recent.examples),
        metric,
        score(pipeline.teacher.model, later),
        {stage.name: score(stage.candidate.model, later) for stage in adapted.stages},
        adapted.selected.name,
        {
            "before": score(request.candidate.model, pipeline.splits.test),
            "after": score(adapted.selected.candidate.model, pipeline.splits.test),
        },
        adapted.seconds,
    )


COLUMNS = (
    "task",
    "model",
    "recent labels",
    "score",
    "teacher",
    *STAGES,
    "gain of the kept stage",
    "kept",
    "earlier, before → after",
    "seconds",
)


def format_table(rows: Sequence[Row]) -> list[str]:
    """Return the table in Markdown: means with standard errors over seeds."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for key in dict.fromkeys((row.task, row.bits, row.labels) for row in rows):
        group = [row for row in rows if (row.task, row.bits, row.labels) == key]
        stages = [[row.scores[stage] for row in group if stage in row.scores] for stage in STAGES]
        gains = [row.scores[row.selected] - row.scores[UNCHANGED] for row in group]
        kept = ", ".join(f"{stage} {count}" for stage, count in Counter(row.selected for row in group).items())
        earlier = " → ".join(format_mean([row.earlier[name] for row in group]) for name in ("before", "after"))
        cells = [
            key[0],
            key[1],
            "yes" if key[2] else "no",
            group[0].metric,
            format_mean([row.teacher for row in group]),
            *map(format_mean, stages),
            format_mean(gains),
            kept,
            earlier,
            f"{statistics.fmean(row.seconds for row in group):.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def format_mean(values: Sequence[float]) -> str:
    """Return the mean with its standard error.

    Example:
        >>> format_mean([0.5, 0.7])
        '0.600 ± 0.100'
    """
    mean, error = mean_and_error(values)
    return f"{mean:.3f} ± {error:.3f}"


def main() -> None:
    """Run what is not stored yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--changes", nargs="+", default=list(CHANGES), choices=list(CHANGES))
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    file = arguments.out.with_suffix(".jsonl")
    for seed in range(arguments.seeds):
        for name in arguments.changes:
            if not any((row["task"], row["seed"]) == (name, seed) for row in load_rows(file)):
                for row in list(run(CHANGES[name], seed, arguments.minutes)):
                    append_row(file, asdict(row))
                    print(row, flush=True)
    rows = [Row(**row) for row in load_rows(file)]
    text = "\n".join(
        [
            "# Adaptation to recent data",
            "",
            describe_benchmark(__doc__),
            "",
            f"Mean and standard error over {1 + max(row.seed for row in rows)} seeds. Smaller is better for rmse. "
            "Seconds were measured while other work used the machine.",
            "",
            *format_table(rows),
            "",
        ]
    )
    write_atomic(arguments.out, text)
    print(text)


if __name__ == "__main__":
    main()
