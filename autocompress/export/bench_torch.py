"""Latency of an exported model in torch, with dense and with sparse kernels.

onnxruntime has no sparse kernels, so a pruned model is faster by its zeros in torch only, and only where its linear
layers are large and few weights are left (:mod:`autocompress.prune.sparse_linear`).
"""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from autocompress.export.artifact import load_artifact
from autocompress.export.bench_worker import MIN_RUNS, Bench, Shape
from autocompress.prune.sparse_linear import SparseLinear, use_sparse_kernels
from autocompress.targets import Model
from autocompress.targets.timing import time_rounds

FILE = "model.safetensors"


def measure_kernels(folder: Path, inputs: Sequence[Shape], threads: int = 1, seconds: float = 1.0) -> list[Bench]:
    """Measure a model with dense and with sparse kernels in this process; empty if no layer is faster with sparse ones.

    Args:
        folder: The artifact.
        inputs: Shape and data type of each input.
        threads: Number of threads of torch.
        seconds: Seconds to measure both.

    Raises:
        ArtifactError: The folder is no artifact, or a file was changed.
    """
    example = tuple(torch.zeros(shape, dtype=getattr(torch, dtype)) for shape, dtype in inputs)
    dense = load_artifact(folder).eval()
    with _use_threads(threads):
        sparse, _ = use_sparse_kernels(dense, example)
    count = sum(isinstance(layer, SparseLinear) for layer in sparse.modules())
    if not count:
        return []
    models: dict[str, Model] = {
        f"{FILE} (torch, dense)": lambda _: [dense(*example)],
        f"{FILE} (torch, {count} sparse {'layer' if count == 1 else 'layers'})": lambda _: [sparse(*example)],
    }
    with _use_threads(threads), torch.inference_mode():
        times = time_rounds(models, (), seconds, runs=1, least=MIN_RUNS)
    size, batch = (folder / FILE).stat().st_size, inputs[0][0][0]
    rows = []
    for name, values in times.items():
        median, high = statistics.median(values), statistics.quantiles(values, n=20)[-1]
        # Both models are in this process, so the memory of one is not known.
        rows.append(Bench(name, batch, threads, len(values), median, high, 0, size))
    return rows


@contextmanager
def _use_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
