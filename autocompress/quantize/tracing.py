"""What torch.fx tells about a model: its graph, and where a layer's output goes."""

import inspect
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

RELU: tuple[Callable[..., Any], ...] = (F.relu, torch.relu)
# Integer codes go through these unchanged, so a quantizer behind them can work in front of them.
PASSING_MODULES = (nn.Identity, nn.Dropout, nn.Flatten, nn.MaxPool1d, nn.MaxPool2d)
PASSING_FUNCTIONS = {F.max_pool1d, F.max_pool2d, torch.flatten, torch.reshape, torch.permute, torch.transpose}
PASSING_METHODS = {"contiguous", "flatten", "permute", "reshape", "squeeze", "transpose", "unsqueeze", "view"}


def trace_graph(model: nn.Module, example: tuple[Tensor, ...]) -> fx.Graph:
    """Return the graph of a model's forward on the arguments that ``example`` gives.

    Raises:
        Exception: Whatever the forward raises on a tensor without values.
    """
    # An optional argument that the example leaves out must stay its default, or fx follows the other branch.
    parameters = list(inspect.signature(model.forward).parameters.values())[len(example) :]
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return fx.Tracer().trace(model, concrete_args=defaults or None)


def find_outputs_to_quantize(
    model: nn.Module, example: tuple[Tensor, ...], quantized: Collection[str]
) -> dict[str, bool]:
    """Return the convolutions whose output is read by more than quantized layers; True where a ReLU follows first.

    A runtime has no integer kernel for such a convolution unless its output is rounded as well. One whose output
    is an output of the model is left out, as is every layer of a model that cannot be traced.
    """
    try:
        graph = trace_graph(model, example)
    except Exception:  # torch.fx raises whatever the traced forward raises on a proxy
        return {}
    look = _Look(dict(model.named_modules()), quantized)
    found: dict[str, list[bool | None]] = {}
    for node in graph.nodes:
        if node.op == "call_module" and node.target in quantized:
            found.setdefault(str(node.target), []).append(look.rectified_if_open(node))
    rounded = {}
    for name, calls in found.items():
        layer = look.modules[name]
        if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros" or look.returned & {name}:
            continue
        if any(call is not None for call in calls):
            rounded[name] = all(call is True for call in calls)
    return rounded


class _Look:
    """Follows the users of a layer's output."""

    def __init__(self, modules: dict[str, nn.Module], quantized: Collection[str]) -> None:
        self.modules, self.quantized = modules, quantized
        self.returned: set[str] = set()

    def rectified_if_open(self, node: fx.Node) -> bool | None:
        """Return whether a ReLU follows, or None where every way leads to a quantized layer."""
        users = list(node.users)
        while len(users) == 1 and self._is_identity(users[0]):
            users = list(users[0].users)
        rectified = len(users) == 1 and self._is_relu(users[0])
        if rectified:
            users = list(users[0].users)
        if any(user.op == "output" for user in users):
            self.returned.add(str(node.target))
        return None if all(self._meets(user) for user in users) else rectified

    def _meets(self, node: fx.Node) -> bool:
        if node.op == "call_module" and node.target in self.quantized:
            return True
        return self._passes(node) and all(self._meets(user) for user in node.users)

    def _is_identity(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(self.modules[str(node.target)], nn.Identity | nn.Dropout)

    def _is_relu(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self.modules[str(node.target)], nn.ReLU)
        return node.target in RELU if node.op == "call_function" else node.target in ("relu", "relu_")

    def _passes(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self.modules[str(node.target)], PASSING_MODULES)
        return node.target in (PASSING_FUNCTIONS if node.op == "call_function" else PASSING_METHODS)
