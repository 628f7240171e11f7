"""The device of a fit: the CPU or a GPU."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from autocompress.errors import UsageError

CPU = torch.device("cpu")


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
