"""Channels followed through a real forward pass: which parts of which weights can only be removed together.

Every channel of every weight has a *node*. A forward pass with real data runs under a dispatch mode that carries, next
to each tensor, the nodes that its elements belong to. An operation that moves elements (view, permute, concat, roll)
moves their nodes by running on them too; an element-wise operation joins the nodes of its operands; a product with a
weight joins the channels that it reads with the inputs of the weight and starts the nodes of its outputs; an operation
that mixes elements (softmax, a normalization) joins all that it mixes. Nodes that are joined are removed together: one
channel of coupled layers, or one attention head with its queries, keys and values. An operation without a rule fixes
its channels, so they are left alone.

No module class is known here: a layer of any class that multiplies by its parameter is followed.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from autocompress.prune.layer_channels import INPUTS, OUTPUTS, Side, SideTensors, list_sides

NOTHING = 0
"""Node of elements that belong to no channel."""
FIXED = 1
"""Node of channels that must stay: inputs and outputs of the model, and what an operation without a rule reads."""

Array: TypeAlias = NDArray[numpy.int64]
# Arguments of operations and their outputs have every type that torch passes.
Value: TypeAlias = Any
Args: TypeAlias = tuple[Value, ...]
Named: TypeAlias = Mapping[str, Value]
_FIXED = numpy.array(FIXED)


class Nodes:
    """Disjoint sets of nodes. The root of a set is its smallest node; sets may be marked as fixed, with the reason."""

    def __init__(self) -> None:
        self._parents: Array = numpy.arange(2)
        self._fixed: list[tuple[Array, str]] = []
        self._joined: list[tuple[Array, str]] = []
        self._normalized: list[tuple[Array, str]] = []

    def add(self, count: int) -> int:
        """Return the first of ``count`` new nodes."""
        first = len(self._parents)
        self._parents = numpy.concatenate([self._parents, numpy.arange(first, first + count)])
        return first

    def find(self, nodes: Array) -> Array:
        """Return the root of each node, in the shape of ``nodes``."""
        # All nodes move up together, so that long arrays need no loop in Python.
        roots = self._parents[nodes]
        while True:
            above = self._parents[roots]
            if numpy.array_equal(above, roots):
                return roots
            roots = above

    def join(self, first: Array, second: Array, reason: str = "") -> None:
        """Join the sets of ``first[i]`` and ``second[i]`` for every ``i``; ``NOTHING`` joins nothing.

        Args:
            first: Nodes.
            second: Nodes in a shape that broadcasts with it.
            reason: Reason of the join, for messages about channels that cannot be removed.
        """
        one, other = numpy.broadcast_arrays(self.find(first), self.find(second))
        differ = (one != other) & (one != NOTHING) & (other != NOTHING)
        if not differ.any():
            return
        pairs = numpy.unique(numpy.stack([one[differ], other[differ]]), axis=1)
        is_fixed = (pairs == FIXED).any(0)
        if is_fixed.any():
            self._fixed.append((pairs[:, is_fixed].max(0), reason))
        pairs = pairs[:, ~is_fixed]
        for left, right in pairs.T.tolist():
            left, right = self._find_one(left), self._find_one(right)
            self._parents[max(left, right)] = min(left, right)
        if reason and pairs.size:
            self._joined.append((pairs[0], reason))

    def _find_one(self, node: int) -> int:
        while self._parents[node] != node:
            self._parents[node] = node = int(self._parents[self._parents[node]])
        return node

    def mark_normalized(self, nodes: Array, reason: str) -> None:
        """Mark the sets of nodes as channels that a layer normalization reads.

        Args:
            nodes: Nodes.
            reason: The normalization, for messages about channels that are not removed.
        """
        self._normalized.append((nodes[nodes > FIXED], reason))

    def fixed_roots(self) -> dict[int, str]:
        """Return the roots of the sets that must stay, each with the first reason."""
        return self._first_reasons(self._fixed)

    def joined_roots(self) -> dict[int, str]:
        """Return the roots of the sets that an operation which mixes channels joined, each with the first reason."""
        return self._first_reasons(self._joined)

    def normalized_roots(self) -> dict[int, str]:
        """Return the roots of the sets that a layer normalization reads, each with the first reason."""
        return self._first_reasons(self._normalized)

    def _first_reasons(self, entries: Sequence[tuple[Array, str]]) -> dict[int, str]:
        reasons: dict[int, str] = {}
        for nodes, reason in entries:
            for root in numpy.unique(self.find(nodes)).tolist():
                reasons.setdefault(root, reason)
        return reasons


@dataclass
class Labels:
    """The nodes of a tensor's elements.

    Attributes:
        axes: Arrays of nodes that broadcast to the tensor's shape, with size 1 along axes where they do not vary. A
            weight has one for its inputs and one for its outputs.
        is_weight: Whether the tensor is a parameter, moved at most.
    """

    axes: list[Array]
    is_weight: bool = False


@dataclass
class Trace:
    """The result of a trace.

    Attributes:
        sides: Tensors of each side, in the order of the model.
        first_nodes: First node of each side.
        nodes: Sets of joined nodes.
        readers: Sides whose channels a product reads.
        producers: Sides whose channels a product or a look-up starts, in the order of the forward pass.
        reads_values: Whether the model read the value of a tensor into Python.
    """

    sides: dict[Side, SideTensors]
    first_nodes: dict[Side, int] = field(default_factory=dict)
    nodes: Nodes = field(default_factory=Nodes)
    readers: dict[Side, None] = field(default_factory=dict)
    producers: dict[Side, None] = field(default_factory=dict)
    reads_values: bool = False

    def is_idle(self, layer: str) -> bool:
        """Return whether no product used the weight of a layer."""
        has_sides = (layer, OUTPUTS) in self.sides
        return has_sides and (layer, INPUTS) not in self.readers and (layer, OUTPUTS) not in self.producers

    def roots(self, side: Side) -> Array:
        """Return the root of each channel of a side, ``[size]``."""
        first = self.first_nodes[side]
        return self.nodes.find(numpy.arange(first, first + self.sides[side].size))


# Operations that only move elements; they run on the nodes too.
_MOVING = frozenset(
    {
        "permute",
        "transpose",
        "t",
        "expand",
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "unsqueeze",
        "squeeze",
        "alias",
        "detach",
        "roll",
        "flip",
        "index_select",
        "gather",
        "index",
        "repeat",
        "pixel_shuffle",
        "pixel_unshuffle",
        "tril",
        "triu",
        "diagonal",
        "unfold",
        "movedim",
    }
)
_VIEWS = frozenset({"view", "_unsafe_view", "reshape", "_reshape_alias"})
# Element-wise operations without torch's tag for them.
_POINTWISE = frozenset(
    {
        "_to_copy",
        "clone",
        "contiguous",
        "lift_fresh",
        "native_dropout",
        "dropout",
        "_prelu_kernel",
        "prelu",
        "masked_fill",
        "copy",
        "fill",
        "hardswish",
        "hardsigmoid",
        "rrelu_with_noise",
        "rrelu_with_noise_functional",
    }
)
_MIXING_ALONG = frozenset({"_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax", "cumsum", "cumprod"})
_REDUCING = frozenset({"var_mean", "std_mean", "linalg_vector_norm", "logsumexp", "median", "mode", "kthvalue"})
# Operations on positions that treat every channel alike.
_POSITIONAL = (
    "pool",
    "upsample",
    "constant_pad_nd",
    "reflection_pad",
    "replication_pad",
    "grid_sampler",
    "interpolate",
)
_ATTENTION = "_scaled_dot_product"
_CREATING = ("_like", "new_", "empty", "arange", "full", "ones", "zeros", "bernoulli")


class ChannelTracer(TorchDispatchMode):
    """Dispatch mode that follows the channels of a model's weights through its operations.

    Args:
        model: The model whose parameters and buffers are followed.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model = model
        # Weak, so that activations are freed as the forward pass goes on.
        self._labels: MutableMapping[Tensor, Labels] = WeakIdKeyDictionary()
        self._splits: list[Array] = []
        self._running: list[str] = []
        self.trace = Trace({entry.side: entry for entry in list_sides(model)})
        for side, entry in self.trace.sides.items():
            first = self.trace.first_nodes[side] = self.trace.nodes.add(entry.size)
            for path, axis in entry.axes:
                parent, _, key = path.rpartition(".")
                tensor = getattr(model.get_submodule(parent), key)
                self._label_axis(tensor, axis, numpy.arange(first, first + entry.size))
        self._starts = numpy.array(list(self.trace.first_nodes.values()))
        self._sides = list(self.trace.first_nodes)

    def fix(self, value: object) -> None:
        """Fix the channels of every tensor in a nested value."""
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor):
                self._fix(self._axes(tensor), "it is an output of the model")

    def mark_inputs(self, inputs: Sequence[object]) -> None:
        """Mark floating-point inputs: their channels must stay. Indices and masks have none."""
        for tensor in tree_leaves(inputs):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self._labels[tensor] = Labels([numpy.full((1,) * tensor.dim(), FIXED)])

    @contextmanager
    def name_modules(self) -> Iterator[None]:
        """Record the names of the running modules inside the ``with`` block, for messages."""
        names = {module: name for name, module in self._model.named_modules()}

        def enter_module(module: nn.Module, _: object) -> None:
            self._running.append(names[module])

        def leave_module(module: nn.Module, *_: object) -> None:
            self._running.pop()

        handles = [module.register_forward_pre_hook(enter_module) for module in names]
        handles += [module.register_forward_hook(leave_module, always_call=True) for module in names]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._running.clear()

    def finish(self) -> Trace:
        """Return the trace, with the parts of split axes joined position by position.

        A view of ``n d`` channels as ``[n, d]`` needs the same number in each of the ``n`` parts: whole parts are
        removed where operations joined them, such as attention heads, and the same positions of all parts otherwise.
        """
        for parts in self._splits:
            # Roots are read anew for each view, because the one before may have joined some.
            roots = self.trace.nodes.find(parts)
            if not (roots == roots[:, :1]).all():
                self.trace.nodes.join(roots, roots[:1])
        return self.trace

    def __torch_dispatch__(
        self,
        func: Value,
        types: Sequence[type],
        args: Args = (),
        kwargs: Named | None = None,
    ) -> object:
        """Run an operation, and follow the channels of its tensors."""
        output = func(*args, **(kwargs or {}))
        # Overloads such as add.Tensor and add.Scalar follow one rule.
        name = func.overloadpacket.__name__
        # Calls of item(), bool() and float() on a tensor all end in this operator.
        if name == "_local_scalar_dense":
            self.trace.reads_values = True
        inputs = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
        if any(tensor in self._labels for tensor in inputs) and any(isinstance(o, Tensor) for o in tree_leaves(output)):
            arguments = (name.removesuffix("_"), args, kwargs or {})
            try:
                self._follow(func, *arguments, output)
            except Exception:  # Arguments of a form that no rule expects; a fixed channel is always right.
                self._fix_operands(*arguments)
        return output

    def _follow(self, func: Value, name: str, args: Args, kwargs: Named, output: Value) -> None:
        rule = _RULES.get(name)
        if rule is not None:
            rule(self, args, kwargs, output)
        elif name in _VIEWS or name in _MOVING:
            self._follow_moves(func, name, args, kwargs, output)
        elif torch.Tag.pointwise in func.tags or name in _POINTWISE:
            self._follow_pointwise([t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)], output)
        elif torch.Tag.reduction in func.tags or name in _REDUCING:
            self._follow_reduction(name, args, kwargs, output)
        elif name in _MIXING_ALONG:
            axes = self._join_along(args[0], [args[1]], name)
            self._set(output, axes)
        elif any(word in name for word in _POSITIONAL):
            self._follow_positions(args[0], output)
        elif name.startswith(_ATTENTION):
            self._follow_attention(args, output)
        elif any(word in name for word in _CREATING):
            return
        else:
            self._fix_operands(name, args, kwargs)

    # Labels of tensors.

    def _label_axis(self, tensor: Tensor, axis: int, nodes: Array) -> None:
        shape = [1] * tensor.dim()
        shape[axis] = -1
        labels = self._labels.setdefault(tensor, Labels([], is_weight=True))
        labels.axes.append(nodes.reshape(shape))

    def _axes(self, tensor: object) -> list[Array]:
        labels = self._labels.get(tensor) if isinstance(tensor, Tensor) else None
        return labels.axes if labels else []

    def _is_weight(self, tensor: object) -> bool:
        labels = self._labels.get(tensor) if isinstance(tensor, Tensor) else None
        return bool(labels and labels.is_weight)

    def _set(self, output: object, axes: Sequence[Array], is_weight: bool = False) -> None:
        """Label the first tensor of an output; axes that do not vary say nothing and are dropped."""
        tensor = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)
        if tensor is None or not (tensor.is_floating_point() or tensor.is_complex()):
            return
        distinct: list[Array] = []
        for axis in axes:
            compact = self._compact(axis)
            if compact.size == 1 and compact.item() == FIXED:
                distinct = [other for other in distinct if other.size > 1] + [compact]
            elif compact.size > 1 and not any(numpy.array_equal(compact, other) for other in distinct):
                distinct.append(compact)
            elif compact.size == 1 and compact.item() != NOTHING and not is_weight:
                # A tensor cannot lose the only channel that it has.
                self.trace.nodes.join(compact, _FIXED, "a layer has no other channel")
        if distinct:
            self._labels[tensor] = Labels(distinct, is_weight)
        elif tensor in self._labels:
            del self._labels[tensor]

    def _compact(self, axes: Array) -> Array:
        """Return the roots of nodes, with size 1 along axes where they do not vary."""
        roots = self.trace.nodes.find(axes)
        for axis in range(roots.ndim):
            first = roots.take([0], axis)
            if roots.shape[axis] > 1 and (roots == first).all():
                roots = first
        return roots

    def _fix(self, axes: Sequence[Array], reason: str) -> None:
        for labels in axes:
            self.trace.nodes.join(labels, _FIXED, reason)

    def _describe(self, operation: str) -> str:
        """Return an operation with the module of the user that calls it, and the line of its code."""
        where = f" in '{self._running[-1]}'" if self._running and self._running[-1] else ""
        frame = sys._getframe(1)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if not {"torch", "autocompress"} & set(path.parts):
                return f"{operation.strip('_')}{where} ({path.name}:{frame.f_lineno})"
            frame = frame.f_back  # type: ignore[assignment]
        return f"{operation.strip('_')}{where}"

    # Rules.

    def _fix_operands(self, name: str, args: Args, kwargs: Named) -> None:
        reason = f"it runs through {self._describe(name)}"
        for tensor in tree_leaves((args, kwargs)):
            self._fix(self._axes(tensor), reason)

    def _follow_moves(self, func: Value, name: str, args: Args, kwargs: Named, output: Value) -> None:
        source = args[0]
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        moved: list[list[Array]] = [[] for _ in outputs]
        for labels in self._axes(source):
            # Strides of zero repeat the nodes without memory.
            full = torch.from_numpy(numpy.ascontiguousarray(labels)).expand(source.shape)
            if name in _VIEWS:
                results = [full.reshape(outputs[0].shape)]
                self._record_split(source, labels, outputs[0])
            else:
                results = [leaf for leaf in tree_leaves(func(full, *args[1:], **kwargs)) if isinstance(leaf, Tensor)]
            if name in ("split", "chunk", "unbind") or (name == "split_with_sizes" and len(set(args[1])) == 1):
                self._record_parts(results, labels)
            for axes, result in zip(moved, results, strict=True):
                axes.append(_shrink_strides(result).numpy())
        for tensor, axes in zip(outputs, moved, strict=True):
            self._set(tensor, axes, self._is_weight(source))

    def _record_split(self, source: Tensor, labels: Array, output: Tensor) -> None:
        """Record the parts into which a view splits an axis of channels, ``[n d] -> [n, d]``."""
        before, after = source.shape, output.shape
        for axis in range(labels.ndim):
            if labels.shape[axis] == 1:
                continue
            start = int(numpy.prod(before[:axis]))
            position = next(
                (i for i in range(len(after)) if int(numpy.prod(after[:i])) == start and after[i] > 1), None
            )
            if position is None or after[position] >= before[axis] or before[axis] % after[position]:
                continue
            nodes = numpy.moveaxis(labels, axis, 0).reshape(before[axis], -1)[:, 0]
            self._splits.append(nodes.reshape(after[position], -1))

    def _record_parts(self, results: Sequence[Tensor], labels: Array) -> None:
        parts = [_shrink_strides(result).numpy().reshape(-1) for result in results]
        if len({part.size for part in parts}) == 1 and parts[0].size > 1 and labels.size > parts[0].size:
            self._splits.append(numpy.stack(parts))

    def _follow_pointwise(self, operands: Sequence[Tensor], output: Value) -> None:
        merged: list[Array] = []
        fixed: list[Tensor] = []
        tensor = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        # Activations come first: of a parameter's axes, only those that they vary along count.
        labelled = sorted((t for t in operands if t in self._labels), key=self._is_weight)
        for operand in labelled:
            axes = [_pad_axes(labels, tensor.dim()) for labels in self._axes(operand)]
            if [labels.size for labels in axes] == [1] and axes[0].item() == FIXED:
                fixed.append(operand)
                continue
            matches = [(labels, [other for other in merged if _vary_together(labels, other)]) for labels in axes]
            has_match = any(others for _, others in matches)
            for labels, others in matches:
                for other in others:
                    self.trace.nodes.join(labels, other, "")
                if not others and not (has_match and self._is_weight(operand)):
                    merged.append(labels)
        for operand in fixed:
            shape = (1,) * (tensor.dim() - operand.dim()) + tuple(operand.shape)
            for labels in merged:
                if any(size > 1 and shape[axis] > 1 for axis, size in enumerate(labels.shape)):
                    self.trace.nodes.join(labels, _FIXED, "it is combined with an input of the model")
        # A scaled weight is still a weight: weight standardization, for example.
        is_weight = bool(labelled) and all(self._is_weight(operand) for operand in labelled)
        self._set(output, merged or [numpy.full((1,) * tensor.dim(), FIXED)] * bool(fixed), is_weight)

    def _join_along(self, source: Tensor, dims: Sequence[int], name: str) -> list[Array]:
        """Join the nodes along some axes of a tensor, and return its labels."""
        dims = [dim % max(source.dim(), 1) for dim in dims]
        joined = []
        for labels in self._axes(source):
            first = labels
            for dim in dims:
                first = first.take([0], dim)
            if first.size < labels.size:
                self.trace.nodes.join(labels, first, f"it runs through {self._describe(name)}")
            joined.append(labels)
        return joined

    def _follow_reduction(self, name: str, args: Args, kwargs: Named, output: Value) -> None:
        source = args[0]
        position = 2 if name == "linalg_vector_norm" else 1
        dims = kwargs.get("dim", args[position] if len(args) > position else None)
        if isinstance(dims, bool) or dims is None or dims == []:
            dims = list(range(source.dim()))
        dims = [dim % max(source.dim(), 1) for dim in ([dims] if isinstance(dims, int) else dims)]
        axes = self._join_along(source, dims, name)
        tensor = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        reduced = []
        for labels in axes:
            for dim in sorted(dims, reverse=True):
                labels = labels.take([0], dim)
                if tensor.dim() < source.dim():
                    labels = labels.squeeze(dim)
            reduced.append(labels)
        self._set(output, reduced, self._is_weight(source))

    def _follow_positions(self, source: Tensor, output: Value) -> None:
        tensor = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        passed = []
        for labels in self._axes(source):
            varied = [axis for axis, size in enumerate(labels.shape) if size > 1]
            if any(axis >= tensor.dim() or tensor.shape[axis] != source.shape[axis] for axis in varied):
                self._fix([labels], f"it runs through {self._describe('resizing')}")
            else:
                passed.append(labels)
        self._set(output, passed)

    def _product_axes(self, first: tuple[list[Array], bool], second: tuple[list[Array], bool]) -> list[Array]:
        """Return the labels of a product ``[.., n, k] @ [.., k, m]`` of operands with labels, each a weight or not."""
        (left, left_weight), (right, right_weight) = first, second
        # A vector has one axis; as a matrix it is a row on the left and a column on the right.
        left = [labels.reshape(1, -1) if labels.ndim == 1 else labels for labels in left]
        right = [labels.reshape(-1, 1) if labels.ndim == 1 else labels for labels in right]
        if left_weight or right_weight:
            # Of two parameters, the second is the layer and the first its input, as learned queries are.
            return self._weighted_product(left, right, not right_weight)
        described = f"it runs through {self._describe('matrix product')}"
        left = [self._join_axis(labels, -1, described) for labels in left]
        right = [self._join_axis(labels, -2, described) for labels in right]
        for labels in left:
            for others in right:
                if _vary_together(labels[..., 0, 0], others[..., 0, 0]):
                    self._join_batches(labels, others)
        return [*left, *right]

    def _join_axis(self, labels: Array, axis: int, reason: str) -> Array:
        if labels.shape[axis] == 1:
            return labels
        first = labels.take([0], axis)
        self.trace.nodes.join(labels, first, reason)
        return first

    def _join_batches(self, labels: Array, others: Array) -> None:
        """Join what two operands hold at the same index of their batch axes: the operation cannot lose one alone."""
        # One node of each batch index stands for all of them.
        heads = labels[..., :1, :1]
        self.trace.nodes.join(labels, heads)
        self.trace.nodes.join(others, heads)

    def _weighted_product(self, left: list[Array], right: list[Array], is_left: bool) -> list[Array]:
        """Return the labels of a product with a weight; ``is_left`` says on which side the weight stands."""
        weights, values = (left, right) if is_left else (right, left)
        weight_axis, value_axis = (-1, -2) if is_left else (-2, -1)
        outputs = [labels for labels in weights if labels.shape[weight_axis] == 1]
        read = [labels for labels in weights if labels.shape[weight_axis] > 1]
        values_read = [labels for labels in values if labels.shape[value_axis] > 1]
        for labels in read:
            self._note(labels, self.trace.readers)
            # [k, m] or [n, k] -> [k], to be compared with the values whatever their other axes are.
            for others in values_read:
                moved = numpy.moveaxis(others, value_axis, -1)
                self.trace.nodes.join(moved, numpy.moveaxis(labels, weight_axis, -1).reshape(labels.shape[weight_axis]))
            if not values_read:
                self.trace.nodes.join(labels, _FIXED, "it reads an input of the model")
        for labels in outputs:
            self._note(labels, self.trace.producers)
        # What the product does not sum over, such as the channels of a layer that mixes positions, stays.
        passed = [labels for labels in values if labels.shape[value_axis] == 1 and labels.size > 1]
        return [*passed, *outputs]

    def _note(self, labels: Array, sides: dict[Side, None]) -> None:
        """Add the sides that nodes belong to."""
        positions = numpy.searchsorted(self._starts, labels.reshape(-1), side="right") - 1
        for index in dict.fromkeys(positions.tolist()):
            if index >= 0:
                sides[self._sides[index]] = None

    def _follow_attention(self, args: Args, output: Value) -> None:
        query, key, value = (self._axes(tensor) for tensor in args[:3])
        turned = [numpy.swapaxes(labels, -1, -2) for labels in key]
        scores = self._product_axes((query, False), (turned, False))
        self._set(output, self._product_axes((scores, False), (value, False)))

    def _follow_convolution(self, args: Args, kwargs: Named, output: Value) -> None:
        source, weight, bias = args[:3]
        # The alias aten._convolution has further arguments behind the same first nine.
        transposed, groups = args[6], args[8]
        inputs = self._weight_nodes(weight, 0 if transposed else 1)
        outputs = self._weight_nodes(weight, 1 if transposed else 0)
        values = [labels for labels in self._axes(source) if labels.shape[1] > 1]
        varies_elsewhere = any(labels.size > labels.shape[1] == 1 for labels in self._axes(source))
        if inputs is None or outputs is None or varies_elsewhere or (transposed and groups > 1):
            self._fix_operands("convolution", args, kwargs)
            return
        if groups > 1:
            inputs = self._join_blocks(inputs, outputs.reshape(groups, -1), source.shape[1])
        self._note(inputs, self.trace.readers)
        self._note(outputs, self.trace.producers)
        for labels in values:
            self.trace.nodes.join(numpy.moveaxis(labels, 1, -1), inputs)
        if not values:
            self.trace.nodes.join(inputs, _FIXED, "it reads an input of the model")
        self._join_bias(bias, outputs)
        self._set(output, [outputs.reshape(1, -1, *[1] * (output.dim() - 2))])

    def _weight_nodes(self, weight: Tensor, axis: int) -> Array | None:
        """Return the nodes along one axis of a weight, ``[size]``, or ``None`` if the weight is no parameter."""
        for labels in self._axes(weight):
            if (
                labels.ndim > axis
                and labels.shape[axis] == labels.size
                and (labels.size > 1 or weight.shape[axis] == 1)
            ):
                return labels.reshape(-1)
        return _FIXED.reshape(1) if weight.shape[axis] == 1 and self._is_weight(weight) else None

    def _join_blocks(self, inputs: Array, outputs: Array, channels: int) -> Array:
        """Join the channels of a grouped convolution that go together, and return the nodes of all its inputs.

        Args:
            inputs: Nodes of the inputs of one block.
            outputs: Nodes of the outputs, ``[blocks, outputs of a block]``.
            channels: Number of inputs of all blocks.
        """
        if inputs.size == 1:
            # A block of a depthwise convolution is one channel, which it loses with all outputs of the block.
            self.trace.nodes.join(outputs, outputs[:, :1])
            return outputs[:, 0]
        # All blocks must have the same number of channels, so they lose the same positions.
        self.trace.nodes.join(outputs, outputs[:1])
        return numpy.tile(inputs, channels // inputs.size)

    def _join_bias(self, bias: object, outputs: Array) -> None:
        for labels in self._axes(bias):
            self.trace.nodes.join(labels.reshape(-1), outputs)

    def _follow_linear(self, args: Args, kwargs: Named, output: Value) -> None:
        """Follow ``x @ W^T + b``."""
        source, weight = args[:2]
        turned = [numpy.swapaxes(labels, -1, -2) for labels in self._axes(weight)]
        axes = self._product_axes((self._axes(source), self._is_weight(source)), (turned, self._is_weight(weight)))
        self._set_sum(output, axes, args[2] if len(args) > 2 else None)

    def _follow_added_product(self, args: Args, kwargs: Named, output: Value) -> None:
        """Follow ``b + x @ y``."""
        bias, first, second = args[:3]
        self._set_sum(output, self._multiply(first, second), bias)

    def _follow_matrix_product(self, args: Args, kwargs: Named, output: Value) -> None:
        """Follow ``x @ y``."""
        self._set(output, self._multiply(args[0], args[1]))

    def _multiply(self, first: Tensor, second: Tensor) -> list[Array]:
        return self._product_axes(
            (self._axes(first), self._is_weight(first)), (self._axes(second), self._is_weight(second))
        )

    def _set_sum(self, output: Tensor, axes: Sequence[Array], bias: object) -> None:
        """Label the sum of a product and a bias, which is an activation or a parameter."""
        for labels in self._axes(bias):
            padded = _pad_axes(labels, output.dim())
            for others in axes:
                if _vary_together(padded, others):
                    self.trace.nodes.join(padded, others)
        self._set(output, axes)

    def _follow_embedding(self, args: Args, kwargs: Named, output: Value) -> None:
        tensor = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        matrix = [labels for labels in self._axes(args[0]) if labels.ndim == 2]
        axes = [labels.reshape(-1) for labels in matrix if labels.shape[0] == 1]
        # Also of a tied table, whose rows are outputs of a linear layer.
        self._fix([labels for labels in matrix if labels.shape[0] > 1], "inputs select the rows of an embedding")
        for labels in axes:
            self._note(labels, self.trace.producers)
        self._set(output, [labels.reshape(*[1] * (tensor.dim() - 1), -1) for labels in axes])

    def _follow_layer_norm(self, args: Args, kwargs: Named, output: Value) -> None:
        source, shape, *vectors = args
        if len(shape) == 1 and any(self._is_weight(vector) for vector in vectors):
            # With weights of its own, the normalization of the channels that remain can be computed.
            axes = self._axes(source)
            for labels in axes:
                if labels.shape[-1] > 1:
                    self.trace.nodes.mark_normalized(labels, f"it runs through {self._describe('layer_norm')}")
        else:
            axes = self._join_along(source, list(range(source.dim() - len(shape), source.dim())), "layer_norm")
        for vector in vectors:
            for labels in self._axes(vector):
                for others in axes:
                    if _vary_together(_pad_axes(labels, source.dim()), others):
                        self.trace.nodes.join(_pad_axes(labels, source.dim()), others)
        self._set(output, axes)

    def _follow_group_norm(self, args: Args, kwargs: Named, output: Value) -> None:
        source, *vectors = args[:3]
        axes = self._join_along(source, list(range(1, source.dim())), "group_norm")
        for vector in vectors:
            for labels in self._axes(vector):
                for others in axes:
                    if others.shape[1] > 1:
                        self.trace.nodes.join(labels.reshape(1, -1, *[1] * (source.dim() - 2)), others)
        self._set(output, axes)

    def _follow_batch_norm(self, args: Args, kwargs: Named, output: Value) -> None:
        source, *vectors = args[:5]
        axes = self._axes(source)
        for vector in vectors:
            for labels in self._axes(vector):
                for others in axes:
                    if others.ndim > 1 and others.shape[1] > 1:
                        self.trace.nodes.join(labels.reshape(1, -1, *[1] * (source.dim() - 2)), others)
        self._set(output, axes)

    def _follow_concat(self, args: Args, kwargs: Named, output: Tensor) -> None:
        axis = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        self._follow_joining(torch.cat, args, kwargs, output, axis % output.dim())

    def _follow_stack(self, args: Args, kwargs: Named, output: Tensor) -> None:
        self._follow_joining(torch.stack, args, kwargs, output)

    def _follow_joining(
        self, function: Callable[..., Tensor], args: Args, kwargs: Named, output: Tensor, axis: int | None = None
    ) -> None:
        """Follow ``cat`` or ``stack``; the labels of the operands are matched by the axes that they vary along.

        The operands lie along ``axis``, which is ``None`` where it is a new one.
        """
        tensors = args[0]
        patterns = dict.fromkeys(
            tuple(size > 1 for size in labels.shape) for tensor in tensors for labels in self._axes(tensor)
        )
        results = []
        for pattern in patterns:
            operands = []
            for tensor in tensors:
                axes = [x for x in self._axes(tensor) if tuple(size > 1 for size in x.shape) == pattern]
                # An input of the model keeps its place beside channels.
                fixed = [x for x in self._axes(tensor) if x.size == 1]
                operands.append((axes or fixed or [numpy.zeros((1,) * tensor.dim(), dtype=numpy.int64)])[0])
            if any(pattern) and (axis is None or not pattern[axis]):
                # An index of any other axis is one of all operands.
                first = next(labels for labels in operands if labels.size > 1)
                for labels in operands:
                    reason = "it is combined with an input of the model" if labels.size == 1 else ""
                    self.trace.nodes.join(first, labels, reason)
            parts = [
                torch.from_numpy(numpy.ascontiguousarray(labels)).expand(tensor.shape)
                for labels, tensor in zip(operands, tensors, strict=True)
            ]
            results.append(function(parts, *args[1:], **kwargs).numpy())
        self._set(output, results)

    def _follow_gated_half(self, args: Args, kwargs: Named, output: Tensor) -> None:
        """Follow ``glu``: the first half of an axis times the sigmoid of the second."""
        axis = (args[1] if len(args) > 1 else kwargs.get("dim", -1)) % args[0].dim()
        halves = []
        for labels in self._axes(args[0]):
            if labels.shape[axis] > 1:
                front = numpy.moveaxis(labels, axis, 0)
                half = len(front) // 2
                first = numpy.moveaxis(front[:half], 0, axis)
                second = numpy.moveaxis(front[half:], 0, axis)
                self.trace.nodes.join(first, second)
                halves.append(first)
            else:
                halves.append(labels)
        self._set(output, halves)


Rule: TypeAlias = Callable[[ChannelTracer, Args, Named, Any], None]
_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("convolution", "_convolution"), ChannelTracer._follow_convolution),
    **dict.fromkeys(("mm", "bmm", "matmul", "mv", "dot"), ChannelTracer._follow_matrix_product),
    **dict.fromkeys(("addmm", "baddbmm", "addmv", "addbmm"), ChannelTracer._follow_added_product),
    "linear": ChannelTracer._follow_linear,
    **dict.fromkeys(("embedding", "_embedding_bag", "_embedding_bag_forward_only"), ChannelTracer._follow_embedding),
    "native_layer_norm": ChannelTracer._follow_layer_norm,
    **dict.fromkeys(("_fused_rms_norm", "rms_norm"), ChannelTracer._follow_layer_norm),
    "native_group_norm": ChannelTracer._follow_group_norm,
    **dict.fromkeys(
        (
            "native_batch_norm",
            "_native_batch_norm_legit",
            "_native_batch_norm_legit_no_training",
            "_batch_norm_with_update",
            "_batch_norm_no_update",
            "cudnn_batch_norm",
        ),
        ChannelTracer._follow_batch_norm,
    ),
    "cat": ChannelTracer._follow_concat,
    "stack": ChannelTracer._follow_stack,
    "glu": ChannelTracer._follow_gated_half,
}


def _shrink_strides(tensor: Tensor) -> Tensor:
    """Return a view with size 1 along the axes that repeat the same memory."""
    for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if size > 1 and stride == 0:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def _pad_axes(labels: Array, count: int) -> Array:
    """Return labels with axes of size 1 in front, as broadcasting adds them."""
    return labels.reshape((1,) * (count - labels.ndim) + labels.shape)


def _vary_together(first: Array, second: Array) -> bool:
    """Return whether two arrays of nodes vary along a common axis."""
    return any(one > 1 and other > 1 for one, other in zip(first.shape, second.shape, strict=True))
