"""ONNX graphs as torch modules, for runtimes that load programs of ``torch.export``.

Only operators that exports of autocompress contain are translated, for one example of fixed shape. Quantized tensors
keep their values: unsigned codes become signed ones, 128 smaller, with a zero point that is 128 smaller.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import ArtifactError

#: Attributes of a node by name.
Attributes: TypeAlias = Mapping[str, Any]
#: Values of constants that are no operands, such as axes and shapes; None for those that a node leaves out.
Settings: TypeAlias = Sequence[Any]
#: Operands, settings and attributes of a node to its output.
Operator: TypeAlias = Callable[[Sequence[Tensor], Settings, Attributes], Tensor]

# Unsigned codes minus this are signed codes.
SHIFT = 128
CODES = (-128, 127, torch.int8)
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
# Inputs from this position on are settings.
SETTINGS = dict.fromkeys(
    (
        *("Clip", "Expand", "Pad", QUANTIZE, DEQUANTIZE, "Reshape", "Slice", "Squeeze", "Unsqueeze"),
        *("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"),
    ),
    1,
)


@dataclass(frozen=True)
class _Node:
    """A node of a graph.

    Attributes:
        operator: Its operator.
        operands: Names of the tensors that it computes with.
        settings: Values of its constants that are no operands.
        attributes: Its attributes.
        output: Name of its output.
    """

    operator: str
    operands: tuple[str, ...]
    settings: tuple[Any, ...]
    attributes: Attributes
    output: str

    def run(self, values: Mapping[str, Tensor]) -> Tensor:
        return OPERATORS[self.operator]([values[name] for name in self.operands], self.settings, self.attributes)


class OnnxModule(nn.Module):
    """A torch module that computes what an ONNX graph does, for one example.

    Args:
        model: Content of an ONNX file.
        example: Inputs of one example, whose shapes are fixed.

    Raises:
        ArtifactError: The graph has an operator or a form that is not translated; the message names it.
    """

    def __init__(self, model: bytes, example: Sequence[NDArray[Any]]) -> None:
        super().__init__()
        graph = onnx.load_from_string(model).graph
        self.inputs = [value.name for value in graph.input]
        self.outputs = [value.name for value in graph.output]
        self.nodes: list[_Node] = []
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._integer_weights = _find_integer_weights(graph)
        self._values = {name: torch.from_numpy(array) for name, array in zip(self.inputs, example, strict=True)}
        with torch.no_grad():
            for node in graph.node:
                self._add_node(node)
        read = {name for node in self.nodes for name in node.operands} | set(self.outputs)
        self.buffer_names = {name: f"tensor_{at}" for at, name in enumerate(self._constants) if name in read}
        for name, buffer in self.buffer_names.items():
            self.register_buffer(buffer, _to_tensor(self._constants[name]))
        del self._constants, self._values, self._integer_weights

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the graph.

        Args:
            arrays: The inputs of the graph, in its order.
        """
        values = dict(zip(self.inputs, arrays, strict=True))
        values |= {name: self.get_buffer(buffer) for name, buffer in self.buffer_names.items()}
        # Codes are decoded anew for each reader: a decoded value that a sum and a later layer share would make parts of
        # a program depend on each other in a circle, which ExecuTorch refuses.
        decoders = {node.output: node for node in self.nodes if node.operator == DEQUANTIZE}

        def read(name: str) -> Tensor:
            return decoders[name].run(values) if name in decoders else values[name]

        for node in self.nodes:
            if node.operator != DEQUANTIZE:
                values[node.output] = node.run({name: read(name) for name in node.operands})
        return tuple(read(name) for name in self.outputs)

    def _add_node(self, proto: onnx.NodeProto) -> None:
        """Add a node, or compute it now if it depends on constants and shapes alone."""
        if proto.op_type not in OPERATORS or len(proto.output) != 1:
            raise ArtifactError(f"the operator {proto.op_type} is not translated; change the model")
        node = self._read_node(proto)
        operands = {name: self._find_tensor(name) for name in node.operands}
        try:
            result = node.run(operands)
        except ArtifactError as error:
            # The operator is what the check before a search finds the layers by.
            raise ArtifactError(f"{proto.op_type}: {error}") from None
        is_constant = all(name in self._constants for name in node.operands)
        # The codes of weights stay codes where integer kernels read them.
        if proto.op_type == "Shape" or (is_constant and node.output not in self._integer_weights):
            self._constants[node.output] = result.numpy()
        else:
            self.nodes.append(node)
            self._values[node.output] = result

    def _find_tensor(self, name: str) -> Tensor:
        return self._values[name] if name in self._values else _to_tensor(self._constants[name])

    def _read_node(self, proto: onnx.NodeProto) -> _Node:
        count = SETTINGS.get(proto.op_type, len(proto.input))
        for name in proto.input[count:]:
            if name and name not in self._constants:
                raise ArtifactError(f"{proto.op_type} computes its settings; change the model")
        settings = [self._constants[name] if name else None for name in proto.input[count:]]
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in proto.attribute}
        operands = tuple(name for name in proto.input[:count] if name)
        if proto.op_type in (QUANTIZE, DEQUANTIZE):
            operands, settings = self._read_grid(proto, operands, settings)
        values = tuple(value.tolist() if isinstance(value, np.ndarray) else value for value in settings)
        return _Node(proto.op_type, operands, values, attributes, proto.output[0])

    def _read_grid(
        self, proto: onnx.NodeProto, operands: tuple[str, ...], settings: Sequence[Any]
    ) -> tuple[tuple[str, ...], list[Any]]:
        """Return operands and settings of a node between values and signed codes."""
        scale, zero_point = settings[0], settings[1] if len(settings) > 1 else np.zeros_like(settings[0], np.int64)
        (name,) = operands
        codes = self._constants.get(name)
        if codes is not None and codes.dtype == np.int32:
            # Codes of a bias, which torch's operators have no type for.
            return (name,), [scale, zero_point]
        shift = SHIFT if zero_point.dtype == np.uint8 else 0
        if codes is not None and codes.dtype == np.uint8:
            name = f"{name}_signed"
            self._constants[name] = (codes.astype(np.int16) - SHIFT).astype(np.int8)
        zero_point = zero_point.astype(np.int64) - shift
        if scale.size == 1:
            return (name,), [scale.reshape(()), zero_point.reshape(())]
        # Kernels read scales of channels from tensors.
        grid = (f"{proto.output[0]}_scales", f"{proto.output[0]}_zero_points")
        self._constants |= dict(zip(grid, (scale, zero_point), strict=True))
        return (name, *grid), []


def build_program(
    runtime: str,
    model: bytes,
    example: Sequence[NDArray[Any]],
    convert: Callable[[OnnxModule, tuple[Tensor, ...]], bytes],
) -> bytes:
    """Return the program of an ONNX file for a runtime that converts torch modules.

    Args:
        runtime: Name of the runtime, for messages.
        model: Content of the ONNX file.
        example: Inputs of one example, whose shapes are fixed.
        convert: The runtime's converter, a function of a module and its inputs.

    Raises:
        ArtifactError: The file cannot be translated or converted.
    """
    module = OnnxModule(model, example).eval()
    inputs = tuple(torch.from_numpy(array) for array in example)
    try:
        with torch.no_grad():
            return convert(module, inputs)
    except Exception as error:  # converters raise any exception of their passes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArtifactError(f"{runtime} cannot convert the model: {reason}") from error


def _find_integer_weights(graph: onnx.GraphProto) -> set[str]:
    """Return the decoded weights of layers with rounded inputs and outputs, which integer kernels compute."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    producers = {name: node.op_type for node in graph.node for name in node.output}

    def is_rounded(tensor: str) -> bool:
        nodes = readers.get(tensor, [])
        return bool(nodes) and all(
            node.op_type == QUANTIZE or (node.op_type == "Relu" and is_rounded(node.output[0])) for node in nodes
        )

    def is_integer(node: onnx.NodeProto, weight: str) -> bool:
        reads = node.op_type in ("Conv", "Gemm") and node.input[1] == weight
        return reads and producers.get(node.input[0]) == DEQUANTIZE and is_rounded(node.output[0])

    decoded = [node.output[0] for node in graph.node if node.op_type == DEQUANTIZE]
    return {name for name in decoded if name in readers and all(is_integer(node, name) for node in readers[name])}


def _to_tensor(array: NDArray[Any]) -> Tensor:
    # A copy: the arrays of a file cannot be written to.
    return torch.from_numpy(np.array(array))


def _quantize(x: Sequence[Tensor], settings: Settings, _: Attributes) -> Tensor:
    scale, zero_point = settings
    codes: Tensor = _list_code_operators().quantize_per_tensor(x[0], scale, zero_point, *CODES)
    return codes


def _dequantize(x: Sequence[Tensor], settings: Settings, attributes: Attributes) -> Tensor:
    values: Tensor
    if x[0].dtype == torch.int32:
        scale, zero_point = (torch.tensor(value) for value in settings)
        shape = [-1] + [1] * (x[0].ndim - 1) if scale.ndim else []
        return (x[0] - zero_point.reshape(shape)) * scale.reshape(shape)
    if len(x) == 1:
        scale, zero_point = settings
        values = _list_code_operators().dequantize_per_tensor(x[0], scale, zero_point, *CODES)
    else:
        axis = attributes.get("axis", 1)
        values = _list_code_operators().dequantize_per_channel(*x, axis, *CODES)
    return values


def _list_code_operators() -> Any:
    # The import registers the operators.
    import torch.ao.quantization.fx._decomposed

    return torch.ops.quantized_decomposed


def _read_pads(attributes: Attributes, dimensions: int) -> list[int]:
    """Return the padding of each dimension; a layer pads both ends alike."""
    pads = list(attributes.get("pads", [0] * 2 * dimensions))
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or pads[:dimensions] != pads[dimensions:]:
        raise ArtifactError("padding that differs between both ends of a dimension is not translated; change the model")
    return pads[:dimensions]


def _convolve(x: Sequence[Tensor], _: Settings, attributes: Attributes) -> Tensor:
    dimensions = x[0].ndim - 2
    function = (F.conv1d, F.conv2d, F.conv3d)[dimensions - 1]
    bias = x[2] if len(x) > 2 else None
    ones = [1] * dimensions
    strides, dilations = (list(attributes.get(name, ones)) for name in ("strides", "dilations"))
    return function(
        x[0], x[1], bias, strides, _read_pads(attributes, dimensions), dilations, attributes.get("group", 1)
    )


def _pool(x: Sequence[Tensor], _: Settings, attributes: Attributes, is_max: bool = False) -> Tensor:
    kernel = list(attributes["kernel_shape"])
    dimensions = len(kernel)
    strides, pads = list(attributes.get("strides", [1] * dimensions)), _read_pads(attributes, dimensions)
    ceil = bool(attributes.get("ceil_mode", 0))
    if is_max:
        pooled: Tensor = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[dimensions - 1](
            x[0], kernel, strides, pads, ceil_mode=ceil
        )
        return pooled
    counts = bool(attributes.get("count_include_pad", 0))
    average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dimensions - 1]
    return average(x[0], kernel, strides, pads, ceil, counts)


def _multiply_gemm(x: Sequence[Tensor], _: Settings, attributes: Attributes) -> Tensor:
    first, second = (
        tensor.mT if attributes.get(name, 0) else tensor for tensor, name in zip(x, ("transA", "transB"), strict=False)
    )
    is_plain = attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0
    if is_plain and attributes.get("transB", 0):
        # The form that integer kernels are found by.
        return F.linear(first, x[1], x[2] if len(x) > 2 else None)
    product: Tensor = attributes.get("alpha", 1.0) * (first @ second)
    return product + attributes.get("beta", 1.0) * x[2] if len(x) > 2 else product


def _reduce(function: Callable[..., Tensor]) -> Operator:
    def reduce(x: Sequence[Tensor], settings: Settings, attributes: Attributes) -> Tensor:
        axes = settings[0] if settings and settings[0] is not None else attributes.get("axes", range(x[0].ndim))
        return function(x[0], list(axes), bool(attributes.get("keepdims", 1)))

    return reduce


def _reshape(x: Sequence[Tensor], settings: Settings, _: Attributes) -> Tensor:
    # A 0 keeps the dimension.
    return x[0].reshape([x[0].shape[at] if size == 0 else size for at, size in enumerate(settings[0])])


def _flatten(x: Sequence[Tensor], _: Settings, attributes: Attributes) -> Tensor:
    axis = attributes.get("axis", 1)
    return x[0].reshape(int(np.prod(x[0].shape[:axis])), -1)


def _slice(x: Sequence[Tensor], settings: Settings, _: Attributes) -> Tensor:
    axes, steps = (settings[at] if len(settings) > at else None for at in (2, 3))
    result = x[0]
    for at, (start, end) in enumerate(zip(settings[0], settings[1], strict=True)):
        size = result.shape[axes[at] if axes else at]
        step = steps[at] if steps else 1
        result = torch.ops.aten.slice.Tensor(result, axes[at] if axes else at, start, min(end, size), step)
    return result


def _squeeze(x: Sequence[Tensor], settings: Settings, _: Attributes) -> Tensor:
    return x[0].squeeze(settings[0]) if settings else x[0].squeeze()


def _unsqueeze(x: Sequence[Tensor], settings: Settings, _: Attributes) -> Tensor:
    result = x[0]
    for axis in sorted(settings[0]):
        result = result.unsqueeze(axis)
    return result


def _pad(x: Sequence[Tensor], settings: Settings, attributes: Attributes) -> Tensor:
    if attributes.get("mode", b"constant") != b"constant" or (len(settings) > 2 and settings[2] is not None):
        raise ArtifactError("padding with other values than a constant is not translated; change the model")
    half = len(settings[0]) // 2
    # torch lists the last dimension first.
    pads = [end for at in reversed(range(half)) for end in (settings[0][at], settings[0][at + half])]
    return F.pad(x[0], pads, value=float(settings[1] or 0) if len(settings) > 1 else 0.0)


def _gather(x: Sequence[Tensor], _: Settings, attributes: Attributes) -> Tensor:
    axis = attributes.get("axis", 0)
    if axis == 0 and x[0].ndim == 2:
        return F.embedding(x[1], x[0])
    indices = x[1]
    rows = x[0].index_select(axis, indices.reshape(-1))
    return rows.reshape([*x[0].shape[:axis], *indices.shape, *x[0].shape[axis + 1 :]])


def _cast(x: Sequence[Tensor], _: Settings, attributes: Attributes) -> Tensor:
    return x[0].to(_to_tensor(np.zeros(0, helper.tensor_dtype_to_np_dtype(attributes["to"]))).dtype)


def _clip(x: Sequence[Tensor], settings: Settings, _: Attributes) -> Tensor:
    if not x[0].is_floating_point():
        raise ArtifactError("codes of fewer than 8 bits are not translated; quantize to 8 bits")
    low, high = [*settings, None, None][:2]
    return x[0].clamp(low, high)


def _normalize(x: Sequence[Tensor], _: Settings, attributes: Attributes) -> Tensor:
    shape = x[0].shape[attributes.get("axis", -1) :]
    bias = x[2] if len(x) > 2 else None
    return F.layer_norm(x[0], shape, x[1].reshape(shape), bias, attributes.get("epsilon", 1e-5))


def _gelu(x: Sequence[Tensor], _: Settings, attributes: Attributes) -> Tensor:
    return F.gelu(x[0], approximate=attributes.get("approximate", b"none").decode())


def _of_operands(function: Callable[..., Tensor]) -> Operator:
    return lambda x, settings, attributes: function(*x)


def _along_axis(function: Callable[[Tensor, int], Tensor]) -> Operator:
    return lambda x, settings, attributes: function(x[0], attributes.get("axis", -1))


OPERATORS: Mapping[str, Operator] = {
    "Add": _of_operands(torch.add),
    "And": _of_operands(torch.logical_and),
    "AveragePool": _pool,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda x, settings, attributes: torch.cat(list(x), attributes["axis"]),
    "Conv": _convolve,
    DEQUANTIZE: _dequantize,
    "Div": _of_operands(torch.div),
    "Equal": _of_operands(torch.eq),
    "Erf": _of_operands(torch.erf),
    "Exp": _of_operands(torch.exp),
    "Expand": lambda x, settings, attributes: x[0] * torch.ones(settings[0], dtype=x[0].dtype),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _multiply_gemm,
    "GlobalAveragePool": lambda x, settings, attributes: x[0].mean(list(range(2, x[0].ndim)), keepdim=True),
    "Identity": lambda x, settings, attributes: x[0],
    "LayerNormalization": _normalize,
    "Log": _of_operands(torch.log),
    "MatMul": _of_operands(torch.matmul),
    "Max": _of_operands(torch.maximum),
    "MaxPool": lambda x, settings, attributes: _pool(x, settings, attributes, is_max=True),
    "Min": _of_operands(torch.minimum),
    "Mul": _of_operands(torch.mul),
    "Neg": _of_operands(torch.neg),
    "Not": _of_operands(torch.logical_not),
    "Pad": _pad,
    "Pow": _of_operands(torch.pow),
    QUANTIZE: _quantize,
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _of_operands(torch.relu),
    "Reshape": _reshape,
    "Shape": lambda x, settings, attributes: torch.tensor(x[0].shape),
    "Sigmoid": _of_operands(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _along_axis(torch.softmax),
    "Sqrt": _of_operands(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _of_operands(torch.sub),
    "Tanh": _of_operands(torch.tanh),
    "Transpose": lambda x, settings, attributes: x[0].permute(list(attributes["perm"])),
    "Unsqueeze": _unsqueeze,
    "Where": _of_operands(torch.where),
}
