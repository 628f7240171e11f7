"""Linear layers that multiply by packed codes: the operator MatMulNBits of onnxruntime.

    input -> MatMulNBits (codes, a scale for each block of a row) -> Add (bias) -> output

Weights of 2, 4 and 8 bits stay packed in memory and are read as such, so that a large layer, whose time goes into
reading its weights, becomes faster. The kernel rounds its input to 8 bits in blocks while it runs (accuracy level 4):
with exact inputs it is slower than floating point for 2 and 8 bits, and as fast for 4.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor

from autocompress.export.embedding_tables import SMALLEST_BLOCK, codes_in_byte
from autocompress.export.integer_graph import GraphEditor

Array = NDArray[Any]
DOMAIN, MULTIPLY = "com.microsoft", "MatMulNBits"
# Rows with one scale are divided into blocks of these sizes. Kernels of 2 bits are slow at other sizes, and long blocks
# read fewer scales.
BLOCKS = (128, 64, 32)
# Inputs are rounded to 8 bits, block by block.
ACCURACY_LEVEL = 4
# In smaller layers, rounding the input costs more than reading packed weights saves.
SMALLEST_WEIGHT = 2**13


@dataclass(frozen=True)
class BlockWeight:
    """The weight of a linear layer in the form of MatMulNBits.

    Attributes:
        codes: Packed codes, ``uint8 [N, blocks, bytes of a block]``.
        scale: Scale of each block, ``float32 [N, blocks]``; ``[N, 1]`` if the blocks of a row share it.
        zero_points: Packed zero points, ``uint8 [N, bytes]``; None where all are the middle code.
        values: The weight that the codes stand for, ``float32 [N, K]``.
        bits: Bits of a code.
        block: Number of codes in a block.
    """

    codes: Array
    scale: Array
    zero_points: Array | None
    values: Array
    bits: int
    block: int


def encode_blocks(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> BlockWeight | None:
    """Return the weight of a linear layer in blocks; None if the operator cannot hold exactly these values.

    It holds evenly spaced codes with a scale for each row, for the tensor, or for groups of a multiple of 16 weights.

    Args:
        entry: Entry of the quantization history.
        tensors: Tensors of the quantization.
    """
    prefix = f"{entry['name']}.weight_"
    if f"{prefix}zero_point" not in tensors or tensors[f"{prefix}codes"].ndim != 2:
        return None
    codes, scale, zeros = (tensors[f"{prefix}{part}"].numpy() for part in ("codes", "scale", "zero_point"))
    rows, columns = codes.shape
    group = int((entry["decoded"] or {}).get("group", 0))
    block = _choose_block(group, columns)
    bits = 8 // codes_in_byte(int(codes.max()) - min(int(codes.min()), 0))
    # Codes around zero are moved up by half of their range, which is the operator's default zero point.
    centred = not zeros.any() and -(2 ** (bits - 1)) <= codes.min() and codes.max() < 2 ** (bits - 1)
    shift = 2 ** (bits - 1) if centred else -min(int(codes.min()), 0)
    unsigned, zeros = codes.astype(np.int64) + shift, zeros.astype(np.int64) + shift
    if block == 0 or columns * rows < SMALLEST_WEIGHT or zeros.min() < 0 or zeros.max() >= 2**bits:
        return None
    blocks = -(-columns // block)
    scales, zero_points = (_spread(values, rows, blocks, group // block) for values in (scale, zeros))
    # The codes behind the end of a row multiply zeros.
    filled = np.pad(unsigned, ((0, 0), (0, blocks * block - columns))).reshape(rows, blocks, block)
    values = (filled - zero_points[..., None]).astype(np.float32) * scales[..., None].astype(np.float32)
    return BlockWeight(
        _pack(filled, bits),
        np.ascontiguousarray(scales if group else scales[:, :1], np.float32),
        None if centred else _pack(zero_points, bits),
        values.reshape(rows, -1)[:, :columns],
        bits,
        block,
    )


def multiply_blocks(proto: ModelProto, name: str, weight: BlockWeight) -> int:
    """Let the nodes that multiply by a weight read its packed codes, in place, and return their number.

    Args:
        proto: The graph, in which the weight is a tensor of floating-point values.
        name: Name of the layer.
        weight: The weight.
    """
    graph = GraphEditor(proto.graph)
    replaced = 0
    # By value, because the exporter names and transposes constants.
    for tensor, is_transposed in _find_uses(graph, weight.values):
        for node in list(graph.list_consumers(tensor)):
            if _multiplies(node, tensor, is_transposed):
                _replace_node(graph, node, name, weight)
                replaced += 1
    if replaced:
        graph.remove_unused()
        if DOMAIN not in {entry.domain for entry in proto.opset_import}:
            proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return replaced


def _choose_block(group: int, columns: int) -> int:
    """Return the size of a block, a power of two; 0 if no size divides the groups."""
    if group == 0:
        # The least filling behind the end of a row; of equals the longest.
        return min(BLOCKS, key=lambda size: -columns % size)
    # The largest power of two that divides a group.
    size = min(group & -group, BLOCKS[0])
    return size if size >= SMALLEST_BLOCK else 0


def _spread(values: Array, rows: int, blocks: int, repeats: int) -> Array:
    """Return one value for each block, ``[]``, ``[N]`` or ``[N, groups] -> [N, blocks]``."""
    if values.ndim < 2:
        return np.broadcast_to(values.reshape(-1, 1), (rows, blocks))
    return np.repeat(values, repeats, axis=1)[:, :blocks]


def _pack(codes: Array, bits: int) -> Array:
    """Return codes along the last axis packed into bytes, the first in the lowest bits."""
    shared = 8 // bits
    filled = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % shared)])
    parts = filled.reshape(*filled.shape[:-1], -1, shared).astype(np.uint8)
    packed: Array = (parts << (np.arange(shared, dtype=np.uint8) * bits)).sum(-1).astype(np.uint8)
    return packed


def _find_uses(graph: GraphEditor, values: Array) -> list[tuple[str, bool]]:
    """Return the tensors that hold a weight ``[N, K]``, and whether they are transposed to ``[K, N]``."""
    uses = []
    for initializer in graph.proto.initializer:
        if sorted(initializer.dims) != sorted(values.shape):
            continue
        array = numpy_helper.to_array(initializer)
        is_plain = np.array_equal(array, values)
        if is_plain:
            uses.append((initializer.name, False))
            turns = [node for node in graph.list_consumers(initializer.name) if node.op_type == "Transpose"]
            uses += [(node.output[0], True) for node in turns]
        elif np.array_equal(array, values.T):
            uses.append((initializer.name, True))
    return uses


def _multiplies(node: NodeProto, tensor: str, is_transposed: bool) -> bool:
    """Return whether a node computes ``input @ weight.T``, with a bias or without."""
    if len(node.input) < 2 or node.input[1] != tensor:
        return False
    if node.op_type == "MatMul":
        return is_transposed
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    plain = values.get("alpha", 1.0) == values.get("beta", 1.0) == 1.0 and not values.get("transA", 0)
    return node.op_type == "Gemm" and plain and bool(values.get("transB", 0)) is not is_transposed


def _replace_node(graph: GraphEditor, node: NodeProto, name: str, weight: BlockWeight) -> None:
    """Put MatMulNBits, and Add for a bias, in the place of a node."""
    inputs = [node.input[0], *_store_weight(graph, name, weight)]
    # After that, because it may insert a node.
    at, output = graph.node_index(node), node.output[0]
    bias = node.input[2] if len(node.input) == 3 else ""
    product = f"{output}_product" if bias else output
    rows, columns = weight.values.shape
    sizes = {"K": columns, "N": rows, "bits": weight.bits, "block_size": weight.block}
    multiply = helper.make_node(MULTIPLY, inputs, [product], domain=DOMAIN, accuracy_level=ACCURACY_LEVEL, **sizes)
    graph.proto.node.remove(node)
    graph.proto.node.insert(at, multiply)
    if bias:
        graph.insert_node(at + 1, "Add", [product, bias], output)


def _store_weight(graph: GraphEditor, name: str, weight: BlockWeight) -> list[str]:
    """Add the tensors of a weight and return their names; layers that are called twice share them."""
    prefix = f"model.{name}.weight_"
    codes = graph.add_constant(f"{prefix}blocks", weight.codes)
    scale = graph.add_constant(f"{prefix}block_scale", weight.scale)
    blocks = weight.codes.shape[1]
    if weight.scale.shape[1] < blocks:
        # The file holds one scale for each row; the runtime repeats it once, when it loads the graph.
        repeated = f"{name}.weight_block_scales"
        if graph.find_producer(repeated) is None:
            shape = graph.add_constant(f"{prefix}block_shape", np.array([len(weight.codes), blocks], np.int64))
            graph.insert_node(0, "Expand", [scale, shape], repeated)
        scale = repeated
    zeros = [] if weight.zero_points is None else [graph.add_constant(f"{prefix}block_zeros", weight.zero_points)]
    return [codes, scale, *zeros]
