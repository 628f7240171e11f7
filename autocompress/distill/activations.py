"""Taps: which layers of a model can be read, and their outputs, caught by forward hooks while it runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

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


def tap_points(model: nn.Module) -> list[str]:
    """Return the layers of a model that can be read, from the input to the output; the head is none of them.

    A model with ``stages`` (every family here) offers each stage. Any other offers its children with weights in the
    order in which they are declared, lists of layers item by item; where that is fewer than three, its sequences too.

    Raises:
        TrialError: The model has no such layers.

    Example:
        >>> tap_points(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        ['0', '1']
    """
    stages = next((name for name, child in model.named_modules() if name.rpartition(".")[2] == "stages"), None)
    if stages is not None:
        return [f"{stages}.{name}" for name, _ in model.get_submodule(stages).named_children()]
    head = head_layers(model)
    points = _children(model, "")
    while True:
        holder = next((name for name in points if _opens(model, name, head, len(points))), None)
        if holder is None:
            break
        at = points.index(holder)
        points[at : at + 1] = _children(model, holder)
    found = [name for name in points if not _holds(name, head)]
    if not found:
        raise TrialError(f"{type(model).__name__} has no layers that a feature term could read; use terms on logits")
    return found


def head_layers(model: nn.Module) -> list[str]:
    """Return the heads of a model, in the order of declaration; nothing where it has no linear layer.

    A module of the model that lists its ``head_layers`` is believed: behind experts and gates the heads cannot be
    told by their shape. Else the last linear layer that is declared is one, and so are those just before it that
    read as many features and give another number of values: several heads side by side.

    Example:
        >>> head_layers(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        ['2']
    """
    for name, module in model.named_modules():
        listed = getattr(module, "head_layers", None)
        if isinstance(listed, list) and all(isinstance(layer, str) for layer in listed):
            return [f"{name}.{layer}" if name else layer for layer in listed]
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    heads: list[str] = []
    for name, module in reversed(linear):
        width = linear[-1][1].in_features
        if heads and (module.in_features != width or module.out_features == width):
            break
        heads.insert(0, name)
    return heads


def over_tokens(layer: nn.Module) -> bool:
    """Return whether a layer's output of three axes is ``[B, T, D]``, features last, and not ``[B, C, L]``.

    It is, where the layer holds linear maps, layer norms or embeddings, and neither convolution nor batch norm.
    """
    inner = list(layer.modules())
    if any(isinstance(module, _ConvNd | _BatchNorm) for module in inner):
        return False
    return any(
        isinstance(module, nn.Linear | nn.LayerNorm | nn.RMSNorm | nn.Embedding | nn.RNNBase) for module in inner
    )


def _children(model: nn.Module, name: str) -> list[str]:
    """Return the children of a module that can be points; in a sequence those without weights too."""
    module = model.get_submodule(name)
    prefix = f"{name}." if name else ""
    return [
        prefix + child
        for child, inner in module.named_children()
        if isinstance(module, nn.Sequential) or any(True for _ in inner.parameters())
    ]


def _opens(model: nn.Module, name: str, head: list[str], count: int) -> bool:
    """Return whether a point is to be replaced by its children: it never runs itself, or it holds too much."""
    module = model.get_submodule(name)
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return not _holds(name, head)
    if name in head or not _children(model, name):
        return False
    return (isinstance(module, nn.Sequential) and (count < 3 or _holds(name, head))) or count == 1


def _holds(name: str, head: list[str]) -> bool:
    return any(inner == name or inner.startswith(f"{name}.") for inner in head)
