"""Model parallelism: each process stores a part of the weights, the gradients and the optimizer's state.

torch's fully sharded data parallelism (Zhao et al. 2023, arXiv:2304.11277) divides every parameter along its first
axis. The weights of a block are gathered right before the block runs and released after it; the gradients are averaged
and divided again. The losses and the steps of the optimizer are those of data-parallel processes.
"""

import copy
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

# torch's modules for sharding are imported where they are used: they would take a third of the time in which a program
# starts that trains in one process.

# Each block costs one collective operation in each direction, which a smaller block would not be worth.
MIN_BLOCK_SHARE = 0.02


class Stateful(Protocol):
    """The interface that torch's models, optimizers and schedules share."""

    def state_dict(self) -> Mapping[str, object]:
        """Return the state by name."""
        ...

    def load_state_dict(self, state_dict: dict[str, object]) -> object:
        """Replace the state by that of another instance."""
        ...


def make_mesh(size: int, shards: int) -> "DeviceMesh":
    """Return the processes as a grid: ``shards`` neighbours divide one copy of the model, and the copies are averaged.

    Args:
        size: Number of processes, a multiple of ``shards``.
        shards: Number of processes that divide one copy of the model.
    """
    from torch.distributed.device_mesh import init_device_mesh

    if size == shards:
        return init_device_mesh("cpu", (shards,), mesh_dim_names=("shard",))
    return init_device_mesh("cpu", (size // shards, shards), mesh_dim_names=("copy", "shard"))


def shard_model(model: nn.Module, mesh: "DeviceMesh") -> None:
    """Divide the parameters of a model among the processes of a mesh, in place; each block is gathered by itself.

    Args:
        model: The model, with equal values in every process; parts of it may be divided already.
        mesh: The processes, of :func:`make_mesh`.
    """
    from torch.distributed.fsdp import fully_shard

    for parameter in model.parameters():
        if not is_divided(parameter):
            # torch divides contiguous memory only; convolutions in bfloat16 have their channels last.
            parameter.data = parameter.data.contiguous()
    for part in (*list_blocks(model), model):
        # By default the outermost model stays whole until its backward pass, which a teacher does not have.
        fully_shard(part, mesh=mesh, reshard_after_forward=True)


def list_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the outermost members of the sequences and lists of a model that have weights of their own.

    Left out are blocks that are divided already, those with less than 2% of the weights, and those that share a
    parameter with another part of the model: they stay with the rest of the model, which is gathered as one.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
        >>> [type(block).__name__ for block in list_blocks(model)]
        ['Linear', 'Linear']
    """
    owners = _count_owners(model)
    smallest = MIN_BLOCK_SHARE * sum(parameter.numel() for parameter in owners)

    def is_separate(block: nn.Module) -> bool:
        inside = _count_owners(block)
        size = sum(parameter.numel() for parameter in inside if not is_divided(parameter))
        return size > smallest and all(owners[parameter] == count for parameter, count in inside.items())

    def collect(module: nn.Module) -> Iterator[nn.Module]:
        containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        for child in module.children():
            if isinstance(module, nn.Sequential | nn.ModuleList) and not isinstance(child, containers):
                if is_separate(child):
                    yield child
            else:
                yield from collect(child)

    # A module that is listed twice is one block.
    return list(dict.fromkeys(collect(model)))


def _count_owners(model: nn.Module) -> Counter[nn.Parameter]:
    """Return the number of modules that each parameter belongs to."""
    return Counter(parameter for module in model.modules() for parameter in module.parameters(recurse=False))


def sum_magnitudes(parameters: Iterable[Tensor]) -> Tensor:
    """Return the sum of the absolute values of parameters, divided or not, ``[]``."""
    parameters = list(parameters)
    total = torch.stack([_make_whole(parameter.abs().sum()) for parameter in parameters]).sum()
    if total.requires_grad and any(map(is_divided, parameters)):
        # This gradient goes to the process's own part, past the averaging of the gradients of gathered weights, and the
        # factor of the loss depends on the process's share of the batch.
        total.register_hook(_average_gradient)
    return total


def _average_gradient(gradient: Tensor) -> Tensor:
    mean = gradient.clone()
    dist.all_reduce(mean)
    return mean / dist.get_world_size()


def _make_whole(tensor: Tensor) -> Tensor:
    """Return a tensor that is not divided; all processes call it together."""
    return tensor.full_tensor() if is_divided(tensor) else tensor


def is_divided(tensor: object) -> "TypeGuard[DTensor]":
    """Return whether a tensor is divided among processes."""
    # By its method, because the class exists only after an expensive import.
    return isinstance(tensor, Tensor) and hasattr(tensor, "full_tensor")


def gather_state(state: object) -> object:
    """Return a state with whole tensors in the process of rank 0, and with empty ones in all others.

    All processes call it together.
    """

    def gather(tensor: Tensor) -> Tensor:
        whole = _make_whole(tensor)
        # Only one process stores or returns the state.
        return whole if dist.get_rank() == 0 else tensor.new_empty(0)

    return map_tensors(state, gather)


def distribute_state(state: object, layout: object) -> object:
    """Return a state with this process's share of each tensor that is divided in the layout.

    Args:
        state: A state with whole tensors.
        layout: Nested mappings with the keys of the state and the divided parameters; a parameter in the place of a
            mapping stands for all tensors of its shape in there.
    """
    if isinstance(state, Tensor):
        if is_divided(layout) and state.shape == layout.shape:
            from torch.distributed.tensor import distribute_tensor

            # Every process has the whole state, so that none has to be sent.
            return distribute_tensor(state, layout.device_mesh, layout.placements, src_data_rank=None)
        return state
    if isinstance(state, MutableMapping):
        result = copy.copy(state)
        for key, value in state.items():
            result[key] = distribute_state(value, layout.get(key) if isinstance(layout, Mapping) else layout)
        return result
    return state


@dataclass(frozen=True)
class ShardedState:
    """The state of a sharded part in the form that one process has: whole tensors.

    Attributes:
        part: A model, an optimizer or other part.
        layout: Function that returns the divided parameters under the keys of the state.
    """

    part: Stateful
    layout: Callable[[], Mapping[str, object]]

    def state_dict(self) -> Mapping[str, object]:
        """Return the state with whole tensors in the process of rank 0."""
        gathered = gather_state(self.part.state_dict())
        assert isinstance(gathered, Mapping)
        return gathered

    def load_state_dict(self, state_dict: dict[str, object]) -> object:
        """Load this process's share of a state with whole tensors."""
        share = distribute_state(state_dict, self.layout())
        assert isinstance(share, dict)
        return self.part.load_state_dict(share)


def map_tensors(value: object, function: Callable[[Tensor], Tensor]) -> object:
    """Return a state with ``function`` applied to each tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, MutableMapping):
        # A copy keeps the attributes of a mapping: the version of a model's state_dict is one.
        result = copy.copy(value)
        result.update({key: map_tensors(entry, function) for key, entry in value.items()})
        return result
    return type(value)(map_tensors(entry, function) for entry in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class ProcessMemory:
    """The memory of one process of a fit, in bytes.

    Attributes:
        weights: Parameters that the process stores between two steps: student, adapters, and a teacher that runs live.
        gradients: Their gradients.
        optimizer: State of the optimizer.
        peak: Largest resident memory of the process so far, with all libraries and data.
    """

    weights: int
    gradients: int
    optimizer: int
    peak: int

    @property
    def total(self) -> int:
        """Weights, gradients and optimizer state together."""
        return self.weights + self.gradients + self.optimizer


def measure_memory(parameters: Iterable[nn.Parameter], optimizer_state: Mapping[str, object]) -> ProcessMemory:
    """Return the memory of this process.

    Args:
        parameters: Parameters of everything that the fit holds.
        optimizer_state: The optimizer's ``state_dict``.
    """
    unique = list(dict.fromkeys(parameters))
    optimizer: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        optimizer.append(_count_local_bytes(tensor))
        return tensor

    map_tensors(optimizer_state, count)
    gradients = [parameter.grad for parameter in unique if parameter.grad is not None]
    return ProcessMemory(
        sum(map(_count_local_bytes, unique)), sum(map(_count_local_bytes, gradients)), sum(optimizer), read_peak()
    )


def read_peak() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # The kernel counts ru_maxrss from before the start of the program, its parent's memory included.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _count_local_bytes(tensor: Tensor) -> int:
    return (tensor.to_local() if is_divided(tensor) else tensor).nbytes
