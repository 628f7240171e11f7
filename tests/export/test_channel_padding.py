import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from autocompress.export.channel_padding import pad_channels
from autocompress.targets import make_target
from autocompress.targets.calibration import ChainLayer, ChainSettings, _build_chain

CHAIN = ChainSettings(
    1,
    8,
    2,
    (
        ChainLayer("conv", 10, 3, 2),
        ChainLayer("depthwise", 10, 3),
        ChainLayer("pointwise", 18, 1),
        ChainLayer("conv", 18, 3, shortcut=True),
        ChainLayer("conv", 16, 3),
    ),
    (20,),
)


def run(content: bytes, batch: int = 1) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(batch, *CHAIN.shape[1:])).astype(np.float32)
    return make_target("onnxruntime", {}).load(content)([x])[0]


def build_model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Return a graph of nodes from ``x``, an image of one channel, to ``y``, three features."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [value("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_a_padded_graph_computes_the_same_in_whole_blocks() -> None:
    model = onnx.load_from_string(_build_chain(CHAIN))
    padded = pad_channels(model, 16)
    assert padded is not None
    np.testing.assert_allclose(run(padded.SerializeToString()), run(model.SerializeToString()), rtol=1e-5, atol=1e-6)
    shapes = onnx.shape_inference.infer_shapes(padded, data_prop=True).graph.value_info
    channels = {value.name: value.type.tensor_type.shape.dim[1].dim_value for value in shapes}
    outputs = [node.output[0] for node in padded.graph.node if node.op_type == "Conv"]
    assert [channels[name] for name in outputs] == [16, 16, 32, 32, 16]
    # Stored weights keep their sizes.
    sizes = [sum(np.prod(tensor.dims) for tensor in proto.graph.initializer) for proto in (model, padded)]
    assert sizes[1] - sizes[0] < 100


def test_whole_blocks_and_other_layers_are_left_alone() -> None:
    aligned = ChainSettings(3, 8, 2, (ChainLayer("conv", 16, 3), ChainLayer("conv", 32, 3)))
    sequences = ChainSettings(3, 8, 1, (ChainLayer("conv", 10, 3),))
    for chain in (aligned, sequences):
        assert pad_channels(onnx.load_from_string(_build_chain(chain)), 16) is None
    # Integer kernels store channels last.
    assert pad_channels(onnx.load_from_string(_build_chain(CHAIN, range(CHAIN.depth))), 16) is None


@pytest.mark.parametrize(
    "tail",
    [
        [helper.make_node("Concat", ["c", "c"], ["y"], axis=1)],
        [helper.make_node("Softmax", ["c"], ["y"], axis=1)],
        [helper.make_node("ReduceSum", ["c", "channels"], ["y"])],
        [helper.make_node("Add", ["c", "bias"], ["y"])],
        [helper.make_node("Identity", ["c"], ["y"])],
    ],
)
def test_a_graph_whose_channels_cannot_be_followed_is_not_padded(tail: list[onnx.NodeProto]) -> None:
    constants = {"w": torch.ones(6, 1, 3, 3).numpy(), "channels": np.array([1]), "bias": np.ones((6, 1, 1), np.float32)}
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"]), *tail],
        "g",
        [value("x", TensorProto.FLOAT, [1, 1, 8, 8])],
        [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    assert pad_channels(model, 16) is None


def test_the_mean_over_positions_is_computed_in_blocks() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("ReduceMean", ["c", "axes"], ["m"]),
        helper.make_node("Reshape", ["m", "shape"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["y"]),
    ]
    generator = np.random.default_rng(0)
    weights = {"w": generator.normal(size=(6, 1, 3, 3)), "v": generator.normal(size=(6, 3))}
    constants = {name: array.astype(np.float32) for name, array in weights.items()}
    model = build_model(nodes, {**constants, "axes": np.array([-1, -2]), "shape": np.array([-1, 6])})
    padded = pad_channels(model, 16)
    assert padded is not None
    assert "GlobalAveragePool" in [node.op_type for node in padded.graph.node]
    expected = run(model.SerializeToString(), batch=3)
    np.testing.assert_allclose(run(padded.SerializeToString(), batch=3), expected, rtol=1e-4, atol=1e-5)


def test_features_of_several_positions_keep_their_order() -> None:
    generator = np.random.default_rng(0)
    constants = {"w": generator.normal(size=(6, 1, 3, 3)), "m": generator.normal(size=(6 * 36, 3)), "b": np.ones(6)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"]),
        helper.make_node("Sigmoid", ["c"], ["s"]),
        helper.make_node("Flatten", ["s"], ["f"]),
        helper.make_node("Gemm", ["f", "m"], ["y"]),
    ]
    model = build_model(nodes, {name: array.astype(np.float32) for name, array in constants.items()})
    padded = pad_channels(model, 16)
    assert padded is not None
    expected = run(model.SerializeToString(), batch=3)
    np.testing.assert_allclose(run(padded.SerializeToString(), batch=3), expected, rtol=1e-4, atol=1e-5)
