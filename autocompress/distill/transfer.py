"""Transfer: a trained model gets a new head, on a backbone that is frozen or tuned.

Distilling on data that differs from the teacher's needs nothing of its own: ``soft_target`` with ``alpha`` 1 reads no
labels.
"""

import copy

from torch import nn

from autocompress.errors import TrialError


def with_new_head(model: nn.Module, classes: int, *, frozen: bool) -> nn.Module:
    """Return a copy whose last linear layer is new and has ``classes`` outputs.

    Args:
        model: A trained model of one head; stays as it was.
        classes: Number of classes to learn.
        frozen: Train the new head alone: every other parameter keeps its value, every batch norm its statistics.

    Raises:
        TrialError: The model has no linear layer to replace.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 10))
        >>> with_new_head(net, 3, frozen=True)[2].out_features
        3
    """
    fresh = copy.deepcopy(model)
    heads = [name for name, module in fresh.named_modules() if isinstance(module, nn.Linear)]
    if not heads:
        raise TrialError(f"{type(model).__name__} has no linear layer to replace by a new head")
    if frozen:
        for parameter in fresh.parameters():
            parameter.requires_grad_(False)
    old = fresh.get_submodule(heads[-1])
    parent, _, name = heads[-1].rpartition(".")
    holder = fresh.get_submodule(parent)
    assert isinstance(old, nn.Linear)
    head = nn.Linear(old.in_features, classes, bias=old.bias is not None)
    if isinstance(holder, nn.ModuleDict | nn.Sequential):
        holder._modules[name] = head
    else:
        setattr(holder, name, head)
    return fresh
