from pathlib import Path

import numpy as np
import onnx
import pytest

from autocompress.core.latency_model import LatencyModel
from autocompress.core.precisions import Precisions
from autocompress.core.run_info import TargetInfo
from autocompress.targets import Model, Target, calibration
from autocompress.targets.calibration import calibrate, fit_latency_model, list_work, measure_networks

PRECISIONS = Precisions(((8, 8), (32, 32)), (8, 32))
EXACT = LatencyModel(0.02, ((32, 32, (2e-3, 2e-8, 1e-7, 1e-7)), (8, 8, (3e-3, 1e-8, 1e-7, 0.0))))


class Device(Target):
    """A device that takes the time of each network from its graph, as a latency model predicts it."""

    name = "device"

    def precisions(self) -> Precisions:
        return PRECISIONS

    def load(self, model: bytes, threads: int = 1) -> Model:
        raise AssertionError("it measures itself")

    def measure(self, model: bytes, seconds: float) -> float:
        graph = onnx.load_from_string(model).graph
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        is_integer = any(node.op_type == "DequantizeLinear" for node in graph.node)
        size = graph.input[0].type.tensor_type.shape.dim[2].dim_value
        row = {(w, a): values for w, a, values in EXACT.coefficients}[(8, 8) if is_integer else (32, 32)]
        total = EXACT.base
        for node in graph.node:
            if node.op_type not in ("Conv", "Gemm"):
                continue
            name = f"{node.input[1]}_codes" if is_integer else node.input[1]
            shape = list(tensors[name].dims)
            positions = size**2 if node.op_type == "Conv" else 1
            work = (1.0, np.prod(shape) * positions, shape[0] * positions, np.prod(shape))
            total += float(np.dot(row, work))
        return total


def test_the_coefficients_of_a_device_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    info = TargetInfo("device", precisions=PRECISIONS)
    works, times = measure_networks(Device(), info, 24)
    model = fit_latency_model(works, times)
    for layers, time in zip(works, times, strict=True):
        # Of the two kernels of a layer the faster one is predicted.
        assert model.predict(layers) <= time * 1.05
    in_float = [(layers, time) for layers, time in zip(works, times, strict=True) if layers[0].bits == (32, 32)]
    for layers, time in in_float:
        assert model.predict(layers) == pytest.approx(time, rel=0.05)
    # Once per device: the second call reads what the first has stored.
    first = calibrate(Device(), info, 24)
    monkeypatch.setattr(calibration, "measure_networks", lambda *_: pytest.fail("it was measured again"))
    assert calibrate(Device(), info, 24) == first


def test_the_work_of_a_chain_is_that_of_its_graph() -> None:
    chain = calibration.ChainSettings((3, 8, 8), 4, (3, 3), separable=True)
    first, second, last = list_work(chain, (32, 32))
    assert (first.macs, first.activations, first.weights) == (8 * 3 * 9 * 16, 8 * 16, 8 * 3 * 9)
    assert (second.macs, second.weights) == (8 * 9 * 16, 8 * 9)
    assert last.macs == 80
