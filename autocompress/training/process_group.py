"""The position of a process among those that share one fit, and the collective operations of that group."""

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class ProcessGroup:
    """The position of this process in a group; the default is a group of one process.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes; more than one needs an initialized group of ``torch.distributed``.

    Example:
        >>> import torch
        >>> ProcessGroup(rank=1, size=3).local_rows(torch.arange(8)).tolist()
        [1, 4, 7]
    """

    rank: int = 0
    size: int = 1

    def local_rows(self, rows: Tensor) -> Tensor:
        """Return this process's share of a global batch, ``[B] -> [B / size]``; shares differ by one row at most."""
        return rows[self.rank :: self.size]

    def loss_scale(self, share: Tensor, rows: Tensor) -> float:
        """Return the factor of a share's mean loss that makes the mean over the group the mean over the batch."""
        # Gradients are averaged with equal weights, but shares may differ by one row.
        return len(share) * self.size / len(rows)

    def all_reduce_mean(self, value: Tensor) -> Tensor:
        """Return the mean over the group, the same in every process."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def wrap_module(self, module: nn.Module) -> nn.Module:
        """Return the module with its gradients averaged over the group in each backward pass."""
        # DistributedDataParallel refuses a module without trainable parameters.
        if self.size == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
            return module
        # A step may leave parameters out: a head of weight 0, or the layers behind the one that a term reads.
        return DistributedDataParallel(module, find_unused_parameters=True)


SINGLE_PROCESS = ProcessGroup()
