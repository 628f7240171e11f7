"""Pruning of single weights: the tensors that can be pruned, their scores, and masks that training respects."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from autocompress.core.method import Context, MethodState
from autocompress.core.registry import CRITERIA
from autocompress.errors import CompressionError
from autocompress.prune.calibration import calibration_gradients
from autocompress.prune.importance import score_weight
from autocompress.prune.schedule import round_half_up

Masks = dict[str, Tensor]
"""Parameter name to a boolean mask of its shape; false marks removed weights."""

# Layers whose weights can be set to zero one by one.
LAYERS = (_ConvNd, nn.Linear, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention, nn.RNNBase)


def prunable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weight matrices and kernels of a model by name; a shared one occurs once.

    Biases, normalizations and bare parameters are excluded: they are few, and removing them costs much accuracy.

    Raises:
        CompressionError: The model has no such weight, or one is empty.
    """
    return {name: weight for name, _, weight in find_prunable_weights(model)}


def find_prunable_weights(model: nn.Module) -> list[tuple[str, nn.Module, nn.Parameter]]:
    """Return name, layer and value of each prunable weight.

    Raises:
        CompressionError: The model has no such weight, or one is empty.
    """
    triples = list(_iterate_weights(model))
    if not triples:
        raise CompressionError(f"{type(model).__name__} has no layer whose weights could be removed")
    for name, _, weight in triples:
        if weight.numel() == 0:
            layer = name.rpartition(".")[0]
            raise CompressionError(f"layer '{layer}' has no channels, so the model ignores its input")
    return triples


def _iterate_weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    # By identity: tied weights are one tensor under several names.
    seen: set[int] = set()
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False) if isinstance(module, LAYERS) else ():
            if parameter.dim() > 1 and not key.startswith("bias") and id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{name}.{key}" if name else key, module, parameter


def score_weights(
    model: nn.Module, names: Mapping[str, object], criterion: str, context: Context, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return scores shaped like each named weight, larger = keep.

    Raises:
        CompressionError: A weight or a gradient is not finite, or the context lacks the data that the criterion needs.
    """
    chosen = CRITERIA[criterion]
    with ExitStack() as stack:
        if chosen.gradients:
            stack.enter_context(calibration_gradients(model, context))
        return {
            name: score_weight(model.get_parameter(name), f"the weights '{name}'", chosen, generator) for name in names
        }


def tighten_masks(
    scores: Mapping[str, Tensor], masks: Masks, ratio: float, pooled: bool, layer_adaptive: bool = False
) -> Masks:
    """Return masks that remove the share ``ratio`` of all weights, including those that ``masks`` removes already.

    The most important weight of every tensor is never removed, and a ratio above zero removes at least one weight.

    Args:
        scores: Parameter name to scores, larger = keep.
        masks: Masks of the earlier steps.
        ratio: Share to remove, 0 to 1.
        pooled: Whether the weights of all tensors are ranked together rather than each tensor by itself.
        layer_adaptive: Whether each score is divided by the sum of the scores in its tensor that are not smaller; with
            squares as scores, this is layer-adaptive magnitude pruning (LAMP, Lee 2021, arXiv:2010.07611).

    Example:
        >>> scores = {"a": torch.tensor([[1.0, 4.0], [3.0, 2.0]])}
        >>> tighten_masks(scores, {"a": torch.ones(2, 2, dtype=torch.bool)}, 0.5, pooled=False)["a"].tolist()
        [[False, True], [True, False]]
    """
    ranking_scores = {name: _ranking_scores(score, masks[name], layer_adaptive) for name, score in scores.items()}
    pools = [list(ranking_scores)] if pooled else [[name] for name in ranking_scores]
    new_masks: Masks = {}
    for pool in pools:
        pooled_scores = torch.cat([ranking_scores[name] for name in pool])
        # The most important weight of each tensor remains, so that every layer passes something on.
        count = min(round_half_up(ratio * len(pooled_scores)), len(pooled_scores) - len(pool))
        mask = torch.ones(len(pooled_scores), dtype=torch.bool)
        mask[torch.argsort(pooled_scores, stable=True)[:count]] = False
        for name, part in zip(pool, mask.split([len(ranking_scores[name]) for name in pool]), strict=True):
            new_masks[name] = part.view(scores[name].shape).to(scores[name].device)
    # A small ratio of few weights rounds to none; the least important weight of the widest tensor is removed then.
    if ratio > 0 and all(bool(mask.all()) for mask in new_masks.values()):
        widest = max(ranking_scores, key=lambda name: len(ranking_scores[name]))
        if len(ranking_scores[widest]) > 1:
            new_masks[widest].view(-1)[ranking_scores[widest].argmin()] = False
    return new_masks


def _ranking_scores(scores: Tensor, mask: Tensor, layer_adaptive: bool) -> Tensor:
    """Return the scores as one row, with removed weights below all others and the largest one above all others."""
    flat = scores.double().flatten().cpu()
    is_removed = ~mask.flatten().cpu()
    flat[is_removed] = 0
    if layer_adaptive:
        order = torch.argsort(flat, descending=True, stable=True)
        # The smallest normal number keeps a tensor of zeros from dividing by zero.
        flat[order] = flat[order] / flat[order].cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
    # Scores are not negative, so removed weights rank first and stay removed.
    flat[is_removed] = -1
    flat[flat.argmax()] = torch.inf
    return flat


def apply_masks(model: nn.Module, masks: Masks, **report: object) -> MethodState:
    """Set the removed weights of ``model`` to zero, in place, and return the state that keeps them at zero.

    The report holds ``sparsity`` (removed share of the weights) and ``density`` (parameter name to the remaining
    share). The history holds only names, because the saved weights contain the zeros.
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
    state.apply_masks(model)
    return state


def check_masks(model: nn.Module, state: MethodState) -> nn.Module:
    """Check that a freshly built model has the weights that were masked, and return it in evaluation mode.

    Raises:
        CompressionError: The history does not fit the model.
    """
    masked_weights(model, state)
    return model.eval()


def masks_from_zeros(model: nn.Module, state: MethodState) -> Masks:
    """Return the masks of a model loaded from a file: zeros in masked weights count as removed.

    Raises:
        CompressionError: The history does not fit the model.
    """
    return {name: weight.detach() != 0 for name, weight in masked_weights(model, state).items()}


def masked_weights(model: nn.Module, state: MethodState) -> dict[str, nn.Parameter]:
    """Return the masked weights that a history names.

    Raises:
        CompressionError: The history does not fit the model.
    """
    names = state.history.get("masked")
    if not isinstance(names, list):
        raise CompressionError("the pruning history has no list of masked weights")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in names:
        if not isinstance(name, str) or name not in parameters:
            raise CompressionError(f"the pruning history does not fit the model: it has no weight '{name}'")
    return {name: parameters[name] for name in names}
