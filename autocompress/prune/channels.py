"""Groups of coupled channels, found by torch-pruning, and their removal from the layers.

Removing an output channel of one layer removes an input channel of every layer that follows, and an output channel of
every layer that is added to it: such a set is a *group* (Fang 2023, arXiv:2301.12900). torch-pruning finds the
groups and shrinks the layers. Its own pruner is not used: it rounds the number of removed channels up, and silently
skips a layer that would become empty. This module also checks what torch-pruning cannot detect (branches that depend
on the data, layers that did not run), and compares every pruned model with the original one.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch_pruning.dependency import Group as TracedGroup, Node
from torch_pruning.ops import OPTYPE, module2type
from torch_pruning.pruner.function import BasePruningFunc, PrunerBox

from autocompress.errors import CompressionError
from autocompress.prune.calibration import flatten_outputs, format_error
from autocompress.prune.importance import WEIGHTED_LAYERS, LayerSlice, swap_channel_axes

PruningHistory = list[list[Any]]
"""``[layer name, whether output channels, [indices]]`` for every layer that shrank, in the order of removal."""

# Layers whose channels torch-pruning can remove.
_LAYERS = frozenset({OPTYPE.CONV, OPTYPE.DEPTHWISE_CONV, OPTYPE.LINEAR, OPTYPE.EMBED, OPTYPE.BN, OPTYPE.PRELU})
_ROOTS = [nn.modules.conv._ConvNd, nn.Linear, nn.Embedding]
# Operations that keep channels apart.
_SHAPING = frozenset(
    {OPTYPE.CONCAT, OPTYPE.SPLIT, OPTYPE.ELEMENTWISE, OPTYPE.RESHAPE, OPTYPE.UNBIND, OPTYPE.EXPAND, OPTYPE.SLICE}
)
# Functions that mix channels: their result depends on the removed channels, so zeroing weights cannot reproduce it.
_MIXING = ("softmax", "norm", "attention", "conv", "mm", "cumsum")


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of several layers that can only be removed together.

    Attributes:
        name: Name of the first layer, which has the channels as outputs.
        channels: Number of channels that can be selected.
        repeats: Number of occurrences of each channel: one, or one per block of a grouped convolution.
        slices: Channels of every layer that shrinks with the group.
        protected_sets: Sets of channels that are all the channels of one layer: at least one of each set must remain.
    """

    name: str
    channels: int
    repeats: int
    slices: tuple[LayerSlice, ...]
    protected_sets: tuple[tuple[int, ...], ...]

    def expand_indices(self, selected: Sequence[int]) -> list[int]:
        """Return the selected channels of the first layer, repeated for each block of a grouped convolution."""
        return [index + block * self.channels for block in range(self.repeats) for index in selected]


class ChannelGraph:
    """Channel groups of a model; :meth:`remove_channels` shrinks the model in place.

    Args:
        model: The model, in evaluation mode.
        example: A batch of one, as its positional arguments.

    Raises:
        CompressionError: The model cannot be traced, or contains a layer that the forward pass does not use.
    """

    def __init__(self, model: nn.Module, example: tuple[Tensor, ...]) -> None:
        self.history: PruningHistory = []
        self.unprunable: dict[str, str] = {}
        self._names = {module: name for name, module in model.named_modules()}
        output_nodes: set[object] = set()

        def record_outputs(output: object) -> object:
            output_nodes.update(tensor.grad_fn for tensor in flatten_outputs(output))
            return output

        check_no_data_branches(model, example)
        # torch-pruning follows the autograd graph, so it needs gradients even for a model in evaluation mode.
        with _suppress_output(), torch.enable_grad():
            try:
                self._graph = torch_pruning.DependencyGraph().build_dependency(
                    model, example, output_transform=record_outputs, verbose=False
                )
                traced_groups = list(self._graph.get_all_groups(root_module_types=_ROOTS))
            except Exception as error:  # torch-pruning raises whatever its tracing runs into.
                raise CompressionError(f"{type(model).__name__} cannot be traced: {format_error(error)}") from error
        self._check_all_layers_traced(model)
        groups = [self._build_group(traced, output_nodes) for traced in traced_groups]
        self.groups = [group for group in groups if group is not None]

    def remove_channels(self, group: ChannelGroup, selected: Sequence[int]) -> None:
        """Remove the selected channels from every layer of the group, and add them to the history.

        Raises:
            CompressionError: A layer would be left without channels, or cannot be shrunk.
        """
        if not selected:
            return
        # A proper subset: a layer without channels is not a model.
        if not set(selected) < set(range(group.channels)):
            raise CompressionError(f"'{group.name}' has {group.channels} channels and must keep at least one")
        layer = group.slices[0].layer
        with _suppress_output():
            try:
                indices = group.expand_indices(selected)
                traced = self._graph.get_pruning_group(layer, _layer_pruner(layer).prune_out_channels, indices)
                parts = self._layer_slices(traced)
                emptied = [part.name for part in parts if _covers_layer(part)]
                if not emptied:
                    traced.prune(record_history=False)
            except Exception as error:
                raise CompressionError(
                    f"the channels of '{group.name}' cannot be removed: {format_error(error)}"
                ) from error
        if emptied:
            raise CompressionError(f"removing channels of '{group.name}' would leave '{emptied[0]}' without channels")
        self.history += [[part.name, part.outputs, sorted(part.indices)] for part in parts]

    def _build_group(self, traced: TracedGroup, output_nodes: set[object]) -> ChannelGroup | None:
        """Return torch-pruning's group, or ``None`` with the reason in ``unprunable``."""
        slices = self._layer_slices(traced)
        reason = self._find_obstacle(traced, output_nodes)
        if reason:
            self.unprunable[slices[0].name] = reason
            return None
        repeats = max(_count_blocks(part) for part in slices)
        channels = len(slices[0].indices) // repeats
        protected = {tuple(sorted({root % channels for root in part.roots})) for part in slices if _covers_layer(part)}
        return ChannelGroup(slices[0].name, channels, repeats, slices, tuple(sorted(protected)))

    def _find_obstacle(self, traced: TracedGroup, output_nodes: set[object]) -> str:
        """Return why the channels of a group cannot be removed; empty if they can."""
        for dependency, _ in traced:
            node = dependency.target
            is_output = node.grad_fn in output_nodes or node.type == OPTYPE.OUTPUT
            # The layer that computes the output may lose inputs, but no outputs.
            if is_output and self._graph.is_out_channel_pruning_fn(dependency.handler):
                return "it is an output of the model"
            if node.type not in _LAYERS | _SHAPING:
                return f"it runs through {type(node.module).__name__}"
            operation = _function_name(node)
            if any(word in operation.lower() for word in _MIXING):
                return f"it runs through {operation}"
        for part in self._layer_slices(traced):
            size = count_channels(part.layer, part.outputs)
            if None in part.roots or (size and max(part.indices) >= size):
                return f"its channels are not those of '{part.name}'"
        return ""

    def _layer_slices(self, traced: TracedGroup) -> tuple[LayerSlice, ...]:
        """Return the slices of the layers with channels; operations between them have none."""
        return tuple(
            LayerSlice(
                self._names[item.dep.target.module],
                item.dep.target.module,
                bool(self._graph.is_out_channel_pruning_fn(item.dep.handler)),
                item.idxs,
                item.root_idxs,
            )
            for item in traced.items
            if item.dep.target.type in _LAYERS
        )

    def _check_all_layers_traced(self, model: nn.Module) -> None:
        traced = {module for module in self._graph.module2node if isinstance(module, nn.Module)}
        covered = {part for module in traced for part in module.modules()}
        for name, module in model.named_modules():
            if isinstance(module, WEIGHTED_LAYERS) and module not in covered:
                raise CompressionError(
                    f"layer '{name}' is not used in the forward pass of the example, so its dependencies are unknown"
                )


def replay_history(model: nn.Module, history: Sequence[Sequence[Any]]) -> None:
    """Remove the channels of a history from a freshly built model, in place.

    Raises:
        CompressionError: The history does not fit the model.
    """
    for entry in history:
        try:
            name, outputs, indices = entry
            layer = model.get_submodule(name)
            pruner, size = _layer_pruner(layer), count_channels(layer, outputs)
            fits = 0 < len(set(indices)) < size and all(0 <= index < size for index in indices)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CompressionError(f"the pruning history does not fit the model: {format_error(error)}") from error
        if not fits:
            raise CompressionError(f"the pruning history does not fit layer '{name}', which has {size} channels")
        # The functions of torch-pruning shrink one layer; the history holds one entry for each.
        (pruner.prune_out_channels if outputs else pruner.prune_in_channels)(layer, list(indices))


@torch.no_grad()
def verify_pruned_model(
    model: nn.Module, pruned: nn.Module, history: PruningHistory, inputs: tuple[Tensor, ...]
) -> None:
    """Check that a pruned model computes the same as the original one with the removed channels masked.

    Every removed channel is finally an input of convolutions or linear layers. With these weights set to zero, the
    original model must return the outputs of the pruned one; a channel removed in the wrong layer breaks the equality.

    Raises:
        CompressionError: The pruned model fails, returns another shape or other values, or is not finite.
    """
    masked_model = copy.deepcopy(model).eval()
    remaining: dict[str, list[int]] = {}
    for name, outputs, indices in history:
        layer = masked_model.get_submodule(name)
        if outputs:
            continue
        # Indices refer to the channels remaining at that step, but ``masked_model`` still has all of them.
        channels = remaining.setdefault(name, list(range(count_channels(layer, False))))
        zero_input_channels(layer, [channels[index] for index in indices])
        remaining[name] = [channel for index, channel in enumerate(channels) if index not in set(indices)]
    try:
        outputs_of_pruned = flatten_outputs(pruned(*inputs))
    except Exception as error:
        raise CompressionError(f"the pruned model fails: {format_error(error)}") from error
    expected = flatten_outputs(masked_model(*inputs))
    if [tensor.shape for tensor in outputs_of_pruned] != [tensor.shape for tensor in expected]:
        raise CompressionError("pruning changed the shape of the model's output")
    if not all(bool(tensor.isfinite().all()) for tensor in outputs_of_pruned):
        raise CompressionError("the pruned model's output is not finite")
    if not have_close_outputs(outputs_of_pruned, expected):
        raise CompressionError(
            "pruning changed more than the removed channels: the model mixes channels in an operation that "
            "the trace does not show"
        )


def have_close_outputs(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Return whether the outputs of two models are equal up to the rounding of float32."""
    if [tensor.shape for tensor in actual] != [tensor.shape for tensor in expected]:
        return False
    # Sums over fewer channels round differently. A NaN is no close output.
    return all(
        bool((ours - theirs).abs().max() <= 1e-3 * theirs.abs().max() + 1e-6)
        for ours, theirs in zip(actual, expected, strict=True)
    )


@torch.no_grad()
def zero_input_channels(layer: nn.Module, inputs: Sequence[int]) -> None:
    """Set the weights that read some input channels of a layer to zero, in place."""
    indices = torch.tensor(inputs)
    weight = layer.get_parameter("weight")
    view = weight.unsqueeze(0) if getattr(layer, "transposed", False) else swap_channel_axes(layer, weight)
    view[indices // view.shape[1], indices % view.shape[1]] = 0


def check_no_data_branches(model: nn.Module, example: tuple[Tensor, ...]) -> None:
    """Check that a model does not branch on the values of its tensors, as ``if x.sum() > 0`` does.

    Raises:
        CompressionError: The model reads a tensor's value into Python, or it fails on the example.
    """
    try:
        # With gradients, like the trace: without them, torch's fused transformer layers read the values of their masks.
        with torch.enable_grad(), _ValueReadDetector():
            model(*example)
    except _ValueReadError as error:
        raise CompressionError(
            f"{type(model).__name__} branches on the values of its data and cannot be traced"
        ) from error
    except Exception as error:
        raise CompressionError(f"{type(model).__name__} fails on its example: {format_error(error)}") from error


def count_channels(layer: nn.Module, outputs: bool) -> int:
    """Return the number of input or output channels of a layer; 0 if one parameter serves all channels."""
    pruner = _layer_pruner(layer)
    return int((pruner.get_out_channels(layer) if outputs else pruner.get_in_channels(layer)) or 0)


class _ValueReadError(Exception):
    """A tensor's value was read into Python."""


class _ValueReadDetector(TorchDispatchMode):
    """Raises as soon as an operation copies a tensor's value into a Python number."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        # Calls of item(), bool() and float() on a tensor all end in this operator.
        if func is torch.ops.aten._local_scalar_dense.default:
            raise _ValueReadError
        return func(*args, **(kwargs or {}))


def _layer_pruner(layer: nn.Module) -> BasePruningFunc:
    """Return torch-pruning's functions for the type of a layer."""
    return PrunerBox[module2type(layer)]


def _function_name(node: Node) -> str:
    """Return the name of an operation that the model calls as a function; empty for operations of a layer."""
    is_part_of_layer = any(isinstance(follower.module, nn.Linear) for follower in node.outputs)
    if node.type != OPTYPE.ELEMENTWISE or is_part_of_layer or not hasattr(node.grad_fn, "name"):
        return ""
    return str(node.grad_fn.name()).partition("Backward")[0]


def _count_blocks(part: LayerSlice) -> int:
    """Return the number of blocks into which a grouped convolution divides these channels; 1 for a depthwise one."""
    groups = int(getattr(part.layer, "groups", 1))
    return 1 if module2type(part.layer) == OPTYPE.DEPTHWISE_CONV else groups


def _covers_layer(part: LayerSlice) -> bool:
    """Return whether a slice contains all input or all output channels of its layer."""
    return len(part.indices) == count_channels(part.layer, part.outputs)


@contextmanager
def _suppress_output() -> Iterator[None]:
    """Suppress the printed output and the warnings of torch-pruning."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        yield
