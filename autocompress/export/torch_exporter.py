"""torch's ONNX exporter, silent and without work that it repeats or does not need.

The exporter has no options for these, so functions of its private modules are replaced while it runs. In a version of
torch without such a function, exports only take longer.
"""

import gc
import importlib
import io
import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TypeAlias

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

# Functions of torch that its types do not describe.
Function: TypeAlias = Callable[..., Any]

aten = torch.ops.aten
_MODULES = "torch.onnx._internal.exporter."
#: Tables of operators of torch's exporter, by opset.
_TRANSLATIONS: dict[int, object] = {}


@contextmanager
def adjust_exporter() -> Iterator[None]:
    """Let torch's exporter build its table of operators once, decompose nothing in vain, and print nothing.

    The table reads the source code of 500 functions, which takes longer than the rest of the export of a small model.
    No export of this package adds an operator to it.
    """
    with (
        _silence_exporter(),
        _pause_collection(),
        _replace_function("_registration", "ONNXRegistry.from_torchlib", _reuse_translations),
        _replace_function("_fx_passes", "decompose_with_registry", _skip_decomposition),
    ):
        yield


@contextmanager
def _replace_function(module: str, path: str, wrap: Callable[[Function], Function]) -> Iterator[None]:
    """Replace a function of the exporter by a wrapped one, if this version of torch has it."""
    *owners, name = path.split(".")
    try:
        owner = importlib.import_module(_MODULES + module)
        for step in owners:
            owner = getattr(owner, step)
        # As it is stored, which for a class method is not what the attribute returns.
        original, function = vars(owner)[name], getattr(owner, name)
    except (ImportError, AttributeError, KeyError):
        yield
        return
    setattr(owner, name, staticmethod(wrap(function)))
    try:
        yield
    finally:
        setattr(owner, name, original)


def _reuse_translations(build: Function) -> Function:
    def load(opset_version: int) -> object:
        if opset_version not in _TRANSLATIONS:
            _TRANSLATIONS[opset_version] = build(opset_version=opset_version)
        return _TRANSLATIONS[opset_version]

    return load


def _skip_decomposition(decompose: Callable[..., ExportedProgram]) -> Callable[..., ExportedProgram]:
    """Return a decomposition that leaves a program as it is if its operations all have translations.

    Decomposing traces the whole program two more times, which is half of the time of an export.
    """

    def decompose_if_needed(program: ExportedProgram, registry: Any) -> ExportedProgram:
        lower_operations(program.graph_module)
        return program if _is_translatable(program, registry) else decompose(program, registry)

    return decompose_if_needed


def _is_translatable(program: ExportedProgram, registry: Any) -> bool:
    """Return whether each operation of a program has a translation to ONNX and changes no tensor in place."""
    signature = program.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        return False
    for node in program.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        # Attributes of a program are the branches of a condition and the bodies of a loop: graphs of their own.
        if node.op != "call_function" or not registry.is_registered(node.target):
            return False
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            return False
    return True


def lower_operations(module: GraphModule) -> None:
    """Replace frequent operations without a translation to ONNX by those that torch decomposes them into, in place.

    Others stay: a program with any of them is decomposed as a whole.
    """
    for node in list(module.graph.nodes):
        lower = _LOWERINGS.get(node.target) if node.op == "call_function" else None
        # The signature of a program names the nodes that are its outputs.
        if lower is not None and not any(user.op == "output" for user in node.users):
            lower(node)
    module.recompile()


def _lower_pooling(node: Node) -> None:
    tensor, sizes = node.args
    if isinstance(sizes, Sequence) and all(size == 1 for size in sizes):
        axes = list(range(-len(sizes), 0))
        node.target, node.args = aten.mean.dim, (tensor, axes, True)


def _lower_batch_norm(node: Node) -> None:
    tensor, weight, bias, mean, variance, training, momentum, epsilon = node.args[:8]
    if training or mean is None or variance is None:
        return
    value = node.meta["val"]
    with node.graph.inserting_after(node):
        normalized = node.graph.call_function(operator.getitem, (node, 0))
    normalized.meta = dict(node.meta)
    node.replace_all_uses_with(normalized, delete_user_cb=lambda user: user is not normalized)
    node.target = aten._native_batch_norm_legit_no_training.default
    node.args = (tensor, weight, bias, mean, variance, momentum, epsilon)
    # Besides the values, it returns statistics, which are empty outside of training.
    node.meta["val"] = (value, value.new_empty(0), value.new_empty(0))


def _lower_conversion(node: Node) -> None:
    tensor, dtype = node.args[:2]
    assert isinstance(tensor, Node)
    if node.meta["val"].dtype == tensor.meta["val"].dtype:
        node.replace_all_uses_with(tensor)
        node.graph.erase_node(node)
    else:
        node.target, node.args, node.kwargs = aten._to_copy.default, (tensor,), {"dtype": dtype}


def _remove_check(node: Node) -> None:
    node.graph.erase_node(node)


def _rename(target: Function) -> Callable[[Node], None]:
    """Return the replacement of an operation by another one with the same arguments."""

    def replace_target(node: Node) -> None:
        node.target = target

    return replace_target


_LOWERINGS: dict[object, Callable[[Node], None]] = {
    # What Python's operators &, | and ^ call.
    aten.__and__.Scalar: _rename(aten.bitwise_and.Scalar),
    aten.__and__.Tensor: _rename(aten.bitwise_and.Tensor),
    aten.__or__.Scalar: _rename(aten.bitwise_or.Scalar),
    aten.__or__.Tensor: _rename(aten.bitwise_or.Tensor),
    aten.__xor__.Scalar: _rename(aten.bitwise_xor.Scalar),
    aten.__xor__.Tensor: _rename(aten.bitwise_xor.Tensor),
    aten.adaptive_avg_pool1d.default: _lower_pooling,
    aten.adaptive_avg_pool2d.default: _lower_pooling,
    aten.batch_norm.default: _lower_batch_norm,
    aten.to.dtype: _lower_conversion,
    aten._assert_tensor_metadata.default: _remove_check,
    aten._assert_scalar.default: _remove_check,
}


@contextmanager
def _pause_collection() -> Iterator[None]:
    """Pause the collection of garbage: an export makes so many objects that all of the process are visited often."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _silence_exporter() -> Iterator[None]:
    """Silence torch's exporter, which prints, logs and warns about its internals."""
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
