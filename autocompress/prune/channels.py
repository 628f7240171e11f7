"""Channels that must go together, found by torch-pruning, and their removal for real.

Cutting an output channel of one layer cuts an input channel of every layer behind it, and an output channel of
every layer that is added to it: such a set is a *group* (Fang 2023, arXiv:2301.12900). torch-pruning finds the
groups and shrinks the layers. Its own pruner is not used: it rounds the number removed up, and passes in silence
over a layer that this would empty. What it cannot see (a branch that depends on the data, a layer that did not
run) is looked for here, and every cut is compared with the uncut model.
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch_pruning.ops import OPTYPE, module2type
from torch_pruning.pruner.function import PrunerBox

from autocompress.errors import CompressionError
from autocompress.prune.calibration import one_line, tensors
from autocompress.prune.importance import WEIGHTED, Slice, across

History = list[list[Any]]
"""``[layer name, whether output channels, [indices]]`` for every layer that shrank, in order."""

_LAYERS = frozenset({OPTYPE.CONV, OPTYPE.DEPTHWISE_CONV, OPTYPE.LINEAR, OPTYPE.EMBED, OPTYPE.BN, OPTYPE.PRELU})
_ROOTS = [nn.modules.conv._ConvNd, nn.Linear, nn.Embedding]
_SHAPING = frozenset(
    {OPTYPE.CONCAT, OPTYPE.SPLIT, OPTYPE.ELEMENTWISE, OPTYPE.RESHAPE, OPTYPE.UNBIND, OPTYPE.EXPAND, OPTYPE.SLICE}
)
# Operators that mix channels, written as functions: what they return depends on channels that would go.
_MIXING = ("softmax", "norm", "attention", "conv", "mm", "cumsum")


@dataclass(frozen=True)
class Group:
    """Channels that must go together.

    Attributes:
        name: The first layer, whose output channels they are.
        channels: How many there are to choose from.
        repeats: How often each choice occurs: once, or once a group of a grouped convolution.
        slices: Every layer that shrinks with them.
        parts: Choices that are all a layer of the group has: they must not go as a whole.
    """

    name: str
    channels: int
    repeats: int
    slices: tuple[Slice, ...]
    parts: tuple[tuple[int, ...], ...]

    def expand(self, chosen: Sequence[int]) -> list[int]:
        """Return the channels of the first layer that ``chosen`` stand for."""
        return [index + block * self.channels for block in range(self.repeats) for index in chosen]


class Channels:
    """The channel groups of a model, which :meth:`remove` shrinks in place.

    Args:
        model: The model, in evaluation mode.
        example: A batch of one, as its positional arguments.

    Raises:
        CompressionError: The model cannot be traced, or holds a layer that does not take part.
    """

    def __init__(self, model: nn.Module, example: tuple[Tensor, ...]) -> None:
        self.history: History = []
        self.uncut: dict[str, str] = {}
        self._names = {module: name for name, module in model.named_modules()}
        outputs: set[Any] = set()

        def remember(output: Any) -> Any:
            outputs.update(tensor.grad_fn for tensor in tensors(output))
            return output

        refuse_branches_on_data(model, example)
        with _quiet(), torch.enable_grad():
            try:
                self._graph = torch_pruning.DependencyGraph().build_dependency(
                    model, example, output_transform=remember, verbose=False
                )
                found = list(self._graph.get_all_groups(root_module_types=_ROOTS))
            except Exception as error:
                raise CompressionError(f"{type(model).__name__} cannot be traced: {one_line(error)}") from error
        self._refuse_idle_layers(model)
        self.groups = [group for group in (self._group(group, outputs) for group in found) if group is not None]

    def remove(self, group: Group, chosen: Sequence[int]) -> None:
        """Remove the chosen channels from every layer of the group, and remember it.

        Raises:
            CompressionError: A layer would be left without channels, or cannot be shrunk.
        """
        if not chosen:
            return
        if not set(chosen) < set(range(group.channels)):
            raise CompressionError(f"'{group.name}' has {group.channels} channels to choose from and must keep one")
        layer = group.slices[0].layer
        with _quiet():
            try:
                cut = self._graph.get_pruning_group(layer, _pruner(layer).prune_out_channels, group.expand(chosen))
                parts = self._slices(cut)
                emptied = [part.name for part in parts if _whole(part)]
                if not emptied:
                    cut.prune(record_history=False)
            except Exception as error:
                raise CompressionError(
                    f"the channels of '{group.name}' cannot be removed: {one_line(error)}"
                ) from error
        if emptied:
            raise CompressionError(f"removing channels of '{group.name}' would leave '{emptied[0]}' without any")
        self.history += [[part.name, part.outputs, sorted(part.indices)] for part in parts]

    def _group(self, found: Any, outputs: set[Any]) -> Group | None:
        """Return torch-pruning's group, or ``None`` if it must stay whole, with the reason in ``uncut``."""
        slices = self._slices(found)
        reason = self._why_whole(found, outputs)
        if reason:
            self.uncut[slices[0].name] = reason
            return None
        repeats = max(_blocks(part) for part in slices)
        channels = len(slices[0].indices) // repeats
        parts = {tuple(sorted({root % channels for root in part.roots})) for part in slices if _whole(part)}
        return Group(slices[0].name, channels, repeats, slices, tuple(sorted(parts)))

    def _why_whole(self, found: Any, outputs: set[Any]) -> str:
        for dependency, _ in found:
            node = dependency.target
            returned = node.grad_fn in outputs or node.type == OPTYPE.OUTPUT
            if returned and self._graph.is_out_channel_pruning_fn(dependency.handler):
                return "the model returns it"
            if node.type not in _LAYERS | _SHAPING:
                return f"it runs through {type(node.module).__name__}"
            operation = _operation(node)
            if any(word in operation.lower() for word in _MIXING):
                return f"it runs through {operation}"
        for part in self._slices(found):
            size = size_of(part.layer, part.outputs)
            if None in part.roots or (size and max(part.indices) >= size):
                return f"its channels are not those of '{part.name}'"
        return ""

    def _slices(self, found: Any) -> tuple[Slice, ...]:
        return tuple(
            Slice(
                self._names[item.dep.target.module],
                item.dep.target.module,
                bool(self._graph.is_out_channel_pruning_fn(item.dep.handler)),
                item.idxs,
                item.root_idxs,
            )
            for item in found.items
            if item.dep.target.type in _LAYERS
        )

    def _refuse_idle_layers(self, model: nn.Module) -> None:
        traced = {module for module in self._graph.module2node if isinstance(module, nn.Module)}
        covered = {part for module in traced for part in module.modules()}
        for name, module in model.named_modules():
            if isinstance(module, WEIGHTED) and module not in covered:
                raise CompressionError(
                    f"layer '{name}' takes no part in the forward pass of the example: what depends on it is unknown"
                )


def replay(model: nn.Module, history: Sequence[Sequence[Any]]) -> None:
    """Shrink a fresh model as the history says, in place.

    Raises:
        CompressionError: The history does not fit the model.
    """
    for entry in history:
        try:
            name, outputs, indices = entry
            layer = model.get_submodule(name)
            pruner, size = _pruner(layer), size_of(layer, outputs)
            fits = 0 < len(set(indices)) < size and all(0 <= index < size for index in indices)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CompressionError(f"the pruning history does not fit the model: {one_line(error)}") from error
        if not fits:
            raise CompressionError(f"the pruning history does not fit layer '{name}', which has {size} channels")
        (pruner.prune_out_channels if outputs else pruner.prune_in_channels)(layer, list(indices))


@torch.no_grad()
def verify_cut(model: nn.Module, pruned: nn.Module, history: History, inputs: tuple[Tensor, ...]) -> None:
    """Check that the pruned model computes what the whole one does once its removed channels are silent.

    Every removed channel ends as an input of convolutions or linear layers. With those weights at zero, the whole
    model must return what the pruned one returns; a channel removed at the wrong place breaks that.

    Raises:
        CompressionError: The pruned model fails, returns another shape or other values, or is not finite.
    """
    silent = copy.deepcopy(model).eval()
    left: dict[str, list[int]] = {}
    for name, outputs, indices in history:
        layer = silent.get_submodule(name)
        if outputs:
            continue
        # Indices count what was left when the layer shrank; the weights of ``silent`` are all still there.
        kept = left.setdefault(name, list(range(size_of(layer, False))))
        silence(layer, [kept[index] for index in indices])
        left[name] = [channel for index, channel in enumerate(kept) if index not in set(indices)]
    try:
        found = tensors(pruned(*inputs))
    except Exception as error:
        raise CompressionError(f"the pruned model fails: {one_line(error)}") from error
    expected = tensors(silent(*inputs))
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
        raise CompressionError("pruning changed the shape of the model's output")
    for ours, theirs in zip(found, expected, strict=True):
        if not bool(ours.isfinite().all()):
            raise CompressionError("the pruned model's output is not finite")
        if bool((ours - theirs).abs().max() > 1e-3 * theirs.abs().max() + 1e-6):
            raise CompressionError("pruning changed more than the removed channels: the model mixes channels unseen")


@torch.no_grad()
def silence(layer: nn.Module, inputs: Sequence[int]) -> None:
    """Set the weights of some input channels of a layer to zero, in place."""
    gone = torch.tensor(inputs)
    weight = layer.get_parameter("weight")
    view = weight.unsqueeze(0) if getattr(layer, "transposed", False) else across(layer, weight)
    view[gone // view.shape[1], gone % view.shape[1]] = 0


def refuse_branches_on_data(model: nn.Module, example: tuple[Tensor, ...]) -> None:
    """Run the example and refuse a model that reads a tensor's value into Python, as ``if x.sum() > 0`` does.

    Raises:
        CompressionError: It does, or it fails on the example.
    """
    try:
        # With gradients on, as the trace runs: without them, torch's fused transformer layers look at their masks.
        with torch.enable_grad(), _ValueReads():
            model(*example)
    except _ValueReadError as error:
        raise CompressionError(
            f"{type(model).__name__} decides by the data what it computes: no trace fits it"
        ) from error
    except Exception as error:
        raise CompressionError(f"{type(model).__name__} fails on its example: {one_line(error)}") from error


def size_of(layer: nn.Module, outputs: bool) -> int:
    """Return how many channels a layer has on one side; 0 where it has one parameter for all of them."""
    pruner = _pruner(layer)
    return int((pruner.get_out_channels(layer) if outputs else pruner.get_in_channels(layer)) or 0)


class _ValueReadError(Exception):
    """A tensor's value was read."""


class _ValueReads(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise _ValueReadError
        return func(*args, **(kwargs or {}))


def _pruner(layer: nn.Module) -> Any:
    return PrunerBox[module2type(layer)]


def _operation(node: Any) -> str:
    """Return the name of an operation written as a function; empty for a layer's own."""
    own = any(isinstance(after.module, nn.Linear) for after in node.outputs)
    if node.type != OPTYPE.ELEMENTWISE or own or not hasattr(node.grad_fn, "name"):
        return ""
    return str(node.grad_fn.name()).partition("Backward")[0]


def _blocks(part: Slice) -> int:
    """Return into how many blocks a grouped convolution divides these channels; a depthwise one does not."""
    groups = int(getattr(part.layer, "groups", 1))
    return 1 if module2type(part.layer) == OPTYPE.DEPTHWISE_CONV else groups


def _whole(part: Slice) -> bool:
    """Return whether these are all the channels that the layer has on this side."""
    return len(part.indices) == size_of(part.layer, part.outputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch-pruning from printing and warning."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        yield
