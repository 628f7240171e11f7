"""Times one exported file in this process: `python -m autocompress.export.bench_worker FILE INPUTS THREADS SECONDS`.

It imports what running the model takes and no more: a front of dozens is timed one process after the other.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from autocompress.export.runtime import session

WARM_UP = 20
MIN_RUNS = 30

#: Of an input: the batch and what follows, and its data type.
Shape: TypeAlias = tuple[list[int], str]


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


def measure_file(file: Path, inputs: Sequence[Shape], threads: int = 1, seconds: float = 1.0) -> Bench:
    """Time one file in this process; its memory figure is meaningful in a fresh one only.

    Args:
        file: An ONNX model.
        inputs: One a name.
        threads: Threads of onnxruntime.
        seconds: How long to measure.

    Raises:
        ArtifactError: The model is damaged.
    """
    content = file.read_bytes()
    before = _resident()
    running = session(content, threads)
    values = {
        entry.name: np.zeros(shape, dtype=dtype)
        for entry, (shape, dtype) in zip(running.get_inputs(), inputs, strict=True)
    }
    for _ in range(WARM_UP):
        running.run(None, values)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < MIN_RUNS or time.perf_counter() < end:
        started = time.perf_counter()
        running.run(None, values)
        times.append((time.perf_counter() - started) * 1000)
    return Bench(
        file.name,
        inputs[0][0][0],
        threads,
        len(times),
        statistics.median(times),
        statistics.quantiles(times, n=20)[-1],
        max(_resident() - before, 0),
        len(content),
    )


def _resident() -> int:
    """Return this process's resident memory in bytes, or 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        return 0


if __name__ == "__main__":
    place, described, wanted, length = sys.argv[1:]
    print(json.dumps(asdict(measure_file(Path(place), json.loads(described), int(wanted), float(length)))))
