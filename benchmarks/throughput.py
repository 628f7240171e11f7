"""How fast training is: `python -m benchmarks.throughput [--rounds 7]`.

Two ratios to plain training in single precision, on one thread: bfloat16 with channels last, and training with
rounding (qat, lsq). The contestants run in turn, round after round, so that a busy machine slows them alike; a ratio
is taken within each round, and the median of the rounds is given with the smallest and the largest.
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
from autocompress.models.base import family_model
from autocompress.tasks.tensors import Tensors
from autocompress.training.fit import FitRequest, fit
from autocompress.trial.pipeline import reproducible_torch

STUDENTS: Mapping[str, Part] = {
    "plain, width 8": Part.of("cnn", width=8, depth=1, stages=3, block="plain"),
    "residual, width 16": Part.of("cnn", width=16, depth=2, stages=3, block="residual"),
}
IMAGE = InputSpec((3, 32, 32))
EXAMPLES, BATCH = 512, 128


class Contest:
    """One student on random images of CIFAR-10's size, and ways to train it for one epoch."""

    def __init__(self, student: Part) -> None:
        torch.manual_seed(0)
        images, labels = torch.randn(EXAMPLES, *IMAGE.shape), torch.arange(EXAMPLES) % 10
        self.task = Tensors((images, labels))
        self.train = Split((images,), {"label": labels})
        self.student = student

    def model(self) -> nn.Module:
        """Return the student, untrained."""
        torch.manual_seed(0)
        return family_model(self.student, (IMAGE,), {"label": 10})

    def plain(self, precision: str = "float32") -> float:
        """Return the seconds of one epoch."""
        part = Part.of("adamw", epochs=1, batch_size=BATCH, precision=precision, schedule="constant")
        model, started = self.model(), time.perf_counter()
        fit(model, FitRequest(self.task, self.train, part))
        return time.perf_counter() - started

    def rounded(self, name: str) -> float:
        """Return the seconds of one epoch of training with rounding to 4 bits, without what comes before and after."""
        spent = 0.0

        def tune(model: nn.Module, epochs: int, learning_rate: float, after_step: Callable[[], None] | None) -> None:
            nonlocal spent
            part = Part.of("adamw", epochs=1, batch_size=BATCH, precision="float32", schedule="constant")
            started = time.perf_counter()
            fit(model, FitRequest(self.task, self.train, part))
            spent = time.perf_counter() - started

        method = QUANTIZE.get(name)
        context = Context((IMAGE.make_zeros(),), (self._batch(),), tune=tune)
        method.apply(self.model().eval(), method.config.of({"weight_bits": 4, "activation_bits": 4}), context)
        return spent

    def _batch(self) -> tuple[Tensor, ...]:
        return self.train.take(slice(0, 64)).inputs


def measure(student: Part, rounds: int) -> dict[str, list[float]]:
    """Return the ratio of each contestant's speed to plain training, one for each round."""
    contest = Contest(student)
    ways: dict[str, Callable[[], float]] = {
        "float32": contest.plain,
        "bfloat16 + channels last": partial(contest.plain, "bfloat16"),
        "qat, 4 bits": partial(contest.rounded, "qat"),
        "lsq, 4 bits": partial(contest.rounded, "lsq"),
    }
    for way in ways.values():
        way()
    found: dict[str, list[float]] = {name: [] for name in ways if name != "float32"}
    for _ in range(rounds):
        seconds = {name: way() for name, way in ways.items()}
        for name, ratios in found.items():
            ratios.append(seconds["float32"] / seconds[name])
    return found


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/throughput.md"))
    asked = parser.parse_args()
    lines = [
        "# Throughput of training, as a multiple of plain training in single precision",
        "",
        f"One thread, batches of {BATCH} images of 3x32x32; median of {asked.rounds} rounds, smallest and largest.",
        f"Processor: {torch.backends.cpu.get_cpu_capability()}.",
        "",
        "| student | training | speed |",
        "|---|---|---|",
    ]
    with reproducible_torch():
        for name, student in STUDENTS.items():
            for way, ratios in measure(student, asked.rounds).items():
                spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
                lines.append(f"| {name} | {way} | {statistics.median(ratios):.2f} ({spread}) |")
    text = "\n".join(lines) + "\n"
    write_atomic(asked.out, text)
    print(text)


if __name__ == "__main__":
    main()
