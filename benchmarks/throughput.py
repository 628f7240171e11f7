"""Training speed: `python -m benchmarks.throughput [--rounds 7]`.

Two ratios to plain training in single precision, on one thread: bfloat16 with channels last, and quantization-aware
training (qat, lsq). All variants run in turn in each round, so that load on the machine affects them alike. The ratio
is computed within each round; the table shows the median over the rounds with the smallest and the largest ratio.

`--part students` measures students of the shipped spaces instead: the fit of a trial relative to a bare loop that calls
torch alone (same model, examples, batch size, optimizer, clipping and schedule), and ways to make the bare loop faster.
Time is processor time of one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, replace_all_batch_norm_modules_, stack_module_state, vmap
from torch.nn import functional

from autocompress.core.atomic import write_atomic
from autocompress.core.config import Part
from autocompress.core.method import Context
from autocompress.core.registry import QUANTIZE, TASKS
from autocompress.core.task import InputSpec, Split, Task
from autocompress.models.base import build_family_model
from autocompress.tasks.tensors import Tensors
from autocompress.training.fit import FitRequest, fit
from autocompress.trial.pipeline import reproducible_torch
from benchmarks.common import describe_processor

STUDENTS: Mapping[str, Part] = {
    "plain, width 8": Part.of("cnn", width=8, depth=1, stages=3, block="plain"),
    "residual, width 16": Part.of("cnn", width=16, depth=2, stages=3, block="residual"),
}
IMAGE = InputSpec((3, 32, 32))
EXAMPLES, BATCH = 512, 128


class TrainingRace:
    """A student, random images of CIFAR-10's size, and one-epoch trainings that are timed.

    Args:
        student: Architecture of the student.
    """

    def __init__(self, student: Part) -> None:
        torch.manual_seed(0)
        images, labels = torch.randn(EXAMPLES, *IMAGE.shape), torch.arange(EXAMPLES) % 10
        self.task = Tensors((images, labels))
        self.train = Split((images,), {"label": labels})
        self.student = student

    def build_model(self) -> nn.Module:
        """Return the untrained student."""
        torch.manual_seed(0)
        return build_family_model(self.student, (IMAGE,), {"label": 10})

    def time_plain(self, precision: str = "float32") -> float:
        """Return the seconds of one epoch."""
        part = Part.of("adamw", epochs=1, batch_size=BATCH, precision=precision, schedule="constant")
        model, started = self.build_model(), time.perf_counter()
        fit(model, FitRequest(self.task, self.train, part))
        return time.perf_counter() - started

    def time_quantized(self, name: str) -> float:
        """Return the seconds of one epoch of quantization-aware training with 4 bits, without calibration."""
        seconds = 0.0

        def fine_tune(
            model: nn.Module, epochs: int, learning_rate: float, after_step: Callable[[], None] | None
        ) -> None:
            nonlocal seconds
            part = Part.of("adamw", epochs=1, batch_size=BATCH, precision="float32", schedule="constant")
            started = time.perf_counter()
            fit(model, FitRequest(self.task, self.train, part))
            seconds = time.perf_counter() - started

        method = QUANTIZE.get(name)
        context = Context((IMAGE.make_zeros(),), (self._batch(),), fine_tune=fine_tune)
        method.apply(self.build_model().eval(), method.config.of({"weight_bits": 4, "activation_bits": 4}), context)
        return seconds

    def _batch(self) -> tuple[Tensor, ...]:
        return self.train.take(slice(0, 64)).inputs


def measure(student: Part, rounds: int) -> dict[str, list[float]]:
    """Return the speed of each variant relative to plain training, one ratio per round."""
    race = TrainingRace(student)
    runs: dict[str, Callable[[], float]] = {
        "float32": race.time_plain,
        "bfloat16 + channels last": partial(race.time_plain, "bfloat16"),
        "qat, 4 bits": partial(race.time_quantized, "qat"),
        "lsq, 4 bits": partial(race.time_quantized, "lsq"),
    }
    # The first run of each variant allocates memory and compiles kernels; it is not timed.
    for run in runs.values():
        run()
    ratios_by_way: dict[str, list[float]] = {name: [] for name in runs if name != "float32"}
    for _ in range(rounds):
        seconds = {name: run() for name, run in runs.items()}
        for name, ratios in ratios_by_way.items():
            ratios.append(seconds["float32"] / seconds[name])
    return ratios_by_way


#: Students of the shipped spaces ``digits`` and ``mnist1d``: a small, a middle and a large one of each.
SPACES: Mapping[str, tuple[Part, ...]] = {
    "digits": (
        Part.of("cnn", width=6, depth=1, stages=2, block="plain", stem_stride=2),
        Part.of("cnn", width=16, depth=1, stages=2, block="separable", stem_stride=2),
        Part.of("cnn", width=12, depth=2, stages=2, block="residual"),
    ),
    "mnist1d": (
        Part.of("cnn1d", width=4, depth=1, stages=2, block="plain", kernel=3, stem_stride=2),
        Part.of("cnn1d", width=8, depth=2, stages=3, block="separable"),
        Part.of("cnn1d", width=8, depth=2, stages=3, block="residual"),
    ),
}
WAYS = ("fit of a trial", "channels last", "without oneDNN", "traced", "4 stacked", "8 stacked")
STUDENT_BATCH, LEARNING_RATE, CLIP_NORM = 64, 5e-3, 5.0


class StudentRace:
    """A student of a shipped space and ways to train it, timed by the processor time of a step in milliseconds.

    Args:
        space: Name of the task.
        student: Architecture of the student.
        epochs: Epochs of each fit.
    """

    def __init__(self, space: str, student: Part, epochs: int) -> None:
        self.task: Task = TASKS.get(space)()
        self.train = self.task.splits(0).train
        self.student, self.epochs = student, epochs
        self.steps = epochs * (len(self.train) // STUDENT_BATCH)

    def time_engine(self) -> float:
        """Return the time of a step of the fit of a trial, its preparation included."""
        model = self._build_model()
        part = Part.of("adamw", epochs=self.epochs, batch_size=STUDENT_BATCH, learning_rate=LEARNING_RATE, views=1)
        started = time.process_time()
        fit(model, FitRequest(self.task, self.train, part))
        return self._to_step(started)

    def time_bare(self, *, channels_last: bool = False, onednn: bool = True, traced: bool = False) -> float:
        """Return the time of a step of a loop that calls torch alone."""
        model = self._build_model().train()
        layout = torch.channels_last if channels_last else torch.contiguous_format
        inputs = self.train.inputs[0].contiguous(memory_format=layout)
        if channels_last:
            # torch's stubs leave this form of the method out.
            model.to(memory_format=layout)  # type: ignore[call-overload]
        parameters = list(model.parameters())
        network = torch.jit.trace(model, inputs[:STUDENT_BATCH]) if traced else model

        def compute_loss(rows: Tensor) -> Tensor:
            loss: Tensor = functional.cross_entropy(network(inputs[rows]), self.train.targets["label"][rows])
            return loss

        with torch.backends.mkldnn.flags(enabled=onednn):
            started = time.process_time()
            self._run_loop(parameters, compute_loss)
            return self._to_step(started)

    def time_stacked(self, count: int) -> float:
        """Return the time of a step and student where ``count`` students of this shape share each batch by vmap.

        Their batch norms keep no running statistics and their gradients are clipped together: it is a lower bound.
        """
        models = [self._build_model() for _ in range(count)]
        for model in models:
            replace_all_batch_norm_modules_(model)
        stacked, _ = stack_module_state(models)
        parameters = [value.detach().requires_grad_() for value in stacked.values()]
        network = models[0].train()

        def compute_student_loss(values: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
            return functional.cross_entropy(functional_call(network, values, (images,)), labels)

        compute_losses = vmap(compute_student_loss, in_dims=(0, None, None))

        def compute_loss(rows: Tensor) -> Tensor:
            values = dict(zip(stacked, parameters, strict=True))
            losses: Tensor = compute_losses(values, self.train.inputs[0][rows], self.train.targets["label"][rows])
            return losses.sum()

        started = time.process_time()
        self._run_loop(parameters, compute_loss)
        return self._to_step(started) / count

    def _run_loop(self, parameters: Sequence[Tensor], compute_loss: Callable[[Tensor], Tensor]) -> None:
        optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=1e-4, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, LEARNING_RATE, total_steps=max(self.steps, 4), cycle_momentum=False
        )
        for _ in range(self.epochs):
            for rows in torch.randperm(len(self.train)).split(STUDENT_BATCH)[: len(self.train) // STUDENT_BATCH]:
                loss = compute_loss(rows)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
                optimizer.step()
                schedule.step()

    def _build_model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.task.build(self.student)

    def _to_step(self, started: float) -> float:
        return (time.process_time() - started) / self.steps * 1e3


def measure_students(rounds: int, epochs: int) -> list[str]:
    """Return the table of the students: time of a step of the bare loop, and speed of each way relative to it."""
    header = "| space | student | bare loop, ms a step |"
    lines: list[str] = []
    for space, students in SPACES.items():
        for student in students:
            race = StudentRace(space, student, epochs)
            runs: dict[str, Callable[[], float]] = {
                "bare": race.time_bare,
                "fit of a trial": race.time_engine,
                "channels last": partial(race.time_bare, channels_last=True),
                "without oneDNN": partial(race.time_bare, onednn=False),
                "traced": partial(race.time_bare, traced=True),
                "4 stacked": partial(race.time_stacked, 4),
                "8 stacked": partial(race.time_stacked, 8),
            }
            if len(race.task.inputs[0].shape) < 3:
                # torch has the layout for images only.
                del runs["channels last"]
            for run in runs.values():
                run()
            times = [{name: run() for name, run in runs.items()} for _ in range(rounds)]
            cells = [f"{statistics.median(row['bare'] for row in times):.2f}"]
            cells += [_format_ratios([row["bare"] / row[name] for row in times if name in row]) for name in WAYS]
            settings = dict(student.values)
            text = f"{settings['block']}, width {settings['width']}, depth {settings['depth']}"
            lines.append(f"| {space} | {text} | {' | '.join(cells)} |")
    return [f"{header} {' | '.join(WAYS)} |", "|---" * (len(WAYS) + 3) + "|", *lines]


def measure_precisions(rounds: int) -> list[str]:
    """Return the table of bfloat16 and quantization-aware training on students for images of CIFAR-10's size."""
    lines = ["| student | training | speed |", "|---|---|---|"]
    for name, student in STUDENTS.items():
        for way, ratios in measure(student, rounds).items():
            lines.append(f"| {name} | {way} | {_format_ratios(ratios)} |")
    return lines


def _format_ratios(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""


def replace_section(page: str, title: str, lines: Sequence[str]) -> str:
    r"""Return a page of Markdown in which a section of the second level has other lines, at the end if it is new.

    Example:
        >>> replace_section("# Page\n\n## A\n\n1\n\n## B\n\n2\n", "A", ["3"])
        '# Page\n\n## A\n\n3\n\n## B\n\n2\n'
    """
    head, *sections = page.rstrip("\n").split("\n\n## ")
    texts = {section.partition("\n")[0]: section for section in sections}
    texts[title] = "\n".join([title, "", *lines])
    return "\n\n## ".join([head, *texts.values()]) + "\n"


def main() -> None:
    """Run the benchmark, print its table, and put it into its section of the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=2, help="epochs of each fit of `--part students`")
    parser.add_argument("--part", choices=["precision", "students"], default="precision")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/throughput.md"))
    arguments = parser.parse_args()
    rounds = f"Median of {arguments.rounds} rounds, smallest and largest. {describe_processor()}"
    rounds += f", {torch.backends.cpu.get_cpu_capability()}; one thread"
    with reproducible_torch():
        if arguments.part == "students":
            title = "Students of the shipped spaces, relative to a bare loop"
            lines = [
                f"{rounds}, batches of {STUDENT_BATCH}.",
                "",
                *measure_students(arguments.rounds, arguments.epochs),
            ]
        else:
            title = "Precisions, relative to plain training in single precision"
            lines = [f"{rounds}, batches of {BATCH} images of 3x32x32.", "", *measure_precisions(arguments.rounds)]
    page = arguments.out.read_text() if arguments.out.exists() else "# Training speed\n"
    write_atomic(arguments.out, replace_section(page, title, lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
