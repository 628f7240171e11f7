"""How sparse weights are stored and multiplied: bytes of each form against dense, and where sparse speed starts to pay.

    packed  one bit a weight that says whether it is zero, and the values that are not
    csr     compressed sparse rows: per row a start, per value its column, with 32-bit indices

Unstructured sparsity never lowers FLOPs: a dense kernel multiplies by zero like by any other number.
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
from autocompress.prune.masking import weights

_BITS = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128])


def pack_sparse(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the packed form of a weight: its bit mask, lowest bit first, and its values in order.

    ``[D, C] -> uint8 [ceil(D C / 8)], [number of values that are not zero]``

    Example:
        >>> mask, values = pack_sparse(torch.tensor([[0.0, 2.0], [0.0, 3.0]]))
        >>> mask.tolist(), values.tolist()
        ([10], [2.0, 3.0])
    """
    flat = weight.detach().flatten()
    kept = flat != 0
    padded = torch.cat([kept, kept.new_zeros(-len(kept) % 8)])
    mask = (padded.view(-1, 8) * _BITS.to(weight.device)).sum(1).to(torch.uint8)
    return mask, flat[kept]


def unpack_sparse(mask: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the weight that :func:`pack_sparse` was given.

    Raises:
        CompressionError: Mask, values and shape do not belong together.
    """
    size = torch.Size(shape).numel()
    kept = (mask.view(-1, 1).to(torch.int64) & _BITS.to(mask.device)).ne(0).flatten()
    if len(mask) != -(-size // 8) or int(kept.sum()) != len(values) or bool(kept[size:].any()):
        raise CompressionError(f"a packed weight of shape {list(shape)} does not match its mask of {len(mask)} bytes")
    flat = values.new_zeros(size)
    flat[kept[:size]] = values
    return flat.view(torch.Size(shape))


def to_csr(weight: Tensor) -> Tensor:
    """Return a weight as a sparse matrix with a row for each output, ``[D, C, k, k] -> [D, C k k]``."""
    matrix = weight.detach().flatten(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls the layout a beta, once a process
        sparse = matrix.to_sparse_csr()
        # Columns and row starts of 32 bits: half the bytes, and what the fast kernels take.
        return torch.sparse_csr_tensor(
            sparse.crow_indices().to(torch.int32), sparse.col_indices().to(torch.int32), sparse.values(), matrix.shape
        )


@dataclass(frozen=True)
class Storage:
    """Bytes of one weight in each form.

    Attributes:
        name: The parameter's name.
        density: Share of its values that are not zero.
        dense: Bytes of all its values.
        packed: Bytes of mask and values.
        csr: Bytes of row starts, columns and values.
    """

    name: str
    density: float
    dense: int
    packed: int
    csr: int

    @property
    def smallest(self) -> str:
        """The form with the fewest bytes; dense where nothing is gained."""
        return min(("dense", "packed", "csr"), key=lambda form: getattr(self, form))


def storage(model: nn.Module) -> list[Storage]:
    """Return the measured bytes of every weight of a model, in the order of the model.

    Raises:
        CompressionError: It has no weights.
    """
    rows = []
    for name, parameter in weights(model).items():
        weight = parameter.detach()
        matrix = to_csr(weight)
        forms = {
            "dense": [weight],
            "packed": list(pack_sparse(weight)),
            "csr": [matrix.crow_indices(), matrix.col_indices(), matrix.values()],
        }
        sizes = {form: sum(part.nbytes for part in parts) for form, parts in forms.items()}
        rows.append(Storage(name, int(weight.count_nonzero()) / weight.numel(), **sizes))
    return rows


def break_even(form: str, outputs: int, inputs: int, value_bytes: int = 4) -> float:
    """Return the density below which a form takes fewer bytes than dense, for a matrix ``[outputs, inputs]``.

    Example:
        >>> break_even("packed", 64, 64), break_even("csr", 64, 64)
        (0.96875, 0.4920654296875)
    """
    size = outputs * inputs
    fixed = {"packed": size / 8, "csr": 4.0 * (outputs + 1)}[form]
    each = {"packed": value_bytes, "csr": value_bytes + 4}[form]
    return max(0.0, (value_bytes * size - fixed) / (each * size))


@dataclass(frozen=True)
class Speed:
    """How long one linear layer takes at one density; medians, in milliseconds."""

    density: float
    dense_ms: float
    csr_ms: float


def linear_speed(
    outputs: int,
    inputs: int,
    batch: int,
    densities: Sequence[float] = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01),
    repeats: int = 30,
    seed: int = 0,
) -> list[Speed]:
    """Measure torch's dense and sparse (CSR) linear layer on this processor, with the threads that torch has now.

    The two take turns, so that a busy neighbour slows both.

    Args:
        outputs: Rows of the weight.
        inputs: Columns of the weight.
        batch: Examples at once.
        densities: Shares of the weights that are not zero.
        repeats: Timed runs of each; their median counts.
        seed: Seeds weights and inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, inputs, generator=generator)
    rows = []
    for density in densities:
        kept = torch.rand(outputs, inputs, generator=generator) < density
        weight = torch.randn(outputs, inputs, generator=generator) * kept
        operands = {"dense": weight, "csr": to_csr(weight)}
        times: dict[str, list[float]] = {form: [] for form in operands}
        for repeat in range(repeats + 3):
            for form, operand in operands.items():
                spent = _timed(x, operand)
                if repeat >= 3:  # The first runs fill caches.
                    times[form].append(spent)
        rows.append(Speed(density, statistics.median(times["dense"]), statistics.median(times["csr"])))
    return rows


def pays_below(rows: Sequence[Speed]) -> float:
    """Return the highest measured density at which CSR is faster, and stays so at every lower one; 0 if there is none.

    Example:
        >>> pays_below([Speed(0.5, 1.0, 4.0), Speed(0.1, 1.0, 0.8), Speed(0.01, 1.0, 0.1)])
        0.1
    """
    found = 0.0
    for row in sorted(rows, key=lambda row: row.density):
        if row.csr_ms >= row.dense_ms:
            break
        found = row.density
    return found


@torch.no_grad()
def _timed(x: Tensor, weight: Tensor) -> float:
    started = time.perf_counter()
    F.linear(x, weight)
    return (time.perf_counter() - started) * 1e3
