import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.core.method import Context
from autocompress.core.registry import QUANTIZE
from autocompress.errors import ArtifactError
from autocompress.export.onnx import export_float, trace_quantized
from autocompress.export.onnx_weights import pack_weights
from autocompress.models.text_ngrams import HashedNGrams
from autocompress.targets import make_target
from tests.export.nets import deployable, splits, state_of, train

pytest.importorskip("openvino", reason="needs pip install 'autocompress[openvino]'")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("residual", {"weight_bits": 8, "activation_bits": 8}),
        ("separable", {"weight_bits": 4, "activation_bits": 8}),
        ("functional", {"weight_bits": 4, "activation_bits": 32}),
        ("residual", {"weight_bits": 2, "activation_bits": 32}),
        ("functional", {"weight_bits": 16, "activation_bits": 32}),
    ],
)
def test_it_predicts_what_onnxruntime_does(name: str, bits: dict[str, int]) -> None:
    data = splits()
    model = deployable(name, train(name, data[0]), data[0], **bits)
    traced = trace_quantized(model.model, state_of(model), model.example, model.heads)
    layers = [entry["name"] for entry in state_of(model).history["layers"] if entry["input"] is None]
    content = traced.build(layers).SerializeToString()
    inputs = [tensor.numpy() for tensor in data[1].inputs]
    found, expected = (make_target(target, {}).load(content)(inputs) for target in ("openvino", "onnxruntime"))
    for values, wanted in zip(found, expected, strict=True):
        assert (values.argmax(-1) == wanted.argmax(-1)).mean() >= 0.99


class Branches(nn.Module):
    """A sum of two convolutions, whose rounding is part of the same kernel, before a third one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        summed = (self.first(images) + self.second(images)).relu()
        return self.head(self.third(summed).relu().mean((2, 3)))


def test_branches_are_rounded_before_they_are_added() -> None:
    torch.manual_seed(0)
    images = torch.randn(64, 8, 6, 6)
    method = QUANTIZE.get("post_training")
    config = method.config.of({"weight_bits": 8, "activation_bits": 8})
    model, state = method.apply(Branches().eval(), config, Context((images[:1],), ((images,),)))
    target = make_target("openvino", {})

    def count_differences(*, is_adapted: bool) -> int:
        graph = trace_quantized(model, state, (images[:1],), {"label": 4}, signed=True).build()
        content = (target.adapt_graph(graph) if is_adapted else graph).SerializeToString()
        # onnxruntime computes each operator as it is written, the maximum too.
        outputs, expected = (
            make_target(name, {}).load(content)([images.numpy()])[0] for name in ("openvino", "onnxruntime")
        )
        return int((abs(outputs - expected).max(1) > 1e-4).sum())

    assert count_differences(is_adapted=True) <= 2
    assert count_differences(is_adapted=False) > 32


@pytest.mark.parametrize("size", [(13, 22), (40, 8), (64, 33)])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_packed_weights_of_a_linear_layer_are_unpacked_as_stored(size: tuple[int, int], bits: int) -> None:
    torch.manual_seed(bits)
    layer = torch.nn.Sequential(torch.nn.Linear(size[0], 40 * size[1])).eval()
    example, heads = (torch.randn(5, size[0]),), {"y": 40 * size[1]}
    if bits == 1:
        # Weights with many zeros are stored with a mask of one bit each.
        layer[0].weight.data *= torch.rand_like(layer[0].weight) < 0.5
        proto = export_float(layer, example, heads)
        pack_weights(proto, (), {})
        expected = layer(*example)
    else:
        method = QUANTIZE.get("post_training")
        config = method.config.of({"weight_bits": bits, "activation_bits": 32})
        quantized, state = method.apply(layer, config, Context(example, (example,)))
        proto = trace_quantized(quantized, state, example, heads).build()
        expected = quantized(*example)
    assert bits >= 4 or "BitShift" in {node.op_type for node in proto.graph.node}
    (outputs,) = make_target("openvino", {}).load(proto.SerializeToString())([example[0].numpy()])
    np.testing.assert_allclose(outputs, expected.detach(), atol=1e-5)


def test_its_outputs_stay_after_the_next_run() -> None:
    layer = torch.nn.Linear(3, 2).eval()
    model = make_target("openvino", {}).load(export_float(layer, (torch.ones(1, 3),), {"y": 2}).SerializeToString())
    (first,) = model([np.ones((1, 3), np.float32)])
    kept = first.copy()
    model([np.zeros((1, 3), np.float32)])
    np.testing.assert_array_equal(first, kept)


@pytest.mark.slow
def test_an_operator_that_it_lacks_is_named() -> None:
    data = splits()
    # Circular padding.
    model = deployable("rows", train("rows", data[0]), data[0], weight_bits=8, activation_bits=8)
    content = trace_quantized(model.model, state_of(model), model.example, model.heads).build().SerializeToString()
    with pytest.raises(ArtifactError, match="Pad"):
        make_target("openvino", {}).load(content)


def test_a_damaged_model_is_an_error() -> None:
    with pytest.raises(ArtifactError, match="OpenVINO cannot run the model"):
        make_target("openvino", {}).load(b"nonsense")


def test_its_widths_are_those_of_int8_kernels() -> None:
    info = make_target("openvino", {}).describe()
    assert info.version
    assert info.precisions.weight_type == "int8"
    assert info.precisions.runs(8, 8)


def test_hashed_n_grams_have_the_rows_that_torch_gives_them() -> None:
    ngrams = HashedNGrams(3, 2**18, missing=0)
    tokens = torch.randint(1, 30_000, (1, 12))
    proto = export_float(ngrams, (tokens,), {"rows": 39})
    (rows,) = make_target("openvino", {}).load(proto.SerializeToString())([tokens.numpy()])
    np.testing.assert_array_equal(rows, ngrams(tokens))
