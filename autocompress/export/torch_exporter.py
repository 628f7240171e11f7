"""torch's exporter to ONNX, quiet and without work that it repeats in every export.

Its time hardly depends on the model, and a search exports dozens of small models. The functions that are replaced here
are private: where a version of torch lacks them, exports only take longer.
"""

import gc
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

import torch
from torch import fx

#: Operators that the exporter leaves out: they check values and compute none.
CHECKS = frozenset({torch.ops.aten._assert_tensor_metadata.default, torch.ops.aten._assert_scalar.default})
#: Tables of operators of torch's exporter, by opset.
_TRANSLATIONS: dict[int, Any] = {}


@contextmanager
def prepare_exporter() -> Iterator[None]:
    """Silence torch's exporter, and let it leave out what an export of this process does not need."""
    with ExitStack() as stack:
        stack.enter_context(_silence_exporter())
        for context in (_reuse_translations, _skip_decompositions, _pause_collection):
            stack.enter_context(context())
        yield


@contextmanager
def _replace_attribute(holder: object, name: str, value: object) -> Iterator[None]:
    # Not getattr, which would bind a method to its class.
    original = vars(holder)[name]
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, original)


@contextmanager
def _reuse_translations() -> Iterator[None]:
    """Let the exporter build its table of operators once per process, and not in every export.

    The table reads the source code of 500 functions, which takes longer than the rest of the export of a small model.
    No export of autocompress adds an operator to it.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        yield
        return
    build = ONNXRegistry.from_torchlib

    def load(opset_version: int) -> Any:
        if opset_version not in _TRANSLATIONS:
            _TRANSLATIONS[opset_version] = build(opset_version=opset_version)
        return _TRANSLATIONS[opset_version]

    with _replace_attribute(ONNXRegistry, "from_torchlib", staticmethod(load)):
        yield


@contextmanager
def _skip_decompositions() -> Iterator[None]:
    """Let the exporter decompose the operators of a program only if there is one that ONNX has no form of.

    To decompose, it traces the whole program again, which takes longer than the first time.
    """
    try:
        from torch.onnx._internal.exporter import _fx_passes
    except ImportError:
        yield
        return
    decompose: Callable[..., Any] = _fx_passes.decompose_with_registry

    def decompose_if_needed(program: Any, registry: Any) -> Any:
        replace_operators(program.graph_module)
        return program if is_translatable(program, registry) else decompose(program, registry)

    with _replace_attribute(_fx_passes, "decompose_with_registry", decompose_if_needed):
        yield


def replace_operators(module: fx.GraphModule) -> None:
    """Write the operators that autocompress's own models use without an ONNX form by ones that have one, in place.

    Args:
        module: Module of a program as torch exports it.
    """
    for node in list(module.graph.nodes):
        # The program lists its outputs by name.
        if node.op != "call_function" or any(user.op == "output" for user in node.users):
            continue
        replacement = _find_replacement(node)
        if replacement is None:
            continue
        with module.graph.inserting_before(node):
            target, arguments, options = replacement
            new = module.graph.call_function(target, arguments, options)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        module.graph.erase_node(node)
    module.recompile()


def _find_replacement(node: fx.Node) -> tuple[Any, tuple[Any, ...], dict[str, Any]] | None:
    """Return operator, arguments and options that compute what a node does; None to keep the node."""
    aten = torch.ops.aten
    pools = {aten.adaptive_avg_pool1d.default: 1, aten.adaptive_avg_pool2d.default: 2}
    if node.target in pools:
        dimensions = pools[node.target]
        sizes = node.args[1]
        if isinstance(sizes, list | tuple) and list(sizes) == [1] * dimensions:
            # In the order of torch's own decomposition.
            return aten.mean.dim, (node.args[0], [-1, -2][:dimensions], True), {}
    if node.target == aten.to.dtype and len(node.args) == 2 and not node.kwargs:
        return aten._to_copy.default, (node.args[0],), {"dtype": node.args[1]}
    return None


def is_translatable(program: torch.export.ExportedProgram, registry: Any) -> bool:
    """Return whether every operator of a program has an ONNX form, and none changes its inputs.

    Args:
        program: Program as torch exports it, before any decomposition.
        registry: torch's table of operators with an ONNX form.
    """
    for module in program.graph_module.modules():
        if not isinstance(module, fx.GraphModule):
            continue
        for node in module.graph.nodes:
            if node.op != "call_function" or node.target in CHECKS:
                continue
            # Control flow holds inner programs, and an operator that changes its input has no form of its own.
            schema = getattr(node.target, "_schema", None)
            if schema is None or schema.is_mutable or not registry.is_registered(node.target):
                return False
    return True


@contextmanager
def _pause_collection() -> Iterator[None]:
    """Pause the collection of garbage: an export makes so many objects that all of the process are looked at often."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _silence_exporter() -> Iterator[None]:
    """Silence the exporter, which prints, logs and warns about its internals."""
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
