"""Weights of a graph in fewer bytes: equal values, integer kernels kept, everything folded when the graph is loaded."""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings, strategies as st
from onnx import TensorProto, helper, numpy_helper

from autocompress.core.registry import QUANTIZE
from autocompress.export.onnx import export_float, export_quantized
from autocompress.export.onnx_weights import pack_weights
from autocompress.models import CNN, CNNConfig
from tests.contracts.test_methods import configure, context

HEADS = {"digit": 10, "parity": 2}
EXAMPLE = (torch.zeros(1, 1, 8, 8),)
FOLDED = {"Cast", "BitShift", "BitwiseAnd", "Gather", "CumSum", "ScatterND", "ConstantOfShape"}


def build() -> CNN:
    torch.manual_seed(0)
    return CNN(CNNConfig(width=16, depth=1, stages=2, block="residual"), 1, HEADS).eval()


def graph_of(array: np.ndarray[Any, Any]) -> onnx.ModelProto:
    """Return a graph whose only output is a stored tensor."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    nodes = [helper.make_node("Identity", ["w"], ["out"])]
    output = helper.make_tensor_value_info("out", kind, array.shape)
    graph = helper.make_graph(nodes, "g", [], [output], [numpy_helper.from_array(array, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def optimized_operators(proto: onnx.ModelProto, path: Path) -> Counter[str]:
    """Return the operators that remain once onnxruntime has loaded a graph."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    ort.InferenceSession(proto.SerializeToString(), options)
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@settings(max_examples=60)
@given(
    st.sampled_from([np.float32, np.int8, np.uint8]),
    st.floats(0, 1),
    st.integers(1, 8),
    st.integers(0, 2**31),
    st.sampled_from([(64, 64), (33, 61), (16, 16, 3, 3), (5000,)]),
)
def test_every_tensor_comes_back_equal(
    dtype: type, density: float, bits: int, seed: int, shape: tuple[int, ...]
) -> None:
    random = np.random.default_rng(seed)
    low = 0 if dtype is np.uint8 else -(2 ** (bits - 1))
    array = np.where(random.random(shape) < density, random.integers(low, low + 2**bits, shape), 0).astype(dtype)
    proto = graph_of(array)
    before = proto.ByteSize()
    pack_weights(proto, (), {})
    assert proto.ByteSize() <= before
    (out,) = ort.InferenceSession(proto.SerializeToString()).run(None, {})
    assert out.dtype == array.dtype
    np.testing.assert_array_equal(out, array)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "share"),
    [
        ({"quantizer": "codebook", "weight_bits": 4}, 0.35),
        ({"quantizer": "codebook", "weight_bits": 8, "granularity": "per_tensor"}, 0.6),
        ({"granularity": "per_group", "group_size": 7, "weight_bits": 2, "weight_scheme": "asymmetric"}, 0.65),
        ({"quantizer": "codebook", "granularity": "per_group", "group_size": 32, "weight_bits": 3}, 0.45),
        ({"weight_bits": 16}, 0.7),
    ],
)
def test_decoded_weights_are_codes_in_the_graph(values: dict[str, Any], share: float, tmp_path: Path) -> None:
    model = build()
    method = QUANTIZE.get("post_training")
    quantized, state = method.apply(model, configure(method, {"activation_bits": 32, **values}), context())
    proto = export_quantized(quantized, state, EXAMPLE, HEADS)
    assert proto.ByteSize() < share * export_float(model, EXAMPLE, HEADS).ByteSize()
    inputs = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    session = ort.InferenceSession(proto.SerializeToString())
    outputs = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    with torch.no_grad():
        expected = quantized(inputs)
    for output, head in zip(outputs, HEADS, strict=True):
        np.testing.assert_allclose(output, expected[head].numpy(), atol=1e-5)
    assert not FOLDED & set(optimized_operators(proto, tmp_path / "optimized.onnx"))


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.02])
def test_sparse_integer_weights_keep_their_kernels(density: float, tmp_path: Path) -> None:
    model = build()
    method = QUANTIZE.get("post_training")
    config = configure(method, {"activation_bits": 8, "weight_bits": 8})
    dense = export_quantized(*method.apply(model, config, context()), EXAMPLE, HEADS)
    sparse_model = copy.deepcopy(model)
    with torch.no_grad():
        for weight in sparse_model.parameters():
            if weight.dim() > 1:
                weight *= torch.rand_like(weight) < density
    sparse = export_quantized(*method.apply(sparse_model, config, context()), EXAMPLE, HEADS)
    assert sparse.ByteSize() < 0.85 * dense.ByteSize()
    kernels = [optimized_operators(proto, tmp_path / "optimized.onnx")["QLinearConv"] for proto in (dense, sparse)]
    assert kernels[0] == kernels[1] > 0
    assert export_float(sparse_model, EXAMPLE, HEADS).ByteSize() < 0.5 * export_float(model, EXAMPLE, HEADS).ByteSize()


@pytest.mark.parametrize("density", [1.0, 0.2])
def test_values_that_float16_holds_take_two_bytes(density: float) -> None:
    random = np.random.default_rng(0)
    array = np.where(random.random((64, 64)) < density, random.normal(size=(64, 64)), 0).astype(np.float16)
    proto = graph_of(array.astype(np.float32))
    pack_weights(proto, (), {})
    assert TensorProto.FLOAT16 in {tensor.data_type for tensor in proto.graph.initializer}
    assert proto.ByteSize() < density * array.nbytes + 1500
    (out,) = ort.InferenceSession(proto.SerializeToString()).run(None, {})
    np.testing.assert_array_equal(out, array.astype(np.float32))


def test_a_graph_without_anything_to_gain_stays_as_it_is() -> None:
    proto = graph_of(np.random.default_rng(0).random((64, 64)).astype(np.float32))
    before = proto.SerializeToString()
    pack_weights(proto, (), {})
    assert proto.SerializeToString() == before
    assert proto.graph.initializer[0].data_type == TensorProto.FLOAT
