"""Costs of an ONNX file of any tool: effective FLOPs from the graph alone."""

import math

import onnx
from onnx import GraphProto, ModelProto, NodeProto

FLOAT_BITS = 32
BITS: dict[int, int] = {
    onnx.TensorProto.INT8: 8,
    onnx.TensorProto.UINT8: 8,
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.UINT4: 4,
    onnx.TensorProto.INT16: 16,
    onnx.TensorProto.UINT16: 16,
    onnx.TensorProto.FLOAT16: 16,
}
#: Operators that hand a tensor on without computing.
TRANSPARENT = frozenset({"Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Cast"})


def count_effective_flops(content: bytes) -> float:
    """Return the FLOPs of one example, each weighted by the bits of its operands: ``2 MACs * wb * ab / 32^2``.

    Convolutions and matrix products count. An operand has the bits of the integers that it is decoded from.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content))
    graph = model.graph
    shapes = _list_shapes(model)
    makers = {output: node for node in graph.node for output in node.output}
    types = _list_types(graph)
    total = 0.0
    for node in graph.node:
        macs = _count_macs(node, shapes)
        if macs:
            first, second = (_find_bits(node.input[at], makers, types) for at in (0, 1))
            total += 2 * macs * first * second / FLOAT_BITS**2
    return total


def _list_shapes(model: ModelProto) -> dict[str, list[int]]:
    graph = model.graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        # A dimension with a name is the batch.
        shapes[value.name] = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
    return shapes


def _list_types(graph: GraphProto) -> dict[str, int]:
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        types[value.name] = value.type.tensor_type.elem_type
    return types


def _count_macs(node: NodeProto, shapes: dict[str, list[int]]) -> float:
    if node.op_type == "Conv":
        # The weight is [outputs, inputs of a group, kernel ...].
        return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
    if node.op_type in ("MatMul", "Gemm"):
        transposed = any(entry.name == "transA" and entry.i for entry in node.attribute)
        return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else -1]
    return 0.0


def _find_bits(name: str, makers: dict[str, NodeProto], types: dict[str, int]) -> int:
    while (node := makers.get(name)) is not None:
        if node.op_type == "DequantizeLinear":
            return BITS.get(_find_type(node.input[0], makers, types), FLOAT_BITS)
        if node.op_type not in TRANSPARENT:
            return FLOAT_BITS
        name = node.input[0]
    return BITS.get(types.get(name, 0), FLOAT_BITS)


def _find_type(name: str, makers: dict[str, NodeProto], types: dict[str, int]) -> int:
    """Return the type of a tensor; that of the zero point where shape inference did not reach the integers."""
    while name not in types and (node := makers.get(name)) is not None:
        name = node.input[2] if node.op_type == "QuantizeLinear" and len(node.input) > 2 else node.input[0]
    return types.get(name, 0)
