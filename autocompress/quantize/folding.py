"""The model before quantization: a copy, its traced graph, and batch normalization folded into the layer before it.

Folding makes one affine map of both (Jacob et al. 2018): ``gamma (W x + b - mean) / sqrt(var + eps) + beta``
becomes ``W' x + b'``.
"""

import copy
import inspect
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from autocompress.core.method import require_distinct
from autocompress.errors import CompressionError
from autocompress.quantize.conversion import CONVERTED, original_state

RELU: tuple[Callable[..., Tensor], ...] = (F.relu, torch.relu)
# Operations that do not change integer codes, so a quantizer after them can be moved before them.
CODE_PRESERVING_MODULES = (nn.Identity, nn.Dropout, nn.Flatten, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
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
    return _Tracer().trace(model, concrete_args=defaults or None)


class _Tracer(fx.Tracer):
    """Tracer for which converted layers are single calls, as the layers of torch that they replace."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        """Return whether a module is one call in the graph."""
        return isinstance(module, CONVERTED) or super().is_leaf_module(module, qualified_name)


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


M = TypeVar("M", bound=nn.Module)
IMMUTABLE_TYPES = (type(None), bool, int, float, complex, str, bytes)
# Attributes that every `nn.Module` has; their dictionaries are copied separately.
MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))


def copy_model(model: M) -> M:
    """Return an independent copy of a model, as :func:`copy.deepcopy` does.

    A deep copy spends most of its time on the empty hook dictionaries of each module. A model whose modules hold only
    immutable values, parameters, buffers and modules is copied module by module; any other is copied deeply.
    """
    if not all(_is_plain(module) for module in model.modules()):
        return copy.deepcopy(model)
    # Copies by the identity of the original, so that a shared tensor or module stays shared in the copy.
    tensors: dict[int, Tensor] = {}
    modules: dict[int, nn.Module] = {}

    def copy_tensor(old: Tensor | None) -> Tensor | None:
        if old is not None and id(old) not in tensors:
            tensors[id(old)] = copy.deepcopy(old)
        return None if old is None else tensors[id(old)]

    def copy_module(old: nn.Module | None) -> nn.Module | None:
        if old is None or id(old) in modules:
            return None if old is None else modules[id(old)]
        new = old.__class__.__new__(old.__class__)
        modules[id(old)] = new
        state = {name: value.copy() if isinstance(value, dict | set) else value for name, value in vars(old).items()}
        for tensors_name in ("_parameters", "_buffers"):
            state[tensors_name] = {name: copy_tensor(value) for name, value in getattr(old, tensors_name).items()}
        state["_modules"] = {name: copy_module(value) for name, value in old._modules.items()}
        vars(new).update(state)
        return new

    duplicate = copy_module(model)
    assert isinstance(duplicate, type(model))
    return duplicate


def _is_plain(module: nn.Module) -> bool:
    state = vars(module)
    has_hooks = any(value for name, value in state.items() if name.endswith("_hooks"))
    copies_itself = any("__deepcopy__" in vars(kind) or "__getstate__" in vars(kind) for kind in _user_classes(module))
    attributes = (value for name, value in state.items() if name not in MODULE_ATTRIBUTES)
    return not has_hooks and not copies_itself and all(_is_immutable(value) for value in attributes)


def _user_classes(module: nn.Module) -> Iterable[type]:
    classes = type(module).__mro__
    return classes[: classes.index(nn.Module)]


def _is_immutable(value: object) -> bool:
    return isinstance(value, IMMUTABLE_TYPES) or (isinstance(value, tuple) and all(map(_is_immutable, value)))


FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Relative and absolute difference of outputs that folding may cause by rounding of float32.
TOLERANCE = 1e-4

FoldableLayer: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
BatchNorm: TypeAlias = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


class FoldedBatchNorm(nn.Identity):
    """Placeholder of a batch normalization that is folded into a layer.

    Args:
        into: Name of the layer.
    """

    def __init__(self, into: str) -> None:
        super().__init__()
        self.into = into

    def extra_repr(self) -> str:
        """Return the text that ``repr`` shows between the parentheses."""
        return f"into={self.into!r}"


@dataclass(frozen=True)
class FoldingResult:
    """Result of folding the batch normalizations of a model.

    Attributes:
        pairs: Names of layer and batch normalization, in the order of the model.
        unfolded: Names of the batch normalizations that were not folded.
        reason: Reason why some were not folded, empty otherwise.
    """

    pairs: tuple[tuple[str, str], ...] = ()
    unfolded: tuple[str, ...] = ()
    reason: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the result as JSON values."""
        return {"folded": [list(pair) for pair in self.pairs], "left": list(self.unfolded), "reason": self.reason}


def fold_batch_norm(model: nn.Module, example: tuple[Tensor, ...]) -> nn.Module:
    """Return a copy in evaluation mode with batch normalizations folded where that is possible.

    A pair is folded if the normalization is the only reader of the layer's output in the torch.fx graph. A model that
    cannot be traced, or whose outputs on ``example`` change, keeps its normalizations.
    """
    return fold_with_report(model, example)[0]


def fold_with_report(model: nn.Module, example: tuple[Tensor, ...]) -> tuple[nn.Module, FoldingResult]:
    """Return the model of :func:`fold_batch_norm` and a list of all folded pairs, including earlier ones."""
    unfolded = copy_model(model).eval()
    norms = _batch_norm_names(unfolded)
    # A model without normalizations, such as a folded one, needs no tracing.
    if not norms:
        return unfolded, FoldingResult(find_folded_pairs(unfolded))
    try:
        pairs = _find_pairs(unfolded, example)
    except Exception as error:  # torch.fx raises whatever the traced forward raises on a proxy
        return unfolded, FoldingResult(
            find_folded_pairs(unfolded), norms, f"the model cannot be traced ({_first_line(error)})"
        )
    # A second copy, because the first is returned if the outputs of the folded one differ.
    folded = copy_model(unfolded)
    for names in pairs:
        layer, norm = (folded.get_submodule(name) for name in names)
        assert isinstance(layer, FOLDABLE)
        assert isinstance(norm, BATCH_NORM)
        _replace_pair(folded, layer, *names, *_fold_parameters(layer, norm))
    with torch.no_grad():
        if pairs and not _are_close(unfolded(*example), folded(*example)):
            return unfolded, FoldingResult(find_folded_pairs(unfolded), norms, "folding changed the model's outputs")
    remaining = _batch_norm_names(folded)
    reason = "the input is not the output of one convolution or linear layer alone" if remaining else ""
    return folded, FoldingResult(find_folded_pairs(folded), remaining, reason)


def find_folded_pairs(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """Return the names of the folded pairs of layer and batch normalization in a model."""
    return tuple((module.into, name) for name, module in model.named_modules() if isinstance(module, FoldedBatchNorm))


def fold_structure(model: nn.Module, pairs: Sequence[Sequence[str]]) -> None:
    """Change the modules of a model to those of a folded one; the values come from a ``state_dict``.

    Pairs that are already folded do not change.

    Raises:
        CompressionError: The model has no such layer or batch normalization, or a pair occurs twice.
    """
    require_distinct(norm_name for _, norm_name in pairs)
    for layer_name, norm_name in pairs:
        layer, norm = _get_module(model, layer_name), _get_module(model, norm_name)
        if isinstance(norm, FoldedBatchNorm):
            continue
        if not isinstance(layer, FOLDABLE) or not isinstance(norm, BATCH_NORM):
            raise CompressionError(f"'{norm_name}' cannot be folded into '{layer_name}': the model is another one")
        # The values are placeholders until the `state_dict` is loaded, but a bias must exist to be loaded.
        bias = layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias.detach().clone()
        _replace_pair(model, layer, layer_name, norm_name, layer.weight.detach().clone(), bias)


@torch.no_grad()
def unfold_batch_norm(model: nn.Module, folded: nn.Module) -> None:
    """Load the values of a folded model into one of the structure before folding, in place.

    The statistics of a folded normalization are lost. It gets the mean 0 and the variance 1, and the folded bias.

    Raises:
        CompressionError: The models have other layers.
    """
    pairs = dict(find_folded_pairs(folded))
    values = original_state(folded)
    for layer_name, norm_name in pairs.items():
        layer, norm = _get_module(model, layer_name), _get_module(model, norm_name)
        if not isinstance(norm, BATCH_NORM) or norm.running_mean is None or norm.running_var is None:
            raise CompressionError(f"'{norm_name}' is no batch normalization: the model is another one")
        bias = values.pop(f"{layer_name}.bias")
        norm.reset_running_stats()
        if norm.affine:
            # Exactly the inverse of the division by sqrt(1 + eps).
            norm.weight.fill_(math.sqrt(1 + norm.eps))
            norm.bias.copy_(bias)
        else:
            norm.running_mean.copy_(-bias)
            norm.running_var.fill_(1 - norm.eps)
        if getattr(layer, "bias", None) is not None:
            values[f"{layer_name}.bias"] = torch.zeros_like(bias)
        values |= {f"{norm_name}.{name}": tensor for name, tensor in norm.state_dict().items()}
    expected = model.state_dict()
    try:
        # The values of input and output quantizers have no place in a float model.
        model.load_state_dict({name: tensor for name, tensor in values.items() if name in expected})
    except RuntimeError as error:
        raise CompressionError(f"the folded values do not fit the model: {_first_line(error)}") from error


@torch.no_grad()
def estimate_unfolded_statistics(model: nn.Module, names: Sequence[str], batches: Iterable[tuple[Tensor, ...]]) -> bool:
    """Give batch normalizations of :func:`unfold_batch_norm` the statistics of their inputs, in place.

    A normalization that is left of folding is an affine map with mean 0 and variance 1. With the mean and variance of
    its inputs on the data that the model was trained on, and the weight and bias that undo them, its outputs stay and
    it can be trained and estimated again like one that was never folded.

    Args:
        model: The unfolded model.
        names: Names of its batch normalizations.
        batches: Batches of training data, as positional arguments.

    Returns:
        Whether this is possible: not without data, and not for a normalization without weight and bias.
    """
    norms = [(name, _get_module(model, name)) for name in names]
    if not all(isinstance(norm, BATCH_NORM) and norm.affine for _, norm in norms):
        return False
    sums: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}
    zeros = [torch.zeros(()), torch.zeros(())]

    def record_input(name: str, inputs: Tensor) -> None:
        # Channels are axis 1 of [B, C], [B, C, L] and [B, C, H, W].
        values = inputs.double().transpose(0, 1).flatten(1)
        counts[name] = counts.get(name, 0) + values.shape[1]
        parts = [values.sum(1), values.square().sum(1)]
        sums[name] = [total + part for total, part in zip(sums.get(name, zeros), parts, strict=True)]

    with ExitStack() as stack:
        for name, norm in norms:
            hook = norm.register_forward_pre_hook(lambda _, args, name=name: record_input(name, args[0]))
            stack.callback(hook.remove)
        model.eval()
        for batch in batches:
            model(*batch)
    if any(name not in counts for name, _ in norms):
        return False
    for name, norm in norms:
        assert isinstance(norm, BATCH_NORM)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, square = (total / counts[name] for total in sums[name])
        variance = (square - mean.square()).clamp_min(0)
        # The affine map before: y -> scale y + bias.
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        norm.bias.add_(scale * (mean - norm.running_mean).to(norm.bias))
        norm.weight.copy_(scale * (variance + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
    return True


def _batch_norm_names(model: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, module in model.named_modules() if isinstance(module, BATCH_NORM))


def _find_pairs(model: nn.Module, example: tuple[Tensor, ...]) -> list[tuple[str, str]]:
    modules = dict(model.named_modules())
    graph = trace_graph(model, example)
    # By identity: a module with several names is called under each of them.
    calls = Counter(id(modules[str(node.target)]) for node in graph.nodes if node.op == "call_module")
    # Modules whose parameters are read without a call: folding would change what is read.
    direct_reads = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    pairs = []
    for node in graph.nodes:
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        before = node.args[0] if node.args else None
        if not isinstance(norm, BATCH_NORM) or not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        layer = modules[str(before.target)]
        names = str(before.target), str(node.target)
        is_only_reader = len(before.users) == 1 and calls[id(layer)] == 1 and calls[id(norm)] == 1
        if is_only_reader and _is_foldable(layer, norm) and not direct_reads & set(names):
            pairs.append(names)
    return pairs


def _is_foldable(layer: nn.Module, norm: BatchNorm) -> bool:
    if not isinstance(layer, FOLDABLE) or norm.running_mean is None or norm.running_var is None:
        return False
    # A parametrization or a hook between layer and normalization would be lost.
    is_plain = "weight" in layer._parameters and not layer._forward_hooks and not norm._forward_pre_hooks
    return is_plain and layer.weight.shape[0] == norm.num_features


def _fold_parameters(layer: FoldableLayer, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # In double precision, because small variances make large factors.
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        factor = factor * norm.weight.detach().double()
    bias = -norm.running_mean.double() if layer.bias is None else layer.bias.detach().double() - norm.running_mean
    bias = bias * factor
    if norm.affine:
        bias = bias + norm.bias.detach()
    weight = layer.weight.detach()
    return (weight * factor.view(-1, *[1] * (weight.ndim - 1))).to(weight.dtype), bias.to(weight.dtype)


def _replace_pair(
    model: nn.Module, layer: FoldableLayer, layer_name: str, norm_name: str, weight: Tensor, bias: Tensor
) -> None:
    """Set folded parameters as new ones, so a weight that is shared with another layer does not change there."""
    grad = layer.weight.requires_grad
    layer.weight, layer.bias = nn.Parameter(weight, grad), nn.Parameter(bias, grad)
    _set_module(model, norm_name, FoldedBatchNorm(layer_name).train(model.training))


def _are_close(before: object, after: object) -> bool:
    pairs = zip(tree_leaves(before), tree_leaves(after), strict=True)
    return all(torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE) for a, b in pairs if isinstance(a, Tensor))


def _get_module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise CompressionError(f"the model has no layer '{name}'") from None


def _set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
