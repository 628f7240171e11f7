"""Transfer learning: a trained model with a new head, on a backbone that is frozen or fine-tuned.

Distillation on data that differs from the teacher's needs no function here: ``soft_target`` with ``alpha`` 1 reads no
labels.
"""

import copy

import torch
from torch import nn

from autocompress.distill.activations import head_layers
from autocompress.errors import TrialError
from autocompress.training.fit import fit
from autocompress.training.trainer import CurveRow, FitRequest


def transfer_model(model: nn.Module, request: FitRequest, *, frozen: bool) -> tuple[nn.Module, list[CurveRow]]:
    """Return a copy of a trained model that is trained on another task of one head, and its curve.

    Args:
        model: A trained model of one head, which is not changed.
        request: The fit on the new task, whose inputs must have the shape that the model takes. Its seed also seeds the
            new head; its teacher, if any, has cached logits on the new task.
        frozen: Whether only the new head is trained, on the model's features as they are.

    Raises:
        TrialError: Model or task have not exactly one head, or the training diverged.
    """
    task = request.task
    if len(task.heads) != 1:
        raise TrialError(f"transfer gives a model one new head, but task '{task.name}' has {sorted(task.heads)}")
    # The random numbers of the caller do not change.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        fresh = replace_head(model, next(iter(task.heads.values())), frozen=frozen)
    return fresh, fit(fresh, request).curve


def replace_head(model: nn.Module, classes: int, *, frozen: bool) -> nn.Module:
    """Return a copy of a model with a new head of ``classes`` outputs.

    The head is the last linear layer (:func:`autocompress.distill.activations.head_layers`).

    Args:
        model: A trained model of one head, which is not changed.
        classes: Number of classes.
        frozen: Whether all other parameters are frozen, and with them the statistics of batch norms.

    Raises:
        TrialError: The model has no linear layer to replace, or several heads.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 10))
        >>> replace_head(net, 3, frozen=True)[2].out_features
        3
    """
    fresh = copy.deepcopy(model)
    heads = head_layers(fresh)
    if not heads:
        raise TrialError(f"{type(model).__name__} has no linear layer to replace by a new head")
    if len(heads) > 1:
        raise TrialError(f"{type(model).__name__} has several heads, {heads}; a new one replaces a single head")
    if frozen:
        for parameter in fresh.parameters():
            parameter.requires_grad_(False)
    old = fresh.get_submodule(heads[-1])
    assert isinstance(old, nn.Linear)
    fresh.set_submodule(heads[-1], nn.Linear(old.in_features, classes, bias=old.bias is not None))
    return fresh
