"""ONNX graphs: the float one as torch exports it, the quantized one with integer codes and our own ranges.

The modules that round inputs and weights emit QuantizeLinear and DequantizeLinear while torch exports the model, so no
node has to be matched by name afterwards. :mod:`autocompress.export.integer_graph` then adapts the graph to the rules
by which onnxruntime selects integer kernels.
"""

import copy
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.utils import parametrize

from autocompress.core.method import MethodState
from autocompress.core.task import logits_by_head
from autocompress.errors import ArtifactError
from autocompress.export.block_weights import BlockWeight, multiply_blocks
from autocompress.export.card import input_names
from autocompress.export.embedding_tables import BagLookup, BlockLookup, Lookup, build_lookup, replace_bags
from autocompress.export.export_error import describe_export_error, list_operator_layers
from autocompress.export.integer_graph import decode_layer, integer_kernels
from autocompress.export.onnx_weights import pack_weights
from autocompress.export.torch_exporter import adjust_exporter
from autocompress.quantize.conversion import WeightHolder
from autocompress.quantize.fake_quantize import (
    INPUT,
    ZERO_POINT,
    FakeQuantize,
    replace_quantizers,
    widen_codes,
)
from autocompress.quantize.layers import is_embedding
from autocompress.quantize.quantizers import Grid
from autocompress.quantize.weight_coding import HALF
from autocompress.targets.onnx_session import WEIGHTS_ONLY

# The exported module holds the model as an attribute of this name.
PREFIX = "model."

logger = logging.getLogger(__name__)

# Codes of uint8 and int8: a grid that fills one of them needs no Clip.
CONTAINERS = {(0, 255), (-128, 127)}


def export_float(
    model: nn.Module, example: tuple[Tensor, ...], heads: Mapping[str, int], lists: Sequence[int] = ()
) -> onnx.ModelProto:
    """Return the graph of a model; axis 0 of its inputs and outputs is the batch, outputs are named like the heads.

    Args:
        model: Model in evaluation mode.
        example: A batch of one, as the model's positional arguments.
        heads: Head name to number of classes.
        lists: Positions of the inputs whose axis 1 may have any length, unless the model fixes it.

    Raises:
        ArtifactError: torch cannot export the model.
    """
    proto = _clean_graph(_export_graph(copy.deepcopy(model), example, heads, lists))
    pack_weights(proto, (), {})
    return proto


def list_layers_of_operators(
    model: nn.Module, example: tuple[Tensor, ...], heads: Mapping[str, int]
) -> dict[str, list[str]]:
    """Return the names of the layers that each operator of a model's graph comes from.

    Raises:
        ArtifactError: torch cannot export the model.
    """
    return list_operator_layers(_export_graph(copy.deepcopy(model), example, heads, ()))


@dataclass(frozen=True)
class QuantizedGraph:
    """A quantized model as torch exports it, from which graphs with integer or floating-point layers are made.

    Attributes:
        proto: The graph, with QuantizeLinear and DequantizeLinear around every quantized layer.
        layers: Entries of the quantization history.
        tensors: Tensors of the quantization.
        weights: Layer name to its dequantized weight, for layers whose codes the graph reads by DequantizeLinear.
        held: Names of held weights, which every runtime decodes: they are no weights of a layer with integer kernels.
    """

    proto: onnx.ModelProto
    layers: Sequence[Mapping[str, Any]]
    tensors: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    held: frozenset[str] = frozenset()

    def build(
        self, float_layers: Collection[str] = (), blocks: Mapping[str, BlockWeight] | None = None
    ) -> onnx.ModelProto:
        """Return the graph for a runtime.

        Args:
            float_layers: Layers whose weights are decoded at load and computed in floating point, without rounded
                inputs and outputs.
            blocks: Layers that multiply by packed codes, with their weights; layers with integer codes must be among
                ``float_layers``, too.

        Raises:
            ArtifactError: Such a layer has another form than expected in the graph.
        """
        proto = copy.deepcopy(self.proto)
        coded = [entry for entry in self.layers if entry["name"] in self.weights]
        float_layers = {*float_layers, *self.held}
        in_float = [entry for entry in coded if entry["name"] in float_layers]
        for entry in in_float:
            values = self.weights[entry["name"]].detach().numpy()
            decode_layer(proto, entry["name"], values, has_output=entry["output"] is not None)
        for name, weight in (blocks or {}).items():
            if not multiply_blocks(proto, name, weight):
                raise ArtifactError(f"layer '{name}' multiplies by its weight in another form than a linear layer")
        proto = _clean_graph(integer_kernels(proto))
        remaining = [entry for entry in coded if entry["name"] not in float_layers]
        if remaining and all(entry["input"] is None for entry in self.layers):
            # A session needs another option for such a model: autocompress.targets.onnx_session reads this property.
            onnx.helper.set_model_props(proto, {WEIGHTS_ONLY: "1"})
        # Values that float16 holds exactly need no codes: they are recognized by themselves.
        decoded = [entry for entry in self.layers if entry["decoded"] is not None and not _is_half(entry)]
        # Their codes have one scale per tensor or channel, and no groups.
        decoded += [{**entry, "decoded": {}} for entry in in_float if entry["decoded"] is None]
        pack_weights(proto, decoded, self.tensors)
        return proto


def export_quantized(
    model: nn.Module,
    state: MethodState,
    example: tuple[Tensor, ...],
    heads: Mapping[str, int],
    lists: Sequence[int] = (),
) -> onnx.ModelProto:
    """Return the graph of a quantized model: weights as int8 or uint8 codes, inputs rounded to their n-bit grid.

    An n-bit grid lives in an 8-bit container, clipped to the n-bit codes. A layer whose weights stay at 32 bits
    rounds its inputs in floating point: with a quantized input, onnxruntime would round the weights too. Embedding
    tables are stored as packed codes and looked up there (:mod:`autocompress.export.embedding_tables`), and other
    weights without an int8 form as codes that are decoded at load (:mod:`autocompress.export.onnx_weights`).

    Raises:
        ArtifactError: torch cannot export the model.
    """
    return trace_quantized(model, state, example, heads, lists).build()


def trace_quantized(
    model: nn.Module,
    state: MethodState,
    example: tuple[Tensor, ...],
    heads: Mapping[str, int],
    lists: Sequence[int] = (),
    *,
    signed: bool = False,
    block_tables: bool = False,
) -> QuantizedGraph:
    """Return a quantized model as torch exports it.

    Args:
        model: The quantized model.
        state: State of the quantization method.
        example: A batch of one.
        heads: Head name to number of classes.
        lists: Positions of the inputs whose axis 1 may have any length, unless the model fixes it.
        signed: Whether weights of all 8 bits are ``int8`` codes with zero point 0, and not ``uint8`` with 128. It is
            faster, and exact where the processor sums products in 32 bits.
        block_tables: Whether embedding tables are looked up by the operator GatherBlockQuantized of onnxruntime.

    Raises:
        ArtifactError: torch cannot export the model.
    """
    # A copy, because its layers are replaced.
    marked = copy.deepcopy(model).eval()
    layers = state.history.get("layers", [])
    for entry in layers:
        marked = _replace_embedding(marked, entry, state.tensors, block_tables)
    weights = {}
    held: set[str] = set()
    for name, is_integer in [(entry["name"], entry["weight"] is not None) for entry in layers]:
        layer = marked.get_submodule(name)
        if isinstance(layer, WeightHolder) and f"{name}.weight_codes" in state.tensors:
            _mark_held_weight(layer, state.tensors[f"{name}.weight_codes"])
            held.add(name)
        elif not is_integer or isinstance(layer, Lookup | BlockLookup | BagLookup):
            continue
        else:
            _replace_weight(layer, name, state.tensors, signed)
        weights[name] = model.get_parameter(f"{name}.weight")
    return QuantizedGraph(_export_graph(marked, example, heads, lists), layers, state.tensors, weights, frozenset(held))


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
        codes = _emit_operator("QuantizeLinear", (values, self.scale, self.zero_point), self.dtype, values)
        if self.clips:
            codes = _emit_operator("Clip", (codes, self.low, self.high), self.dtype, values)
        return _emit_operator("DequantizeLinear", (codes, self.scale, self.zero_point), values.dtype, values)


class _Dequantize(nn.Module):
    """Replacement of a weight: emits DequantizeLinear of its codes, along axis 0 where there is a scale per channel."""

    def __init__(self, codes: Tensor, scale: Tensor, zero_point: Tensor) -> None:
        super().__init__()
        self.codes, self.scale, self.zero_point = nn.Buffer(codes), nn.Buffer(scale), nn.Buffer(zero_point)

    def forward(self, weight: Tensor) -> Tensor:
        axis = {"axis": 0} if self.scale.ndim else {}
        return _emit_operator(
            "DequantizeLinear", (self.codes, self.scale, self.zero_point), weight.dtype, self.codes, axis
        )


class _Heads(nn.Module):
    """Returns the outputs as a tuple in the order of the heads."""

    def __init__(self, model: nn.Module, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.model, self.heads = model, dict(heads)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(logits_by_head(self.model(*inputs), self.heads).values())


def _is_half(entry: Mapping[str, Any]) -> bool:
    """Return whether the weight of a layer has float16 values."""
    return entry["decoded"] is not None and entry["decoded"].get("by") == HALF


def _replace_embedding(
    model: nn.Module, entry: Mapping[str, Any], tensors: Mapping[str, Tensor], in_blocks: bool
) -> nn.Module:
    """Return the model with this entry replaced by a look-up of codes if it is a quantized embedding table."""
    name = entry["name"]
    table = model.get_submodule(name)
    if not is_embedding(table) or (entry["weight"] is None and entry["decoded"] is None) or _is_half(entry):
        return model
    if not name:
        # The model itself is the table, which has no parent to be replaced in.
        return build_lookup(table, name, tensors, in_blocks=in_blocks)
    model.set_submodule(name, build_lookup(table, name, tensors, in_blocks=in_blocks))
    return model


def _replace_weight(layer: nn.Module, name: str, tensors: Mapping[str, Tensor], signed: bool) -> None:
    """Let a layer with quantized weights emit its codes."""
    quantizer = getattr(layer, INPUT, None)
    input_scale = quantizer.scale if isinstance(quantizer, FakeQuantize) else None
    codes, scale, zero_point = (tensors[f"{name}.weight_{part}"] for part in ("codes", "scale", "zero_point"))
    codes, scale, zero_point = widen_codes(codes, scale, zero_point, getattr(layer, "bias", None), input_scale)
    if signed and codes.dtype == torch.uint8 and bool((zero_point == ZERO_POINT).all()):
        # The same steps around zero: widened codes lie within -128 and 127 of it.
        codes = (codes.to(torch.int16) - ZERO_POINT).to(torch.int8)
        zero_point = torch.zeros_like(zero_point, dtype=torch.int8)
    if zero_point.unique().numel() > 1 and getattr(layer, "groups", 1) > 1:
        # onnxruntime has no integer kernel for a grouped layer with several zero points: it takes thirty times as long
        # as in floating point.
        return
    parametrize.register_parametrization(layer, "weight", _Dequantize(codes, scale, zero_point), unsafe=True)
    replace_quantizers(layer, lambda quantizer: _QuantizeDequantize(quantizer.grid))


def _mark_held_weight(layer: WeightHolder, codes: Tensor) -> None:
    """Let a held weight emit codes, which :meth:`QuantizedGraph.build` replaces by the decoded weight.

    Otherwise the exporter would compute the layout of recurrent weights, and no tensor would be the decoded one.
    """
    marker = _Dequantize(codes, torch.ones(()), torch.zeros((), dtype=codes.dtype))
    parametrize.register_parametrization(layer, "weight", marker, unsafe=True)


def _emit_operator(
    operator: str,
    inputs: tuple[Tensor, ...],
    dtype: torch.dtype,
    like: Tensor,
    attributes: dict[str, Any] | None = None,
) -> Tensor:
    emitted: Tensor = torch.onnx.ops.symbolic(operator, inputs, attributes, dtype=dtype, shape=like.shape)
    return emitted


def _export_graph(
    model: nn.Module, example: tuple[Tensor, ...], heads: Mapping[str, int], lists: Sequence[int]
) -> onnx.ModelProto:
    replace_quantizers(model, lambda quantizer: _Round(quantizer.grid))
    replace_bags(model)
    try:
        return _trace_graph(model, example, heads, lists)
    except ArtifactError as error:
        if not lists:
            raise
        # Such as a layer that reads all entries of a list at once.
        logger.info("exported for lists of the length of the example: %s", error)
        return _trace_graph(model, example, heads, ())


def _trace_graph(
    model: nn.Module, example: tuple[Tensor, ...], heads: Mapping[str, int], lists: Sequence[int]
) -> onnx.ModelProto:
    for name, layer in model.named_modules():
        # The exporter would drop the projection, and write a graph that no runtime can run.
        if isinstance(layer, nn.LSTM) and layer.proj_size:
            raise ArtifactError(
                f"the model cannot be exported to ONNX: the LSTM '{name.removeprefix('module.')}' has proj_size "
                f"{layer.proj_size}, which ONNX has no operator for; a linear layer after an LSTM without it is one"
            )
    # torch.export specializes a dimension of size 1 to a constant, so the batch holds the example twice.
    inputs = tuple(torch.cat([tensor, tensor]) for tensor in example)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    shapes = tuple({0: batch, 1: length} if at in lists else {0: batch} for at in range(len(inputs)))
    module = _Heads(model, heads).eval()
    names = (input_names(len(inputs)), list(heads))
    try:
        with adjust_exporter(), torch.no_grad():
            proto = _run_exporter(module, inputs, (shapes,), names)
            if has_fixed_batch(proto):
                # `len(x)` is a plain number while forward() runs, but not where torch reads its code.
                program = torch.export.export(module, inputs, dynamic_shapes=(shapes,), strict=True)
                proto = _run_exporter(program, inputs, None, names)
    except Exception as error:  # torch.export raises any exception of the model's forward
        reason = describe_export_error(error, model)
        raise ArtifactError(f"the model cannot be exported to ONNX: {reason}") from error
    if has_fixed_batch(proto):
        raise ArtifactError(
            "the model cannot be exported to ONNX for batches of any size: its code fixes the number of examples, as "
            "len(x) and int(x.shape[0]) do; write x.shape[0]"
        )
    return proto


def _run_exporter(
    module: nn.Module | torch.export.ExportedProgram,
    inputs: tuple[Tensor, ...],
    shapes: tuple[Any, ...] | None,
    names: tuple[Sequence[str], Sequence[str]],
) -> onnx.ModelProto:
    """Return the graph that torch makes of a module, or of one that it has captured.

    Args:
        module: The module, or what torch captured of it.
        inputs: A batch of two examples.
        shapes: Axes of any length for each argument of the module.
        names: Names of the inputs and of the outputs.
    """
    program = torch.onnx.export(
        module,
        inputs,
        dynamo=True,
        dynamic_shapes=shapes,
        input_names=names[0],
        output_names=names[1],
        external_data=False,
        verbose=False,
    )
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    return proto


def has_fixed_batch(proto: onnx.ModelProto) -> bool:
    """Return whether an input of a graph takes one number of examples only."""
    axes = [entry.type.tensor_type.shape.dim for entry in proto.graph.input]
    return any(len(dimensions) > 0 and not dimensions[0].dim_param for dimensions in axes)


def _input_names(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            yield from _input_names(attribute.g)


def _clean_graph(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what names the exporting machine, and what makes the file longer: prefixes, names, default attributes.

    A third of the file of a small model are names and attributes.
    """
    graph = proto.graph
    for holder in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        holder.ClearField("doc_string")
        del holder.metadata_props[:]
    del graph.value_info[:]
    # A buffer `mean` of the model and the output of a node `mean` would share a name without the prefix.
    others = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
    # Inner graphs of If and Loop name the tensors of the outer graph, too.
    inner = {name for node in graph.node for attribute in node.attribute for name in _input_names(attribute.g)}
    names = {tensor.name: _shorten_name(tensor.name) for tensor in graph.initializer}
    names = {name: name if short in others or name in inner else short for name, short in names.items()}
    outputs = {value.name for value in graph.output}
    generated = [name for node in graph.node for name in node.output if name and name not in outputs]
    # What is no parameter of the model was generated by the exporter.
    generated += [tensor.name for tensor in graph.initializer if not tensor.name.startswith(PREFIX)]
    taken = {value.name for value in graph.input} | outputs | inner | set(names.values())
    free = (name for index in count() if (name := f"q{index}") not in taken)
    names |= {name: next(free) for name in generated if name not in inner}
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for node in graph.node:
        node.ClearField("name")
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        _drop_defaults(node)
    _share_grids(graph)
    # Tensors that integer kernels replaced are unused, and onnxruntime would warn about them at each load.
    used = set(_input_names(graph)) | {value.name for value in graph.output}
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(initializers)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _shorten_name(name: str) -> str:
    short = name.removeprefix(PREFIX).replace(".parametrizations.weight.0.", ".weight_")
    # As the operators of ONNX call them.
    return short.replace(".input_quantizer.", ".x_").replace(".output_quantizer.", ".y_")


def _share_grids(graph: onnx.GraphProto) -> None:
    """Let quantizers with equal scales or zero points read one tensor, under a short name."""
    quantizers = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    read = {name for node in quantizers for name in node.input[1:]}
    grids = [tensor for tensor in graph.initializer if tensor.name in read]
    contents = [(tensor.data_type, *tensor.dims, numpy_helper.to_array(tensor).tobytes()) for tensor in grids]
    taken = {tensor.name for tensor in graph.initializer} | {name for node in graph.node for name in node.output}
    free = (name for index in count() if (name := f"k{index}") not in taken)
    short = {content: next(free) for content in dict.fromkeys(contents)}
    names = {tensor.name: short[content] for tensor, content in zip(grids, contents, strict=True)}
    for node in quantizers:
        node.input[1:] = [names.get(name, name) for name in node.input[1:]]
    for content, tensor in dict(zip(contents, grids, strict=True)).items():
        graph.initializer.append(tensor)
        graph.initializer[-1].name = short[content]


def _drop_defaults(node: onnx.NodeProto) -> None:
    """Remove the attributes of a convolution that say what holds without them.

    Those of other operators stay: converters such as pnnx read them whatever their definitions say.
    """
    if node.op_type != "Conv" or node.domain:
        return
    lists = {"strides": {1}, "dilations": {1}, "pads": {0}}
    changed = [
        entry
        for entry in node.attribute
        # The weight has the shape of the kernel.
        if entry.name != "kernel_shape"
        and (entry.name, entry.s) != ("auto_pad", b"NOTSET")
        and (entry.name, entry.i) != ("group", 1)
        and lists.get(entry.name) != set(entry.ints)
    ]
    del node.attribute[:]
    node.attribute.extend(changed)
