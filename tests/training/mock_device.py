"""A graphics card that is not there: tensors that say `card`, computed by the processor.

Each operation runs on the processor's own kernels, so a fit on this card gives bit for bit what one on the processor
gives; one that mixes both devices is refused as a real card refuses it. What only a real one shows (its kernels, its
memory, its speed) is not tested by it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

CARD = "card"
# They carry values from one device to the other.
BRIDGES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
# They take indices from the processor.
INDEXED = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default}


class OnCard(Tensor):
    """A tensor that says it lies on the card."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnCard":
        built: OnCard = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(CARD, 0),
            requires_grad=False,
        )
        built.inner = inner
        return built

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnCard({self.inner!r})"


class _Driver(_DummyBackendModule):  # type: ignore[misc]
    """What torch asks a device's own module for."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Return nothing: there are no kernels to lower."""
        return []


class _Card(TorchDispatchMode):
    """Sees what is made on the card, too: there is no tensor of it among the arguments."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [entry for entry in tree_flatten((args, kwargs))[0] if isinstance(entry, Tensor)]
    there = [entry for entry in tensors if isinstance(entry, OnCard)]
    here = [entry for entry in tensors if not isinstance(entry, OnCard) and entry.dim() > 0]
    if there and here and func not in BRIDGES | INDEXED:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found card:0 and cpu")
    if func in INDEXED and there and not isinstance(args[0], OnCard):
        raise RuntimeError(f"{func}: indices should be on the same device as the indexed tensor (cpu)")
    device = kwargs.get("device")
    wanted = there if device is None or func in BRIDGES else []
    if kwargs.get("generator") is not None and (there or getattr(device, "type", "cpu") == CARD):
        raise RuntimeError(f"{func}: expected a card type for generator but found 'cpu'")
    to_card = getattr(device, "type", None) == CARD if device is not None else bool(wanted)
    if func is torch.ops.aten.copy_.default:
        to_card = isinstance(args[0], OnCard)
    plain = tree_map_only(OnCard, lambda entry: entry.inner, (args, kwargs))
    if device is not None:
        plain[1]["device"] = torch.device("cpu")
        plain[1].pop("pin_memory", None)
    actual = func(*plain[0], **plain[1])
    if to_card:
        actual = tree_map(lambda entry: OnCard(entry) if isinstance(entry, Tensor) else entry, actual)
    return return_and_correct_aliasing(func, args, kwargs, actual) if there and to_card else actual


@contextmanager
def a_card() -> Iterator[torch.device]:
    """Put the card in place for a while."""
    _plugged_in()
    # What `torch.tensor` makes of numbers is then carried over by an operation that can be seen.
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        # An engine that has run before has no thread for a new device, so all runs in this one.
        with _Card(), torch.autograd.set_multithreading_enabled(False):
            yield torch.device(CARD, 0)
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


@lru_cache
def _plugged_in() -> None:
    """Let torch know of the device, for as long as this process lives: autograd guards its streams."""
    _setup_privateuseone_for_python_backend(CARD, _Driver())
