"""Padding of the channels of convolutions to whole blocks, which a runtime computes faster and exactly alike.

onnxruntime stores images in blocks of channels, and only where the input channels of a convolution are a multiple of 4;
between blocked and plain storage it copies. A network of 22 channels takes 1.5 times as long as one of 24. Pruning and
search spaces leave any number of channels, so a graph is exported with zeros in the place of the missing ones.

The zeros cost no bytes: weights are padded by nodes that the runtime computes once, when it loads the file. What lies
in a padded channel never matters, because the next layer multiplies it by zero.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper, shape_inference

# Each output channel depends on the same input channel alone, whatever its value.
BY_CHANNEL = {
    "AveragePool",
    "GlobalAveragePool",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "MaxPool",
    "Relu",
}
BY_CHANNEL |= {"Elu", "Erf", "Gelu", "Sigmoid", "Softplus", "Tanh"}
REDUCTIONS = {"ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"}


def pad_channels(model: ModelProto, multiple: int) -> ModelProto | None:
    """Return a graph in floating point whose two-dimensional convolutions have whole blocks of channels.

    Args:
        model: The graph.
        multiple: Channels of a block.

    Returns:
        A padded copy; None if every convolution has whole blocks, or the graph has a node through which padded channels
        cannot be followed.
    """
    proto = ModelProto()
    proto.CopyFrom(model)
    padding = _Padding(proto.graph, _read_shapes(model), multiple)
    for node in list(proto.graph.node):
        if not padding.follow(node):
            return None
    if not padding.padded or any(output.name in padding.padded for output in proto.graph.output):
        return None
    padding.write()
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _read_shapes(model: ModelProto) -> dict[str, list[int]]:
    """Return the shape of each tensor that is known; 0 stands for a dimension without a number."""
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            shapes[value.name] = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
    return shapes


@dataclass
class _Padding:
    """Follows padded channels through a graph, node by node.

    Attributes:
        graph: The graph, which is changed.
        shapes: Shapes before padding.
        multiple: Channels of a block.
        padded: Tensors with additional entries along axis 1, with their number.
        weights: Weight and its numbers of additional entries along each axis, to the name of the padded weight.
    """

    graph: GraphProto
    shapes: Mapping[str, list[int]]
    multiple: int
    padded: dict[str, int] = field(default_factory=dict)
    weights: dict[tuple[str, tuple[int, ...]], str] = field(default_factory=dict)

    def follow(self, node: NodeProto) -> bool:
        """Pad a node where its inputs are; return whether that is possible."""
        extra = [self.padded.get(name, 0) for name in node.input]
        if node.op_type == "Conv":
            return self._pad_convolution(node, extra[0]) and not any(extra[1:])
        if not any(extra):
            return True
        if node.op_type in BY_CHANNEL and len(node.input) == 1:
            self.padded[node.output[0]] = extra[0]
            return True
        rules: Mapping[str, Callable[[NodeProto, list[int]], bool]] = {
            "Add": self._follow_pair,
            "Mul": self._follow_pair,
            "Gemm": self._pad_product,
            "Flatten": self._follow_flatten,
            "Reshape": self._follow_reshape,
            **dict.fromkeys(REDUCTIONS, self._follow_reduction),
        }
        return node.op_type in rules and rules[node.op_type](node, extra)

    def _pad_convolution(self, node: NodeProto, extra_inputs: int) -> bool:
        shape, group = self.shapes.get(node.input[1], []), _read_attribute(node, "group", 1)
        if len(shape) != 4 or not all(shape):
            return not extra_inputs
        outputs = shape[0]
        if group == 1:
            extra = -outputs % self.multiple
            pads = (extra, extra_inputs, 0, 0)
        elif shape[1] == 1 and group == outputs:
            # A depthwise convolution has the channels of its input.
            extra, pads = extra_inputs, (extra_inputs, 0, 0, 0)
            _write_attribute(node, "group", group + extra)
        else:
            return not extra_inputs
        node.input[1] = self._pad_weight(node.input[1], pads)
        if len(node.input) > 2:
            node.input[2] = self._pad_weight(node.input[2], (extra,))
        if extra:
            self.padded[node.output[0]] = extra
        return True

    def _follow_pair(self, node: NodeProto, extra: list[int]) -> bool:
        """Follow the sum or product of two tensors with equal channels, or of one with a single number."""
        first, second = (self.shapes.get(name) for name in node.input)
        if extra[0] == extra[1]:
            is_possible = first is not None and second is not None and len(first) == len(second)
        else:
            other = second if extra[0] else first
            is_possible = min(extra) == 0 and other is not None and all(size == 1 for size in other)
        if is_possible:
            self.padded[node.output[0]] = max(extra)
        return is_possible

    def _follow_reduction(self, node: NodeProto, extra: list[int]) -> bool:
        axes = self._read_constant(node.input[1]) if len(node.input) > 1 else None
        rank = len(self.shapes.get(node.input[0], []))
        # Channels must not be summed over.
        if axes is None or not rank or any(axis % rank < 2 for axis in axes.tolist()):
            return False
        positions = {axis % rank for axis in axes.tolist()}
        if node.op_type == "ReduceMean" and rank == 4 and positions == {2, 3} and _read_attribute(node, "keepdims", 1):
            # The same, computed in blocks.
            node.op_type = "GlobalAveragePool"
            del node.input[1:]
            del node.attribute[:]
        self.padded[node.output[0]] = extra[0]
        return True

    def _follow_flatten(self, node: NodeProto, extra: list[int]) -> bool:
        shape = self.shapes.get(node.input[0], [])
        if _read_attribute(node, "axis", 1) != 1 or not all(shape[2:]):
            return False
        # Positions of padded channels come last.
        self.padded[node.output[0]] = extra[0] * int(np.prod(shape[2:]))
        return True

    def _follow_reshape(self, node: NodeProto, extra: list[int]) -> bool:
        """Follow a reshape to two dimensions, of which the first is the batch."""
        shape, target = self.shapes.get(node.input[0], []), self._read_constant(node.input[1])
        if target is None or target.size != 2 or len(shape) < 2 or not all(shape[1:]):
            return False
        size, added = int(np.prod(shape[1:])), extra[0] * int(np.prod(shape[2:]))
        if int(target[1]) not in (size, -1):
            return False
        name = f"{node.output[0]}_shape"
        self.graph.initializer.append(numpy_helper.from_array(np.array([target[0], size + added]), name))
        node.input[1] = name
        self.padded[node.output[0]] = added
        return True

    def _pad_product(self, node: NodeProto, extra: list[int]) -> bool:
        if any(extra[1:]) or _read_attribute(node, "transA", 0):
            return False
        pads = (0, extra[0]) if _read_attribute(node, "transB", 0) else (extra[0], 0)
        node.input[1] = self._pad_weight(node.input[1], pads)
        return True

    def _pad_weight(self, name: str, pads: tuple[int, ...]) -> str:
        if not any(pads):
            return name
        key = (name, pads)
        if key not in self.weights:
            self.weights[key] = f"{name}_padded{len(self.weights)}"
        return self.weights[key]

    def _read_constant(self, name: str) -> Any:
        tensor = next((tensor for tensor in self.graph.initializer if tensor.name == name), None)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def write(self) -> None:
        """Add the nodes that pad weights, each before the first node that reads its result."""
        for (name, pads), output in self.weights.items():
            ends = f"{output}_ends"
            self.graph.initializer.append(numpy_helper.from_array(np.array([0] * len(pads) + list(pads)), ends))
            at = next(index for index, node in enumerate(self.graph.node) if output in node.input)
            self.graph.node.insert(at, helper.make_node("Pad", [name, ends], [output], name=f"Pad_{output}"))
        used = {name for node in self.graph.node for name in node.input}
        initializers = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(initializers)
        # Declared shapes between the layers have changed.
        del self.graph.value_info[:]


def _read_attribute(node: NodeProto, name: str, default: int) -> int:
    return next((int(entry.i) for entry in node.attribute if entry.name == name), default)


def _write_attribute(node: NodeProto, name: str, value: int) -> None:
    for entry in node.attribute:
        if entry.name == name:
            entry.i = value
