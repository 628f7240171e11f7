"""Where a fit runs: on the processor, or on a graphics card."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from autocompress.errors import UsageError

CPU = torch.device("cpu")


def refuse_missing(device: str) -> None:
    """Refuse a graphics card where torch sees none.

    Args:
        device: As torch calls it.

    Raises:
        UsageError: There is none; the message says what to do.
    """
    if device == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"sees none (it is built for CUDA {built})" if built else f"{torch.__version__} is built without CUDA"
        raise UsageError(
            f"trainings were to run on a graphics card, but torch {why}; set search.device=cpu, or install a torch for "
            "this machine's card"
        )


def nearest(device: str) -> torch.device:
    """Return the device, or the processor where this machine has no such card."""
    return torch.device(device if device != "cuda" or torch.cuda.is_available() else "cpu")


@contextmanager
def moved(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Keep a model on a device for a while; it comes back to the processor, whatever happens."""
    if device == CPU:
        yield
        return
    model.to(device)
    try:
        yield
    finally:
        model.to(CPU)


def made_on(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which tensors that name no device are made on this one.

    For models and losses, not for data: tasks keep those on the processor. What is drawn from a generator names the
    processor there too, so that a search draws the same on every device.
    """
    return nullcontext() if device == CPU else device


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was asked for: a card answers before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
