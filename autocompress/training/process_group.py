"""The processes that fit one model together, and what each of them does its part of."""

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Team:
    """One process's place among those that fit a model together; by default it is alone.

    Attributes:
        rank: Which of them, from 0.
        size: How many they are; more than one needs an initialised process group.

    Example:
        >>> import torch
        >>> Team(rank=1, size=3).share(torch.arange(8)).tolist()
        [1, 4, 7]
    """

    rank: int = 0
    size: int = 1

    def share(self, rows: Tensor) -> Tensor:
        """Return this process's rows of a global batch, ``[B] -> [B / size]``; shares differ by one row at most."""
        return rows[self.rank :: self.size]

    def factor(self, share: Tensor, rows: Tensor) -> float:
        """Return what a share's mean loss is multiplied by, so that the mean over the team is the batch's mean."""
        return len(share) * self.size / len(rows)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over the team, the same in every process."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def join(self, module: nn.Module) -> nn.Module:
        """Return the module with its gradients averaged over the team in each backward pass."""
        if self.size == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
            return module
        # A term may leave parameters out of a step: a head of weight 0, a layer behind a tap.
        return DistributedDataParallel(module, find_unused_parameters=True)


ALONE = Team()
