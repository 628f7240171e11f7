"""Where and how precisely a fit computes: its device, its group of processes, float32 or bfloat16."""

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from autocompress.core.task import Split, Task, logits_by_head
from autocompress.errors import UsageError
from autocompress.training.sharding import make_mesh, shard_model

CPU = torch.device("cpu")

T = TypeVar("T")


def require_device(device: str) -> None:
    """Check that a device is available.

    Args:
        device: Name of the device in torch: ``cpu`` or ``cuda``.

    Raises:
        UsageError: The device is ``cuda`` and torch has no GPU; the message says what to do.
    """
    if device == "cuda" and not torch.cuda.is_available():
        cuda_version = torch.version.cuda
        why = (
            f"finds none (it is built for CUDA {cuda_version})"
            if cuda_version
            else f"{torch.__version__} is built without CUDA"
        )
        raise UsageError(
            f"the trials need a graphics card, but torch {why}; set search.device=cpu, or install a torch build "
            "for this machine's card"
        )


def available_device(device: str) -> torch.device:
    """Return the device, or the CPU if the device is ``cuda`` and this machine has no GPU."""
    return torch.device(device if device != "cuda" or torch.cuda.is_available() else "cpu")


@contextmanager
def move_model(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Keep a model on a device inside the context; afterwards, and after an error, it is on the CPU."""
    if device == CPU:
        yield
        return
    model.to(device)
    try:
        yield
    finally:
        model.to(CPU)


def default_device(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which tensors that name no device are created on this one.

    It is for models and losses, not for data: tasks keep their examples on the CPU. Draws from a generator name the CPU
    inside this context, so that a search draws the same numbers on every device.
    """
    # The CPU is torch's default already, and a device context slows down each function call.
    return nullcontext() if device == CPU else device


def synchronize_device(device: torch.device) -> None:
    """Wait until the device has finished its work, which a GPU does asynchronously."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class ProcessGroup:
    """The position of this process in a group; the default is a group of one process.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes; more than one needs an initialized group of ``torch.distributed``.
        shards: Number of processes that divide one copy of the model; ``size`` is a multiple of it.

    Example:
        >>> import torch
        >>> ProcessGroup(rank=1, size=3).local_rows(torch.arange(8)).tolist()
        [1, 4, 7]
    """

    rank: int = 0
    size: int = 1
    shards: int = 1

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

    def gather_objects(self, value: T) -> list[T]:
        """Return the values of all processes by rank, in the process of rank 0; elsewhere only its own."""
        if self.size == 1:
            return [value]
        values: list[T | None] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, values)
        return [value] if values is None else cast(list[T], values)

    def wrap_module(self, module: nn.Module, models: Sequence[nn.Module] = ()) -> nn.Module:
        """Return the module with its gradients averaged over the group in each backward pass.

        Args:
            module: Module of everything that is trained.
            models: Models that the shards divide: the one that is trained, and others that run in the module.
        """
        if self.shards > 1:
            mesh = make_mesh(self.size, self.shards)
            # The models first: what remains for the module itself is trained besides them.
            for part in (*models, module):
                shard_model(part, mesh)
            return module
        # DistributedDataParallel refuses a module without trainable parameters.
        if self.size == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
            return module
        # A step may leave parameters out: a head of weight 0, or the layers behind the one that a term reads.
        return DistributedDataParallel(module, find_unused_parameters=True)


SINGLE_PROCESS = ProcessGroup()


logger = logging.getLogger(__name__)

# Training steps of the probe in each precision; the fastest counts, so that the first one may warm up.
PROBE_STEPS = 3


@dataclass(frozen=True)
class Precision:
    """Single precision, or bfloat16 autocast on channels_last memory.

    Attributes:
        is_bfloat16: Whether forward passes run in bfloat16.
        device: Device of the model.
    """

    is_bfloat16: bool
    device: torch.device = CPU

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context for forward passes in this precision, which creates new tensors on the model's device."""
        # A context that changes nothing takes a hundredth of the step of a small model.
        return _autocast_on(self.device, True) if self.is_bfloat16 else default_device(self.device)

    def restore_layout(self, model: nn.Module) -> None:
        """Put the parameters of the model back into contiguous memory."""
        if self.is_bfloat16:
            _set_memory_format(model, torch.contiguous_format)


@contextmanager
def _autocast_on(device: torch.device, is_bfloat16: bool) -> Iterator[None]:
    with default_device(device), torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bfloat16):
        yield


def choose_precision(name: str, model: nn.Module, task: Task, batch: Split) -> Precision:
    """Return a precision and put the model into its memory layout.

    Args:
        name: Name of the precision: ``float32``, ``bfloat16``, or ``auto`` for the faster one on this machine.
        model: The model, whose values do not change.
        task: The learning problem, which gives the loss for the measurement.
        batch: Examples for the measurement, on the device of the model.
    """
    is_bfloat16 = name == "bfloat16" or (name == "auto" and is_bfloat16_faster(model, task, batch))
    if name == "auto":
        logger.info("The faster precision here is %s", "bfloat16" if is_bfloat16 else "float32")
    if is_bfloat16:
        _set_memory_format(model, torch.channels_last)
    return Precision(is_bfloat16, batch.inputs[0].device)


def _set_memory_format(model: nn.Module, memory_format: torch.memory_format) -> None:
    for parameter in model.parameters():
        # Only the weights of 2D convolutions have four axes; torch defines channels_last for these alone.
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


def is_bfloat16_faster(model: nn.Module, task: Task, batch: Split) -> bool:
    """Return whether training steps are faster here in bfloat16 and channels_last than in single precision.

    The steps run on copies of the model, whose weights and statistics do not change. An operator that has no bfloat16,
    or that autocast does not know, such as ``nn.Bilinear``, is an answer, too.
    """
    try:
        bfloat16 = _measure_step_seconds(model, task, batch, is_bfloat16=True)
    except (RuntimeError, TypeError) as error:
        logger.info("The model does not run in bfloat16: %s", error)
        return False
    return bfloat16 < _measure_step_seconds(model, task, batch, is_bfloat16=False)


def _measure_step_seconds(model: nn.Module, task: Task, batch: Split, *, is_bfloat16: bool) -> float:
    probe, device = copy.deepcopy(model).train(), batch.inputs[0].device
    if is_bfloat16:
        _set_memory_format(probe, torch.channels_last)
    fastest = float("inf")
    for _ in range(PROBE_STEPS):
        started = time.perf_counter()
        with _autocast_on(device, is_bfloat16):
            heads = logits_by_head(probe(*batch.inputs), task.heads)
            loss = task.loss({head: logits.float() for head, logits in heads.items()}, batch.targets)
        loss.backward()
        # A GPU runs asynchronously: without this the clock would measure the launch alone.
        synchronize_device(device)
        fastest = min(fastest, time.perf_counter() - started)
    return fastest
