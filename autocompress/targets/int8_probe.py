"""Probe of the int8 kernels of onnxruntime: which form of 8-bit weights is exact and fastest on this processor.

An x86 processor without VNNI adds two products of an unsigned and a signed byte in 16 bits, which overflow at large
codes. Weights of 7 bits (``reduce_range``) never overflow, and weights stored as ``uint8`` with zero point 128 run on a
kernel that widens them first and is slower. With VNNI, all forms are exact. So each form is compared with the same
graph without any fused kernel, and timed.
"""

import json
import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from autocompress.core.atomic import open_cache, write_atomic
from autocompress.core.config import fingerprint
from autocompress.core.run_info import read_processor_name
from autocompress.core.untrusted import read_regular_file
from autocompress.errors import StorageError

logger = logging.getLogger(__name__)

CHANNELS, SIZE, KERNEL = 32, 12, 3
RUNS = 40
# A form that keeps all 8 bits, or the better supported one, is preferred to one that is faster by less than this.
TOLERANCE = 1.1
# Steps of the output by which two correct kernels may round differently.
ROUNDING_STEPS = 1


@dataclass(frozen=True)
class Int8Form:
    """A form of the weights of 8-bit kernels.

    Attributes:
        weight_type: ``int8`` with zero point 0, or ``uint8`` with zero point 128.
        reduce_range: Whether codes use 7 bits.
    """

    weight_type: str
    reduce_range: bool = False

    @property
    def zero_point(self) -> int:
        """The code of 0.0."""
        return 0 if self.weight_type == "int8" else 128


# In the order of preference.
FORMS = (Int8Form("int8"), Int8Form("uint8"), Int8Form("int8", reduce_range=True))


@dataclass(frozen=True)
class Int8Measurement:
    """What was measured of one form.

    Attributes:
        error: Largest difference from the graph without fused kernels, in steps of the output.
        milliseconds: Median time of a run.
    """

    error: float
    milliseconds: float


@cache
def choose_int8_form() -> Int8Form:
    """Return the form of 8-bit weights for this processor, measured once per processor and version of onnxruntime."""
    key = fingerprint([read_processor_name(), _read_instruction_sets(), version("onnxruntime")])
    name = f"int8-{key}.json"
    try:
        return Int8Form(**json.loads(read_regular_file(open_cache("targets") / name)))
    except (OSError, StorageError, ValueError, TypeError):
        # Not measured yet, the file is damaged, or the cache cannot be used: measuring takes a second.
        form = select_form(measure_forms())
    try:
        write_atomic(open_cache("targets") / name, json.dumps(asdict(form)))
    except (OSError, StorageError) as error:
        logger.info("the int8 form cannot be cached: %s", error)
    return form


def _read_instruction_sets() -> str:
    """Return the instruction sets of the processor: virtual machines of different processors share one name."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return ""


def select_form(measurements: Mapping[Int8Form, Int8Measurement]) -> Int8Form:
    """Return the preferred exact form that is not clearly slower than the fastest exact one.

    Example:
        >>> full, wide, reduced = FORMS
        >>> fast, slow = Int8Measurement(0, 0.6), Int8Measurement(0, 0.9)
        >>> select_form({full: Int8Measurement(40, 0.6), wide: slow, reduced: fast})
        Int8Form(weight_type='int8', reduce_range=True)
    """
    exact = {form: row for form, row in measurements.items() if row.error <= ROUNDING_STEPS}
    if not exact:
        # No form is exact: the least wrong one, which the verification of an export will judge.
        return min(measurements, key=lambda form: measurements[form].error)
    # Only exact forms compete: a fast wrong one would serve wrong predictions.
    fastest = min(row.milliseconds for row in exact.values())
    return next(form for form in FORMS if form in exact and exact[form].milliseconds <= TOLERANCE * fastest)


def measure_forms(forms: Sequence[Int8Form] = FORMS) -> dict[Int8Form, Int8Measurement]:
    """Return error and time of a convolution for each form, timed in turns."""
    codes = np.random.default_rng(0).integers(0, 256, (1, CHANNELS, SIZE, SIZE)).astype(np.uint8)
    # Runs of the largest code overflow first.
    codes[:, : CHANNELS // 2] = 255
    # The scale of the input is 1, so its values are its codes.
    values = {"x": codes.astype(np.float32)}
    graphs = {form: _build_convolution(form) for form in forms}
    sessions = {form: _open_session(graph) for form, graph in graphs.items()}
    times: dict[Int8Form, list[float]] = {form: [] for form in forms}
    for _ in range(RUNS):
        for form, session in sessions.items():
            started = time.perf_counter()
            session.run(None, values)
            times[form].append((time.perf_counter() - started) * 1000)
    # Errors come last, because the reference runs in floating point and would warm other caches.
    measurements = {}
    for form, session in sessions.items():
        exact = _open_session(graphs[form], is_exact=True)
        error = np.abs(session.run(None, values)[0] - exact.run(None, values)[0]).max()
        measurements[form] = Int8Measurement(float(error), statistics.median(times[form]))
        logger.info("int8 kernels, %s: %s", form, measurements[form])
    return measurements


def _open_session(model: bytes, is_exact: bool = False) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if is_exact:
        # Without optimizations no integer kernel is fused: the operators of the graph run in floating point.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _build_convolution(form: Int8Form) -> bytes:
    """Return a quantized convolution whose inputs, weights and output have the scale 1, so that errors are in steps."""
    largest = 63 if form.reduce_range else 127
    weight = np.random.default_rng(1).integers(-largest, largest + 1, (CHANNELS, CHANNELS, KERNEL, KERNEL))
    # Pairs of extreme weights of equal sign make the largest sums.
    weight[:, : CHANNELS // 2] = largest
    codes = (weight + form.zero_point).astype(form.weight_type)
    # Scaled so that the output's 8 bits span the sums.
    step = np.float32(np.abs(weight).sum((1, 2, 3)).max() * 255 / 200)
    constants = {
        "w": codes,
        "w_scale": np.ones(CHANNELS, np.float32),
        "w_zero": np.full(CHANNELS, form.zero_point, form.weight_type),
        "x_scale": np.float32(1),
        "y_scale": step,
        "zero": np.uint8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "zero"], ["x_codes"]),
        helper.make_node("DequantizeLinear", ["x_codes", "x_scale", "zero"], ["x_values"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_values"], axis=0),
        helper.make_node("Conv", ["x_values", "w_values"], ["sums"], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["sums", "y_scale", "zero"], ["y_codes"]),
        helper.make_node("DequantizeLinear", ["y_codes", "one", "zero"], ["y"]),
    ]
    constants["one"] = np.float32(1)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "probe",
        [value("x", TensorProto.FLOAT, [1, CHANNELS, SIZE, SIZE])],
        [value("y", TensorProto.FLOAT, [1, CHANNELS, SIZE, SIZE])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
