"""Single precision or bfloat16, chosen by name or by a quick measured probe."""

import copy
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from autocompress.core.task import Split, Task, as_heads
from autocompress.training.device import CPU, made_on, wait_for

PROBE_STEPS = 3


@dataclass(frozen=True)
class Precision:
    """Single precision, or bfloat16 autocast on channels_last.

    Attributes:
        low: Whether it is the latter.
        device: Where the model runs.
    """

    low: bool
    device: torch.device = CPU

    def running(self) -> AbstractContextManager[None]:
        """Return a context in which forward passes run in this precision, and make what they need where they run."""
        return _autocast(self.low, self.device)

    def leave(self, model: nn.Module) -> None:
        """Give the model back in the plain memory layout."""
        if self.low:
            _lay_out(model, torch.contiguous_format)


@contextmanager
def _autocast(low: bool, device: torch.device) -> Iterator[None]:
    with made_on(device), torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
        yield


def choose_precision(wanted: str, model: nn.Module, task: Task, batch: Split) -> Precision:
    """Return the precision called ``wanted`` and lay the model out for it; ``auto`` takes the faster one here."""
    low = wanted == "bfloat16" or (wanted == "auto" and bfloat16_pays(model, task, batch))
    if low:
        _lay_out(model, torch.channels_last)
    return Precision(low, batch.inputs[0].device)


def _lay_out(model: nn.Module, memory_format: torch.memory_format) -> None:
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


def bfloat16_pays(model: nn.Module, task: Task, batch: Split) -> bool:
    """Return whether a few steps in bfloat16 and channels_last are faster here than in single precision.

    The model is copied; its weights and statistics stay as they are.
    """
    return _seconds(model, task, batch, low=True) < _seconds(model, task, batch, low=False)


def _seconds(model: nn.Module, task: Task, batch: Split, *, low: bool) -> float:
    probe, device = copy.deepcopy(model).train(), batch.inputs[0].device
    if low:
        _lay_out(probe, torch.channels_last)
    fastest = float("inf")
    for _ in range(PROBE_STEPS):
        started = time.perf_counter()
        with _autocast(low, device):
            heads = as_heads(probe(*batch.inputs), task.heads)
            loss = task.loss({head: logits.float() for head, logits in heads.items()}, batch.targets)
        loss.backward()
        wait_for(device)
        fastest = min(fastest, time.perf_counter() - started)
    return fastest
