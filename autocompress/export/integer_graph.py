"""Changes that make onnxruntime run a quantized graph with integer kernels (QLinearConv, QGemm).

It fuses DequantizeLinear -> Conv -> Relu -> QuantizeLinear into one integer kernel where the bias is int32 on the
scale ``input scale x weight scale`` and the output is quantized.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from autocompress.errors import ArtifactError
from autocompress.quantize.fake_quantize import quantize_bias


def integer_kernels(proto: ModelProto) -> ModelProto:
    """Return the graph, changed in place, with integer biases and without ReLUs that a quantizer makes redundant."""
    graph = GraphEditor(proto.graph)
    # A list, because nodes are removed and inserted during the loop.
    for node in [node for node in proto.graph.node if node.op_type == "Relu"]:
        _drop_relu(graph, node)
    for node in [node for node in proto.graph.node if node.op_type in ("Conv", "Gemm")]:
        _quantize_bias(graph, node)
    return proto


# Operators that hand codes on unchanged, between a quantizer and the layer that it belongs to.
_PASSING = {"Flatten", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
_MULTIPLYING = {"Conv", "Gemm", "MatMul"}


def decode_layer(proto: ModelProto, name: str, weight: NDArray[np.float32], *, has_output: bool) -> None:
    """Let a layer multiply in floating point, in place: its weight is a tensor, and its input is not rounded.

    Args:
        proto: The graph as torch exports it, before :func:`integer_kernels`.
        name: Name of the layer.
        weight: Its dequantized weight.
        has_output: Whether its output is quantized, too.

    Raises:
        ArtifactError: The layer has another form in the graph.
    """
    graph = GraphEditor(proto.graph)
    if not any(tensor.startswith(f"model.{name}.") for node in proto.graph.node for tensor in node.input):
        # No head depends on the layer, as on that of an output which only training reads: the graph is without it.
        return
    codes = f"{name}.parametrizations.weight.0.codes"
    decodes = [node for node in graph.list_consumers(f"model.{codes}") if node.op_type == "DequantizeLinear"]
    if len(decodes) != 1:
        raise ArtifactError(f"layer '{name}' has no coded weight in the exported graph")
    (decode,) = decodes
    # The name that pack_weights finds the codes of a decoded layer by is irrelevant: it compares values.
    tensor = graph.add_constant(f"model.{name}.weight", weight)
    multiplying = _follow(graph, decode.output[0])
    for node in multiplying:
        _skip_input_quantizer(graph, node)
        if has_output:
            _skip_output_quantizer(graph, node.output[0])
    graph.rename_uses(decode.output[0], tensor)
    graph.remove_unused()


def _follow(graph: "GraphEditor", tensor: str) -> list[NodeProto]:
    """Return the nodes that multiply by a weight, which may be transposed before."""
    nodes = []
    for node in graph.list_consumers(tensor):
        nodes += _follow(graph, node.output[0]) if node.op_type in _PASSING else [node]
    return [node for node in nodes if node.op_type in _MULTIPLYING]


def _skip_input_quantizer(graph: "GraphEditor", node: NodeProto) -> None:
    """Let a node read what its input quantizer reads; other readers of the quantizer keep it."""
    reader = node
    producer = graph.find_producer(reader.input[0])
    while producer is not None and producer.op_type in _PASSING:
        reader, producer = producer, graph.find_producer(producer.input[0])
    if producer is not None and producer.op_type == "DequantizeLinear":
        source = graph.find_quantized(producer)
        reader.input[0] = reader.input[0] if source is None else source


def _skip_output_quantizer(graph: "GraphEditor", tensor: str) -> None:
    for node in graph.list_consumers(tensor):
        if node.op_type == "QuantizeLinear":
            for decode in graph.list_decoders(node.output[0]):
                graph.rename_uses(decode.output[0], tensor)


class GraphEditor:
    """Queries and small edits of a graph, in place.

    Args:
        proto: The graph.
    """

    def __init__(self, proto: GraphProto) -> None:
        self.proto = proto

    def find_producer(self, tensor: str) -> NodeProto | None:
        """Return the node whose output a tensor is; None for constants and inputs of the graph."""
        return next((node for node in self.proto.node if tensor in node.output), None)

    def list_consumers(self, tensor: str) -> list[NodeProto]:
        """Return the nodes that read a tensor."""
        return [node for node in self.proto.node if tensor in node.input]

    def is_output(self, tensor: str) -> bool:
        """Return whether a tensor is an output of the graph."""
        return any(output.name == tensor for output in self.proto.output)

    def find_constant(self, tensor: str) -> NDArray[np.generic] | None:
        """Return the values of a stored tensor; None for computed ones."""
        initializer = next((value for value in self.proto.initializer if value.name == tensor), None)
        return None if initializer is None else numpy_helper.to_array(initializer)

    def find_scale(self, tensor: str) -> NDArray[np.generic] | None:
        """Return the scale of a tensor that DequantizeLinear produces; None for any other tensor."""
        node = self.find_producer(tensor)
        return self.find_constant(node.input[1]) if node is not None and node.op_type == "DequantizeLinear" else None

    def add_constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Store a tensor, unless one of that name is stored, and return its name."""
        if self.find_constant(name) is None:
            self.proto.initializer.append(numpy_helper.from_array(value, name))
        return name

    def rename_uses(self, tensor: str, name: str) -> None:
        """Let all readers of a tensor read another one."""
        for node in self.list_consumers(tensor):
            node.input[:] = [name if used == tensor else used for used in node.input]

    def insert_node(self, at: int, operator: str, inputs: list[str], output: str) -> None:
        """Insert a node with one output."""
        self.proto.node.insert(at, helper.make_node(operator, inputs, [output]))

    def find_quantized(self, decode: NodeProto) -> str | None:
        """Return the tensor that QuantizeLinear encoded before a DequantizeLinear; None if nothing was encoded."""
        node = self.find_producer(decode.input[0])
        # Grids that are narrower than their container are clipped in between.
        while node is not None and node.op_type == "Clip":
            node = self.find_producer(node.input[0])
        return node.input[0] if node is not None and node.op_type == "QuantizeLinear" else None

    def list_decoders(self, codes: str) -> list[NodeProto]:
        """Return every DequantizeLinear of codes, clipped or not."""
        nodes = []
        for node in self.list_consumers(codes):
            nodes += self.list_decoders(node.output[0]) if node.op_type == "Clip" else [node]
        return [node for node in nodes if node.op_type == "DequantizeLinear"]

    def remove_unused(self) -> None:
        """Remove the nodes whose outputs nothing reads."""
        while unused := [
            node
            for node in self.proto.node
            if not any(self.list_consumers(name) or self.is_output(name) for name in node.output)
        ]:
            for node in unused:
                self.proto.node.remove(node)

    def node_index(self, node: NodeProto) -> int:
        """Return the position of a node among the nodes."""
        return next(index for index, other in enumerate(self.proto.node) if other.output[0] == node.output[0])


def _drop_relu(graph: GraphEditor, node: NodeProto) -> None:
    """Remove a ReLU whose input is decoded from unsigned codes with zero point 0: such values are never negative."""
    decode = graph.find_producer(node.input[0])
    if decode is None or decode.op_type != "DequantizeLinear" or graph.is_output(node.output[0]):
        return
    zero_point = graph.find_constant(decode.input[2])
    if zero_point is not None and zero_point.dtype == np.uint8 and not zero_point.any():
        graph.rename_uses(node.output[0], node.input[0])
        graph.proto.node.remove(node)


def _quantize_bias(graph: GraphEditor, node: NodeProto) -> None:
    """Store the float bias of an integer kernel as int32 codes with the scale of its products."""
    bias = graph.find_constant(node.input[2]) if len(node.input) == 3 else None
    scales = [graph.find_scale(name) for name in node.input[:2]]
    if bias is None or scales[0] is None or scales[1] is None:
        return
    input_scale, weight_scale = (torch.from_numpy(scale.copy()) for scale in (scales[0], scales[1]))
    codes, scale = quantize_bias(torch.from_numpy(bias.copy()), weight_scale, input_scale)
    name = f"{node.output[0]}_bias"
    # Without a zero point it is 0, as kernels demand.
    inputs = [graph.add_constant(f"{name}_codes", codes.numpy()), graph.add_constant(f"{name}_scale", scale.numpy())]
    # Before the node that uses it: the nodes of a graph are sorted topologically.
    graph.insert_node(graph.node_index(node), "DequantizeLinear", inputs, name)
    # A scale per channel needs the axis of the channels.
    if scale.ndim:
        graph.proto.node[graph.node_index(node) - 1].attribute.append(helper.make_attribute("axis", 0))
    node.input[2] = name
