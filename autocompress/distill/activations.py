"""Layers of a model that distillation terms can read, and their outputs, recorded by forward hooks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from autocompress.errors import TrialError, did_you_mean


@contextmanager
def record_activations(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, object]]:
    """Yield a dictionary from layer name to output, which each forward pass of the model updates.

    Args:
        model: The model that is run inside the context; the hooks are removed at its end.
        names: Names of layers as in ``named_modules``.

    Raises:
        TrialError: There is no such layer; the message suggests the nearest.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with record_activations(net, ["0"]) as outputs:
        ...     _ = net(torch.zeros(1, 2))
        >>> outputs["0"].shape
        torch.Size([1, 3])
    """
    layers = dict(model.named_modules())
    outputs: dict[str, object] = {}
    handles = []
    try:
        # One hook per layer, even if several terms read the layer.
        for name in dict.fromkeys(names):
            if name not in layers:
                raise TrialError(f"{type(model).__name__} has no layer '{name}': {did_you_mean(name, layers)}")
            handles.append(layers[name].register_forward_hook(_build_recording_hook(outputs, name)))
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _build_recording_hook(outputs: dict[str, object], name: str) -> Callable[[nn.Module, object, object], None]:
    def record_output(module: nn.Module, inputs: object, output: object) -> None:
        outputs[name] = output

    return record_output


def list_feature_layers(model: nn.Module) -> list[str]:
    """Return the names of a model's feature layers, from the input to the output, without the head.

    The feature layers of a model with ``stages``, which every built-in family has, are its stages. Those of another
    model are its children that have weights, in the order of declaration. Module lists are replaced by their items, and
    sequences as well while there are fewer than three layers.

    Raises:
        TrialError: The model has no feature layers.

    Example:
        >>> list_feature_layers(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        ['0', '1']
    """
    stages = next((name for name, child in model.named_modules() if name.rpartition(".")[2] == "stages"), None)
    if stages is not None:
        return [f"{stages}.{name}" for name, _ in model.get_submodule(stages).named_children()]
    head = head_layers(model)
    layers = _list_child_layers(model, "")
    while True:
        holder = next((name for name in layers if _is_expandable(model, name, head, len(layers))), None)
        if holder is None:
            break
        index = layers.index(holder)
        layers[index : index + 1] = _list_child_layers(model, holder)
    features = [name for name in layers if not _contains_head(name, head)]
    if not features:
        raise TrialError(f"{type(model).__name__} has no layers that a feature term can read; use terms on logits")
    return features


def head_layers(model: nn.Module) -> list[str]:
    """Return the names of a model's heads in the order of declaration; empty if it has no linear layer.

    A module with an attribute ``head_layers`` names the heads itself: with experts and gates they cannot be recognized
    by their shape. Otherwise the last declared linear layer is a head. The linear layers just before it are heads, too,
    if they read the same number of features and return another number of values.

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
        # A layer that is as wide as its input is a hidden layer, not another head.
        if heads and (module.in_features != width or module.out_features == width):
            break
        heads.insert(0, name)
    return heads


def has_token_output(layer: nn.Module) -> bool:
    """Return whether a layer's output with three axes is ``[B, T, D]``, features last, and not ``[B, C, L]``.

    It is if the layer has linear maps, layer norms or embeddings, and neither convolutions nor batch norms.
    """
    inner = list(layer.modules())
    if any(isinstance(module, _ConvNd | _BatchNorm) for module in inner):
        return False
    return any(
        isinstance(module, nn.Linear | nn.LayerNorm | nn.RMSNorm | nn.Embedding | nn.RNNBase) for module in inner
    )


def _list_child_layers(model: nn.Module, name: str) -> list[str]:
    """Return the names of a module's children that have weights; of a sequence, those of all children."""
    module = model.get_submodule(name)
    prefix = f"{name}." if name else ""
    return [
        prefix + child
        for child, inner in module.named_children()
        if isinstance(module, nn.Sequential) or any(True for _ in inner.parameters())
    ]


def _is_expandable(model: nn.Module, name: str, head: list[str], count: int) -> bool:
    """Return whether a layer is replaced by its children.

    Module lists and dictionaries are: they have no forward pass that a hook could see. So are sequences that contain a
    head or that are among fewer than three layers, and a layer that is the only one.
    """
    module = model.get_submodule(name)
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return not _contains_head(name, head)
    if name in head or not _list_child_layers(model, name):
        return False
    return (isinstance(module, nn.Sequential) and (count < 3 or _contains_head(name, head))) or count == 1


def _contains_head(name: str, head: list[str]) -> bool:
    return any(inner == name or inner.startswith(f"{name}.") for inner in head)
