"""Taps: the outputs of named layers, caught by forward hooks while a model runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from autocompress.errors import TrialError, did_you_mean


@contextmanager
def tapped(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a dictionary that each forward pass fills: layer name to the layer's output.

    Args:
        model: The model to watch; its hooks are removed at the end.
        names: Names of layers, as ``named_modules`` spells them.

    Raises:
        TrialError: There is no such layer; the message suggests the nearest.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with tapped(net, ["0"]) as taps:
        ...     _ = net(torch.zeros(1, 2))
        >>> taps["0"].shape
        torch.Size([1, 3])
    """
    layers = dict(model.named_modules())
    caught: dict[str, Any] = {}
    handles = []
    try:
        for name in dict.fromkeys(names):
            if name not in layers:
                raise TrialError(f"{type(model).__name__} has no layer '{name}' to tap: {did_you_mean(name, layers)}")
            handles.append(layers[name].register_forward_hook(_catch(caught, name)))
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _catch(caught: dict[str, Any], name: str) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        caught[name] = output

    return hook
