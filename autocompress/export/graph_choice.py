"""The graph of a quantized model for a target: integers in the layers where they are faster than floating point.

Integer kernels pay where a layer multiplies much. In small layers, rounding inputs costs more than it saves. So several
graphs of the same weights are timed in turns on the target, with the float model beside them:

    integer       every layer with 8-bit weights and inputs on an integer kernel
    largest half  only the layers with the most multiplications
    inner         all but the first and the last layer
    float         no layer; weights stay stored as codes, and are decoded when the file is loaded
    padded        as float, with the channels of convolutions padded to whole blocks
                  (:mod:`autocompress.export.channel_padding`), if the target computes in blocks
    blocks        large linear layers without rounded inputs multiply by their packed codes (MatMulNBits), if the
                  target has that operator

A graph qualifies if its predictions are those of the searched model; the integer graph, which computes what was
searched, stays if no other one qualifies on a runtime that rounds otherwise. The fastest qualified graph is exported:
the one without integer layers runs as the float model does, so that quantization never makes a file slower.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from autocompress.core.heads import as_head
from autocompress.core.method import MethodState
from autocompress.core.precisions import Precisions
from autocompress.core.task import logits_by_head
from autocompress.errors import ArtifactError
from autocompress.export.block_weights import MULTIPLY, BlockWeight, encode_blocks
from autocompress.export.channel_padding import pad_channels
from autocompress.export.embedding_tables import GATHER
from autocompress.export.onnx import trace_quantized
from autocompress.measure import layer_costs
from autocompress.targets.base import Array, Model, Target
from autocompress.targets.timing import Rounds, compare_rounds, is_order_certain, time_rounds

logger = logging.getLogger(__name__)

INTEGER, FLOAT, BLOCKS, PADDED = "integer", "float", "blocks", "padded"
# Fewer integer layers have no useful mixture.
MIN_MIXED_LAYERS = 4
# A graph that rounds inputs must be faster than the one in floating point by this factor: times vary.
MARGIN = 0.97
# Seconds in which all graphs of a model are timed.
CHOICE_SECONDS = 0.3
# Smallest share of calibration examples on which a graph predicts what the searched model predicts.
AGREEMENT = 0.99


@dataclass(frozen=True)
class GraphRequest:
    """A quantized model that is exported for a target.

    Attributes:
        model: The quantized model.
        state: State of the quantization method.
        example: A batch of one.
        heads: Head name to number of classes.
        batches: Batches of inputs on which graphs are compared with the model; the example alone if it is empty.
        lists: Positions of the inputs whose axis 1 may have any length.
    """

    model: nn.Module
    state: MethodState
    example: tuple[Tensor, ...]
    heads: Mapping[str, int]
    batches: Sequence[tuple[Tensor, ...]] = ()
    lists: Sequence[int] = ()

    @property
    def integer_layers(self) -> list[str]:
        """Names of the layers that an integer kernel can run."""
        entries = self.state.history.get("layers", [])
        return [entry["name"] for entry in entries if entry["weight"] is not None and entry["input"] is not None]

    @property
    def float_layers(self) -> list[str]:
        """Names of the layers with coded weights whose inputs are not rounded."""
        entries = self.state.history.get("layers", [])
        return [entry["name"] for entry in entries if entry["weight"] is not None and entry["input"] is None]

    def encode_blocks(self) -> dict[str, BlockWeight]:
        """Return the weights of large linear layers without rounded inputs that MatMulNBits holds exactly, by name."""
        entries = [entry for entry in self.state.history.get("layers", []) if entry["input"] is None]
        linear = [entry for entry in entries if isinstance(self.model.get_submodule(entry["name"]), nn.Linear)]
        encoded = {entry["name"]: encode_blocks(entry, self.state.tensors) for entry in linear}
        return {name: weight for name, weight in encoded.items() if weight is not None}


@dataclass(frozen=True)
class ChosenGraph:
    """The graph that is exported.

    Attributes:
        content: Content of the ONNX file.
        form: Name of the form, a key of ``milliseconds``.
        milliseconds: Median time of a run of each graph that was compared; empty where there was nothing to choose.
        float_content: Content of the graph without integer layers; ``content`` itself where no layer could have them.
    """

    content: bytes
    form: str
    milliseconds: Mapping[str, float]
    float_content: bytes


def choose_graph(
    request: GraphRequest,
    target: Target,
    precisions: Precisions,
    *,
    exact: bool = False,
    seconds: float = CHOICE_SECONDS,
) -> ChosenGraph:
    """Return the fastest graph of a quantized model on a target that predicts what the model does.

    Args:
        request: The quantized model.
        target: The target.
        precisions: Bit-widths of the target on this processor.
        exact: Whether every layer that can run on integer kernels does, whatever it costs.
        seconds: Seconds to time all graphs.

    Raises:
        ArtifactError: The model cannot be exported, or the target cannot run it.
    """
    try:
        return _compare_graphs(request, target, precisions, exact, bool(target.operators), seconds)
    except _TargetError as error:
        if not target.operators:
            raise
        # An older version of the runtime may lack an operator.
        logger.info("without the operators %s: %s", ", ".join(sorted(target.operators)), error)
        return _compare_graphs(request, target, precisions, exact, False, seconds)


class _TargetError(ArtifactError):
    """The target cannot run a graph without integer layers, or computes it wrongly."""


def _compare_graphs(
    request: GraphRequest, target: Target, precisions: Precisions, exact: bool, in_blocks: bool, seconds: float
) -> ChosenGraph:
    """Return the fastest graph that predicts what the model does; see :func:`choose_graph`.

    Args:
        request: The quantized model.
        target: The target.
        precisions: Bit-widths of the target.
        exact: Whether only the graph that computes what was searched is considered.
        in_blocks: Whether the additional operators of the target are used.
        seconds: Seconds to time all graphs.
    """
    traced = trace_quantized(
        request.model,
        request.state,
        request.example,
        request.heads,
        request.lists,
        signed=precisions.weight_type == "int8" and not precisions.reduce_range,
        block_tables=in_blocks and GATHER in target.operators,
    )

    def build(float_layers: Collection[str], blocks: Mapping[str, BlockWeight] | None = None) -> bytes:
        # Weights without rounded inputs are decoded once, whatever the options of a session.
        graph = traced.build([*float_layers, *request.float_layers], blocks)
        return bytes(target.adapt_graph(graph).SerializeToString())

    integer = request.integer_layers
    base = INTEGER if integer else FLOAT
    graphs = {base: build(())}
    if exact and integer:
        return ChosenGraph(graphs[base], base, {}, build(integer))
    models: dict[str, Model] = {}
    failure: _TargetError | None = None
    try:
        models[base] = _load_base(graphs[base], request, target, is_judged=not integer)
    except _TargetError as error:
        # A target that fails on integers everywhere may run a mixture.
        if not integer:
            raise
        failure = error
    if not exact:
        blocks = request.encode_blocks() if in_blocks and MULTIPLY in target.operators else {}
        others = {FLOAT: build(integer)} if integer else {}
        others |= {name: build(layers) for name, layers in list_mixtures(request).items()}
        others |= {BLOCKS: build(integer, blocks)} if blocks else {}
        others |= _pad_graph(others[FLOAT] if integer else graphs[FLOAT], target)
        graphs |= others
        # All graphs are loaded before the first is timed, so that each is timed beside the others.
        models |= _load_qualified(others, request, target)
        if base in models and len(models) > 1 and not _measure_agreement(models[base], request) >= AGREEMENT:
            del models[base]
    if not models and failure is not None:
        raise failure
    if len(models) == 1 and not integer:
        return ChosenGraph(graphs[base], base, {}, graphs[base])
    rounds = _time_graphs(target, {name: graphs[name] for name in models}, models, request.example, seconds)
    # Times of the same round are compared: the load of the machine changes between rounds.
    ratios = compare_rounds(rounds, FLOAT if FLOAT in rounds else next(iter(rounds)))
    fastest = min(ratios, key=lambda name: ratios[name])
    chosen = FLOAT if FLOAT in ratios and ratios[fastest] > MARGIN else fastest
    times = {name: median(values) for name, values in rounds.items()}
    logger.info("graph '%s' of %s", chosen, {name: f"{value:.4f} ms" for name, value in times.items()})
    return ChosenGraph(graphs[chosen], chosen, times, graphs[FLOAT])


def choose_float_graph(
    content: bytes, target: Target, example: Sequence[Tensor], seconds: float = CHOICE_SECONDS
) -> ChosenGraph:
    """Return the faster one of a graph in floating point and the same graph with padded channels.

    Args:
        content: Content of the ONNX file.
        target: The target.
        example: A batch of one.
        seconds: Seconds to time both.

    Raises:
        ArtifactError: The target cannot run the model.
    """
    graphs = {FLOAT: content, **_pad_graph(content, target)}
    if len(graphs) == 1:
        return ChosenGraph(content, FLOAT, {}, content)
    models = {name: target.load(graph) for name, graph in graphs.items()}
    rounds = _time_graphs(target, graphs, models, example, seconds)
    chosen = PADDED if compare_rounds(rounds, FLOAT)[PADDED] <= MARGIN else FLOAT
    times = {name: median(values) for name, values in rounds.items()}
    return ChosenGraph(graphs[chosen], chosen, times, graphs[chosen])


def _pad_graph(content: bytes, target: Target) -> dict[str, bytes]:
    """Return the graph with padded channels by its name; empty if there is none."""
    if target.channel_multiple == 1:
        return {}
    padded = pad_channels(onnx.load_from_string(content), target.channel_multiple)
    return {} if padded is None else {PADDED: bytes(padded.SerializeToString())}


def _time_graphs(
    target: Target, graphs: Mapping[str, bytes], models: Mapping[str, Model], example: Sequence[Tensor], seconds: float
) -> Rounds:
    """Return the milliseconds of each graph: one round that the device measures, or rounds here, in turns."""
    times: Rounds = {}
    for name, content in graphs.items():
        measured = target.measure(content, seconds)
        if measured is None:
            reference = FLOAT if FLOAT in models else next(iter(models))
            is_enough = partial(is_order_certain, reference=reference)
            return time_rounds(models, [tensor.numpy() for tensor in example], seconds, is_enough=is_enough)
        times[name] = [measured]
    return times


def _load_base(content: bytes, request: GraphRequest, target: Target, is_judged: bool) -> Model:
    """Return the graph that computes what was searched; it is compared with the model if there is no other one.

    Raises:
        _TargetError: The target cannot run it, or computes it wrongly.
    """
    try:
        model = target.load(content)
    except ArtifactError as error:
        raise _TargetError(str(error)) from error
    if not is_judged:
        return model
    share = _measure_agreement(model, request)
    # A runtime that computes it wrongly must not be served.
    if not share >= AGREEMENT:
        raise _TargetError(
            f"the target {target.name} predicts on {1 - share:.1%} of the examples otherwise than the searched "
            "model; quantize other layers, or export for the target onnxruntime"
        )
    return model


def _load_qualified(graphs: Mapping[str, bytes], request: GraphRequest, target: Target) -> dict[str, Model]:
    """Return the graphs that the target can run, and which predict what the model does."""
    models: dict[str, Model] = {}
    for name, content in graphs.items():
        try:
            models[name] = target.load(content)
        except ArtifactError as error:
            logger.info("graph '%s' is left out: %s", name, error)
    return {name: model for name, model in models.items() if _measure_agreement(model, request) >= AGREEMENT}


def list_mixtures(request: GraphRequest) -> dict[str, list[str]]:
    """Return the layers in floating point of each mixture."""
    integer = request.integer_layers
    if len(integer) < MIN_MIXED_LAYERS:
        return {}
    costs = layer_costs(request.model, request.example)
    # A layer that the cost model does not know counts as the smallest.
    by_work = sorted(integer, key=lambda name: costs[name].macs if name in costs else 0)
    return {"largest half": by_work[: len(by_work) // 2], "inner": [integer[0], integer[-1]]}


def _measure_agreement(model: Model, request: GraphRequest) -> float:
    """Return the share of examples on which a graph predicts what the quantized model predicts, on the worst head."""
    outputs: list[list[Array]] = []
    expected: list[Mapping[str, Tensor]] = []
    for batch in request.batches or (request.example,):
        with torch.inference_mode():
            expected.append(logits_by_head(request.model(*batch), request.heads))
        outputs.append(model([tensor.numpy() for tensor in batch]))
    shares = []
    for index, (name, classes) in enumerate(request.heads.items()):
        head = as_head(classes)
        predicted = torch.from_numpy(np.concatenate([values[index] for values in outputs]))
        wanted = torch.cat([logits[name] for logits in expected])
        shares.append(head.compare_predictions(head.predict(predicted), head.predict(wanted)))
    return min(shares)
