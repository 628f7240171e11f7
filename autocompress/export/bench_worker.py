"""Measures one exported file in this process: `python -m autocompress.export.bench_worker FILE INPUTS THREADS SECONDS`.

It imports only what running the model needs, because a front of dozens of candidates starts one process for each.
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

from autocompress.targets.onnx_session import SessionModel, create_session

# Runs before the measurement, and the fewest measured runs: a slow model takes longer than the given seconds.
WARM_UP = 20
MIN_RUNS = 30

#: Shape of an input, the batch first, and its data type.
Shape: TypeAlias = tuple[list[int], str]


@dataclass(frozen=True)
class Bench:
    """Latency and memory of one exported file.

    Attributes:
        file: Name of the file in the artifact.
        batch: Number of examples per run.
        threads: Number of threads of onnxruntime.
        runs: Number of measured runs.
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
    """Measure one file in this process; the memory is meaningful in a fresh process only.

    Args:
        file: An ONNX model.
        inputs: Shape and data type of each input.
        threads: Number of threads of onnxruntime.
        seconds: Seconds to measure.

    Raises:
        ArtifactError: The model is damaged.
    """
    content = file.read_bytes()
    # After the file is read, because its bytes are no memory of the session.
    before = _resident_bytes()
    model = SessionModel(create_session(content, threads))
    run = model.bind([np.zeros(shape, dtype=dtype) for shape, dtype in inputs])
    # The first runs allocate memory and are slower.
    for _ in range(WARM_UP):
        run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < MIN_RUNS or time.perf_counter() < end:
        started = time.perf_counter()
        run()
        times.append((time.perf_counter() - started) * 1000)
    return Bench(
        file.name,
        inputs[0][0][0],
        threads,
        len(times),
        statistics.median(times),
        # The last of 19 cut points between twentieths is the 95th percentile.
        statistics.quantiles(times, n=20)[-1],
        # The process may have returned more memory than the model takes.
        max(_resident_bytes() - before, 0),
        len(content),
    )


def _resident_bytes() -> int:
    """Return the resident memory of this process in bytes; 0 where /proc is missing."""
    try:
        with open("/proc/self/statm") as file:
            # The second field of statm is the resident set size, in pages.
            return int(file.read().split()[1]) * 4096
    except OSError:
        return 0


if __name__ == "__main__":
    path, shapes, thread_count, duration = sys.argv[1:]
    print(json.dumps(asdict(measure_file(Path(path), json.loads(shapes), int(thread_count), float(duration)))))
