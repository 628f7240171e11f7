"""Single weights removed: which tensors take part, their scores, and the masks that later training keeps exact."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from autocompress.core.method import Context, MethodState
from autocompress.errors import CompressionError
from autocompress.prune.allocation import nearest
from autocompress.prune.calibration import gradients
from autocompress.prune.importance import CRITERIA, finite_scores

Masks = dict[str, Tensor]
"""Parameter name to a boolean mask of its shape, false where the weight is removed."""

LAYERS = (_ConvNd, nn.Linear, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention, nn.RNNBase)
# The scale of a batch norm says something about a channel, and nothing about a single weight.
WEIGHT_CRITERIA = tuple(name for name in CRITERIA if name != "batch_norm")


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weight matrices and kernels of a model by name; a shared one occurs once.

    Biases, normalizations and bare parameters do not take part: they hold little, and losing them costs much.

    Raises:
        CompressionError: There is none, or one is empty.
    """
    return {name: weight for name, _, weight in weighted(model)}


def weighted(model: nn.Module) -> list[tuple[str, nn.Module, nn.Parameter]]:
    """Return name, layer and value of what :func:`weights` returns.

    Raises:
        CompressionError: There is none, or one is empty.
    """
    found = list(_weighted(model))
    if not found:
        raise CompressionError(f"{type(model).__name__} has no layer whose weights could be removed")
    for name, _, weight in found:
        if weight.numel() == 0:
            layer = name.rpartition(".")[0]
            raise CompressionError(f"layer '{layer}' has no channels: a model that ignores its input is no model")
    return found


def _weighted(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    seen: set[int] = set()
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False) if isinstance(module, LAYERS) else ():
            if parameter.dim() > 1 and not key.startswith("bias") and id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{name}.{key}" if name else key, module, parameter


def weight_scores(
    model: nn.Module, names: Mapping[str, object], criterion: str, context: Context, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return scores shaped like each named weight, larger = keep.

    Raises:
        CompressionError: A weight or a gradient is not finite, or the criterion lacks what it measures on.
    """
    chosen = CRITERIA[criterion]
    with ExitStack() as stack:
        if chosen.gradients:
            stack.enter_context(gradients(model, context))
        return {
            name: finite_scores(model.get_parameter(name), f"the weights '{name}'", chosen, generator) for name in names
        }


def keep_best(scores: Mapping[str, Tensor], masks: Masks, ratio: float, pooled: bool, adapted: bool = False) -> Masks:
    """Return masks with the nearest number to ``ratio`` of the weights removed, those removed before among them.

    The best weight of every tensor is kept, and a ratio above zero removes at least one weight.

    Args:
        scores: Parameter name to scores, larger = keep.
        masks: What earlier cuts left.
        ratio: Share to remove, 0 to 1.
        pooled: Rank the weights of all tensors together rather than each tensor by itself.
        adapted: Divide each score by the sum of those of its tensor that are no smaller, before tensors are ranked
            together: with squares as scores, layer-adaptive magnitude (LAMP, Lee 2021, arXiv:2010.07611).

    Example:
        >>> scores = {"a": torch.tensor([[1.0, 4.0], [3.0, 2.0]])}
        >>> keep_best(scores, {"a": torch.ones(2, 2, dtype=torch.bool)}, 0.5, pooled=False)["a"].tolist()
        [[False, True], [True, False]]
    """
    flat = {name: _ranked(score, masks[name], adapted) for name, score in scores.items()}
    pools = [list(flat)] if pooled else [[name] for name in flat]
    kept: Masks = {}
    for pool in pools:
        together = torch.cat([flat[name] for name in pool])
        number = min(nearest(ratio * len(together)), len(together) - len(pool))
        mask = torch.ones(len(together), dtype=torch.bool)
        mask[torch.argsort(together, stable=True)[:number]] = False
        for name, part in zip(pool, mask.split([len(flat[name]) for name in pool]), strict=True):
            kept[name] = part.view(scores[name].shape).to(scores[name].device)
    if ratio > 0 and all(bool(mask.all()) for mask in kept.values()):
        widest = max(flat, key=lambda name: len(flat[name]))
        if len(flat[widest]) > 1:
            kept[widest].view(-1)[flat[widest].argmin()] = False
    return kept


def _ranked(scores: Tensor, mask: Tensor, adapted: bool) -> Tensor:
    """Return one row of scores: what is gone below everything, the best above everything."""
    flat = scores.double().flatten().cpu()
    gone = ~mask.flatten().cpu()
    flat[gone] = 0
    if adapted:
        order = torch.argsort(flat, descending=True, stable=True)
        flat[order] = flat[order] / flat[order].cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
    flat[gone] = -1
    flat[flat.argmax()] = torch.inf
    return flat


def masked_state(model: nn.Module, masks: Masks, **report: Any) -> MethodState:
    """Set the removed weights of ``model`` to zero, in place, and return the state that keeps them there.

    The report holds ``sparsity`` (share of the weights that went) and ``density`` (parameter name to the share
    that stayed). The history holds names alone: the zeros are in the weights.
    """
    state = MethodState(
        history={"masked": list(masks)},
        report={
            "sparsity": 1 - sum(int(mask.sum()) for mask in masks.values()) / sum(m.numel() for m in masks.values()),
            "density": {name: float(mask.double().mean()) for name, mask in masks.items()},
            **report,
        },
        masks=masks,
    )
    state.hold(model)
    return state


def restore_masked(model: nn.Module, state: MethodState) -> nn.Module:
    """Check that a fresh model has the masked weights, and return it in evaluation mode; the zeros are in its weights.

    Raises:
        CompressionError: The history does not fit the model.
    """
    masked(model, state)
    return model.eval()


def masks_from_zeros(model: nn.Module, state: MethodState) -> Masks:
    """Return the masks of a model that was saved and loaded again: what is zero in a masked weight stays so.

    Raises:
        CompressionError: The history does not fit the model.
    """
    return {name: weight.detach() != 0 for name, weight in masked(model, state).items()}


def masked(model: nn.Module, state: MethodState) -> dict[str, nn.Parameter]:
    """Return the weights that a history names as masked.

    Raises:
        CompressionError: The history does not fit the model.
    """
    names = state.history.get("masked")
    if not isinstance(names, list):
        raise CompressionError("the pruning history has no list of masked weights")
    known = dict(model.named_parameters(remove_duplicate=False))
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise CompressionError(f"the pruning history does not fit the model: it has no weight '{name}'")
    return {name: known[name] for name in names}
