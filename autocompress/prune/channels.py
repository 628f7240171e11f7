"""Groups of coupled channels, and their removal from the layers.

Removing an output channel of one layer removes an input channel of every layer that follows, and an output channel of
every layer that is added to it: such a set is a *group* (Fang 2023, arXiv:2301.12900).
:mod:`autocompress.prune.channel_tracing` finds which channels belong together; this module makes groups of them,
removes channels by a history that a fresh model repeats, and compares every pruned model with the original one. A group
whose channels cannot be removed is left alone, with the reason.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from autocompress.core.attention import disable_nested_tensors
from autocompress.errors import CompressionError
from autocompress.prune.calibration import flatten_outputs, format_error
from autocompress.prune.channel_tracing import Args, ChannelTracer, Named, Trace, Value
from autocompress.prune.importance import LayerSlice, ParameterSlice, swap_channel_axes
from autocompress.prune.layer_channels import (
    EMBEDDINGS,
    INPUTS,
    OUTPUTS,
    Side,
    is_matrix_layer,
    list_sides,
    output_axis,
    shrink_side,
)

# An entry holds values of several types, as JSON does.
PruningHistory = list[list[Any]]
"""What shrank, in the order of removal. ``[layer name, whether output channels, [indices]]`` for a layer,
``[parameter name, axis, [indices]]`` for a parameter of another module, and ``[module name, attribute, number]`` for a
number of heads that a module keeps."""


@dataclass(frozen=True)
class HeadCount:
    """A number that a module keeps and that falls with the removed channels of a group, such as a number of heads.

    Attributes:
        module: Dotted name of the module.
        attribute: Name of the attribute.
        value: Number before pruning.
        step: Reduction of the number for each removed channel of the group.
    """

    module: str
    attribute: str
    value: int
    step: int


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of several layers that can only be removed together.

    Attributes:
        name: Name of the first layer, which has the channels as outputs.
        channels: Number of channels that can be selected; a channel may be several of a layer, as a head is.
        slices: Channels of every layer that shrinks with the group.
        parameters: Channels of every other parameter that shrinks with the group.
        counts: Numbers that modules keep of these channels.
        is_hidden: Whether a layer normalization reads the channels, as it does the hidden size of a transformer.
    """

    name: str
    channels: int
    slices: tuple[LayerSlice, ...]
    parameters: tuple[ParameterSlice, ...] = ()
    counts: tuple[HeadCount, ...] = ()
    is_hidden: bool = False

    @property
    def width(self) -> int:
        """Number of outputs of the first layer, or of the parameter that stands for it."""
        sides = [part.indices for part in self.slices if part.name == self.name and part.outputs]
        sides += [part.indices for part in self.parameters if part.name == self.name]
        return len(sides[0])


Removal = tuple[ChannelGroup, Sequence[int]]
"""A group and the channels to remove from it."""


class ChannelGraph:
    """Channel groups of a model.

    Args:
        model: Model in evaluation mode; it is not changed.
        example: Batch of real data as positional arguments, because a model may read the values of its masks.
        ignore: Names of layers whose channels are protected.
        hidden: Whether channels that a layer normalization reads are groups too; otherwise they are left alone.

    Raises:
        CompressionError: The model fails on the example.
    """

    def __init__(
        self, model: nn.Module, example: tuple[Tensor, ...], ignore: Sequence[str] = (), *, hidden: bool = False
    ) -> None:
        self.unprunable: dict[str, str] = {}
        self._model, self._example, self._has_hidden = model, example, hidden
        self._trace = trace_channels(model, example)
        self._modules = dict(model.named_modules())
        self._protected = set(ignore)
        self._idle = self._find_idle_layers()
        self.groups = self._make_groups()

    def list_removals(self, removals: Sequence[Removal]) -> PruningHistory:
        """Return the history of removals: the entries of every layer, parameter and number of heads that shrinks.

        Raises:
            CompressionError: A group would be left without channels.
        """
        history: PruningHistory = []
        # Several groups may take channels of one layer, whose remaining channels move up each time.
        remaining: dict[Side, list[int]] = {}
        for group, selected in removals:
            if not selected:
                continue
            if not set(selected) < set(range(group.channels)):
                raise CompressionError(f"'{group.name}' has {group.channels} channels and must keep at least one")
            chosen = set(selected)
            for part in group.slices:
                side = (part.name, OUTPUTS if part.outputs else INPUTS)
                size = count_channels(part.layer, part.outputs)
                history.append([part.name, part.outputs, _take(remaining, side, size, part, chosen)])
            for entry in group.parameters:
                side = (entry.name, entry.axis)
                size = get_tensor(self._model, entry.name).shape[entry.axis]
                history.append([entry.name, entry.axis, _take(remaining, side, size, entry, chosen)])
            for count in group.counts:
                history.append([count.module, count.attribute, count.value - count.step * len(chosen)])
        return history

    def _find_idle_layers(self) -> dict[str, tuple[int, int]]:
        """Return the numbers of inputs and outputs of layers that may run on other data, though not on the example."""
        if not self._trace.reads_values:
            # No value of the data decides what runs, so a layer that does not run never does.
            return {}
        return {
            name: (count_channels(module, False), count_channels(module, True))
            for name, module in self._modules.items()
            if is_matrix_layer(module) and self._trace.is_idle(name)
        }

    def _make_groups(self) -> list[ChannelGroup]:
        """Return the groups; ``unprunable`` gets the reasons of the others."""
        members = self._list_members()
        fixed = self._trace.nodes.fixed_roots()
        mixed = self._trace.nodes.joined_roots()
        normalized = self._trace.nodes.normalized_roots()
        by_sides: dict[tuple[bool, tuple[Side, ...]], list[int]] = {}
        order = {side: position for position, side in enumerate(self._trace.producers)}
        for root, sides in members.items():
            producers = sorted((side for side in sides if side in order), key=order.__getitem__)
            # Channels that no product reads cannot be compared with masked ones.
            if not producers or not any(side in self._trace.readers for side in sides):
                continue
            # Why an operation mixes channels says more than that they are then all the channels of a layer.
            reason = mixed.get(root) or fixed.get(root) or self._find_protection(sides)
            if root in fixed or self._find_protection(sides):
                self._refuse(producers, reason)
            elif root in normalized and not self._has_hidden:
                self._refuse(producers, f"{normalized[root]}; hidden_ratio removes such channels")
            else:
                by_sides.setdefault((root in normalized, (producers[0], *sides)), []).append(root)
        for root, reason in fixed.items():
            self._refuse([side for side in members.get(root, {}) if side in order], mixed.get(root) or reason)
        groups = []
        for (is_hidden, key), roots in sorted(by_sides.items(), key=lambda entry: order[entry[0][1][0]]):
            first = key[0]
            if len(roots) == 1:
                self._refuse([first], mixed.get(roots[0], ""))
                continue
            roots.sort(key=lambda root: members[root][first][0])
            joined = self._make_group(key, [members[root] for root in roots])
            group = self._add_counts(replace(joined, is_hidden=is_hidden))
            if group is not None:
                groups.append(group)
        return groups

    def _list_members(self) -> dict[int, dict[Side, list[int]]]:
        """Return the channels of each set of joined nodes, by side."""
        members: dict[int, dict[Side, list[int]]] = {}
        for side in self._trace.sides:
            for index, root in enumerate(self._trace.roots(side).tolist()):
                members.setdefault(root, {}).setdefault(side, []).append(index)
        return members

    def _find_protection(self, sides: dict[Side, list[int]]) -> str:
        """Return why a channel must stay although it could be followed; empty if nothing protects it."""
        for name, axis in sides:
            if name in self._protected:
                return f"'{name}' is protected by ignore"
            size = self._trace.sides[name, axis].size
            for idle, (inputs, outputs) in self._idle.items():
                if axis == OUTPUTS and inputs % size == 0:
                    return f"layer '{idle}', which the example does not run, may read it"
                if axis == INPUTS and outputs % size == 0:
                    return f"layer '{idle}', which the example does not run, may write to '{name}'"
        return ""

    def _refuse(self, producers: Sequence[Side], reason: str) -> None:
        for name, axis in producers:
            if axis == OUTPUTS and reason:
                self.unprunable.setdefault(name, reason)

    def _make_group(self, sides: Sequence[Side], members: Sequence[dict[Side, list[int]]]) -> ChannelGroup:
        """Return the group of some sides, the first of which names it; each member is one of its channels."""
        slices, parameters = [], []
        for side in dict.fromkeys(sides):
            pairs = sorted((index, root) for root, member in enumerate(members) for index in member[side])
            indices, roots = [index for index, _ in pairs], [root for _, root in pairs]
            name, axis = side
            if axis in (INPUTS, OUTPUTS):
                layer = self._modules[name]
                blocks = count_channels(layer, axis == OUTPUTS) // self._trace.sides[side].size
                size = self._trace.sides[side].size
                indices = [index + block * size for block in range(blocks) for index in indices]
                slices.append(LayerSlice(name, layer, axis == OUTPUTS, indices, roots * blocks))
            else:
                parameters.append(ParameterSlice(name, axis, indices, roots))
        return ChannelGroup(sides[0][0], len(members), tuple(slices), tuple(parameters))

    def _add_counts(self, group: ChannelGroup) -> ChannelGroup | None:
        """Return a group with the numbers that modules keep of its heads or of the hidden size.

        ``None`` if its channels cannot be removed.
        """
        width = group.width // group.channels
        if width == 1 and not group.is_hidden:
            return group
        reason = ""
        # One channel is removed on trial: the module's own forward pass shows which of its numbers have to follow.
        for counts in self._list_count_options(group, width):
            candidate = replace(group, counts=counts)
            pruned = copy.deepcopy(self._model)
            history = self.list_removals([(candidate, [0])])
            try:
                replay_history(pruned, history)
                verify_pruned_model(self._model, pruned, history, self._example)
            except CompressionError as error:
                reason = reason or str(error)
            else:
                return candidate
        self.unprunable.setdefault(group.name, reason)
        return None

    def _list_count_options(self, group: ChannelGroup, width: int) -> Iterator[tuple[HeadCount, ...]]:
        """Yield numbers of heads and of channels, kept by the modules around the layers, to be reduced."""
        # A parameter may belong to a linear layer of another library, whose owner keeps the numbers.
        holders = [part.name.rpartition(".")[0] for part in group.parameters]
        parts = [*(part.name for part in group.slices if part.outputs), *(part.name for part in group.parameters)]
        owners = dict.fromkeys(name.rpartition(".")[0] for name in (*parts, *filter(None, holders)))
        heads, sizes = [], []
        for name in owners:
            for attribute, value in vars(self._modules[name]).items():
                if isinstance(value, bool) or not isinstance(value, int):
                    continue
                if (
                    value == group.channels
                    and "head" in attribute
                    and "dim" not in attribute
                    and "size" not in attribute
                ):
                    heads.append(HeadCount(name, attribute, value, 1))
                elif value == group.channels * width:
                    sizes.append(HeadCount(name, attribute, value, width))
        # Numbers named after the channels come first: another number may be equal by chance.
        words = ("hidden", "embed", "model") if group.is_hidden else ("head", "attn")
        named = [count for count in sizes if any(word in count.attribute for word in words)]
        options = [(), tuple(heads), (*heads, *named), (*heads, *sizes)]
        yield from dict.fromkeys(options)


def trace_channels(model: nn.Module, example: tuple[Tensor, ...]) -> Trace:
    """Return which channels of a model belong together, from runs on an example; the model is not changed.

    Layers that run only in training, such as auxiliary heads, are followed by a second run in training mode.

    Raises:
        CompressionError: The model fails on the example, or returns no tensor.
    """
    tracer = ChannelTracer(model)
    with _preserve_mode(model), torch.no_grad(), tracer.name_modules():
        model.eval()
        try:
            _run_traced(tracer, model, example)
        except CompressionError:
            raise
        except Exception as error:  # A user's model may raise anything.
            raise CompressionError(f"{type(model).__name__} fails on its example: {format_error(error)}") from error
        layers = [name for name, module in model.named_modules() if is_matrix_layer(module)]
        if any(tracer.trace.is_idle(name) for name in layers):
            _run_idle_layers(tracer, model, example)
    return tracer.finish()


def _run_idle_layers(tracer: ChannelTracer, model: nn.Module, example: tuple[Tensor, ...]) -> None:
    """Run a model on other batch sizes, which may decide what runs, and in training mode."""
    single = tuple(tensor[:1] for tensor in example)
    doubled = tuple(torch.cat([tensor, tensor]) for tensor in example)
    # Batch normalization has no statistics of one example, so training takes several.
    for inputs, is_training in ((single, False), (doubled, False), (doubled, True)):
        model.train(is_training)
        # The training mode may need targets; its layers then stay idle.
        with suppress(Exception):
            _run_traced(tracer, model, inputs)


def _run_traced(tracer: ChannelTracer, model: nn.Module, example: tuple[Tensor, ...]) -> None:
    # Views of the inputs are tensors of their own, so a label never stays on a caller's tensor.
    inputs = tuple(tensor.view_as(tensor) for tensor in example)
    tracer.mark_inputs(inputs)
    with tracer:
        output = model(*inputs)
    tensors = flatten_outputs(output)
    if not tensors:
        raise CompressionError(f"{type(model).__name__} cannot be traced: it returns no tensor")
    tracer.fix(tensors)


@contextmanager
def _preserve_mode(model: nn.Module) -> Iterator[None]:
    """Restore modes, buffers and random state after the body, in which fused attention kernels are off."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng(devices=()), _run_unfused():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


@contextmanager
def _run_unfused() -> Iterator[None]:
    """Run the body without fused transformer layers: each is one operation, which cannot be followed."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _take(
    remaining: dict[Side, list[int]], side: Side, size: int, part: LayerSlice | ParameterSlice, chosen: set[int]
) -> list[int]:
    """Return the present positions of the chosen channels of a side, and drop them from ``remaining``."""
    channels = remaining.setdefault(side, list(range(size)))
    lost = {index for index, root in zip(part.indices, part.roots, strict=True) if root in chosen}
    positions = [position for position, channel in enumerate(channels) if channel in lost]
    remaining[side] = [channel for channel in channels if channel not in lost]
    return positions


def get_tensor(model: nn.Module, path: str) -> Tensor:
    """Return a parameter or buffer by its dotted name."""
    parent, _, key = path.rpartition(".")
    tensor = getattr(model.get_submodule(parent), key)
    assert isinstance(tensor, Tensor)
    return tensor


def replay_history(model: nn.Module, history: Sequence[Sequence[Any]]) -> None:
    """Remove the channels of a history from a model of the original structure, in place.

    Raises:
        CompressionError: The history does not fit the model.
    """
    sides = {entry.side: entry for entry in list_sides(model)}
    for entry in history:
        try:
            name, where, value = entry
            if isinstance(where, str):
                _set_count(model.get_submodule(name), where, value)
                continue
            if isinstance(where, bool):
                side = sides[name, OUTPUTS if where else INPUTS]
                size = count_channels(model.get_submodule(name), where)
            else:
                side = sides[name, where]
                size = get_tensor(model, name).shape[where]
            fits = 0 < len(set(value)) < size and all(0 <= index < size for index in value)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CompressionError(f"the pruning history does not fit the model: {format_error(error)}") from error
        if not fits:
            raise CompressionError(f"the pruning history does not fit layer '{name}', which has {size} channels")
        path, axis = side.axes[0]
        # The weight of a grouped convolution has the inputs of one block.
        block = get_tensor(model, path).shape[axis]
        removed = {index % block for index in value}
        shrink_side(model, side, [index for index in range(block) if index not in removed])
    disable_nested_tensors(model)


def _set_count(module: nn.Module, attribute: str, value: int) -> None:
    before = getattr(module, attribute)
    # Pruning lowers such a number; a history from elsewhere could raise it, and with it the memory of the model.
    if not isinstance(before, int) or not isinstance(value, int) or not 1 <= value <= before:
        raise ValueError(f"'{attribute}' is no number that could become {value}")
    setattr(module, attribute, value)


@torch.no_grad()
def verify_pruned_model(
    model: nn.Module, pruned: nn.Module, history: PruningHistory, inputs: tuple[Tensor, ...]
) -> None:
    """Check that a pruned model computes the same as the original one with the removed channels masked.

    Every removed channel is finally an input of convolutions or linear layers. With these weights set to zero, the
    original model must return the outputs of the pruned one; a channel removed in the wrong layer breaks the equality.
    A layer normalization of the original model reads the remaining channels alone.

    Raises:
        CompressionError: The pruned model fails, returns another shape or other values, or is not finite.
    """
    masked_model = copy.deepcopy(model).eval()
    remaining: dict[tuple[str, int], list[int]] = {}
    normalized: dict[Tensor, Tensor] = {}
    for name, where, indices in history:
        if isinstance(where, str):
            continue
        layer = masked_model.get_submodule(name) if isinstance(where, bool) else None
        weight = None if layer is None else getattr(layer, "weight", None)
        if where is True and isinstance(layer, EMBEDDINGS):
            # A table that is also read as a linear layer: zeros in its columns serve both.
            name, where, layer = f"{name}.weight", 1, None
        elif where is True and isinstance(weight, Tensor) and weight.dim() == 1:
            # The scales of a normalization.
            name, where, layer = f"{name}.weight", 0, None
        elif where is True:
            continue
        axis = INPUTS if where is False else where
        size = get_tensor(masked_model, name).shape[where] if layer is None else count_channels(layer, False)
        # Indices refer to the channels remaining at that step, but ``masked_model`` still has all of them.
        channels = remaining.setdefault((name, axis), list(range(size)))
        masked = [channels[index] for index in indices]
        if layer is None:
            tensor = get_tensor(masked_model, name)
            tensor.index_fill_(where, torch.tensor(masked, device=tensor.device), 0)
        else:
            zero_input_channels(layer, masked)
        remaining[name, axis] = [channel for channel in channels if channel not in set(masked)]
        if layer is None and tensor.dim() == 1:
            normalized[tensor] = torch.tensor(remaining[name, axis], device=tensor.device)
    try:
        outputs_of_pruned = flatten_outputs(pruned(*inputs))
    except Exception as error:
        raise CompressionError(f"the pruned model fails: {format_error(error)}") from error
    with _run_unfused(), _NormalizeRemaining(normalized):
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


class _NormalizeRemaining(TorchDispatchMode):
    """Dispatch mode in which layer normalizations read some channels alone and return zeros for the others.

    Args:
        channels: Weight of a normalization to the channels that it reads.
    """

    def __init__(self, channels: Mapping[Tensor, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._channels = channels

    def __torch_dispatch__(
        self, func: Value, types: Sequence[type], args: Args = (), kwargs: Named | None = None
    ) -> object:
        """Run an operation."""
        vectors = [value for value in args[2:] if isinstance(value, Tensor)]
        if func.overloadpacket.__name__ != "native_layer_norm" or not vectors or vectors[0] not in self._channels:
            return func(*args, **(kwargs or {}))
        channels = self._channels[vectors[0]]
        source, _, *others = args
        others = [value[channels] if isinstance(value, Tensor) else value for value in others]
        output, *statistics = func(source[..., channels], [len(channels)], *others)
        return torch.zeros_like(source).index_copy_(-1, channels, output), *statistics


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
    weight = layer.get_parameter("weight")
    indices = torch.tensor(inputs)
    if output_axis(layer) == 1:
        weight[indices] = 0
        return
    view = swap_channel_axes(layer, weight)
    view[indices // view.shape[1], indices % view.shape[1]] = 0


def count_channels(layer: nn.Module, outputs: bool) -> int:
    """Return the number of input or output channels of a layer; 0 if it has no weight for each channel."""
    weight = getattr(layer, "weight", None)
    if weight is None:
        weight = getattr(layer, "running_mean", None)
    if not isinstance(weight, Tensor):
        return 0
    if weight.dim() == 1:
        return len(weight) if len(weight) > 1 or not isinstance(layer, nn.PReLU) else 0
    axis = output_axis(layer)
    size = weight.shape[axis if outputs else 1 - axis]
    # The second axis of a grouped convolution counts the channels of one block.
    is_per_block = isinstance(layer, nn.modules.conv._ConvNd) and (axis == 1) == outputs
    return int(size * layer.groups if is_per_block and isinstance(layer.groups, int) else size)
