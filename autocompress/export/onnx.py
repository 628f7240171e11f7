"""ONNX graphs: the float one as torch exports it, the quantized one with integer codes and our own ranges.

The quantized graph is exported with QuantizeLinear and DequantizeLinear where the model rounds its inputs and
weights, so no node has to be found again by its name; :mod:`autocompress.export.integer_graph` then makes it fit the
rules by which onnxruntime chooses integer kernels.
"""

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from autocompress.core.method import MethodState
from autocompress.core.task import logits_by_head
from autocompress.errors import ArtifactError
from autocompress.export.card import input_names
from autocompress.export.embedding_tables import BagLookup, Lookup, lookup
from autocompress.export.integer_graph import integer_kernels
from autocompress.export.runtime import WEIGHTS_ONLY
from autocompress.quantize.fake_quantize import INPUT, FakeQuantize, replace_quantizers
from autocompress.quantize.integer_arithmetic import widen_codes
from autocompress.quantize.layers import is_embedding
from autocompress.quantize.quantizers import Grid

CONTAINERS = {(0, 255), (-128, 127)}


def export_float(model: nn.Module, example: tuple[Tensor, ...], heads: Mapping[str, int]) -> onnx.ModelProto:
    """Return the graph of a model; axis 0 of its inputs and outputs is the batch, outputs are named like the heads.

    Raises:
        ArtifactError: torch cannot export the model.
    """
    return _tidy(_export(copy.deepcopy(model), example, heads))


def export_quantized(
    model: nn.Module, state: MethodState, example: tuple[Tensor, ...], heads: Mapping[str, int]
) -> onnx.ModelProto:
    """Return the graph of a quantized model: weights as int8 or uint8 codes, inputs rounded to their n-bit grid.

    An n-bit grid lives in an 8-bit container, clipped to the n-bit codes. A layer whose weights stay at 32 bits
    rounds its inputs in floating point: with a quantized input, onnxruntime would round the weights too. Embedding
    tables are stored as packed codes and looked up there (:mod:`autocompress.export.embedding_tables`).

    Raises:
        ArtifactError: torch cannot export the model.
    """
    marked = copy.deepcopy(model).eval()
    layers = state.history.get("layers", [])
    for entry in layers:
        marked = _with_lookup(marked, entry, state.tensors)
    entries = [entry for entry in layers if entry["weight"] is not None]
    for entry in entries:
        layer = marked.get_submodule(entry["name"])
        if not isinstance(layer, Lookup | BagLookup):
            _mark(layer, entry["name"], state.tensors)
    proto = _tidy(integer_kernels(_export(marked, example, heads)))
    if entries and all(entry["input"] is None for entry in layers):
        onnx.helper.set_model_props(proto, {WEIGHTS_ONLY: "1"})
    return proto


class _Round(nn.Module):
    """Rounds to a grid by floating-point operations alone."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        zero_point = int(grid.zero_point)
        self.scale = float(grid.scale)
        self.low, self.high = float(grid.low - zero_point), float(grid.high - zero_point)

    def forward(self, values: Tensor) -> Tensor:
        return values.div(self.scale).round().clamp(self.low, self.high).mul(self.scale)


class _QuantizeDequantize(nn.Module):
    """Emits QuantizeLinear, Clip where the grid is narrower than its container, and DequantizeLinear."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.dtype = grid.dtype
        self.clips = (grid.low, grid.high) not in CONTAINERS
        self.scale = nn.Buffer(grid.scale.clone())
        self.zero_point = nn.Buffer(grid.zero_point.to(grid.dtype))
        self.low, self.high = (nn.Buffer(torch.tensor(end, dtype=grid.dtype)) for end in (grid.low, grid.high))

    def forward(self, values: Tensor) -> Tensor:
        codes = _emit("QuantizeLinear", (values, self.scale, self.zero_point), self.dtype, values)
        if self.clips:
            codes = _emit("Clip", (codes, self.low, self.high), self.dtype, values)
        return _emit("DequantizeLinear", (codes, self.scale, self.zero_point), values.dtype, values)


class _Dequantize(nn.Module):
    """Stands for a weight: emits DequantizeLinear of its codes, along axis 0 where there is a scale per channel."""

    def __init__(self, codes: Tensor, scale: Tensor, zero_point: Tensor) -> None:
        super().__init__()
        self.codes, self.scale, self.zero_point = nn.Buffer(codes), nn.Buffer(scale), nn.Buffer(zero_point)

    def forward(self, weight: Tensor) -> Tensor:
        axis = {"axis": 0} if self.scale.ndim else {}
        return _emit("DequantizeLinear", (self.codes, self.scale, self.zero_point), weight.dtype, self.codes, axis)


class _Heads(nn.Module):
    """Returns the outputs as a tuple in the order of the heads."""

    def __init__(self, model: nn.Module, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.model, self.heads = model, dict(heads)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(logits_by_head(self.model(*inputs), self.heads).values())


def _with_lookup(model: nn.Module, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return the model with the embedding table of this entry, if it is one, as the look-up of its codes."""
    name = entry["name"]
    table = model.get_submodule(name)
    if not is_embedding(table) or (entry["weight"] is None and entry["decoded"] is None):
        return model
    if not name:
        return lookup(table, name, tensors)
    model.set_submodule(name, lookup(table, name, tensors))
    return model


def _mark(layer: Any, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Make a layer with quantized weights emit its codes."""
    quantizer = getattr(layer, INPUT, None)
    input_scale = quantizer.scale if isinstance(quantizer, FakeQuantize) else None
    codes, scale, zero_point = (tensors[f"{name}.weight_{part}"] for part in ("codes", "scale", "zero_point"))
    codes, scale, zero_point = widen_codes(codes, scale, zero_point, layer.bias, input_scale)
    if zero_point.unique().numel() > 1 and getattr(layer, "groups", 1) > 1:
        # onnxruntime has no kernel for zero points that differ and takes thirty times as long as in floating point.
        return
    parametrize.register_parametrization(layer, "weight", _Dequantize(codes, scale, zero_point), unsafe=True)
    replace_quantizers(layer, lambda quantizer: _QuantizeDequantize(quantizer.grid))


def _emit(
    operator: str, inputs: tuple[Tensor, ...], dtype: torch.dtype, like: Tensor, attributes: Any = None
) -> Tensor:
    emitted: Tensor = torch.onnx.ops.symbolic(operator, inputs, attributes, dtype=dtype, shape=like.shape)
    return emitted


def _export(model: nn.Module, example: tuple[Tensor, ...], heads: Mapping[str, int]) -> onnx.ModelProto:
    replace_quantizers(model, lambda quantizer: _Round(quantizer.grid))
    # A batch of one would be taken for a constant, so the example is shown twice.
    inputs = tuple(torch.cat([tensor, tensor]) for tensor in example)
    batch = torch.export.Dim("batch")
    try:
        with _silence(), torch.no_grad():
            program = torch.onnx.export(
                _Heads(model, heads).eval(),
                inputs,
                dynamo=True,
                dynamic_shapes=(tuple({0: batch} for _ in inputs),),
                input_names=input_names(len(inputs)),
                output_names=list(heads),
                external_data=False,
                verbose=False,
            )
            assert program is not None
            proto: onnx.ModelProto = program.model_proto
    except Exception as error:  # torch.export raises whatever the model's forward does to it
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArtifactError(f"the model cannot be exported to ONNX: {reason}") from error
    return proto


def _inputs(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            yield from _inputs(attribute.g)


def _tidy(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what tells of the exporting machine (paths, stack traces), and the wrapper's name from every tensor's."""
    graph = proto.graph
    for holder in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        holder.ClearField("doc_string")
        del holder.metadata_props[:]
    del graph.value_info[:]
    for tensor in graph.initializer:
        tensor.name = _plain_name(tensor.name)
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{index}"
        node.input[:] = [_plain_name(name) for name in node.input]
    # What integer kernels replaced would lie about, and onnxruntime would warn of it at each loading.
    used = set(_inputs(graph)) | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _plain_name(name: str) -> str:
    return name.removeprefix("model.").replace(".parametrizations.weight.0.", ".weight_")


@contextmanager
def _silence() -> Iterator[None]:
    """Keep torch's exporter from talking: it prints, logs and warns about its own workings."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
