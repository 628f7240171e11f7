"""Calibration of a latency model on a target: small networks of known work are timed, and coefficients fitted.

The networks are chains of convolutions with ReLU and a linear layer, in floating point and in 8-bit integers. All of
them are timed within seconds; the result is cached by target, processor and version of the runtime.
"""

import json
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from autocompress.core.atomic import cache_folder, write_atomic
from autocompress.core.config import fingerprint
from autocompress.core.latency_model import FEATURES, LatencyModel, LayerWork
from autocompress.core.run_info import TargetInfo
from autocompress.errors import StorageError
from autocompress.targets.base import Model, Target
from autocompress.targets.timing import time_in_turns

logger = logging.getLogger(__name__)

NETWORKS = 20
SECONDS_PER_NETWORK = 0.15
FLOAT, INTEGER = (32, 32), (8, 8)
CLASSES = 10
# A low quantile, because calibration has to agree with itself on a machine that does other work, too.
QUICK_SHARE = 0.2


@dataclass(frozen=True)
class ChainSettings:
    """A chain of convolutions.

    Attributes:
        channels: Channels of the input and of each convolution.
        size: Height and width of the images.
        kernels: Kernel size of each convolution.
        separable: Whether convolutions after the first are depthwise, and keep the channels before them.
    """

    channels: tuple[int, ...]
    size: int
    kernels: tuple[int, ...]
    separable: bool


def calibrate(target: Target, info: TargetInfo, networks: int = NETWORKS) -> LatencyModel:
    """Return the latency model of a target on this machine, measured once and then read from the cache.

    Args:
        target: The target.
        info: Its description.
        networks: Number of networks to time.

    Raises:
        ArtifactError: The target cannot run or measure a network.
    """
    key = fingerprint([info.name, dict(info.options), info.version, info.processor, info.precisions.to_json()])
    path = cache_folder() / "targets" / f"latency-{key}.json"
    try:
        return LatencyModel.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        # Not measured yet, or the file is damaged.
        model = fit_latency_model(*measure_networks(target, info, networks))
    try:
        write_atomic(path, json.dumps(model.to_json()))
    except (OSError, StorageError):
        logger.info("the latency model cannot be cached in %s", path)
    return model


def measure_networks(
    target: Target, info: TargetInfo, networks: int = NETWORKS
) -> tuple[list[list[LayerWork]], list[float]]:
    """Return the layers of each timed network, and its milliseconds."""
    rng = random.Random(0)
    settings = [_draw_settings(rng) for _ in range(networks)]
    kinds = [bits for bits in (FLOAT, INTEGER) if bits in info.precisions.kernels] or [FLOAT]
    works, times = [], []
    for chain in settings:
        contents = {bits: _build_chain(chain, bits == INTEGER) for bits in kinds}
        milliseconds = _time_networks(target, contents, chain)
        for bits in kinds:
            works.append(list_work(chain, bits))
            times.append(milliseconds[bits])
    return works, times


def fit_latency_model(works: Sequence[Sequence[LayerWork]], times: Sequence[float]) -> LatencyModel:
    """Return the model with the least relative error whose coefficients are not negative.

    Args:
        works: Layers of each network.
        times: Milliseconds of each network.
    """
    from sklearn.linear_model import LinearRegression

    kinds = list(dict.fromkeys(layer.bits for layers in works for layer in layers))
    matrix = np.zeros((len(works), 1 + FEATURES * len(kinds)))
    matrix[:, 0] = 1
    for row, layers in zip(matrix, works, strict=True):
        for layer in layers:
            start = 1 + FEATURES * kinds.index(layer.bits)
            row[start : start + FEATURES] += layer.features()
    # Relative errors count, and columns of one size keep the solver well conditioned.
    weighted = matrix / np.asarray(times)[:, None]
    scale = np.maximum(np.abs(weighted).max(0), 1e-30)
    solver = LinearRegression(fit_intercept=False, positive=True)
    values = solver.fit(weighted / scale, np.ones(len(times))).coef_ / scale
    coefficients = tuple(
        (*bits, tuple(float(value) for value in values[1 + FEATURES * i : 1 + FEATURES * (i + 1)]))
        for i, bits in enumerate(kinds)
    )
    return LatencyModel(float(values[0]), coefficients)


def list_work(chain: ChainSettings, bits: tuple[int, int]) -> list[LayerWork]:
    """Return the work of the layers of a chain."""
    positions = chain.size**2
    layers = []
    for index, kernel in enumerate(chain.kernels):
        inputs, outputs = chain.channels[index], chain.channels[index + 1]
        weights = outputs * (1 if chain.separable and index else inputs) * kernel**2
        layers.append(LayerWork(weights * positions, outputs * positions, weights, bits))
    last = chain.channels[-1] * CLASSES
    return [*layers, LayerWork(last, CLASSES, last, bits)]


def _draw_settings(rng: random.Random) -> ChainSettings:
    # Sizes of small models, where a wrong prediction changes the choice; large ones are dominated by their work.
    depth, width = rng.randint(1, 6), rng.choice((4, 8, 12, 16, 24, 32, 48))
    separable = rng.random() < 0.25
    growth = 1 if separable else rng.choice((1, 1, 2))
    channels = [rng.choice((1, 3)), width]
    for index in range(1, depth):
        channels.append(min(channels[-1] * (growth if index == depth // 2 else 1), 64))
    kernels = tuple(3 if index == 0 or separable else rng.choice((1, 3)) for index in range(depth))
    return ChainSettings(tuple(channels), rng.choice((4, 8, 8, 16)), kernels, separable)


def _time_networks(
    target: Target, contents: dict[tuple[int, int], bytes], chain: ChainSettings
) -> dict[tuple[int, int], float]:
    seconds = SECONDS_PER_NETWORK
    measured = {bits: target.measure(content, seconds) for bits, content in contents.items()}
    remote = {bits: value for bits, value in measured.items() if value is not None}
    if len(remote) == len(contents):
        return remote
    # Both kinds in turns, so that the load of the machine does not favour one.
    models: dict[str, Model] = {str(bits): target.load(content) for bits, content in contents.items()}
    inputs = [np.zeros((1, chain.channels[0], chain.size, chain.size), np.float32)]
    times = time_in_turns(models, inputs, seconds, QUICK_SHARE)
    return {bits: times[str(bits)] for bits in contents}


class _ChainBuilder:
    """Builds the ONNX graph of a chain.

    Args:
        integer: Whether weights and inputs of layers are quantized to 8 bits.
    """

    def __init__(self, integer: bool) -> None:
        self.integer = integer
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)
        for name, value in (("scale", np.float32(0.05)), ("zero", np.uint8(0)), ("signed_zero", np.int8(0))):
            self.store(name, np.asarray(value))

    def store(self, name: str, values: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def emit(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def round_input(self, tensor: str) -> str:
        if not self.integer:
            return tensor
        codes = self.emit("QuantizeLinear", [tensor, "scale", "zero"], f"{tensor}_codes")
        return self.emit("DequantizeLinear", [codes, "scale", "zero"], f"{tensor}_rounded")

    def weight(self, name: str, shape: tuple[int, ...]) -> str:
        if not self.integer:
            return self.store(name, self.rng.normal(size=shape).astype(np.float32) * 0.1)
        codes = self.store(f"{name}_codes", self.rng.integers(-60, 61, shape).astype(np.int8))
        return self.emit("DequantizeLinear", [codes, "scale", "signed_zero"], name)


def _build_chain(chain: ChainSettings, integer: bool) -> bytes:
    builder = _ChainBuilder(integer)
    tensor = "x"
    for index, kernel in enumerate(chain.kernels):
        inputs, outputs = chain.channels[index], chain.channels[index + 1]
        group = outputs if chain.separable and index else 1
        weight = builder.weight(f"w{index}", (outputs, inputs // group, kernel, kernel))
        pads = [kernel // 2] * 4
        # Without a bias, which an integer kernel would need as int32.
        sums = builder.emit("Conv", [builder.round_input(tensor), weight], f"c{index}", pads=pads, group=group)
        tensor = builder.emit("Relu", [sums], f"r{index}")
    # Every chain ends as a classifier does.
    pooled = builder.emit("Flatten", [builder.emit("GlobalAveragePool", [tensor], "pooled")], "flat")
    weight = builder.weight("head", (CLASSES, chain.channels[-1]))
    builder.emit("Gemm", [builder.round_input(pooled), weight], "y", transB=1)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        builder.nodes,
        "chain",
        [value("x", TensorProto.FLOAT, [1, chain.channels[0], chain.size, chain.size])],
        [value("y", TensorProto.FLOAT, [1, CLASSES])],
        builder.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())
