import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from autocompress.core.precisions import Precisions
from autocompress.core.task import Split, logits_by_head
from autocompress.errors import ArtifactError
from autocompress.export import graph_choice
from autocompress.export.artifact import Deployable
from autocompress.export.graph_choice import FLOAT, INTEGER, PADDED, GraphRequest, choose_float_graph, choose_graph
from autocompress.export.onnx import QuantizedGraph, trace_quantized
from autocompress.targets import Model
from autocompress.targets.calibration import ChainLayer, ChainSettings, _build_chain
from autocompress.targets.onnxruntime import OnnxRuntime
from tests.export.nets import deployable, splits, state_of, train

PRECISIONS = Precisions(((8, 8), (32, 32)), (2, 4, 8, 32), decodes_tables=True, weight_type="uint8")
BITS = {"weight_bits": 8, "activation_bits": 8}
# With direct readers of quantized tensors: shortcuts, transposed and shared weights, depthwise layers, poolings.
NAMES = ("residual", "rows", "separable", "functional")


@pytest.fixture(scope="module")
def data() -> tuple[Split, Split]:
    return splits()


@pytest.fixture(scope="module")
def made(data: tuple[Split, Split]) -> Mapping[str, Deployable]:
    return {name: deployable(name, train(name, data[0]), data[0], **BITS) for name in NAMES}


def request(model: Deployable, data: tuple[Split, Split]) -> GraphRequest:
    return GraphRequest(model.model, state_of(model), model.example, model.heads, (data[1].inputs,))


@pytest.fixture(scope="module")
def trace(made: Mapping[str, Deployable]) -> Callable[..., QuantizedGraph]:
    """Return what traces a network once for each form of its weights; graphs are built from copies of it."""

    @functools.cache
    def trace(name: str, *, signed: bool = False) -> QuantizedGraph:
        model = made[name]
        return trace_quantized(model.model, state_of(model), model.example, model.heads, signed=signed)

    return trace


def run(proto: onnx.ModelProto, split: Split) -> list[np.ndarray]:
    return OnnxRuntime().load(proto.SerializeToString())([tensor.numpy() for tensor in split.inputs])


def outputs(model: Deployable, split: Split, module: nn.Module) -> list[np.ndarray]:
    with torch.inference_mode():
        return [value.numpy() for value in logits_by_head(module(*split.inputs), model.heads).values()]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_without_integer_layers_a_graph_computes_the_dequantized_weights_in_floating_point(
    made: Mapping[str, Deployable], trace: Callable[..., QuantizedGraph], data: tuple[Split, Split], name: str
) -> None:
    model = made[name]
    layers = request(model, data).integer_layers
    proto = trace(name).build(layers)
    assert not {node.op_type for node in proto.graph.node} & {"QuantizeLinear", "DequantizeLinear", "Clip"}
    # The searched module without its quantizers of inputs and outputs.
    plain = trace(name)
    bare = plain.build([*layers])
    for values, again in zip(run(proto, data[1]), run(bare, data[1]), strict=True):
        np.testing.assert_array_equal(values, again)
    for values, expected in zip(run(proto, data[1]), outputs(model, data[1], model.model), strict=True):
        assert (values.argmax(-1) == expected.argmax(-1)).mean() >= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "rows"])
def test_one_layer_in_floating_point_leaves_the_others_on_integers(
    made: Mapping[str, Deployable], trace: Callable[..., QuantizedGraph], data: tuple[Split, Split], name: str
) -> None:
    model = made[name]
    traced, layers = trace(name), request(model, data).integer_layers
    expected = outputs(model, data[1], model.model)
    count = sum(node.op_type == "QuantizeLinear" for node in traced.build().graph.node)
    for layer in layers:
        proto = traced.build([layer])
        assert sum(node.op_type == "QuantizeLinear" for node in proto.graph.node) <= count
        for values, wanted in zip(run(proto, data[1]), expected, strict=True):
            assert (values.argmax(-1) == wanted.argmax(-1)).mean() >= 0.97, layer


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "separable"])
def test_signed_weights_are_the_same_steps_around_zero(
    trace: Callable[..., QuantizedGraph], data: tuple[Split, Split], name: str
) -> None:
    stored = {tensor.name: tensor.data_type for tensor in trace(name, signed=True).build().graph.initializer}
    codes = [kind for tensor, kind in stored.items() if tensor.endswith("weight_codes")]
    assert codes
    assert onnx.TensorProto.UINT8 not in codes
    # Without fused kernels the arithmetic is exact on every processor.
    from onnx.reference import ReferenceEvaluator

    feeds = {"input": data[1].inputs[0][:2].numpy()}
    (wide,), (signed,) = (
        ReferenceEvaluator(trace(name, signed=flag).build()).run(None, feeds) for flag in (False, True)
    )
    np.testing.assert_array_equal(wide, signed)


class Clock:
    """Times that a test decides."""

    def __init__(self, times: Mapping[str, float]) -> None:
        self.times = times

    def __call__(
        self, models: Mapping[str, object], inputs: Sequence[object], seconds: float, **_: object
    ) -> dict[str, list[float]]:
        # The load of the machine doubles, and a single round was disturbed.
        return {name: [self.times[name], 2 * self.times[name], 2 * self.times[name], 9.0] for name in models}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({INTEGER: 1.0, FLOAT: 2.0, PADDED: 1.9, "largest half": 1.5, "inner": 1.2}, INTEGER),
        ({INTEGER: 2.0, FLOAT: 1.0, PADDED: 1.1, "largest half": 1.5, "inner": 1.2}, FLOAT),
        ({INTEGER: 2.0, FLOAT: 1.5, PADDED: 1.4, "largest half": 1.6, "inner": 1.2}, "inner"),
        ({INTEGER: 2.0, FLOAT: 1.5, PADDED: 1.1, "largest half": 1.6, "inner": 1.2}, PADDED),
        # Not clearly faster than floating point.
        ({INTEGER: 0.99, FLOAT: 1.0, PADDED: 0.98, "largest half": 1.6, "inner": 1.2}, FLOAT),
    ],
)
def test_the_fastest_graph_is_chosen(
    made: Mapping[str, Deployable],
    trace: Callable[..., QuantizedGraph],
    data: tuple[Split, Split],
    monkeypatch: pytest.MonkeyPatch,
    times: Mapping[str, float],
    expected: str,
) -> None:
    monkeypatch.setattr(graph_choice, "trace_quantized", lambda *_, signed, **__: trace("residual", signed=signed))
    monkeypatch.setattr(graph_choice, "time_rounds", Clock(times))
    monkeypatch.setattr(graph_choice, "AGREEMENT", 0.9)
    chosen = choose_graph(request(made["residual"], data), OnnxRuntime(), PRECISIONS)
    assert chosen.form == expected
    assert chosen.milliseconds == {name: 2 * value for name, value in times.items()}


@pytest.mark.slow
def test_a_graph_that_predicts_otherwise_does_not_qualify(
    made: Mapping[str, Deployable],
    trace: Callable[..., QuantizedGraph],
    data: tuple[Split, Split],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graph_choice, "trace_quantized", lambda *_, signed, **__: trace("functional", signed=signed))
    monkeypatch.setattr(graph_choice, "time_rounds", Clock({INTEGER: 9.0, FLOAT: 1.0}))
    monkeypatch.setattr(graph_choice, "AGREEMENT", 1.01)
    chosen = choose_graph(request(made["functional"], data), OnnxRuntime(), PRECISIONS)
    assert (chosen.form, list(chosen.milliseconds)) == (INTEGER, [INTEGER])


class Wrong(OnnxRuntime):
    """A runtime whose outputs are those of the reversed classes."""

    name = "wrong"

    def load(self, model: bytes, threads: int = 1) -> Model:
        loaded = super().load(model, threads)
        return lambda arrays: [values[..., ::-1].copy() for values in loaded(arrays)]


class RoundsOtherwise(OnnxRuntime):
    """A runtime that computes integer layers wrongly."""

    name = "rounds_otherwise"

    def load(self, model: bytes, threads: int = 1) -> Model:
        return (Wrong() if b"QuantizeLinear" in model else OnnxRuntime()).load(model, threads)


@pytest.mark.slow
def test_integers_that_a_runtime_computes_otherwise_give_way_to_a_graph_that_predicts_alike(
    made: Mapping[str, Deployable],
    trace: Callable[..., QuantizedGraph],
    data: tuple[Split, Split],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graph_choice, "trace_quantized", lambda *_, signed, **__: trace("functional", signed=signed))
    monkeypatch.setattr(graph_choice, "time_rounds", Clock({INTEGER: 1.0, FLOAT: 9.0, PADDED: 9.5}))
    monkeypatch.setattr(graph_choice, "AGREEMENT", 0.9)
    chosen = choose_graph(request(made["functional"], data), RoundsOtherwise(), PRECISIONS)
    assert chosen.form == FLOAT
    assert INTEGER not in chosen.milliseconds


class LacksIntegers(OnnxRuntime):
    """A runtime that loads no graph in which the last layer has rounded inputs."""

    name = "lacks_integers"

    def load(self, model: bytes, threads: int = 1) -> Model:
        nodes = onnx.load_from_string(model).graph.node
        if nodes[-1].op_type != "DequantizeLinear" and any(
            node.op_type == "DequantizeLinear" and node.output[0] in nodes[-1].input for node in nodes
        ):
            raise ArtifactError("this runtime has no integers there")
        return super().load(model, threads)


@pytest.mark.slow
def test_a_form_that_the_target_does_not_load_is_left_out(
    made: Mapping[str, Deployable], data: tuple[Split, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_choice, "AGREEMENT", 0.9)
    chosen = choose_graph(request(made["separable"], data), LacksIntegers(), PRECISIONS)
    assert FLOAT in chosen.milliseconds
    assert INTEGER not in chosen.milliseconds
    monkeypatch.setattr(LacksIntegers, "load", Refuses.load)
    with pytest.raises(ArtifactError, match="loads nothing"):
        choose_graph(request(made["separable"], data), LacksIntegers(), PRECISIONS)


class Refuses(OnnxRuntime):
    """A runtime that loads no graph."""

    def load(self, model: bytes, threads: int = 1) -> Model:
        raise ArtifactError("this runtime loads nothing")


@pytest.mark.slow
def test_a_target_that_computes_weights_alone_wrongly_is_refused(data: tuple[Split, Split]) -> None:
    model = deployable("functional", train("functional", data[0]), data[0], weight_bits=8, activation_bits=32)
    with pytest.raises(ArtifactError, match=r"wrong predicts on .* otherwise than the searched model"):
        choose_graph(request(model, data), Wrong(), PRECISIONS)


@pytest.mark.slow
def test_weights_alone_are_decoded_at_load_without_an_option_of_the_session(data: tuple[Split, Split]) -> None:
    model = deployable("residual", train("residual", data[0]), data[0], weight_bits=4, activation_bits=32)
    chosen = choose_graph(request(model, data), OnnxRuntime(), PRECISIONS)
    proto = onnx.load_from_string(chosen.content)
    assert chosen.form in (FLOAT, PADDED)
    assert not proto.metadata_props
    assert "DequantizeLinear" not in {node.op_type for node in proto.graph.node}
    for values, expected in zip(run(proto, data[1]), outputs(model, data[1], model.model), strict=True):
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)


def test_a_model_in_floating_point_is_exported_with_padded_channels_where_they_are_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = _build_chain(ChainSettings(1, 8, 2, (ChainLayer("conv", 18, 3), ChainLayer("conv", 18, 3))))
    example = (torch.zeros(1, 1, 8, 8),)
    for padded, form in ((0.9, PADDED), (0.99, FLOAT)):
        monkeypatch.setattr(graph_choice, "time_rounds", Clock({FLOAT: 1.0, PADDED: padded}))
        chosen = choose_float_graph(content, OnnxRuntime(), example)
        assert chosen.form == form
        assert (chosen.content == content) == (form == FLOAT)
    # Without kernels that compute in blocks, and without a convolution, there is nothing to choose.
    other = _build_chain(ChainSettings(1, 8, 1, (ChainLayer("conv", 18, 3),)))
    for graph, target in ((content, Plain()), (other, OnnxRuntime())):
        assert choose_float_graph(graph, target, example).milliseconds == {}


class Plain(OnnxRuntime):
    """A runtime that stores no blocks of channels."""

    channel_multiple = 1


class Device(OnnxRuntime):
    """A device that measures itself: a millisecond for each byte."""

    def measure(self, model: bytes, seconds: float) -> float:
        return float(len(model))


def test_graphs_are_timed_by_the_device_if_it_measures_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock({"small": 7.0, "large": 8.0})
    monkeypatch.setattr(graph_choice, "time_rounds", clock)
    graphs = {"small": b"1", "large": b"123"}
    models: dict[str, Model] = dict.fromkeys(graphs, list)
    assert graph_choice._time_graphs(Device(), graphs, models, (), 0.1) == {"small": [1.0], "large": [3.0]}
    assert graph_choice._time_graphs(OnnxRuntime(), graphs, models, (), 0.1) == clock(models, (), 0.1)
