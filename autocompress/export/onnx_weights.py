"""Weights of an ONNX graph in fewer bytes: packed codes with their table, and sparse tensors without their zeros.

Each large weight is replaced by constant nodes that compute it, with operators of the default domain. A runtime folds
constants when it loads a graph, so that these nodes cost time once and no latency.

    codes   one, two or four codes in a byte -> BitwiseAnd, BitShift -> Gather (table) or Cast -> Mul (scale) -> weight
    mask    one bit for each value -> CumSum, Mul (ranks) -> Gather (values other than the most frequent one) -> weight
    half    float16 values -> Cast -> weight
    gaps    steps from one such value to the next, one byte each -> CumSum -> ScatterND -> weight

Integer codes of weights keep the DequantizeLinear that follows them, which integer kernels need.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from autocompress.export.embedding_tables import codes_in_byte

Array = NDArray[Any]
# Nodes and names of a packed weight take about this many bytes.
NODE_BYTES = 700
LARGEST_GAP = 255
# A single node takes less.
CAST_BYTES = 150


def pack_weights(proto: onnx.ModelProto, decoded: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> None:
    """Replace weights of a graph, in place, by constant nodes that take fewer bytes.

    Args:
        proto: The graph; its opset is 18 or later.
        decoded: Entries of the quantization history whose weights are decoded to floating point.
        tensors: Tensors of the quantization.
    """
    weights = {initializer.name: numpy_helper.to_array(initializer) for initializer in proto.graph.initializer}
    replaced: dict[str, _Weight] = {}
    for entry in decoded:
        for name in [name for name in weights if name not in replaced]:
            coded = _encode_decoded(name, weights[name], entry, tensors)
            if coded is not None:
                replaced[name] = coded
    for name, array in weights.items():
        encoders = (_encode_sparse, _encode_narrow, _encode_half)
        options = [] if name in replaced else [encode(name, array) for encode in encoders]
        smaller = [weight for weight in options if weight is not None and weight.nbytes < array.nbytes]
        if smaller:
            replaced[name] = min(smaller, key=lambda weight: weight.nbytes)
    remaining = [initializer for initializer in proto.graph.initializer if initializer.name not in replaced]
    nodes = list(proto.graph.node)
    del proto.graph.initializer[:]
    del proto.graph.node[:]
    proto.graph.initializer.extend(remaining)
    for weight in replaced.values():
        proto.graph.initializer.extend(weight.initializers)
        proto.graph.node.extend(weight.nodes)
    proto.graph.node.extend(nodes)
    onnx.checker.check_model(proto, full_check=True)


class _Weight:
    """Constant nodes that compute one weight.

    Args:
        name: Name of the weight.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors, and of the nodes by a rule of thumb."""
        overhead = NODE_BYTES if len(self.nodes) > 1 else CAST_BYTES
        return overhead + sum(len(initializer.raw_data) for initializer in self.initializers)

    def store(self, array: Array, suffix: str) -> str:
        """Add a tensor and return its name."""
        name = f"{self.name}.{suffix}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def store_exact(self, array: Array, suffix: str) -> str:
        """Add a tensor, as float16 where that holds it exactly, and return the name of its values."""
        half = _to_half(array)
        if half is None:
            return self.store(array, suffix)
        return self.emit("Cast", self.store(half, suffix), to=TensorProto.FLOAT)

    def emit(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = f"{self.name}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def reshape(self, value: str, *shape: int) -> str:
        """Add a node that gives a tensor another shape."""
        return self.emit("Reshape", value, self.store(np.array(shape, np.int64), f"shape_{len(self.nodes)}"))

    def unpack(self, codes: Array, shared: int, suffix: str) -> str:
        """Add codes with ``shared`` of them in a byte, and the nodes that unpack them, ``uint8 [n]``."""
        bits = 8 // shared
        filled = np.pad(codes.ravel().astype(np.uint8), (0, -codes.size % shared)).reshape(-1, shared)
        shifts = np.arange(shared, dtype=np.uint8) * bits
        packed = (filled << shifts).sum(1).astype(np.uint8)
        value = self.store(packed, suffix)
        if shared == 1:
            return value
        column = self.reshape(value, -1, 1)
        # Masked before shifted: OpenVINO 2026.4 shifts neighbouring codes into each other where a linear layer follows.
        masks = np.array(2**bits - 1, np.uint8) << shifts
        masked = self.emit("BitwiseAnd", column, self.store(masks, f"{suffix}_masks"))
        shifted = self.emit("BitShift", masked, self.store(shifts, f"{suffix}_shifts"), direction="RIGHT")
        flat = self.reshape(shifted, -1)
        return self.cut(flat, codes.size, 0) if codes.size % shared else flat

    def cut(self, value: str, size: int, axis: int) -> str:
        """Add a node that keeps the first values along an axis."""
        limits = {"start": 0, "end": size, "axis": axis}
        names = [self.store(np.array([at], np.int64), f"{key}_{len(self.nodes)}") for key, at in limits.items()]
        return self.emit("Slice", value, *names)

    def finish(self, value: str) -> "_Weight":
        """Give the last node's output the name of the weight."""
        for node in self.nodes:
            node.output[:] = [self.name if output == value else output for output in node.output]
        return self


def _encode_decoded(name: str, array: Array, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> _Weight | None:
    """Return the nodes for a decoded weight, or for its transposed form; None if the tensor is another one."""
    prefix = f"{entry['name']}.weight_"
    codes = tensors[f"{prefix}codes"].numpy()
    if array.dtype != np.float32 or array.size != codes.size or sorted(array.shape) != sorted(codes.shape):
        return None
    scale = tensors[f"{prefix}scale"].numpy().astype(np.float32)
    levels = tensors[f"{prefix}levels"].numpy() if f"{prefix}levels" in tensors else None
    zero_point = tensors[f"{prefix}zero_point"].numpy() if f"{prefix}zero_point" in tensors else None
    group = int(entry["decoded"].get("group", 0))
    rows, row_size = codes.shape[0], codes[0].size
    # Blocks that share a scale lie along the last axis, the last one filled up: [C, G, n].
    block = group or row_size
    matrix = codes.reshape(rows, -1).astype(np.int64)
    offset = int(matrix.min())
    filled = np.pad(matrix - offset, ((0, 0), (0, -row_size % block))).reshape(rows, -1, block)
    scales = scale.reshape((1, 1, 1) if scale.ndim == 0 else (rows, -1, 1))
    weight = _Weight(name)
    unpacked = weight.unpack(filled, codes_in_byte(int(filled.max())), "codes")
    if levels is not None:
        table = levels[offset:].astype(np.float32)
        indices = weight.emit("Cast", unpacked, to=TensorProto.INT32)
        values = weight.emit("Gather", weight.store(table, "levels"), indices)
        decoded = table[np.minimum(filled, len(table) - 1)]
        values = weight.reshape(values, *filled.shape)
    else:
        assert zero_point is not None
        zeros = zero_point.reshape(scales.shape).astype(np.float32) - np.float32(offset)
        zeros = zeros[:1, :1] if bool((zeros == zeros.flat[0]).all()) else zeros
        values = weight.reshape(weight.emit("Cast", unpacked, to=TensorProto.FLOAT), *filled.shape)
        values = weight.emit("Sub", values, weight.store(zeros, "zero_point"))
        decoded = filled.astype(np.float32) - zeros
    decoded = (decoded * scales).reshape(rows, -1)[:, :row_size].reshape(codes.shape)
    values = weight.emit("Mul", values, weight.store(scales, "scale"))
    if row_size % block:
        values = weight.cut(weight.reshape(values, rows, -1), row_size, 1)
    values = weight.reshape(values, *codes.shape)
    if array.shape != decoded.shape or not np.array_equal(array, decoded):
        if decoded.ndim != 2 or not np.array_equal(array, decoded.T):
            return None
        values = weight.emit("Transpose", values, perm=[1, 0])
    return weight.finish(values) if weight.nbytes < array.nbytes else None


def _encode_narrow(name: str, array: Array) -> _Weight | None:
    """Return the nodes for integer codes that need at most half a byte; None for other tensors."""
    if array.dtype not in (np.int8, np.uint8) or array.nbytes < NODE_BYTES:
        return None
    offset = int(array.min())
    shared = codes_in_byte(int(array.max()) - offset)
    if shared == 1:
        return None
    weight = _Weight(name)
    # Codes of int8 may be negative: they are added up in 32 bits.
    unpacked = weight.emit(
        "Cast", weight.unpack(array.astype(np.int64) - offset, shared, "codes"), to=TensorProto.INT32
    )
    values = weight.emit("Add", unpacked, weight.store(np.array(offset, np.int32), "offset"))
    cast = weight.emit("Cast", values, to=helper.np_dtype_to_tensor_dtype(array.dtype))
    return weight.finish(weight.reshape(cast, *array.shape))


def _to_half(array: Array) -> Array | None:
    """Return a float32 array as float16; None if that changes a value."""
    if array.dtype != np.float32:
        return None
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), array) else None


def _encode_half(name: str, array: Array) -> _Weight | None:
    """Return the node for a weight that float16 holds exactly; None for other tensors."""
    # Tensors of one axis may be scales, which integer kernels need as they are.
    if array.ndim < 2 or _to_half(array) is None:
        return None
    weight = _Weight(name)
    return weight.finish(weight.store_exact(array, "half"))


def _encode_sparse(name: str, array: Array) -> _Weight | None:
    """Return the nodes for a tensor in which one value is frequent; None if they would not be smaller."""
    if array.dtype not in (np.float32, np.float16, np.int8, np.uint8) or array.nbytes < NODE_BYTES:
        return None
    flat = array.ravel()
    omitted = np.zeros(1, array.dtype)
    if array.dtype.kind != "f":
        # With a zero point, zero has a code of its own.
        codes, counts = np.unique(flat, return_counts=True)
        omitted = codes[counts.argmax()][None]
    (present,) = (flat != omitted).nonzero()
    gaps = np.diff(present, prepend=0)
    has_short_gaps = len(present) > 0 and int(gaps.max()) <= LARGEST_GAP
    mask_bytes = array.size / 8
    index_bytes = min(len(present), mask_bytes) if has_short_gaps else mask_bytes
    if NODE_BYTES + index_bytes + len(present) * array.itemsize >= array.nbytes:
        return None
    weight = _Weight(name)
    if has_short_gaps and len(present) < mask_bytes:
        steps = weight.emit("Cast", weight.store(gaps.astype(np.uint8), "gaps"), to=TensorProto.INT64)
        indices = weight.emit("CumSum", steps, weight.store(np.array(0, np.int64), "axis"))
        size, background = weight.store(np.array([array.size], np.int64), "size"), numpy_helper.from_array(omitted)
        constant = weight.emit("ConstantOfShape", size, value=background)
        values = weight.emit(
            "ScatterND", constant, weight.reshape(indices, -1, 1), weight.store_exact(flat[present], "values")
        )
    else:
        # Ranks of the stored values, 0 for the omitted one. onnxruntime does not fold NonZero, so that it is not used.
        bits = weight.emit("Cast", weight.unpack(flat != omitted, 8, "mask"), to=TensorProto.INT32)
        ranks = weight.emit("Mul", weight.emit("CumSum", bits, weight.store(np.array(0, np.int64), "axis")), bits)
        values = weight.emit("Gather", weight.store_exact(np.concatenate([omitted, flat[present]]), "values"), ranks)
    return weight.finish(weight.reshape(values, *array.shape))
