"""Batch norms of a data-parallel fit: normalization with the statistics of the whole batch, on any device.

torch's ``SyncBatchNorm`` runs on GPUs only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def synchronize_batch_norms(model: nn.Module, rank: int, size: int) -> Iterator[None]:
    """Let the batch norms of a model use the statistics of all processes in training mode, inside the context.

    A batch norm then computes what it would compute in one process on the whole batch, and its running statistics are
    the same in every process. Each pass takes one collective operation per batch norm.

    Args:
        model: The model; all processes run it equally often.
        rank: Number of this process.
        size: Number of processes; 1 changes nothing.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)] if size > 1 else []
    for norm in norms:
        # An attribute of the instance hides the method of its class.
        norm.forward = partial(_normalize, norm, rank, size)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _normalize(norm: _BatchNorm, rank: int, size: int, x: Tensor) -> Tensor:
    """Return the normalized input, ``[B, C, ...] -> [B, C, ...]``."""
    if not norm.training:
        return type(norm).forward(norm, x)
    mean, variance, count = _compute_batch_statistics(x, rank, size)
    if norm.track_running_stats:
        _update_running_statistics(norm, mean.detach(), variance.detach(), count)
    shape = (1, -1, *[1] * (x.dim() - 2))
    scale = torch.rsqrt(variance + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -mean * scale if norm.bias is None else norm.bias - mean * scale
    return (x.float() * scale.view(shape) + shift.view(shape)).to(x.dtype)


def _compute_batch_statistics(x: Tensor, rank: int, size: int) -> tuple[Tensor, Tensor, float]:
    """Return mean and variance over the batches of all processes, ``[C]`` each, and the number of values."""
    values = x.float().transpose(0, 1).flatten(1)
    local_mean = values.mean(1)
    local_squares = (values - local_mean.unsqueeze(1)).square().sum(1)
    own = torch.cat([local_mean, local_squares, local_mean.new_tensor([float(values.shape[1])])])
    # One row for each process, so that the sum over the processes contains all of them.
    rows = torch.stack([own if index == rank else torch.zeros_like(own) for index in range(size)])
    means, squares, counts = _sum_over_processes(rows).split([x.shape[1], x.shape[1], 1], dim=1)
    total = float(counts.detach().sum())
    # Chan et al. 1979: the squares about the common mean, without the cancellation of E[x^2] - E[x]^2.
    mean = (means * counts).sum(0) / total
    variance = (squares + counts * (means - mean).square()).sum(0) / total
    return mean, variance, total


@torch.no_grad()
def _update_running_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: float) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    # torch reads no momentum as the plain average over all batches.
    momentum = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean), momentum)
    norm.running_var.lerp_((variance * count / max(count - 1, 1)).to(norm.running_var), momentum)


def _sum_over_processes(tensor: Tensor) -> Tensor:
    # torch's stubs leave the method untyped.
    total: Tensor = _SumOverProcesses.apply(tensor)  # type: ignore[no-untyped-call]
    return total


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(_: FunctionCtx, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: FunctionCtx, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
