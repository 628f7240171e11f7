"""Calibration of a latency model on a target: small networks of known work are timed, and coefficients fitted.

The networks are chains of convolutions (dense, pointwise and depthwise, over one and two dimensions) with ReLU, a pool
and linear layers, in floating point and in 8-bit integers. All of them are timed in turns within seconds; the result is
cached by target, processor and version of the runtime.
"""

import logging
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from pydantic import JsonValue, TypeAdapter

from autocompress.core.atomic import open_cache, write_atomic
from autocompress.core.config import fingerprint
from autocompress.core.latency_model import (
    BETWEEN_LAYERS,
    FEATURES,
    FLOAT,
    LINEAR,
    Kernel,
    LatencyModel,
    LayerWork,
    list_features,
)
from autocompress.core.run_info import TargetInfo
from autocompress.core.untrusted import read_regular_file
from autocompress.errors import StorageError
from autocompress.targets.base import Target
from autocompress.targets.timing import time_in_turns

logger = logging.getLogger(__name__)

NETWORKS = 75
# Of the networks, so many are timed in integers, too.
INTEGER_SHARE = 0.6
# Of the layers of a network with both kinds.
MIXED_SHARE = 0.6
SECONDS_PER_NETWORK = 0.04
INTEGER = (8, 8)
CLASSES = 10
#: Suffix of tensors that were decoded from integers.
ROUNDED = "_rounded"
# A low quantile, because calibration has to agree with itself on a machine that does other work, too.
QUICK_SHARE = 0.2
# Channels of a block that runtimes use: none, those of AVX2 and NEON, and those of AVX-512.
BLOCKS = (1, 8, 16)
# Weight of the squares of the coefficients of single kernels, some of which occur in few networks. Of 0.1, 0.3, 0.5 and
# 1, it orders the models of three tasks best; with the others, Kendall's tau is up to 0.013 less.
PENALTY = 0.3
# Networks by which two measurements are compared, because the load of the machine may have changed.
REFERENCES = 5
# Of the networks and of the fit: a model that an earlier version cached is not read.
VERSION = 4


@dataclass(frozen=True)
class ChainLayer:
    """A convolution of a chain.

    Attributes:
        kind: ``conv``, ``pointwise`` or ``depthwise``.
        outputs: Output channels.
        kernel: Kernel size in each dimension.
        stride: Stride in each dimension.
        shortcut: Whether its input is added to its output; both have the same shape.
    """

    kind: str
    outputs: int
    kernel: int
    stride: int = 1
    shortcut: bool = False


@dataclass(frozen=True)
class ChainSettings:
    """A chain of convolutions, then an average over all positions, then linear layers.

    Attributes:
        inputs: Channels of the input.
        size: Size of the input in each dimension.
        dimensions: Number of spatial dimensions, 1 or 2.
        layers: The convolutions.
        hidden: Outputs of the linear layers before the last one.
    """

    inputs: int
    size: int
    dimensions: int
    layers: tuple[ChainLayer, ...]
    hidden: tuple[int, ...] = ()

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.layers) + len(self.hidden) + 1

    @property
    def shape(self) -> list[int]:
        """Shape of a batch of one."""
        return [1, self.inputs, *[self.size] * self.dimensions]

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """A batch of one."""
        return [np.zeros(self.shape, np.float32)]


@dataclass(frozen=True)
class Measurements:
    """Timed networks.

    Attributes:
        works: Layers of each network.
        times: Milliseconds of each network.
    """

    works: tuple[tuple[LayerWork, ...], ...]
    times: tuple[float, ...]


def calibrate(target: Target, info: TargetInfo, networks: int = NETWORKS) -> LatencyModel:
    """Return the latency model of a target on this machine, measured once and then read from the cache.

    Args:
        target: The target.
        info: Its description.
        networks: Number of networks to time.

    Raises:
        ArtifactError: The target cannot run or measure a network.
    """
    measured = load_measurements(info, ["chains", networks], lambda: measure_networks(target, info, networks))
    return fit_latency_model(measured.works, measured.times, target.channel_multiple)


def load_measurements(info: TargetInfo, content: JsonValue, measure: Callable[[], Measurements]) -> Measurements:
    """Return measurements from the cache; those of another processor, version or content are made anew.

    Args:
        info: Description of the target.
        content: What is measured.
        measure: Function that measures it.
    """
    version = [VERSION, info.name, dict(info.options), info.version, info.processor, info.precisions.to_json()]
    name = f"latency-{fingerprint([*version, content])}.json"
    adapter = TypeAdapter(Measurements)
    try:
        return adapter.validate_json(read_regular_file(open_cache("targets") / name))
    except (OSError, StorageError, ValueError):
        # Not measured yet, the file is damaged, or the cache cannot be used.
        measured = measure()
    try:
        write_atomic(open_cache("targets") / name, adapter.dump_json(measured))
    except (OSError, StorageError) as error:
        logger.info("latencies cannot be cached: %s", error)
    return measured


def measure_networks(target: Target, info: TargetInfo, networks: int = NETWORKS) -> Measurements:
    """Return the layers of each timed network, and its milliseconds."""
    rng = random.Random(0)
    chains = [_draw_chain(rng) for _ in range(networks)]
    settings: list[tuple[ChainSettings, Collection[int]]] = [(chain, ()) for chain in chains]
    if INTEGER in info.precisions.kernels:
        # The same chains in integers, so that both kinds of kernels see the same work.
        for at, chain in enumerate(chains[: int(networks * INTEGER_SHARE)]):
            layers = range(chain.depth)
            # In every second one some layers compute in floating point, which costs changes between both.
            settings.append((chain, layers if at % 2 else [layer for layer in layers if rng.random() < MIXED_SHARE]))
    works = tuple(tuple(list_work(chain, integer)) for chain, integer in settings)
    timed = [TimedNetwork(_build_chain(chain, integer), chain.arrays) for chain, integer in settings]
    return Measurements(works, tuple(time_networks(target, timed)))


def fit_latency_model(works: Sequence[Sequence[LayerWork]], times: Sequence[float], multiple: int = 1) -> LatencyModel:
    """Return the model with the least relative error whose coefficients are not negative.

    Args:
        works: Layers of each network.
        times: Milliseconds of each network.
        multiple: Channels to a multiple of which an export may pad.
    """
    fits = [_fit_block(works, np.asarray(times), block) for block in BLOCKS]
    # The size of blocks is a property of the processor and of the runtime's kernels.
    return replace(min(fits, key=lambda fit: fit[0])[1], multiple=multiple)


def _fit_block(
    works: Sequence[Sequence[LayerWork]], times: NDArray[np.float64], block: int
) -> tuple[float, LatencyModel]:
    """Return the mean absolute relative error, and the model."""
    features = [list_features(layers, block) for layers in works]
    kernels: list[Kernel] = sorted({kernel for rows in features for kernel, _ in rows})
    widths = sorted({kernel[2:] for kernel in kernels})
    names = [*kernels, *widths]
    matrix = np.zeros((len(works), 1 + FEATURES * len(names)))
    matrix[:, 0] = 1
    for row, kernel, factors in ((row, *entry) for row, rows in zip(matrix, features, strict=True) for entry in rows):
        # A kernel has the coefficients that all of its bit-widths share, and what it needs beyond them.
        for name in (kernel, *([] if kernel[0] in BETWEEN_LAYERS else [kernel[2:]])):
            start = 1 + FEATURES * names.index(name)
            row[start : start + FEATURES] += factors
    # Relative errors count, and columns of one size keep the solver well conditioned.
    weighted = matrix / times[:, None]
    scale = np.maximum(np.abs(weighted).max(0), 1e-30)
    values = _solve(weighted / scale, FEATURES * len(kernels)) / scale
    error = float(np.abs(weighted @ values - 1).mean())
    by_name = {name: values[1 + FEATURES * at : 1 + FEATURES * (at + 1)] for at, name in enumerate(names)}
    shared = {kernel: 0 if kernel[0] in BETWEEN_LAYERS else by_name[kernel[2:]] for kernel in kernels}
    coefficients = tuple((kernel, tuple(map(float, by_name[kernel] + shared[kernel]))) for kernel in kernels)
    return error, LatencyModel(float(values[0]), coefficients, block)


def _solve(matrix: NDArray[np.float64], penalized: int) -> NDArray[np.float64]:
    """Return coefficients that are not negative, for relative times of 1; those of single kernels are penalized."""
    from sklearn.linear_model import LinearRegression

    rows = np.sqrt(PENALTY) * np.eye(matrix.shape[1])[1 : 1 + penalized]
    solver = LinearRegression(fit_intercept=False, positive=True)
    fit = solver.fit(np.vstack([matrix, rows]), np.concatenate([np.ones(len(matrix)), np.zeros(len(rows))]))
    values: NDArray[np.float64] = fit.coef_
    return values


def list_work(chain: ChainSettings, integer: Collection[int] = ()) -> list[LayerWork]:
    """Return the work of the layers of a chain.

    Args:
        chain: The chain.
        integer: Positions of the layers that are quantized to 8 bits.
    """
    works: list[LayerWork] = []
    inputs, size = chain.inputs, chain.size
    for layer in chain.layers:
        size = -(-size // layer.stride)
        group_inputs = 1 if layer.kind == "depthwise" else inputs
        weights = layer.outputs * group_inputs * layer.kernel**chain.dimensions
        positions = size**chain.dimensions
        kind = f"{layer.kind}{chain.dimensions}"
        outputs = layer.outputs * positions
        # The average over all positions follows the last one.
        is_last = layer is chain.layers[-1]
        bits = INTEGER if len(works) in integer else FLOAT
        work = LayerWork(weights * positions, outputs, weights, bits, kind, (group_inputs, layer.outputs))
        elements = outputs * layer.shortcut + layer.outputs * is_last
        works.append(replace(work, operators=layer.shortcut + is_last, elements=elements))
        inputs = layer.outputs
    for outputs in (*chain.hidden, CLASSES):
        bits = INTEGER if len(works) in integer else FLOAT
        works.append(LayerWork(inputs * outputs, outputs, inputs * outputs, bits, LINEAR, (inputs, outputs)))
        inputs = outputs
    return works


def _draw_chain(rng: random.Random) -> ChainSettings:
    # Sizes of small models, where a wrong prediction changes the choice; large ones are dominated by their work.
    dimensions = rng.choice((1, 2, 2))
    inputs = rng.choice((1, 1, 3)) if dimensions == 2 else rng.choice((1, 3, 16, 32))
    layers: list[ChainLayer] = []
    width = _draw_width(rng, 4, 32)
    layers.append(ChainLayer("conv", width, rng.choice((3, 5)), rng.choice((1, 1, 2))))
    for _ in range(rng.randint(0, 4)):
        # Widths grow along a network, and each is aligned or not.
        width = _draw_width(rng, width, min(2 * width, 96)) if rng.random() < 0.6 else width
        stride = rng.choice((1, 1, 2))
        style = rng.choice(("conv", "pointwise", "separable"))
        if style == "separable":
            layers.append(ChainLayer("depthwise", layers[-1].outputs, rng.choice((3, 5)), stride))
            stride = 1
        kind = "conv" if style == "conv" else "pointwise"
        shortcut = stride == 1 and layers[-1].outputs == width and rng.random() < 0.6
        layers.append(ChainLayer(kind, width, rng.choice((3, 3, 5)) if kind == "conv" else 1, stride, shortcut))
    size = rng.choice((6, 8, 8, 12, 16)) if dimensions == 2 else rng.choice((16, 20, 32, 40, 64))
    hidden = tuple(rng.choice((16, 64, 200, 400)) for _ in range(rng.choice((0, 0, 1, 2))))
    return ChainSettings(inputs, size, dimensions, tuple(layers), hidden)


def _draw_width(rng: random.Random, low: int, high: int) -> int:
    """Return a number of channels, a multiple of 4 in every second case."""
    width = rng.randint(low, high)
    return -(-width // 4) * 4 if rng.random() < 0.5 else width


@dataclass(frozen=True)
class TimedNetwork:
    """A network to time.

    Attributes:
        content: Content of its ONNX file.
        inputs: One example.
    """

    content: bytes
    inputs: Sequence[NDArray[Any]]


def time_networks(target: Target, networks: Sequence[TimedNetwork]) -> list[float]:
    """Return the milliseconds of networks, timed in turns so that the load of the machine favours none.

    Raises:
        ArtifactError: The target cannot run or measure a network.
    """
    measured = [target.measure(network.content, SECONDS_PER_NETWORK) for network in networks]
    remote = [value for value in measured if value is not None]
    if len(remote) == len(networks):
        return remote
    models = {str(at): target.load(network.content) for at, network in enumerate(networks)}
    inputs = {str(at): network.inputs for at, network in enumerate(networks)}
    times = time_in_turns(models, inputs, SECONDS_PER_NETWORK * len(networks), QUICK_SHARE)
    return [times[str(at)] for at in range(len(networks))]


def build_references() -> list[TimedNetwork]:
    """Return a few networks of the calibration, the first ones, to compare two measurements by."""
    rng = random.Random(0)
    chains = [_draw_chain(rng) for _ in range(REFERENCES)]
    return [TimedNetwork(_build_chain(chain), chain.arrays) for chain in chains]


class _ChainBuilder:
    """Builds the ONNX graph of a chain, in the form in which quantized models are exported.

    Args:
        integer: Positions of the layers whose weights, inputs and outputs are quantized to 8 bits.
    """

    def __init__(self, integer: Collection[int]) -> None:
        self.integer = integer
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.layers = 0
        self.rng = np.random.default_rng(0)
        for name, value in (("scale", np.float32(0.05)), ("zero", np.uint8(0)), ("signed_zero", np.int8(0))):
            self.store(name, np.asarray(value))

    def store(self, name: str, values: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def emit(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def quantize(self, tensor: str) -> str:
        # A tensor that was decoded already is read as integers.
        if tensor.endswith(ROUNDED):
            return tensor
        codes = self.emit("QuantizeLinear", [tensor, "scale", "zero"], f"{tensor}_codes")
        return self.emit("DequantizeLinear", [codes, "scale", "zero"], tensor + ROUNDED)

    def weight(self, name: str, shape: tuple[int, ...], is_integer: bool) -> str:
        if not is_integer:
            return self.store(name, self.rng.normal(size=shape).astype(np.float32) * 0.1)
        codes = self.store(f"{name}_codes", self.rng.integers(-60, 61, shape).astype(np.int8))
        return self.emit("DequantizeLinear", [codes, "scale", "signed_zero"], name)

    def multiply(self, operator: str, tensor: str, shape: tuple[int, ...], **attributes: Any) -> str:
        """Emit a layer; rounding to unsigned codes stands for a ReLU."""
        at, self.layers = self.layers, self.layers + 1
        is_integer = at in self.integer
        read = self.quantize(tensor) if is_integer else tensor
        # Without a bias, which an integer kernel would need as int32.
        sums = self.emit(operator, [read, self.weight(f"w{at}", shape, is_integer)], f"y{at}", **attributes)
        return self.quantize(sums) if is_integer else sums

    def activate(self, tensor: str) -> str:
        return tensor if tensor.endswith(ROUNDED) else self.emit("Relu", [tensor], f"{tensor}_activated")

    def convolve(self, tensor: str, inputs: int, layer: ChainLayer, dimensions: int) -> str:
        group = layer.outputs if layer.kind == "depthwise" else 1
        shape = (layer.outputs, inputs // group, *[layer.kernel] * dimensions)
        pads, strides = [layer.kernel // 2] * 2 * dimensions, [layer.stride] * dimensions
        result = self.multiply("Conv", tensor, shape, group=group, pads=pads, strides=strides)
        return self.activate(self.emit("Add", [result, tensor], f"s{self.layers}") if layer.shortcut else result)


def _build_chain(chain: ChainSettings, integer: Collection[int] = ()) -> bytes:
    builder = _ChainBuilder(integer)
    tensor, inputs = "x", chain.inputs
    for layer in chain.layers:
        tensor, inputs = builder.convolve(tensor, inputs, layer, chain.dimensions), layer.outputs
    # Every chain ends as a classifier does.
    tensor = builder.emit("Flatten", [builder.emit("GlobalAveragePool", [tensor], "pooled")], "flat")
    for outputs in chain.hidden:
        tensor, inputs = builder.activate(builder.multiply("Gemm", tensor, (outputs, inputs), transB=1)), outputs
    tensor = builder.multiply("Gemm", tensor, (CLASSES, inputs), transB=1)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        builder.nodes,
        "chain",
        [value("x", TensorProto.FLOAT, chain.shape)],
        [value(tensor, TensorProto.FLOAT, [1, CLASSES])],
        builder.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())
