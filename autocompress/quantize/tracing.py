"""Tracing with torch.fx: the graph of a model, and the readers of each layer's output."""

import inspect
from collections.abc import Callable, Collection

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

RELU: tuple[Callable[..., Tensor], ...] = (F.relu, torch.relu)
# Operations that do not change integer codes, so a quantizer after them can be moved before them.
CODE_PRESERVING_MODULES = (nn.Identity, nn.Dropout, nn.Flatten, nn.MaxPool1d, nn.MaxPool2d)
CODE_PRESERVING_FUNCTIONS = {F.max_pool1d, F.max_pool2d, torch.flatten, torch.reshape, torch.permute, torch.transpose}
CODE_PRESERVING_METHODS = {"contiguous", "flatten", "permute", "reshape", "squeeze", "transpose", "unsqueeze", "view"}


def trace_graph(model: nn.Module, example: tuple[Tensor, ...]) -> fx.Graph:
    """Return the graph of a model's forward on the arguments in ``example``.

    Raises:
        Exception: Any exception of the forward on a tensor without values.
    """
    # An optional argument that is not in the example must keep its default, or fx traces the wrong branch.
    parameters = list(inspect.signature(model.forward).parameters.values())[len(example) :]
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return fx.Tracer().trace(model, concrete_args=defaults or None)


def find_outputs_to_quantize(
    model: nn.Module, example: tuple[Tensor, ...], quantized: Collection[str]
) -> dict[str, bool]:
    """Return the convolutions whose output has a reader that is not a quantized layer; True if a ReLU follows.

    A runtime has an integer kernel for such a convolution only if its output is quantized as well. A convolution
    whose output is an output of the model is left out. The result is empty for a model that cannot be traced.
    """
    try:
        graph = trace_graph(model, example)
    # Such a model keeps its outputs in floating point, which is slower but correct.
    except Exception:  # torch.fx raises whatever the traced forward raises on a proxy
        return {}
    readers = _OutputReaders(dict(model.named_modules()), quantized)
    calls_by_layer: dict[str, list[bool | None]] = {}
    for node in graph.nodes:
        if node.op == "call_module" and node.target in quantized:
            calls_by_layer.setdefault(str(node.target), []).append(readers.find_open_relu(node))
    outputs = {}
    for name, calls in calls_by_layer.items():
        layer = readers.modules[name]
        if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros" or name in readers.model_outputs:
            continue
        if any(call is not None for call in calls):
            outputs[name] = all(call is True for call in calls)
    return outputs


class _OutputReaders:
    """Follows the readers of a layer's output in a traced graph.

    Args:
        modules: Modules of the model by name.
        quantized: Names of the quantized layers.
    """

    def __init__(self, modules: dict[str, nn.Module], quantized: Collection[str]) -> None:
        self.modules, self.quantized = modules, quantized
        self.model_outputs: set[str] = set()

    def find_open_relu(self, node: fx.Node) -> bool | None:
        """Return whether a ReLU follows a call, or None where every reader is a quantized layer."""
        users = list(node.users)
        # Dropout and identity do nothing in evaluation mode, so a ReLU behind them still follows the layer.
        while len(users) == 1 and self._is_identity(users[0]):
            users = list(users[0].users)
        has_relu = len(users) == 1 and self._is_relu(users[0])
        if has_relu:
            users = list(users[0].users)
        if any(user.op == "output" for user in users):
            self.model_outputs.add(str(node.target))
        return None if all(self._reaches_quantized_layer(user) for user in users) else has_relu

    def _reaches_quantized_layer(self, node: fx.Node) -> bool:
        if node.op == "call_module" and node.target in self.quantized:
            return True
        return self._preserves_codes(node) and all(self._reaches_quantized_layer(user) for user in node.users)

    def _is_identity(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(self.modules[str(node.target)], nn.Identity | nn.Dropout)

    def _is_relu(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self.modules[str(node.target)], nn.ReLU)
        return node.target in RELU if node.op == "call_function" else node.target in ("relu", "relu_")

    def _preserves_codes(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self.modules[str(node.target)], CODE_PRESERVING_MODULES)
        return node.target in (CODE_PRESERVING_FUNCTIONS if node.op == "call_function" else CODE_PRESERVING_METHODS)
