import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autocompress.errors import ArtifactError
from autocompress.export.integer_graph import decode_layer, integer_kernels


def graph(zero_point: int, relu_is_output: bool = False, bias: bool = True) -> onnx.ModelProto:
    """Return Quantize -> Dequantize -> Conv -> Quantize -> Dequantize -> Relu -> Abs."""
    constants = {
        "scale": np.array(0.5, np.float32),
        "zero": np.array(zero_point, np.uint8),
        "codes": np.ones((2, 1, 1, 1), np.int8),
        "w_scale": np.array([0.25, 2.0], np.float32),
        "w_zero": np.zeros(2, np.int8),
        "bias": np.array([1.0, -3.0], np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["codes", "w_scale", "w_zero"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w", *(["bias"] if bias else [])], ["conv"]),
        helper.make_node("QuantizeLinear", ["conv", "scale", "zero"], ["conv_q"]),
        helper.make_node("DequantizeLinear", ["conv_q", "scale", "zero"], ["conv_x"]),
        helper.make_node("Relu", ["conv_x"], ["relu"]),
        *([] if relu_is_output else [helper.make_node("Abs", ["relu"], ["out"])]),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 1, 1])],
        [helper.make_tensor_value_info("relu" if relu_is_output else "out", TensorProto.FLOAT, ["batch", 2, 1, 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_float_bias_becomes_int32_on_the_scale_of_the_products() -> None:
    changed = integer_kernels(graph(3))
    onnx.checker.check_model(changed, full_check=True)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in changed.graph.initializer}
    conv = next(node for node in changed.graph.node if node.op_type == "Conv")
    decode = next(node for node in changed.graph.node if node.output[0] == conv.input[2])
    codes, scale = (stored[name] for name in decode.input)
    assert codes.dtype == np.int32
    assert scale.tolist() == [0.125, 1.0]
    assert codes.tolist() == [8, -3]
    assert helper.get_node_attr_value(decode, "axis") == 0


def test_a_convolution_without_a_bias_stays_as_it_is() -> None:
    before = graph(3, bias=False)
    assert integer_kernels(graph(3, bias=False)) == before


@pytest.mark.parametrize(("zero_point", "dropped"), [(0, True), (3, False)])
def test_a_relu_goes_where_the_grid_has_no_negative_value(zero_point: int, dropped: bool) -> None:
    changed = integer_kernels(graph(zero_point))
    onnx.checker.check_model(changed, full_check=True)
    assert any(node.op_type == "Relu" for node in changed.graph.node) != dropped
    assert next(node for node in changed.graph.node if node.op_type == "Abs").input[0] == (
        "conv_x" if dropped else "relu"
    )


def test_a_relu_that_is_an_output_stays() -> None:
    changed = integer_kernels(graph(0, relu_is_output=True))
    assert any(node.op_type == "Relu" for node in changed.graph.node)


def test_a_layer_that_no_output_reads_is_not_in_the_graph_and_needs_no_decoding() -> None:
    changed, weight = graph(3), np.ones((2, 1, 1, 1), np.float32)
    decode_layer(changed, "auxiliary", weight, has_output=False)
    assert changed == graph(3)
    # In the graph, a layer without codes is another form than expected.
    changed.graph.node[3].input[1] = "model.layer.weight"
    with pytest.raises(ArtifactError, match="layer 'layer' has no coded weight"):
        decode_layer(changed, "layer", weight, has_output=False)
