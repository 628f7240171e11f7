"""What an exported model costs on this machine: latency and memory, measured in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from autocompress.errors import ArtifactError
from autocompress.export.artifact import read_architecture
from autocompress.export.folder import read_files
from autocompress.export.stopwatch import Bench, Shape

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
    folder = Path(folder)
    there = read_files(folder)
    inputs: list[Shape] = [(list(each.shape), each.dtype) for each in read_architecture(folder).inputs]
    return [
        bench_file(folder / name, inputs, batch=batch, threads=threads, seconds=seconds)
        for name in files
        if name in there
    ]


def bench_file(file: Path, inputs: Sequence[Shape], *, batch: int, threads: int, seconds: float) -> Bench:
    """Time one exported file in a fresh process.

    Args:
        file: The ONNX model.
        inputs: Its inputs; their first axis is the batch.
        batch: Examples in each run.
        threads: Threads of onnxruntime.
        seconds: How long to measure.

    Raises:
        ArtifactError: The model does not run.
    """
    batched = [([batch, *shape[1:]], dtype) for shape, dtype in inputs]
    words = [str(file), json.dumps(batched), str(threads), str(seconds)]
    done = subprocess.run(
        [sys.executable, "-m", "autocompress.export.stopwatch", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise ArtifactError(f"{file} cannot be timed: {reason}")
    return Bench(**json.loads(done.stdout.splitlines()[-1]))
