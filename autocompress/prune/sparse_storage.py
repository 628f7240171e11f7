"""Storage and speed of sparse weights: bytes of each form compared with dense, and the density where CSR is faster.

    packed  a bit mask of the nonzero weights, one bit per weight, and the nonzero values
    csr     compressed sparse rows: the start of each row and the column of each value, as 32-bit indices

Unstructured sparsity never lowers FLOPs, because a dense kernel multiplies by zeros too.
"""

import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import CompressionError
from autocompress.prune.masking import prunable_weights

# Value of each bit of a byte, the lowest first.
_BITS = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128])


def pack_sparse(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the packed form of a weight: its bit mask, lowest bit first, and its values in order.

    ``[D, C] -> uint8 [ceil(D C / 8)], [number of nonzero values]``

    Example:
        >>> mask, values = pack_sparse(torch.tensor([[0.0, 2.0], [0.0, 3.0]]))
        >>> mask.tolist(), values.tolist()
        ([10], [2.0, 3.0])
    """
    flat = weight.detach().flatten()
    nonzero = flat != 0
    # Padded to whole bytes.
    padded = torch.cat([nonzero, nonzero.new_zeros(-len(nonzero) % 8)])
    mask = (padded.view(-1, 8) * _BITS.to(weight.device)).sum(1).to(torch.uint8)
    return mask, flat[nonzero]


def unpack_sparse(mask: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the weight from its packed form, the inverse of :func:`pack_sparse`.

    Raises:
        CompressionError: Mask, values and shape do not match.
    """
    size = torch.Size(shape).numel()
    nonzero = (mask.view(-1, 1).to(torch.int64) & _BITS.to(mask.device)).ne(0).flatten()
    if len(mask) != -(-size // 8) or int(nonzero.sum()) != len(values) or bool(nonzero[size:].any()):
        raise CompressionError(f"a packed weight of shape {list(shape)} does not match its mask of {len(mask)} bytes")
    flat = values.new_zeros(size)
    flat[nonzero[:size]] = values
    return flat.view(torch.Size(shape))


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
class WeightStorage:
    """Bytes of one weight in each form.

    Attributes:
        name: Name of the parameter.
        density: Share of nonzero values.
        dense: Bytes of all its values.
        packed: Bytes of the bit mask and the nonzero values.
        csr: Bytes of row starts, columns and values.
    """

    name: str
    density: float
    dense: int
    packed: int
    csr: int

    @property
    def smallest_form(self) -> str:
        """The form with the fewest bytes; dense if no other form is smaller."""
        return min(("dense", "packed", "csr"), key=lambda form: getattr(self, form))


def measure_storage(model: nn.Module) -> list[WeightStorage]:
    """Return the measured bytes of every weight of a model, in the order of the model.

    Raises:
        CompressionError: The model has no weights.
    """
    rows = []
    for name, parameter in prunable_weights(model).items():
        weight = parameter.detach()
        matrix = to_csr(weight)
        forms = {
            "dense": [weight],
            "packed": list(pack_sparse(weight)),
            "csr": [matrix.crow_indices(), matrix.col_indices(), matrix.values()],
        }
        sizes = {form: sum(part.nbytes for part in parts) for form, parts in forms.items()}
        rows.append(WeightStorage(name, int(weight.count_nonzero()) / weight.numel(), **sizes))
    return rows


def break_even_density(form: str, outputs: int, inputs: int, value_bytes: int = 4) -> float:
    """Return the density below which a form is smaller than dense, for a matrix ``[outputs, inputs]``.

    Example:
        >>> break_even_density("packed", 64, 64), break_even_density("csr", 64, 64)
        (0.96875, 0.4920654296875)
    """
    size = outputs * inputs
    # Bytes that do not depend on the density, and bytes per nonzero value.
    fixed = {"packed": size / 8, "csr": 4.0 * (outputs + 1)}[form]
    per_value = {"packed": value_bytes, "csr": value_bytes + 4}[form]
    return max(0.0, (value_bytes * size - fixed) / (per_value * size))


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

    Dense and CSR runs alternate, so that other load on the machine affects both.

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
        operands = {"dense": weight, "csr": to_csr(weight)}
        times: dict[str, list[float]] = {form: [] for form in operands}
        for repeat in range(repeats + 3):
            for form, operand in operands.items():
                milliseconds = _time_linear(x, operand)
                if repeat >= 3:  # The first three runs warm up caches and allocators.
                    times[form].append(milliseconds)
        rows.append(LinearSpeed(density, statistics.median(times["dense"]), statistics.median(times["csr"])))
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


@torch.no_grad()
def _time_linear(x: Tensor, weight: Tensor) -> float:
    started = time.perf_counter()
    F.linear(x, weight)
    return (time.perf_counter() - started) * 1e3
