"""Sparse linear layers: torch's kernel for compressed sparse rows (CSR), used where it measures faster than dense.

Unstructured sparsity never lowers FLOPs, because a dense kernel multiplies by zeros too. The sparse kernel pays for
large layers at low densities only, and where that is depends on the processor: it is measured.
"""

import copy
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# A layer changes its kernel if it takes at most this share of the dense time: less is within the noise of a machine.
MIN_GAIN = 0.9
# Above this density no layer was faster by far; it need not be timed (reports/benchmarks/sparsity.md).
MAX_DENSITY = 0.5


class SparseLinear(nn.Module):
    """A linear layer on compressed sparse rows, ``[..., C] -> [..., D]``, equal to the dense one up to rounding.

    Args:
        layer: The dense layer, whose zeros are left out.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> x = torch.ones(1, 3)
        >>> torch.allclose(SparseLinear(layer)(x), layer(x))
        True
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Buffer(to_csr(layer.weight))
        self.bias = layer.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs of the layer."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        # torch's linear function fails on sparse weights in inference mode, and its matrix product does not.
        outputs = (self.weight @ rows.T).T
        return (outputs if self.bias is None else outputs + self.bias).reshape(*inputs.shape[:-1], -1)


def use_sparse_kernels(
    model: nn.Module, example: tuple[Tensor, ...], repeats: int = 30
) -> tuple[nn.Module, dict[str, "LinearSpeed"]]:
    """Return a copy of a model whose linear layers are sparse where that is faster here, and the times of each layer.

    Args:
        model: The model in evaluation mode.
        example: A batch of the size that is to be served, as the model's positional arguments.
        repeats: Number of timed runs of each kernel; their median decides.
    """
    # Times at another number of rows would decide wrongly, so each layer is timed on its own inputs.
    inputs: dict[str, Tensor] = {}
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and 0 < int(layer.weight.count_nonzero()) <= MAX_DENSITY * layer.weight.numel()
    }
    handles = [
        layer.register_forward_pre_hook(lambda _, arguments, name=name: inputs.setdefault(name, arguments[0].detach()))
        for name, layer in layers.items()
    ]
    try:
        with torch.inference_mode():
            model(*example)
    finally:
        for handle in handles:
            handle.remove()
    sparse = copy.deepcopy(model)
    speeds = {}
    for name, values in inputs.items():
        layer = layers[name]
        density = int(layer.weight.count_nonzero()) / layer.weight.numel()
        rows = values.reshape(-1, values.shape[-1])
        speeds[name] = _compare_kernels(rows, layer.weight.detach(), density, repeats)
        if speeds[name].csr_ms <= MIN_GAIN * speeds[name].dense_ms:
            sparse.set_submodule(name, SparseLinear(layer))
    return sparse, speeds


def to_csr(weight: Tensor) -> Tensor:
    """Return a weight as a sparse matrix with a row for each output, ``[D, C, k, k] -> [D, C k k]``."""
    matrix = weight.detach().flatten(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns once per process that CSR is a beta feature
        sparse = matrix.to_sparse_csr()
        # 32-bit indices take half the bytes of torch's default, and the fast kernels need them.
        return torch.sparse_csr_tensor(
            sparse.crow_indices().to(torch.int32), sparse.col_indices().to(torch.int32), sparse.values(), matrix.shape
        )


@dataclass(frozen=True)
class LinearSpeed:
    """Median times of one linear layer at one density, in milliseconds."""

    density: float
    dense_ms: float
    csr_ms: float


def measure_linear_speed(
    outputs: int,
    inputs: int,
    batch: int,
    densities: Sequence[float] = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01),
    repeats: int = 30,
    seed: int = 0,
) -> list[LinearSpeed]:
    """Return the times of torch's dense and CSR linear layers on this processor, with torch's current thread count.

    Args:
        outputs: Rows of the weight.
        inputs: Columns of the weight.
        batch: Number of examples per run.
        densities: Shares of nonzero weights.
        repeats: Number of timed runs of each form; their median is returned.
        seed: Seed of weights and inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, inputs, generator=generator)
    rows = []
    for density in densities:
        is_nonzero = torch.rand(outputs, inputs, generator=generator) < density
        weight = torch.randn(outputs, inputs, generator=generator) * is_nonzero
        rows.append(_compare_kernels(x, weight, density, repeats))
    return rows


def csr_speed_threshold(rows: Sequence[LinearSpeed]) -> float:
    """Return the highest density from which CSR is faster at all lower measured densities; 0 if there is none.

    Example:
        >>> csr_speed_threshold([LinearSpeed(0.5, 1.0, 4.0), LinearSpeed(0.1, 1.0, 0.8), LinearSpeed(0.01, 1.0, 0.1)])
        0.1
    """
    threshold = 0.0
    for row in sorted(rows, key=lambda row: row.density):
        if row.csr_ms >= row.dense_ms:
            break
        threshold = row.density
    return threshold


def _compare_kernels(x: Tensor, weight: Tensor, density: float, repeats: int) -> LinearSpeed:
    """Return the median times of both kernels; runs alternate, so that other load on the machine affects both."""
    operands = {"dense": weight, "csr": to_csr(weight)}
    times: dict[str, list[float]] = {form: [] for form in operands}
    for repeat in range(repeats + 3):
        for form, operand in operands.items():
            milliseconds = _time_linear(x, operand)
            if repeat >= 3:  # The first three runs warm up caches and allocators.
                times[form].append(milliseconds)
    return LinearSpeed(density, statistics.median(times["dense"]), statistics.median(times["csr"]))


@torch.no_grad()
def _time_linear(x: Tensor, weight: Tensor) -> float:
    started = time.perf_counter()
    if weight.layout == torch.sparse_csr:
        _ = (weight @ x.T).T
    else:
        F.linear(x, weight)
    return (time.perf_counter() - started) * 1e3
