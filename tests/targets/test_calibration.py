from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import pytest

from autocompress.core.latency_model import LatencyModel, LayerWork, list_features
from autocompress.core.precisions import Precisions
from autocompress.core.run_info import TargetInfo
from autocompress.targets import Model, Target, calibration
from autocompress.targets.calibration import (
    ChainLayer,
    ChainSettings,
    calibrate,
    fit_latency_model,
    list_work,
    measure_networks,
)

PRECISIONS = Precisions(((8, 8), (32, 32)), (8, 32))
EXACT = LatencyModel(
    0.02,
    (
        (("linear", False, 32, 32), (2e-3, 2e-7, 1e-6, 1e-7, 0.0)),
        (("linear", False, 8, 8), (3e-3, 1e-7, 1e-6, 0.0, 0.0)),
    ),
)


class Device(Target):
    """A device that takes the time of each network from its graph, as a latency model predicts it."""

    name = "device"

    def precisions(self) -> Precisions:
        return PRECISIONS

    def load(self, model: bytes, threads: int = 1) -> Model:
        raise AssertionError("it measures itself")

    def measure(self, model: bytes, seconds: float) -> float:
        return EXACT._sum_times(read_work(model), [])


def read_work(content: bytes) -> list[LayerWork]:
    """Return the work of the layers of a graph, read from its shapes alone."""
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content))
    tensors = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for value in [*model.graph.value_info, *model.graph.output]:
        tensors[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    decoded = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    works = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            weight = np.prod(tensors[decoded.get(node.input[1], node.input[1])])
            outputs = tensors[node.output[0]]
            positions = int(np.prod(outputs[2:]))
            bits = (8, 8) if node.input[1] in decoded else (32, 32)
            works.append(LayerWork(int(weight) * positions, outputs[1] * positions, int(weight), bits))
    return works


def test_the_times_of_a_device_are_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    info = TargetInfo("device", precisions=PRECISIONS)
    measured = measure_networks(Device(), info, 60)
    assert len(measured.works) == 96
    model = fit_latency_model(measured.works, measured.times)
    for layers, time in zip(measured.works, measured.times, strict=True):
        assert model._sum_times(layers, []) == pytest.approx(time, rel=0.2)
    # Once per device: the second call reads what the first has stored.
    first = calibrate(Device(), info, 24)
    monkeypatch.setattr(calibration, "measure_networks", lambda *_: pytest.fail("it was measured again"))
    assert calibrate(Device(), info, 24) == first


def test_the_work_of_a_chain_is_that_of_its_graph() -> None:
    layers = (
        ChainLayer("conv", 8, 3, 2),
        ChainLayer("depthwise", 8, 3),
        ChainLayer("pointwise", 8, 1, shortcut=True),
    )
    for dimensions in (1, 2):
        chain = ChainSettings(3, 8, dimensions, layers, (16,))
        works = list_work(chain)
        assert [layer.kind for layer in works[:3]] == [
            f"{kind}{dimensions}" for kind in ("conv", "depthwise", "pointwise")
        ]
        assert [layer.channels for layer in works[:3]] == [(3, 8), (1, 8), (8, 8)]
        assert [layer.operators for layer in works] == [0, 0, 2, 0, 0]
        for integer in ((), (0, 2, 4), range(chain.depth)):
            graph = read_work(calibration._build_chain(chain, integer))
            assert [(w.macs, w.activations, w.weights, w.bits) for w in graph] == [
                (w.macs, w.activations, w.weights, w.bits) for w in list_work(chain, integer)
            ]


def test_changes_between_floating_point_and_integers_are_those_of_the_graph() -> None:
    chain = ChainSettings(3, 8, 2, (ChainLayer("conv", 8, 3), ChainLayer("conv", 8, 3, shortcut=True)), (16,))
    cases: list[tuple[Collection[int], int, int]] = [((), 0, 0), ((0, 1), 1, 1), ((1,), 1, 1), ((0, 3), 2, 2)]
    for integer, rounded, decoded in [*cases, (range(4), 2, 2)]:
        kernels = Counter(kernel[0] for kernel, _ in list_features(list_work(chain, integer), 1))
        assert (kernels["quantize"], kernels["dequantize"]) == (rounded, decoded)
        nodes = onnx.load_from_string(calibration._build_chain(chain, integer)).graph.node
        # Beside these, each integer layer rounds its output within its kernel.
        assert [node.op_type for node in nodes].count("QuantizeLinear") == rounded + len(integer)
