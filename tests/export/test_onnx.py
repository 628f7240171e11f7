import io
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from autocompress.core.method import Context
from autocompress.core.task import Split, logits_by_head
from autocompress.errors import ArtifactError
from autocompress.export.artifact import Deployable
from autocompress.export.onnx import export_float, export_quantized
from autocompress.quantize.folding import fold_batch_norm
from autocompress.quantize.post_training import PostTrainingConfig
from autocompress.targets.onnx_session import create_session, is_weights_only
from tests.export.nets import METHOD, NETS, deployable, heads_of, splits, state_of, train

Exported = tuple[Deployable, onnx.ModelProto]
EIGHT = {"weight_bits": 8, "activation_bits": 8}
FOUR = {"weight_bits": 4, "activation_bits": 4}
THREE = {"weight_bits": 3, "activation_bits": 3}
WEIGHTS = {"weight_bits": 4, "activation_bits": 32}
INPUTS = {"weight_bits": 32, "activation_bits": 4}


@pytest.fixture(scope="module")
def data() -> tuple[Split, Split]:
    return splits()


@pytest.fixture(scope="module")
def trained(data: tuple[Split, Split]) -> Mapping[str, nn.Module]:
    return {name: train(name, data[0]) for name in NETS}


@pytest.fixture(scope="module")
def exported(trained: Mapping[str, nn.Module], data: tuple[Split, Split]) -> Callable[..., Exported]:
    """Return what exports a network once for every combination of settings."""
    made: dict[str, Exported] = {}

    def export(name: str, **settings: Any) -> Exported:
        key = repr((name, settings))
        if key not in made:
            found = deployable(name, trained[name], data[0], **settings)
            made[key] = found, export_quantized(found.model, state_of(found), found.example, found.heads)
        return made[key]

    return export


def logits(proto: onnx.ModelProto, split: Split) -> dict[str, Tensor]:
    running = create_session(proto.SerializeToString())
    names = [entry.name for entry in running.get_outputs()]
    feed = {entry.name: value.numpy() for entry, value in zip(running.get_inputs(), split.inputs, strict=True)}
    return {name: torch.from_numpy(value) for name, value in zip(names, running.run(names, feed), strict=True)}


def outputs(model: nn.Module, split: Split, heads: Mapping[str, int]) -> dict[str, Tensor]:
    with torch.inference_mode():
        return logits_by_head(model(*split.inputs), heads)


def kernels(proto: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Return the operators that onnxruntime runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "rows"])
def test_the_float_graph_computes_what_the_module_does(
    trained: Mapping[str, nn.Module], data: tuple[Split, Split], name: str
) -> None:
    folded = fold_batch_norm(trained[name], tuple(t[:1] for t in data[1].inputs))
    proto = export_float(folded, tuple(t[:1] for t in data[1].inputs), heads_of(name))
    assert [output.name for output in proto.graph.output] == list(heads_of(name))
    assert not any(node.op_type == "BatchNormalization" for node in proto.graph.node)
    expected = outputs(trained[name], data[1], heads_of(name))
    for head, values in logits(proto, data[1]).items():
        torch.testing.assert_close(values, expected[head], rtol=1e-4, atol=1e-4)


# Every quantizer and granularity stands here at least once.
CASES = [
    ("functional", EIGHT),
    ("functional", THREE),
    ("functional", WEIGHTS),
    ("functional", INPUTS),
    ("residual", EIGHT),
    ("residual", FOUR),
    ("residual", THREE | {"activation_scheme": "symmetric", "granularity": "per_tensor"}),
    ("separable", EIGHT),
    ("separable", EIGHT | {"weight_scheme": "asymmetric"}),
    ("rows", EIGHT | {"activation_scheme": "symmetric", "weight_scheme": "asymmetric"}),
    ("rows", FOUR | {"observer": "entropy", "bias_correction": True}),
    ("residual", FOUR | {"quantizer": "power_of_two"}),
    ("residual", FOUR | {"granularity": "per_group", "group_size": 5}),
    ("separable", WEIGHTS | {"quantizer": "codebook"}),
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"quantizer": "power_of_two"}, {"granularity": "per_group", "group_size": 5}])
def test_what_integer_kernels_cannot_run_is_stored_as_codes_and_computed_in_floating_point(
    exported: Callable[..., Exported], settings: dict[str, Any]
) -> None:
    made, proto = exported("residual", **FOUR | settings)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    assert not any(node.op_type == "DequantizeLinear" for node in proto.graph.node)
    # Weights that are too small to gain anything stay as they are.
    codes = [part for part in stored if part.endswith("codes")]
    assert codes
    for name, weight in made.model.named_parameters():
        if f"{name}.codes" in codes:
            assert not any(tensor.dtype == np.float32 and tensor.size == weight.numel() for tensor in stored.values())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_the_quantized_graph_computes_what_the_searched_module_does(
    exported: Callable[..., Exported], data: tuple[Split, Split], name: str, settings: dict[str, Any]
) -> None:
    made, proto = exported(name, **settings)
    expected = outputs(made.model, data[1], made.heads)
    found = logits(proto, data[1])
    assert list(found) == list(made.heads)
    for head, values in found.items():
        same = (values.argmax(1) == expected[head].argmax(1)).float().mean()
        assert float(same) >= 0.99
        # Integer and floating-point sums part at ties only; one tie moves one example by a step of the grid.
        error = (values - expected[head]).abs().amax(1)
        assert float((error < 1e-3 * expected[head].abs().max()).float().mean()) > 0.9, error


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), [case for case in CASES if case[1] in (EIGHT, FOUR)])
def test_every_convolution_and_head_runs_on_an_integer_kernel(
    exported: Callable[..., Exported], name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    made, proto = exported(name, **settings)
    found = kernels(proto, tmp_path)
    assert found["QLinearConv"] == sum(isinstance(module, nn.Conv2d) for module in made.model.modules())
    assert found["QGemm"] == 1
    assert found["Conv"] == found["FusedConv"] == found["Gemm"] == 0


@pytest.mark.slow
def test_a_depthwise_convolution_without_an_integer_kernel_stays_in_floating_point(
    exported: Callable[..., Exported], tmp_path: Path
) -> None:
    made, proto = exported("separable", **EIGHT | {"weight_scheme": "asymmetric"})
    found = kernels(proto, tmp_path)
    assert found["Conv"] + found["FusedConv"] >= 2
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    assert stored["body.2.weight"].dtype == np.float32
    assert stored["body.5.weight_codes"].dtype == np.uint8
    assert np.array_equal(stored["body.2.weight"], made.model.get_parameter("body.2.weight").detach().numpy())


@pytest.mark.slow
def test_the_file_holds_no_long_names_and_no_default_attributes(exported: Callable[..., Exported]) -> None:
    _, proto = exported("functional", **EIGHT)
    assert not any(node.name for node in proto.graph.node)
    assert not any(name.startswith("_symbolic") for node in proto.graph.node for name in node.output)
    found = {entry.name for node in proto.graph.node if node.op_type == "Conv" for entry in node.attribute}
    assert "pads" in found
    assert not found & {"auto_pad", "group", "kernel_shape", "strides", "dilations"}
    grids = {name for node in proto.graph.node if "quantize" in node.op_type.lower() for name in node.input[1:]}
    assert all(name.startswith("k") for name in grids)
    stored = [(tensor.data_type, tensor.raw_data) for tensor in proto.graph.initializer if tensor.name in grids]
    assert len(stored) == len(set(stored)) == len(grids)
    assert "first.weight_codes" in {tensor.name for tensor in proto.graph.initializer}


@pytest.mark.slow
def test_the_graph_holds_integer_codes_on_the_n_bit_grid(exported: Callable[..., Exported]) -> None:
    made, proto = exported("functional", **THREE)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for name in ("first", "second", "head"):
        codes = stored[f"{name}.weight_codes"]
        (decoder,) = (node for node in proto.graph.node if node.input[0] == f"{name}.weight_codes")
        scale = stored[decoder.input[1]]
        assert codes.dtype == np.int8
        assert all(len(np.unique(channel)) <= 8 for channel in codes)
        values = codes * scale.reshape(-1, *[1] * (codes.ndim - 1))
        np.testing.assert_allclose(values, made.model.get_parameter(f"{name}.weight").detach().numpy(), rtol=1e-6)
    clips = [node for node in proto.graph.node if node.op_type == "Clip"]
    assert len(clips) == 3
    assert all([int(stored[name]) for name in clip.input[1:]] == [0, 7] for clip in clips)
    assert not any(tensor.dtype == np.float32 and tensor.size > 16 for tensor in stored.values())


@pytest.mark.slow
def test_the_exporters_machine_and_workings_stay_private(
    trained: Mapping[str, nn.Module], data: tuple[Split, Split], capfd: pytest.CaptureFixture[str]
) -> None:
    printed = io.StringIO()
    with redirect_stdout(printed):
        made = deployable("functional", trained["functional"], data[0], **EIGHT)
        proto = export_quantized(made.model, state_of(made), made.example, made.heads)
    content = proto.SerializeToString()
    assert printed.getvalue() == ""
    assert capfd.readouterr() == ("", "")
    for trace in (b".py", b"/home", b"/tmp", b"parametrizations", b"stack_trace"):
        assert trace not in content


@pytest.mark.slow
def test_exporting_leaves_the_model_alone(exported: Callable[..., Exported], data: tuple[Split, Split]) -> None:
    made, _ = exported("residual", **EIGHT)
    again = METHOD.restore(NETS["residual"](), PostTrainingConfig.of(EIGHT), state_of(made))
    again.load_state_dict(made.model.state_dict())
    before, after = (outputs(model, data[1], made.heads)["label"] for model in (again, made.model))
    assert torch.equal(before, after)


@pytest.mark.slow
def test_any_batch_size_runs(exported: Callable[..., Exported], data: tuple[Split, Split]) -> None:
    _, proto = exported("functional", **EIGHT)
    whole = logits(proto, data[1].take(slice(0, 33)))["label"]
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for size in (1, 2, 33):
        torch.testing.assert_close(logits(proto, data[1].take(slice(0, size)))["label"], whole[:size])


@pytest.mark.slow
def test_layers_with_32_bit_weights_round_their_inputs_exactly(
    exported: Callable[..., Exported], data: tuple[Split, Split], tmp_path: Path
) -> None:
    made, proto = exported("functional", **INPUTS)
    assert not is_weights_only(proto.SerializeToString())
    assert kernels(proto, tmp_path)["QLinearConv"] == 0
    torch.testing.assert_close(
        logits(proto, data[1])["label"], outputs(made.model, data[1], made.heads)["label"], rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
def test_weights_alone_are_marked_so_that_a_session_decodes_them_once(exported: Callable[..., Exported]) -> None:
    assert is_weights_only(exported("functional", **WEIGHTS)[1].SerializeToString())
    assert not is_weights_only(exported("functional", **EIGHT)[1].SerializeToString())


@pytest.mark.slow
def test_a_channel_that_died_keeps_its_large_bias_through_integers() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    torch.manual_seed(0)
    with torch.no_grad():
        model[0].weight[0].zero_()
        model[0].weight[1].mul_(1e-12)
        model[0].bias.copy_(torch.tensor([0.7, 5.0, -0.1]))
    images = torch.randn(32, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    quantized, state = METHOD.apply(model.eval(), PostTrainingConfig(), Context((images[:1],), ((images,),)))
    proto = export_quantized(quantized, state, (images[:1],), {"label": 2})
    split = Split((images,), {})
    found, expected = logits(proto, split)["label"], outputs(quantized, split, {"label": 2})["label"]
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * float(expected.abs().max()))


@pytest.mark.slow
def test_several_inputs_get_numbered_names() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(9, 4), nn.Linear(8, 3)

        def forward(self, tokens: Tensor, extra: Tensor) -> Tensor:
            return self.out(torch.cat([self.embed(tokens).mean(1), extra], 1))

    model = Pair().eval()
    inputs = torch.randint(9, (6, 5)), torch.randn(6, 4)
    quantized, state = METHOD.apply(model, PostTrainingConfig(), Context(tuple(t[:1] for t in inputs), (inputs,)))
    proto = export_quantized(quantized, state, tuple(t[:1] for t in inputs), {"click": 3})
    assert [entry.name for entry in proto.graph.input] == ["input_0", "input_1"]
    split = Split(inputs, {})
    torch.testing.assert_close(
        logits(proto, split)["click"], outputs(quantized, split, {"click": 3})["click"], rtol=1e-4, atol=1e-4
    )


class CountedExamples(nn.Linear):
    """A module that reads the number of examples as a plain number."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs plus a constant for each example."""
        return super().forward(x) + torch.ones(1, 1).expand(len(x), -1)


@pytest.mark.slow
def test_any_batch_size_runs_where_the_module_reads_its_length() -> None:
    model = CountedExamples(4, 3).eval()
    session = create_session(export_float(model, (torch.zeros(1, 4),), {"label": 3}).SerializeToString())
    examples = torch.randn(5, 4)
    (outputs,) = session.run(None, {session.get_inputs()[0].name: examples.numpy()})
    np.testing.assert_allclose(outputs, model(examples).detach(), atol=1e-6)


def test_a_model_that_torch_cannot_export_is_an_artifact_error() -> None:
    class Numpy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum().item()) > 0 else -x

    with pytest.raises(ArtifactError, match="cannot be exported to ONNX"):
        export_float(Numpy(), (torch.ones(1, 3),), {"label": 3})


def test_a_buffer_may_have_the_name_of_an_operators_output() -> None:
    class Normalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean = nn.Buffer(torch.tensor([0.3]))
            self.conv, self.out = nn.Conv2d(1, 8, 3), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.relu(self.conv(x - self.mean)).mean((2, 3)))

    model, split = Normalized().eval(), Split((torch.rand(5, 1, 8, 8),), {})
    proto = export_float(model, (torch.rand(1, 1, 8, 8),), {"label": 10})
    with torch.no_grad():
        torch.testing.assert_close(logits(proto, split)["label"], model(*split.inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_every_initializer_is_used(exported: Callable[..., Exported], name: str, settings: dict[str, Any]) -> None:
    # onnxruntime would warn of each unused one whenever the model is loaded.
    _, proto = exported(name, **settings)
    used = {tensor for node in proto.graph.node for tensor in node.input}
    assert {tensor.name for tensor in proto.graph.initializer} <= used


def test_torch_builds_its_table_of_operators_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    example = (torch.zeros(1, 3),)
    first = export_float(nn.Linear(3, 2), example, {"label": 2})
    original = vars(ONNXRegistry)["from_torchlib"]
    monkeypatch.setattr(
        "onnxscript._framework_apis.torch_2_5.get_torchlib_ops", lambda: pytest.fail("it was built again")
    )
    second = export_float(nn.Linear(3, 2), example, {"label": 2})
    assert [node.op_type for node in first.graph.node] == [node.op_type for node in second.graph.node]
    # Exports of other code have their own.
    assert vars(ONNXRegistry)["from_torchlib"] is original
