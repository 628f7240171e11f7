"""What an exported model costs on this machine: latency and memory, measured in a process of its own."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from autocompress.errors import ArtifactError
from autocompress.export.artifact import read_architecture
from autocompress.export.folder import read_files
from autocompress.export.onnx import session

WARM_UP = 20
MIN_RUNS = 30


@dataclass(frozen=True)
class Bench:
    """One exported file, timed.

    Attributes:
        file: Name of the file in the artifact.
        batch: Examples in each run.
        threads: Threads of onnxruntime.
        runs: Counted runs.
        median_ms: Median milliseconds of a run.
        p95_ms: 95th percentile of the milliseconds of a run.
        memory_bytes: Growth of the process's resident memory by loading and running the model.
        file_bytes: Size of the file.
    """

    file: str
    batch: int
    threads: int
    runs: int
    median_ms: float
    p95_ms: float
    memory_bytes: int
    file_bytes: int


FILES = ("model.onnx", "model_float.onnx")


def bench(
    folder: Path | str, files: Sequence[str] = FILES, *, batch: int = 1, threads: int = 1, seconds: float = 1.0
) -> list[Bench]:
    """Time model.onnx, and model_float.onnx where there is one, each in a fresh process.

    Args:
        folder: The artifact.
        files: Names of files; those that are not there are left out.
        batch: Examples in each run.
        threads: Threads of onnxruntime.
        seconds: How long to measure each file.

    Raises:
        ArtifactError: The folder is no artifact, a file was changed, or the model does not run.
    """
    there = read_files(Path(folder))
    return [_in_fresh_process(Path(folder), name, batch, threads, seconds) for name in files if name in there]


def measure_file(folder: Path, name: str, batch: int, threads: int, seconds: float) -> Bench:
    """Time one file in this process; its memory figure is meaningful in a fresh one only."""
    content = read_files(folder)[name]
    shapes = read_architecture(folder).inputs
    before = _resident()
    running = session(content, threads)
    inputs = {
        entry.name: np.zeros((batch, *shape.shape[1:]), dtype=shape.dtype)
        for entry, shape in zip(running.get_inputs(), shapes, strict=True)
    }
    for _ in range(WARM_UP):
        running.run(None, inputs)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < MIN_RUNS or time.perf_counter() < end:
        started = time.perf_counter()
        running.run(None, inputs)
        times.append((time.perf_counter() - started) * 1000)
    return Bench(
        name,
        batch,
        threads,
        len(times),
        statistics.median(times),
        statistics.quantiles(times, n=20)[-1],
        max(_resident() - before, 0),
        len(content),
    )


def _in_fresh_process(folder: Path, name: str, batch: int, threads: int, seconds: float) -> Bench:
    words = [str(folder), name, str(batch), str(threads), str(seconds)]
    done = subprocess.run(
        [sys.executable, "-m", "autocompress.export.bench", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise ArtifactError(f"{folder / name} cannot be timed: {reason}")
    return Bench(**json.loads(done.stdout.splitlines()[-1]))


def _resident() -> int:
    """Return this process's resident memory in bytes, or 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        return 0


if __name__ == "__main__":
    place, file, *counts = sys.argv[1:]
    print(json.dumps(asdict(measure_file(Path(place), file, int(counts[0]), int(counts[1]), float(counts[2])))))
