"""A graphics card beside the processor: ``python -m benchmarks.gpu [--device cuda] [--minutes 0.4]``.

Three tables, in less than eight minutes on a card. Training: images a second of a ResNet-20 and texts a second of a
transformer, on both devices, in single precision, in bfloat16 on channels-last memory, and compiled by torch.
Agreement: one training from the same seed on both devices. Search: the same search on the processor and on the card,
where 1 to 8 trials share it; utilization and memory are those that nvidia-smi shows.

Rows are stored at once, so that a run resumes.
"""

import argparse
import contextlib
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import autocompress
from autocompress.core.atomic import write_atomic
from autocompress.core.config import Part
from autocompress.core.run_info import read_processor_name
from autocompress.core.task import InputSpec, Split
from autocompress.models.base import build_family_model
from autocompress.tasks.tensors import Tensors
from autocompress.training.device import CPU, require_device, synchronize_device
from autocompress.training.fit import FitRequest, fit
from benchmarks.common import append_row, describe_benchmark, load_rows

CLASSES, LETTERS, LENGTH = 10, 32, 64
IMAGES = InputSpec((3, 32, 32))
TEXTS = InputSpec((LENGTH,), vocabulary=LETTERS)
EXAMPLES, BATCH = 4096, 256
# Seconds of one way of training; the first round, which compiles kernels, is not timed.
SECONDS = 4.0
WORKERS = (1, 2, 4, 8)
SEARCH_TRIALS = 200

#: The students by name: their inputs and their architecture.
STUDENTS: dict[str, tuple[InputSpec, Part]] = {
    "ResNet-20": (IMAGES, Part.of("cnn", width=16, depth=3, stages=3, block="residual")),
    "transformer": (TEXTS, Part.of("transformer", layers=4, attention_heads=4, head_size=32)),
}


def draw_examples(inputs: InputSpec, count: int) -> tuple[Tensor, Tensor]:
    """Return inputs with a pattern for each class under noise, and the classes ``[N]``; the speed depends on neither.

    Args:
        inputs: Shape and kind of an input.
        count: Number of examples N.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    if not inputs.vocabulary:
        patterns = torch.randn(CLASSES, *inputs.shape, generator=generator)
        return patterns[labels] + 2 * torch.randn(count, *inputs.shape, generator=generator), labels
    # One letter is frequent in the texts of each class.
    texts = torch.randint(1, LETTERS, (count, *inputs.shape), generator=generator)
    is_frequent = torch.rand(count, *inputs.shape, generator=generator) < 0.1
    return torch.where(is_frequent, labels[:, None] + 1, texts), labels


class Training:
    """A student with its data.

    Args:
        name: Name in :data:`STUDENTS`.
        examples: Number of examples.
    """

    def __init__(self, name: str, examples: int = EXAMPLES) -> None:
        self.inputs, self.student = STUDENTS[name]
        data, labels = draw_examples(self.inputs, examples)
        self.task = Tensors((data, labels))
        self.train = Split((data,), {"label": labels})

    def build_model(self) -> nn.Module:
        """Return the untrained student; it is the same one every time."""
        torch.manual_seed(0)
        return build_family_model(self.student, (self.inputs,), {"label": CLASSES})

    def run(self, device: torch.device, precision: str, epochs: int) -> nn.Module:
        """Return the student after a fit."""
        part = Part.of("adamw", epochs=epochs, batch_size=BATCH, precision=precision, learning_rate=2e-3)
        model = self.build_model()
        fit(model, FitRequest(self.task, self.train, part, device=device))
        return model

    def run_compiled(self, device: torch.device) -> None:
        """Train one epoch in a plain loop whose model torch has compiled, in bfloat16."""
        model = self.build_model().to(device).train()
        compiled = torch.compile(model)
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
        (inputs,), labels = self.train.inputs, self.train.targets["label"]
        for first in range(0, len(inputs) - BATCH + 1, BATCH):
            batch, wanted = (each[first : first + BATCH].to(device) for each in (inputs, labels))
            with torch.autocast(device.type, dtype=torch.bfloat16):
                output = compiled(batch)
            loss = F.cross_entropy(output.float(), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def count_examples(run: Callable[[], object], examples: int, device: torch.device, seconds: float) -> float:
    """Return the examples a second of a training of one epoch, the median of its repetitions."""
    rates: list[float] = []
    ends = 0.0
    while not rates or time.perf_counter() < ends:
        started = time.perf_counter()
        run()
        synchronize_device(device)
        # The first one starts the device and compiles.
        if ends:
            rates.append(examples / (time.perf_counter() - started))
        else:
            ends = time.perf_counter() + seconds
    return statistics.median(rates)


def measure_training(name: str, device: torch.device, seconds: float, examples: int = EXAMPLES) -> dict[str, Any]:
    """Return the examples a second of each way of training on a device."""
    training = Training(name, examples)
    ways: dict[str, Callable[[], object]] = {
        "float32": lambda: training.run(device, "float32", 1),
        "bfloat16": lambda: training.run(device, "bfloat16", 1),
        "compiled": lambda: training.run_compiled(device),
    }
    row: dict[str, Any] = {"kind": "training", "student": name, "device": device.type}
    for way, run in ways.items():
        try:
            row[way] = round(count_examples(run, examples, device, seconds))
        except Exception as error:  # torch.compile raises any exception of its compilers
            row[way] = type(error).__name__
    return row


def measure_agreement(name: str, device: torch.device, examples: int = EXAMPLES, epochs: int = 3) -> dict[str, Any]:
    """Return how far the outputs of one training in single precision lie apart on the two devices."""
    training = Training(name, examples)
    row: dict[str, Any] = {"kind": "agreement", "student": name, "device": device.type}
    inputs, labels = training.train.inputs, training.train.targets["label"]
    outputs = []
    for each in (CPU, device):
        model = training.run(each, "float32", epochs).eval()
        with torch.no_grad():
            outputs.append(torch.cat([model(batch) for batch in inputs[0].split(BATCH)]))
    first, second = (output.argmax(1) for output in outputs)
    row["accuracy, processor"], row["accuracy, device"] = (
        round(float((each == labels).float().mean()), 4) for each in (first, second)
    )
    row["equal predictions"] = round(float((first == second).float().mean()), 4)
    row["difference of outputs"] = round(float((outputs[0] - outputs[1]).abs().median()), 5)
    return row


@contextlib.contextmanager
def watch_card() -> Iterator[list[tuple[float, float]]]:
    """Collect (utilization in percent, memory in MiB) of the first card while the body runs; nothing without a card."""
    samples: list[tuple[float, float]] = []
    query = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-lms", "200"]
    try:
        process = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
    except OSError:
        yield samples
        return

    def collect() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                used, memory = line.split(",")[:2]
                samples.append((float(used), float(memory)))

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        process.terminate()
        process.wait()
        thread.join()


def measure_search(
    name: str, device: str, workers: int, minutes: float, examples: int = EXAMPLES, trials: int = SEARCH_TRIALS
) -> dict[str, Any]:
    """Return what a search of a given model completes in the minutes on a device."""
    training = Training(name, examples)
    inputs, labels = draw_examples(STUDENTS[name][0], examples)
    teacher = training.run(torch.device(device), "float32", 3)
    with tempfile.TemporaryDirectory() as runs, watch_card() as samples:
        started = time.perf_counter()
        overrides = [f"search.device={device}", "search.timing_seconds=0"]
        front = autocompress.search(
            teacher=teacher,
            data=(inputs, labels),
            minutes=minutes,
            trials=trials,
            workers=workers,
            seed=0,
            name="search",
            overrides=overrides,
            runs=runs,
        )
        seconds = time.perf_counter() - started
        trained = len(front.to_pandas()["trial"].unique())
        candidates = len(front.candidates)
        best = float(front.candidates["accuracy"].max())
    used = [sample[0] for sample in samples]
    return {
        "kind": "search",
        "student": name,
        "device": device,
        "workers": workers,
        "trials an hour": round(3600 * trained / seconds),
        "candidates": candidates,
        "best accuracy": round(best, 4),
        "utilization": f"{statistics.fmean(used):.0f}%" if used else "",
        "memory, GiB": round(max(sample[1] for sample in samples) / 1024, 2) if samples else "",
    }


def render(rows: Sequence[dict[str, Any]], card: str) -> str:
    """Return the page: one table for each kind of row."""
    machine = f"Processor: {read_processor_name()}, {torch.get_num_threads()} threads. Card: {card}."
    lines = ["# A graphics card beside the processor", "", describe_benchmark(__doc__), ""]
    lines.append(f"{machine} torch {torch.__version__}.")
    for kind in ("training", "agreement", "search"):
        chosen = [{key: value for key, value in row.items() if key != "kind"} for row in rows if row["kind"] == kind]
        if chosen:
            lines += ["", f"## {kind.capitalize()}", ""]
            lines += [f"| {' | '.join(chosen[0])} |", "|---" * len(chosen[0]) + "|"]
            lines += [f"| {' | '.join(str(value) for value in row.values())} |" for row in chosen]
    return "\n".join(lines) + "\n"


def list_measurements(
    device: str, minutes: float, examples: int, seconds: float, trials: int
) -> Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]:
    """Yield what identifies each row, and the function that measures it; the shortest rows come first."""
    for name in STUDENTS:
        for each in ("cpu", device):
            key = {"kind": "training", "student": name, "device": each}
            yield key, partial(measure_training, name, torch.device(each), seconds, examples)
        key = {"kind": "agreement", "student": name, "device": device}
        yield key, partial(measure_agreement, name, torch.device(device), examples)
    for name in STUDENTS:
        for each, workers in (("cpu", 0), *((device, count) for count in WORKERS)):
            chosen: dict[str, Any] = {"kind": "search", "student": name, "device": each, "workers": workers}
            yield chosen, partial(measure_search, name, each, workers, minutes, examples, trials)


def main() -> None:
    """Measure the rows that are not stored yet, and write the page after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--minutes", type=float, default=0.4, help="of each search")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each way of training")
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    parser.add_argument("--trials", type=int, default=SEARCH_TRIALS, help="of each search, at most")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/gpu.md"))
    arguments = parser.parse_args()
    require_device(arguments.device)
    card = torch.cuda.get_device_name() if arguments.device == "cuda" else "none"
    stored = arguments.out.with_suffix(".jsonl")
    rows = load_rows(stored)
    measurements = list_measurements(
        arguments.device, arguments.minutes, arguments.examples, arguments.seconds, arguments.trials
    )
    for key, measure in measurements:
        if any(key.items() <= row.items() for row in rows):
            continue
        rows.append(measure())
        append_row(stored, rows[-1])
        write_atomic(arguments.out, render(rows, card))
        print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
