"""Latency and memory of an exported model on this machine, measured in a separate process."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from autocompress.core.commands import python_command
from autocompress.errors import ArtifactError
from autocompress.export.architecture import read_architecture_file
from autocompress.export.bench_worker import Bench, Shape
from autocompress.export.folder import read_files

FILES = ("model.onnx", "model_float.onnx")
SPARSE_FORMS = ("n_m", "mask", "csr")


def bench(
    folder: Path | str, files: Sequence[str] = FILES, *, batch: int = 1, threads: int = 1, seconds: float = 1.0
) -> list[Bench]:
    """Measure the latency of model.onnx, and of model_float.onnx if it exists, each in a fresh process.

    A pruned model with linear layers that torch's sparse kernels speed up has two more rows: torch with dense kernels,
    and with sparse ones.

    Args:
        folder: The artifact.
        files: Names of the files; missing ones are skipped.
        batch: Number of examples per run.
        threads: Number of threads of onnxruntime.
        seconds: Seconds to measure each file.

    Raises:
        ArtifactError: The folder is no artifact, a file was changed, or the model does not run.
    """
    folder = Path(folder)
    contents = read_files(folder)
    architecture = read_architecture_file(contents)
    inputs: list[Shape] = [(list(entry.shape), entry.dtype) for entry in architecture.inputs]
    rows = [_measure_in_process(folder / name, inputs, batch, threads, seconds) for name in files if name in contents]
    if any(packed.form in SPARSE_FORMS for packed in architecture.packed.values()):
        # Imported here, because torch takes seconds, and only sparse models need it.
        from autocompress.export.bench_torch import measure_kernels

        batched = [([batch, *shape[1:]], dtype) for shape, dtype in inputs]
        rows += measure_kernels(folder, batched, threads, seconds)
    return rows


def bench_graph(content: bytes, inputs: Sequence[Shape], *, batch: int, threads: int, seconds: float) -> Bench:
    """Measure the latency of an ONNX model in a fresh process.

    Args:
        content: The ONNX model.
        inputs: Shape and data type of each input; axis 0 is the batch.
        batch: Number of examples per run.
        threads: Number of threads of onnxruntime.
        seconds: Seconds to measure.

    Raises:
        ArtifactError: The model does not run.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(content)
        return _measure_in_process(file, inputs, batch, threads, seconds)


def _measure_in_process(file: Path, inputs: Sequence[Shape], batch: int, threads: int, seconds: float) -> Bench:
    # In a fresh process the growth of resident memory is that of the model alone.
    batched = [([batch, *shape[1:]], dtype) for shape, dtype in inputs]
    arguments = [str(file), json.dumps(batched), str(threads), str(seconds)]
    process = subprocess.run(
        [*python_command(), "-m", "autocompress.export.bench_worker", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        # The last line of a traceback is the error itself.
        reason = (process.stderr.strip().splitlines() or ["the process was killed"])[-1]
        raise ArtifactError(f"cannot measure the latency of {file}: {reason}")
    # The result is the last line, in case a library prints before it.
    return Bench(**json.loads(process.stdout.splitlines()[-1]))
