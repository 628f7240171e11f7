"""The precision of a fit, float32 or bfloat16, chosen by name or by a short measurement."""

import copy
import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from autocompress.core.task import Split, Task, logits_by_head
from autocompress.training.device import CPU, default_device, synchronize_device

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

    def autocast(self) -> AbstractContextManager[None]:
        """Return a context for forward passes in this precision, which creates new tensors on the model's device."""
        return _autocast_on(self.device, self.is_bfloat16)

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

    The steps run on copies of the model, whose weights and statistics do not change.
    """
    bfloat16 = _measure_step_seconds(model, task, batch, is_bfloat16=True)
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
