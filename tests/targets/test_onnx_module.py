from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from autocompress.errors import ArtifactError
from autocompress.targets import make_target
from autocompress.targets.calibration import ChainLayer, ChainSettings, _build_chain
from autocompress.targets.onnx_module import OnnxModule

X = np.random.default_rng(0).normal(size=(1, 3, 4, 6)).astype(np.float32)


def build_graph(nodes: Sequence[onnx.NodeProto], constants: dict[str, Any], kind: int = TensorProto.FLOAT) -> bytes:
    """Return a graph of nodes from ``x`` to ``y``."""
    value = helper.make_tensor_value_info
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", [value("x", kind, list(X.shape))], [value("y", kind, None)], tensors)
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    )


def compare(content: bytes, x: NDArray[np.float32] = X, tolerance: float = 1e-5) -> None:
    """Compare the outputs of a module with those of onnxruntime."""
    module = OnnxModule(content, [np.zeros_like(x)]).eval()
    expected = make_target("onnxruntime", {}).load(content)([x])
    for values, wanted in zip(module(torch.from_numpy(x)), expected, strict=True):
        np.testing.assert_allclose(values.numpy(), wanted, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize(
    ("operator", "constants", "attributes"),
    [
        ("AveragePool", {}, {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("Clip", {"low": np.float32(-0.5), "high": np.float32(0.5)}, {}),
        ("Conv", {"w": np.ones((4, 3, 3, 3), np.float32)}, {"strides": [1, 2], "pads": [1, 1, 1, 1]}),
        ("Expand", {"shape": np.array([2, 3, 4, 6])}, {}),
        ("Flatten", {}, {"axis": 2}),
        ("Gather", {"indices": np.array([[2, 0], [1, 1]])}, {"axis": 2}),
        ("Gelu", {}, {"approximate": "tanh"}),
        ("GlobalAveragePool", {}, {}),
        ("LayerNormalization", {"scale": np.ones(6, np.float32), "bias": np.ones(6, np.float32)}, {"axis": -1}),
        ("MatMul", {"w": np.ones((6, 5), np.float32)}, {}),
        ("MaxPool", {}, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("Pad", {"pads": np.array([0, 0, 1, 2, 0, 0, 0, 3]), "value": np.float32(1.5)}, {}),
        ("ReduceMax", {"axes": np.array([1, 3])}, {"keepdims": 0}),
        ("ReduceMean", {"axes": np.array([-1])}, {}),
        ("ReduceSum", {}, {}),
        ("Reshape", {"shape": np.array([0, -1, 2])}, {}),
        ("Slice", dict(zip("abcd", map(np.array, ([1], [2**31], [3], [2])), strict=True)), {}),
        ("Softmax", {}, {"axis": 1}),
        ("Squeeze", {"axes": np.array([0])}, {}),
        ("Transpose", {}, {"perm": [0, 2, 3, 1]}),
        ("Unsqueeze", {"axes": np.array([0, 3])}, {}),
    ],
)  # fmt: skip
def test_an_operator_computes_what_onnxruntime_does(
    operator: str, constants: dict[str, Any], attributes: dict[str, Any]
) -> None:
    node = helper.make_node(operator, ["x", *constants], ["y"], **attributes)
    content = build_graph([node], constants)
    if operator == "Gelu":
        model = onnx.load_from_string(content)
        model.opset_import[0].version = 20
        content = model.SerializeToString()
    compare(content)


def test_shapes_and_what_follows_from_them_are_computed_once() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch"], axis=0),
        helper.make_node("Concat", ["batch", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node("Relu", ["flat"], ["y"]),
    ]
    content = build_graph(nodes, {"first": np.array([0]), "rest": np.array([-1])})
    compare(content)
    assert [node.operator for node in OnnxModule(content, [X]).nodes] == ["Reshape", "Relu"]


@pytest.mark.parametrize("integer", [(), (0, 2, 3), range(5)])
def test_quantized_layers_keep_their_values(integer: Sequence[int]) -> None:
    layers = (ChainLayer("conv", 8, 3), ChainLayer("depthwise", 8, 3), ChainLayer("pointwise", 8, 1, shortcut=True))
    content = _build_chain(ChainSettings(3, 8, 2, layers, (16,)), integer)
    x = np.random.default_rng(0).uniform(0, 5, (1, 3, 8, 8)).astype(np.float32)
    # Sums that end between two codes are rounded to either, in two layers.
    compare(content, x, 2 * 0.05 + 1e-5)
    module = OnnxModule(content, [x])
    # Weights whose layers have rounded inputs and outputs stay codes; the convolution before a sum has them, too.
    codes = [tensor for tensor in module.buffers() if tensor.dtype == torch.int8]
    assert len(codes) == len(integer)


def test_scales_of_channels_and_unsigned_weights_keep_their_values() -> None:
    codes = np.random.default_rng(0).integers(0, 256, (4, 3, 1, 1)).astype(np.uint8)
    scales = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    constants = {"codes": codes, "scales": scales, "zeros": np.full(4, 128, np.uint8), "s": np.float32(0.05)}
    constants |= {"zero": np.uint8(3), "bias_codes": np.arange(4, dtype=np.int32), "bias_zero": np.int32(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "zero"], ["x_codes"]),
        helper.make_node("DequantizeLinear", ["x_codes", "s", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["w"], axis=0),
        helper.make_node("DequantizeLinear", ["bias_codes", "s", "bias_zero"], ["b"]),
        helper.make_node("Conv", ["rounded", "w", "b"], ["sums"]),
        helper.make_node("QuantizeLinear", ["sums", "s", "zero"], ["sum_codes"]),
        helper.make_node("DequantizeLinear", ["sum_codes", "s", "zero"], ["y"]),
    ]
    compare(build_graph(nodes, constants), np.abs(X))


@pytest.mark.parametrize(
    ("operator", "attributes", "reason"),
    [
        ("Erfinv", {}, "the operator Erfinv"),
        ("MaxPool", {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}, r"MaxPool: .*both ends"),
    ],
)
def test_what_is_not_translated_is_named(operator: str, attributes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        OnnxModule(build_graph([helper.make_node(operator, ["x"], ["y"], **attributes)], {}), [X])
