"""Weights of the classes in the loss of a task: each class counts alike, however many examples it has.

A class has the weight N / (C N_c): N labelled decisions of the training split, C classes that occur, N_c decisions of
the class ("balanced"; King and Zeng 2001). The mean weight of the training split is 1. The loss of a batch is the
weighted sum divided by its number of decisions, not by its sum of weights: the mean over batches, or over the processes
of a fit, is then that of the whole split.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from autocompress.core.heads import IGNORED, Head, as_head, average_losses
from autocompress.core.task import Split, Task
from autocompress.errors import UsageError

NONE, BALANCED = "none", "balanced"


def check_class_weights(task: Task, choice: str) -> None:
    """Check that the loss of a task can weight its classes.

    Args:
        task: The task.
        choice: The value of ``class_weights``.

    Raises:
        UsageError: The task has a loss of its own, or no head of classes.
    """
    if choice == NONE:
        return
    if task.has_own_loss:
        raise UsageError(
            f"class_weights is {choice}, and the task '{task.name}' has a loss of its own; weight its classes there, "
            "and leave class_weights out"
        )
    if not any(_is_weighted(as_head(size)) for size in task.heads.values()):
        described = ", ".join(f"'{name}' ({as_head(size).describe()})" for name, size in task.heads.items())
        raise UsageError(f"class_weights is {choice}, and no head has classes to weight: {described}; leave it out")


def _is_weighted(head: Head) -> bool:
    """Return whether a head has the same classes in every example: the candidates of a list differ."""
    return head.has_classes and head.kind != "candidates"


def compute_class_weights(head: Head, targets: Tensor) -> Tensor:
    """Return the weight of each class, ``[C]``, or of no and yes for each label, ``[L, 2]``.

    A class without an example has the weight 0.

    Args:
        head: A head with classes.
        targets: Its targets on the training split.

    Example:
        >>> compute_class_weights(Head(3), torch.tensor([0, 0, 0, 1])).round(decimals=2).tolist()
        [0.6700000166893005, 2.0, 0.0]
    """
    if head.kind == "multilabel":
        columns = targets.reshape(len(targets), -1)
        return torch.stack([_balance(head.flatten_targets(column), 2) for column in columns.unbind(1)])
    return _balance(head.flatten_targets(targets), head.classes)


def _balance(labels: Tensor, classes: int) -> Tensor:
    counts = labels[labels != IGNORED].bincount(minlength=classes).double()
    # Of a class without an example, the quotient has no meaning and is not used.
    weights = counts.sum() / (counts.count_nonzero() * counts).where(counts > 0, torch.inf)
    return weights.float()


class WeightedTaskLoss:
    """The loss of a task with weighted classes, averaged over its heads.

    Args:
        task: The task.
        train: The training split, whose examples are counted.
    """

    def __init__(self, task: Task, train: Split) -> None:
        self._heads = {name: as_head(size) for name, size in task.heads.items()}
        self._weights = {
            name: compute_class_weights(head, train.targets[name])
            for name, head in self._heads.items()
            if _is_weighted(head)
        }

    def __call__(self, logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Return the loss, ``{head: [B, C]}, {head: [B]} -> []``."""
        return average_losses([self._compute_head_loss(name, logits[name], targets[name]) for name in logits])

    def _compute_head_loss(self, name: str, outputs: Tensor, targets: Tensor) -> Tensor:
        head, weights = self._heads[name], self._weights.get(name)
        if weights is None:
            return head.loss(outputs, targets)
        rows, labels = head.flatten(outputs), head.flatten_targets(targets)
        is_labelled = labels != IGNORED
        if not bool(is_labelled.any()):
            # A mean over nothing would be NaN; the product keeps the graph.
            return outputs.sum() * 0
        weights = weights.to(rows.device)
        # The labels of an example follow each other, so the row number tells which label it is.
        which = torch.arange(len(rows), device=rows.device) % len(weights)
        indices = labels.clamp(min=0)
        weight = weights[which, indices] if weights.dim() == 2 else weights[indices]
        losses = F.cross_entropy(rows, labels, reduction="none")
        return (weight * losses)[is_labelled].mean()
