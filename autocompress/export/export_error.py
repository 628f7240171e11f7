"""Reasons why a model cannot be exported, in words: the layer, what torch says about it, and what to change."""

import ast
from collections.abc import Iterator
from types import TracebackType

import onnx
from torch import fx, nn

#: Key of the exporter's metadata with the names of the modules around a node.
SCOPES = "pkg.torch.onnx.name_scopes"
PACKED_FIX = (
    "an ONNX graph has no packed sequences: without pack_padded_sequence, run the layer on the padded batch and read "
    "the step at each length, for example states[torch.arange(len(lengths)), lengths - 1]"
)
VALUES_FIX = (
    "a graph cannot depend on the values of a tensor: replace `if`, `int()` and `.item()` by torch.where or a mask"
)
# Beginnings of the names of errors of torch that forbid reading values.
VALUE_ERRORS = ("GuardOnDataDependentSymNode", "DataDependentOutputException", "UserError")


def describe_export_error(error: BaseException, model: nn.Module) -> str:
    """Return the layer, the reason and the fix of a failed export, in one line.

    Args:
        error: Error of torch's exporter, with its causes.
        model: The model that was exported.
    """
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    root = chain[-1]
    lines = [line.strip() for line in str(root).splitlines() if line.strip()]
    reason = lines[0] if lines else type(root).__name__
    # The exporter's own frames hold the node that it translates, those of the root the module that was running.
    name = next(filter(None, (_find_layer(cause.__traceback__, model) for cause in reversed(chain))), "")
    layer = model.get_submodule(name) if name else None
    prefix = f"layer '{name}' ({type(layer).__name__}): " if name else ""
    fix = _suggest_fix(root, layer)
    return f"{prefix}{reason}" + (f"; {fix}" if fix else "")


def list_operator_layers(proto: onnx.ModelProto) -> dict[str, list[str]]:
    """Return the names of the layers that each operator of a graph comes from.

    Args:
        proto: The graph as torch exports it, with its metadata.
    """
    layers: dict[str, list[str]] = {}
    for node in proto.graph.node:
        text = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "[]")
        scopes = [scope for scope in ast.literal_eval(text) if scope.startswith("model.")]
        if scopes:
            # The last scope is the operation itself, which has a name of torch and not of a module.
            names = layers.setdefault(node.op_type, [])
            name = scopes[-1].removeprefix("model.")
            names += [] if name in names else [name]
    return layers


def _find_layer(traceback: TracebackType | None, model: nn.Module) -> str:
    """Return the name of the innermost module of the model whose forward was running, or whose node was translated."""
    modules = {id(module): name for name, module in model.named_modules()}
    layer = ""
    for values in _list_locals(traceback):
        layer = modules.get(id(values.get("self")), layer)
        node = values.get("node")
        if isinstance(node, fx.Node):
            # From the outermost to the innermost, with the name of the wrapper in front.
            paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
            layer = next((path.partition("model.")[2] for path in reversed(paths) if "model." in path), layer)
    return layer


def _list_locals(traceback: TracebackType | None) -> Iterator[dict[str, object]]:
    while traceback is not None:
        yield traceback.tb_frame.f_locals
        traceback = traceback.tb_next


def _suggest_fix(root: BaseException, layer: nn.Module | None) -> str:
    if isinstance(layer, nn.RNNBase):
        return PACKED_FIX
    return VALUES_FIX if type(root).__name__.startswith(VALUE_ERRORS) else ""
