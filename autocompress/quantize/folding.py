"""Batch normalization folded into the layer before it: one affine map instead of two (Jacob et al. 2018).

``gamma (W x + b - mean) / sqrt(var + eps) + beta`` becomes ``W' x + b'``.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from autocompress.errors import CompressionError
from autocompress.quantize.model_copy import copy_model
from autocompress.quantize.tracing import trace_graph

FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Linear)
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d)
TOLERANCE = 1e-4


class FoldedBatchNorm(nn.Identity):
    """Stands where a batch normalization was that now is part of the layer named ``into``."""

    def __init__(self, into: str) -> None:
        super().__init__()
        self.into = into

    def extra_repr(self) -> str:
        """Return what ``repr`` shows between the brackets."""
        return f"into={self.into!r}"


@dataclass(frozen=True)
class FoldingResult:
    """What was folded.

    Attributes:
        pairs: Layer and batch normalization by name, in the order of the model.
        left: Batch normalizations that stand as they were.
        reason: Why any were left; empty otherwise.
    """

    pairs: tuple[tuple[str, str], ...] = ()
    left: tuple[str, ...] = ()
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"folded": [list(pair) for pair in self.pairs], "left": list(self.left), "reason": self.reason}


def fold_batch_norm(model: nn.Module, example: tuple[Tensor, ...]) -> nn.Module:
    """Return a copy in evaluation mode whose batch normalizations are folded where their layer allows it.

    A pair is folded where torch.fx sees that the layer's output goes nowhere but into the normalization.
    A model that cannot be traced, or whose folded outputs differ on ``example``, keeps its normalizations.
    """
    return fold_with_report(model, example)[0]


def fold_with_report(model: nn.Module, example: tuple[Tensor, ...]) -> tuple[nn.Module, FoldingResult]:
    """Return what :func:`fold_batch_norm` does, and what was folded, earlier foldings included."""
    fresh = copy_model(model).eval()
    norms = tuple(_norms(fresh))
    if not norms:
        return fresh, FoldingResult(find_folded_pairs(fresh))
    try:
        pairs = _find_pairs(fresh, example)
    except Exception as error:  # torch.fx raises whatever the traced forward raises on a proxy
        return fresh, FoldingResult(
            find_folded_pairs(fresh), norms, f"the model cannot be traced ({_first_line(error)})"
        )
    folded = copy_model(fresh)
    for names in pairs:
        layer, norm = (folded.get_submodule(name) for name in names)
        _replace(folded, layer, *names, *_folded_values(layer, norm))
    with torch.no_grad():
        if pairs and not _close(fresh(*example), folded(*example)):
            return fresh, FoldingResult(find_folded_pairs(fresh), norms, "folding changed the model's outputs")
    left = tuple(_norms(folded))
    reason = "the input is not the output of one convolution or linear layer alone" if left else ""
    return folded, FoldingResult(find_folded_pairs(folded), left, reason)


def find_folded_pairs(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """Return the layer and batch-normalization names that were folded in ``model``."""
    return tuple((module.into, name) for name, module in model.named_modules() if isinstance(module, FoldedBatchNorm))


def fold_structure(model: nn.Module, pairs: Sequence[Sequence[str]]) -> None:
    """Give ``model`` the structure of a folded one, without its values: those come from a ``state_dict``.

    Pairs that are folded already are left alone.

    Raises:
        CompressionError: The model has no such layer or batch normalization.
    """
    for layer_name, norm_name in pairs:
        layer, norm = _module(model, layer_name), _module(model, norm_name)
        if isinstance(norm, FoldedBatchNorm):
            continue
        if not isinstance(layer, FOLDABLE) or not isinstance(norm, BATCH_NORM):
            raise CompressionError(f"'{norm_name}' cannot be folded into '{layer_name}': the model is another one")
        bias = layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias.detach().clone()
        _replace(model, layer, layer_name, norm_name, layer.weight.detach().clone(), bias)


def _norms(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, BATCH_NORM)]


def _find_pairs(model: nn.Module, example: tuple[Tensor, ...]) -> list[tuple[str, str]]:
    modules = dict(model.named_modules())
    graph = trace_graph(model, example)
    calls = Counter(_identity(modules[str(node.target)]) for node in graph.nodes if node.op == "call_module")
    elsewhere = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    pairs = []
    for node in graph.nodes:
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        before = node.args[0] if node.args else None
        if not isinstance(norm, BATCH_NORM) or not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        layer = modules[str(before.target)]
        names = str(before.target), str(node.target)
        alone = len(before.users) == 1 and calls[_identity(layer)] == 1 and calls[_identity(norm)] == 1
        if alone and _fits(layer, norm) and not elsewhere & set(names):
            pairs.append(names)
    return pairs


def _identity(module: nn.Module) -> int:
    return id(module)


def _fits(layer: nn.Module, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> bool:
    if not isinstance(layer, FOLDABLE) or norm.running_mean is None or norm.running_var is None:
        return False
    plain = "weight" in layer._parameters and not layer._forward_hooks and not norm._forward_pre_hooks
    return plain and layer.weight.shape[0] == norm.num_features


def _folded_values(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.detach().double()
    bias = -norm.running_mean.double() if layer.bias is None else layer.bias.detach().double() - norm.running_mean
    bias = bias * factor
    if norm.bias is not None:
        bias = bias + norm.bias.detach()
    weight = layer.weight.detach()
    return (weight * factor.view(-1, *[1] * (weight.ndim - 1))).to(weight.dtype), bias.to(weight.dtype)


def _replace(model: nn.Module, layer: Any, layer_name: str, norm_name: str, weight: Tensor, bias: Tensor) -> None:
    """Set the folded parameters; new ones, so that a weight shared with another layer stays as it was there."""
    grad = layer.weight.requires_grad
    layer.weight, layer.bias = nn.Parameter(weight, grad), nn.Parameter(bias, grad)
    _set(model, norm_name, FoldedBatchNorm(layer_name).train(model.training))


def _close(before: Any, after: Any) -> bool:
    pairs = zip(tree_leaves(before), tree_leaves(after), strict=True)
    return all(torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE) for a, b in pairs if isinstance(a, Tensor))


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise CompressionError(f"the model has no layer '{name}'") from None


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
