"""What an exported model costs on this machine: latency and memory, measured in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from autocompress.errors import ArtifactError
from autocompress.export.architecture import parse
from autocompress.export.bench_worker import Bench, Shape
from autocompress.export.folder import read_files

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
    inputs: list[Shape] = [(list(each.shape), each.dtype) for each in parse(there["architecture.json"]).inputs]
    return [_in_fresh_process(folder / name, inputs, batch, threads, seconds) for name in files if name in there]


def bench_graph(content: bytes, inputs: Sequence[Shape], *, batch: int, threads: int, seconds: float) -> Bench:
    """Time a model that lies in no artifact, in a fresh process.

    Args:
        content: The ONNX model.
        inputs: Its inputs; their first axis is the batch.
        batch: Examples in each run.
        threads: Threads of onnxruntime.
        seconds: How long to measure.

    Raises:
        ArtifactError: The model does not run.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(content)
        return _in_fresh_process(file, inputs, batch, threads, seconds)


def _in_fresh_process(file: Path, inputs: Sequence[Shape], batch: int, threads: int, seconds: float) -> Bench:
    batched = [([batch, *shape[1:]], dtype) for shape, dtype in inputs]
    words = [str(file), json.dumps(batched), str(threads), str(seconds)]
    done = subprocess.run(
        [sys.executable, "-m", "autocompress.export.bench_worker", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise ArtifactError(f"{file} cannot be timed: {reason}")
    return Bench(**json.loads(done.stdout.splitlines()[-1]))
