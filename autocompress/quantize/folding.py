"""Folding of batch normalization into the layer before it, as one affine map (Jacob et al. 2018).

``gamma (W x + b - mean) / sqrt(var + eps) + beta`` becomes ``W' x + b'``.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from autocompress.errors import CompressionError
from autocompress.quantize.model_copy import copy_model
from autocompress.quantize.tracing import trace_graph

FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Linear)
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d)
# Relative and absolute difference of outputs that folding may cause by rounding of float32.
TOLERANCE = 1e-4

FoldableLayer: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Linear
BatchNorm: TypeAlias = nn.BatchNorm1d | nn.BatchNorm2d


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
        CompressionError: The model has no such layer or batch normalization.
    """
    for layer_name, norm_name in pairs:
        layer, norm = _get_module(model, layer_name), _get_module(model, norm_name)
        if isinstance(norm, FoldedBatchNorm):
            continue
        if not isinstance(layer, FOLDABLE) or not isinstance(norm, BATCH_NORM):
            raise CompressionError(f"'{norm_name}' cannot be folded into '{layer_name}': the model is another one")
        # The values are placeholders until the `state_dict` is loaded, but a bias must exist to be loaded.
        bias = layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias.detach().clone()
        _replace_pair(model, layer, layer_name, norm_name, layer.weight.detach().clone(), bias)


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
