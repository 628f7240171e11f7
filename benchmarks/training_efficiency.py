"""Ways to train in less time against plain training, on a subset of CIFAR-10: epochs and processor time to a score.

Plain training has no augmentation and a constant learning rate. The stated score is what plain training reaches at its
best, on average over the seeds; each case is measured by the epochs, the examples and the processor seconds that it
takes to reach it on the test split. Two processes and students trained as one batch do the same work in another way, so
they are compared by the time of an epoch, in alternation with plain training.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F

from autocompress.core.config import Part
from autocompress.core.knobs import Leaf
from autocompress.core.task import Splits
from autocompress.measure.quality import accuracy
from autocompress.tasks.images_folder import Images
from autocompress.training.fit import FitRequest, fit, predict
from autocompress.trial.pipeline import reproducible_torch
from benchmarks.common import append_row, load_rows
from benchmarks.comparison import format_gain, format_header, format_mean, wrap_paragraph
from benchmarks.variants import mean_and_error

STUDENT = Part.of("cnn", width=8, depth=1, stages=3, block="plain")
FIT: Mapping[str, Leaf] = {"epochs": 24, "learning_rate": 1e-2, "batch_size": 64}
STACKED, STEPS, ROUNDS, WARM_UP = 4, 6, 5, 1
# The time of an epoch is the difference of two fits, which both start the processes.
EPOCHS = (1, 5)


@dataclass(frozen=True)
class Case:
    """A way to train.

    Attributes:
        name: Title of the row.
        fit: Training settings that replace the plain ones.
        views: Number of augmented views of the training split.
    """

    name: str
    fit: Mapping[str, Leaf] = field(default_factory=dict)
    views: int = 1


PLAIN = Case("plain", {"schedule": "constant"})
CASES = (
    PLAIN,
    Case("one-cycle schedule", {"schedule": "one_cycle"}),
    Case("cosine schedule", {"schedule": "cosine"}),
    Case("plateau schedule", {"schedule": "plateau"}),
    Case("augmentation, constant schedule", {"schedule": "constant"}, views=8),
    Case("augmentation, one-cycle schedule", {"schedule": "one_cycle"}, views=8),
    Case("label smoothing 0.1, constant schedule", {"schedule": "constant", "label_smoothing": 0.1}),
)


class Laboratory:
    """A subset of CIFAR-10 with a small student.

    Args:
        folder: Folder with ``train/`` and ``test/``, class folders in each.
        limit: Training images of each class.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._tasks: dict[int, tuple[Images, Splits]] = {}

    def load(self, views: int) -> tuple[Images, Splits]:
        """Return the task with this number of augmented views and its splits."""
        if views not in self._tasks:
            task = Images(self._folder, limit=self._limit, views=views)
            self._tasks[views] = task, task.splits(0)
        return self._tasks[views]

    def run_case(self, case: Case, seed: int) -> dict[str, list[float]]:
        """Train one student and return its test accuracy and the processor seconds of training after each epoch."""
        task, splits = self.load(case.views)
        (head,) = task.heads
        torch.manual_seed(seed)
        model = task.build(STUDENT)
        curve: dict[str, list[float]] = {"accuracy": [], "seconds": []}
        spent, started = 0.0, time.process_time()

        def score_epoch(_: dict[str, float]) -> None:
            nonlocal spent, started
            # The score itself does not belong to the training.
            spent += time.process_time() - started
            logits = predict(model, task, splits.test)[head]
            curve["accuracy"].append(100 * accuracy(logits, splits.test.targets[head]))
            curve["seconds"].append(spent)
            started = time.process_time()

        optimizer = Part.of("adamw", **{**FIT, **case.fit})
        fit(model, FitRequest(task, splits.train, optimizer, seed=seed, on_epoch=score_epoch))
        return curve

    def time_epoch(self, processes: int) -> float:
        """Return the wall-clock seconds of an epoch with several processes, without their start."""
        few, many = (self._time_fit(processes, epochs) for epochs in EPOCHS)
        return (many - few) / (EPOCHS[1] - EPOCHS[0])

    def _time_fit(self, processes: int, epochs: int) -> float:
        task, splits = self.load(1)
        torch.manual_seed(0)
        model = task.build(STUDENT)
        optimizer = Part.of("adamw", **{**FIT, "epochs": epochs, "processes": processes})
        started = time.perf_counter()
        fit(model, FitRequest(task, splits.train, optimizer))
        return time.perf_counter() - started


def time_students_in_turn(models: Sequence[nn.Module], inputs: Tensor, targets: Tensor) -> float:
    """Return the processor seconds of some steps (forward and backward pass) of several students, one after another."""
    started = time.process_time()
    for _ in range(STEPS):
        for model in models:
            model.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
    return time.process_time() - started


def compute_stacked_gradients(models: Sequence[nn.Module]) -> Callable[[Tensor, Tensor], Mapping[str, Tensor]]:
    """Return a function from a batch to the gradients of all students, ``{parameter: [students, ...]}``.

    The students are one batched computation (https://docs.pytorch.org/tutorials/intermediate/ensembling.html).
    """
    parameters, buffers = stack_module_state(list(models))
    skeleton = models[0]

    def compute_gradients(inputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        def loss(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Tensor:
            output = functional_call(skeleton, (dict(weights), dict(state)), (inputs,))
            return F.cross_entropy(output, targets)

        gradients: Mapping[str, Tensor] = vmap(grad(loss))(parameters, buffers)
        return gradients

    return compute_gradients


def time_stacked_students(models: Sequence[nn.Module], inputs: Tensor, targets: Tensor) -> float:
    """Return the processor seconds of the same steps with all students as one batched computation."""
    compute_gradients = compute_stacked_gradients(models)
    started = time.process_time()
    for _ in range(STEPS):
        compute_gradients(inputs, targets)
    return time.process_time() - started


def compare_times(ours: Callable[[], float], plain: Callable[[], float], rounds: int) -> list[float]:
    """Return the ratio of two times in each round, measured in alternation after a warm-up."""
    ratios = []
    for number in range(rounds + WARM_UP):
        first, second = plain(), ours()
        if number >= WARM_UP:
            ratios.append(second / first)
    return ratios


def count_epochs_to(curve: Sequence[float], target: float) -> int | None:
    """Return the number of epochs after which a score is reached for the first time; ``None`` if it never is.

    Example:
        >>> count_epochs_to([30.0, 41.0, 40.0], 40.0)
        2
    """
    return next((epoch for epoch, value in enumerate(curve, 1) if value >= target), None)


Curves = Mapping[tuple[str, int], Mapping[str, Sequence[float]]]


def format_cases(curves: Curves, seeds: int, examples: int) -> list[str]:
    """Return the lines of the table of cases: final score, and epochs, examples and seconds to the stated score.

    Args:
        curves: Accuracy and seconds after each epoch, by case and seed.
        seeds: Number of seeds.
        examples: Training examples of an epoch.
    """
    plain = [max(curves[PLAIN.name, seed]["accuracy"]) for seed in range(seeds)]
    target = statistics.fmean(plain)
    columns = (
        "training",
        "last epoch",
        "gain over plain",
        f"seeds that reach {target:.1f}%",
        "epochs to it",
        "examples to it",
        "processor time to it, s",
    )
    lines = format_header(columns)
    for case in CASES:
        values = [curves[case.name, seed] for seed in range(seeds)]
        last = [row["accuracy"][-1] for row in values]
        base = [curves[PLAIN.name, seed]["accuracy"][-1] for seed in range(seeds)]
        reached = [
            (epochs, row["seconds"][epochs - 1])
            for row in values
            if (epochs := count_epochs_to(row["accuracy"], target)) is not None
        ]
        cells = [case.name, format_mean(last), "–" if case is PLAIN else format_gain(last, base)]
        cells.append(f"{len(reached)} of {seeds}")
        if reached:
            mean, seconds = (statistics.fmean(column) for column in zip(*reached, strict=True))
            cells += [f"{mean:.1f}", f"{mean * examples:,.0f}", f"{seconds:.1f}"]
        else:
            cells += ["–"] * 3
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def measure_parallel_training(laboratory: Laboratory, rounds: int) -> dict[str, list[float]]:
    """Return the time of other ways to do the same work relative to the plain way, one ratio for each round."""
    task, splits = laboratory.load(1)
    (head,) = task.heads
    batch = splits.train.take(slice(0, int(str(FIT["batch_size"]))))
    torch.manual_seed(0)
    models = [task.build(STUDENT).train() for _ in range(STACKED)]
    arguments = models, batch.inputs[0], batch.targets[head]
    return {
        f"{STACKED} students as one batched computation, against one after another (processor time of a step)": (
            compare_times(lambda: time_stacked_students(*arguments), lambda: time_students_in_turn(*arguments), rounds)
        ),
        "2 processes against 1 (wall-clock time of an epoch, without the start of the processes)": compare_times(
            lambda: laboratory.time_epoch(2), lambda: laboratory.time_epoch(1), rounds
        ),
    }


def format_page(curves: Curves, ratios: Mapping[str, Sequence[float]], seeds: int, examples: int, limit: int) -> str:
    """Return the page: the table of cases and the table of ratios."""
    lines = [
        "# Training efficiency on a subset of CIFAR-10",
        "",
        wrap_paragraph(
            f"""{limit} images of each class, {examples:,} of them for training; a plain convolutional student of width
            8, batch {FIT["batch_size"]}, {FIT["epochs"]} epochs. Test accuracy in percent, mean and
            standard error over {seeds} seeds; the gain is paired by seed, and a star marks one beyond
            two standard errors. The stated score is the mean over the seeds of the best epoch of plain
            training; epochs, examples and processor seconds are means over the seeds that reach it.
            Plain: no augmentation, constant learning rate."""
        ),
        "",
        *format_cases(curves, seeds, examples),
        "",
        "| same work in another way | time, ours / plain |",
        "|---|---|",
    ]
    for title, values in ratios.items():
        mean, error = mean_and_error(values)
        lines.append(f"| {title} | {mean:.2f} ± {error:.2f} |")
    return "\n".join([*lines, ""])


def run_section(folder: Path, limit: int, seeds: int, results_file: Path) -> str:
    """Run the benchmark and return its page; stored curves are not computed again.

    Args:
        folder: CIFAR-10: ``train/`` and ``test/`` with class folders.
        limit: Training images of each class.
        seeds: Number of seeds.
        results_file: File of JSON lines with the curves.
    """
    curves = {(row["case"], row["seed"]): row["values"] for row in load_rows(results_file)}
    laboratory = Laboratory(folder, limit)
    with reproducible_torch():
        for case in CASES:
            for seed in range(seeds):
                if (case.name, seed) not in curves:
                    curves[case.name, seed] = laboratory.run_case(case, seed)
                    append_row(results_file, {"case": case.name, "seed": seed, "values": curves[case.name, seed]})
        ratios = measure_parallel_training(laboratory, ROUNDS)
    examples = len(laboratory.load(1)[1].train)
    return format_page(curves, ratios, seeds, examples, limit)
