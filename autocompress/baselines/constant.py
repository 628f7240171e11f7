"""A constant prediction: the most frequent class, or the mean of numbers."""

import torch
from torch import Tensor

from autocompress.baselines.base import Predictor
from autocompress.core.heads import IGNORED, Head, as_head
from autocompress.core.registry import BASELINES
from autocompress.core.task import Split, Task


@BASELINES.register("constant")
def fit_constant(task: Task, train: Split) -> Predictor:
    """The most frequent class, or the mean of the numbers, whatever the input."""
    constants = {name: compute_constant(as_head(size), train.targets[name]) for name, size in task.heads.items()}

    def predict(split: Split) -> dict[str, Tensor]:
        return {
            name: _repeat_constant(as_head(task.heads[name]), constant, split.targets[name])
            for name, constant in constants.items()
        }

    return predict


def compute_constant(head: Head, targets: Tensor) -> Tensor:
    """Return the logarithms of the class shares ``[C]``, the log-odds of each label ``[L]``, or the means ``[D]``.

    Every class counts once more than it occurs, so that no logarithm is infinite.

    Example:
        >>> compute_constant(Head(2), torch.tensor([0, 0, 1])).exp()
        tensor([0.6000, 0.4000])
    """
    if not head.has_classes:
        values = targets.reshape(len(targets), -1).float()
        return values.nanmean(0).nan_to_num(0.0)
    if head.kind == "multilabel":
        labels = targets.reshape(len(targets), -1)
        present, absent = (labels == 1).sum(0) + 1.0, (labels == 0).sum(0) + 1.0
        return (present / absent).log()
    if head.kind == "candidates":
        return torch.zeros(int(head))
    labels = head.flatten_targets(targets)
    counts = torch.bincount(labels[labels != IGNORED], minlength=head.classes) + 1.0
    return (counts / counts.sum()).log()


def _repeat_constant(head: Head, constant: Tensor, targets: Tensor) -> Tensor:
    """Return the constant as the outputs of a head for each example of a split."""
    count = len(targets)
    if head.kind == "binary":
        return (constant[1] - constant[0]).expand(count, 1)
    if head.kind == "tags":
        return constant.expand(*targets.shape, -1)
    if head.kind == "dense":
        # The classes of pixels are on axis 1.
        return constant.expand(*targets.shape, -1).movedim(-1, 1)
    return constant.expand(count, -1)
