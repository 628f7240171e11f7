"""Training speed: `python -m benchmarks.throughput [--rounds 7]`.

Two ratios to plain training in single precision, on one thread: bfloat16 with channels last, and quantization-aware
training (qat, lsq). All variants run in turn in each round, so that load on the machine affects them alike. The ratio
is computed within each round; the table shows the median over the rounds with the smallest and the largest ratio.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from autocompress.core.atomic import write_atomic
from autocompress.core.config import Part
from autocompress.core.method import Context
from autocompress.core.registry import QUANTIZE
from autocompress.core.task import InputSpec, Split
from autocompress.models.base import build_family_model
from autocompress.tasks.tensors import Tensors
from autocompress.training.fit import FitRequest, fit
from autocompress.trial.pipeline import reproducible_torch

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


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/throughput.md"))
    arguments = parser.parse_args()
    lines = [
        "# Training speed relative to plain training in single precision",
        "",
        f"One thread, batches of {BATCH} images of 3x32x32; median of {arguments.rounds} rounds, smallest and largest.",
        f"Processor: {torch.backends.cpu.get_cpu_capability()}.",
        "",
        "| student | training | speed |",
        "|---|---|---|",
    ]
    with reproducible_torch():
        for name, student in STUDENTS.items():
            for way, ratios in measure(student, arguments.rounds).items():
                spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
                lines.append(f"| {name} | {way} | {statistics.median(ratios):.2f} ({spread}) |")
    text = "\n".join(lines) + "\n"
    write_atomic(arguments.out, text)
    print(text)


if __name__ == "__main__":
    main()
