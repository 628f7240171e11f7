"""Scores of logits ``[N, C]`` against targets ``[N]``, and against the teacher's logits.

Shares are exact quotients of counts in double precision: in single precision 228 of 240 reads 0.94999999 and
would miss a limit of 0.95.

Every score has the same rule for invalid inputs: logits that are not finite score NaN, because ``argmax`` over NaN has
no meaning; logits that do not fit their targets raise :class:`TrialError`.

Precision, recall and F1 of a class that is never predicted or never occurs are 0; a class that neither occurs nor
is predicted is left out of every mean over classes, as scikit-learn does.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from autocompress.errors import TrialError

# As in the paper that is named at :func:`calibration_error`.
CALIBRATION_BINS = 15


def accuracy(logits: Tensor, targets: Tensor) -> float:
    """Return the share of examples whose largest logit is the target's.

    Example:
        >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
        0.5
    """
    if not _is_finite(logits, targets):
        return math.nan
    return float((logits.argmax(1) == targets).double().mean())


def precision_macro(logits: Tensor, targets: Tensor) -> float:
    """Return the precision, averaged over classes."""
    if not _is_finite(logits, targets):
        return math.nan
    hits, predicted, support = _count_classes(logits, targets)
    # A class that is never predicted has 0 hits: the clamp makes its precision 0, not NaN.
    return _average_classes(hits / predicted.clamp(min=1), predicted + support > 0)


def recall_macro(logits: Tensor, targets: Tensor) -> float:
    """Return the recall, averaged over classes."""
    if not _is_finite(logits, targets):
        return math.nan
    hits, predicted, support = _count_classes(logits, targets)
    return _average_classes(hits / support.clamp(min=1), predicted + support > 0)


def balanced_accuracy(logits: Tensor, targets: Tensor) -> float:
    """Return the recall, averaged over the classes that occur (Brodersen 2010): accuracy if all occurred equally often.

    Example:
        >>> balanced_accuracy(torch.tensor([[2.0, 1.0]]).expand(4, 2), torch.tensor([0, 0, 0, 1]))
        0.5
    """
    if not _is_finite(logits, targets):
        return math.nan
    hits, _, support = _count_classes(logits, targets)
    return _average_classes(hits / support.clamp(min=1), (support > 0).double())


def f1_macro(logits: Tensor, targets: Tensor) -> float:
    """Return the harmonic mean of precision and recall, averaged over classes."""
    if not _is_finite(logits, targets):
        return math.nan
    hits, predicted, support = _count_classes(logits, targets)
    return _average_classes(2 * hits / (predicted + support).clamp(min=1), predicted + support > 0)


def f1_weighted(logits: Tensor, targets: Tensor) -> float:
    """Return the harmonic mean of precision and recall, averaged over classes by how often they occur."""
    if not _is_finite(logits, targets):
        return math.nan
    hits, predicted, support = _count_classes(logits, targets)
    return _average_classes(2 * hits / (predicted + support).clamp(min=1), support)


def mean_iou(logits: Tensor, targets: Tensor) -> float:
    """Return the intersection over union of predicted and true positions of a class, averaged over classes.

    Example:
        >>> mean_iou(torch.tensor([[2.0, 1.0]]).expand(4, 2), torch.tensor([0, 0, 0, 1]))
        0.375
    """
    if not _is_finite(logits, targets):
        return math.nan
    hits, predicted, support = _count_classes(logits, targets)
    return _average_classes(hits / (predicted + support - hits).clamp(min=1), predicted + support > 0)


def cross_entropy(logits: Tensor, targets: Tensor) -> float:
    """Return the mean cross-entropy in nats."""
    if not _is_finite(logits, targets):
        return math.nan
    return float(F.cross_entropy(logits.double(), targets))


def calibration_error(logits: Tensor, targets: Tensor) -> float:
    """Return the expected calibration error over 15 bins of confidence (Guo 2017, arXiv:1706.04599).

    The mean over examples of ``|accuracy - confidence|`` of their bin; 0 is perfectly calibrated.
    """
    if not _is_finite(logits, targets):
        return math.nan
    # Imported here: it takes a second, and only this score needs it.
    from torchmetrics.functional.classification import multiclass_calibration_error

    # Torchmetrics takes values within 0..1 for probabilities, and logits may lie there by chance.
    probabilities = logits.double().softmax(1)
    return float(
        multiclass_calibration_error(
            probabilities, targets, logits.shape[1], n_bins=CALIBRATION_BINS, norm="l1", validate_args=False
        )
    )


def kl_divergence(logits: Tensor, teacher: Tensor) -> float:
    """Return the mean of ``sum p_teacher (log p_teacher - log p_student)`` in nats, at temperature 1.

    Example:
        >>> round(kl_divergence(torch.zeros(1, 2), torch.tensor([[0.0, torch.log(torch.tensor(3.0))]])), 4)
        0.1308
    """
    if not _is_comparable(logits, teacher):
        return math.nan
    ours, theirs = logits.double().log_softmax(1), teacher.double().log_softmax(1)
    # Rounding may leave a value just below zero, but a divergence is never negative.
    return max(0.0, float(F.kl_div(ours, theirs, log_target=True, reduction="batchmean")))


def agreement(logits: Tensor, teacher: Tensor) -> float:
    """Return the share of examples on which student and teacher choose the same class."""
    if not _is_comparable(logits, teacher):
        return math.nan
    return float((logits.argmax(1) == teacher.argmax(1)).double().mean())


def per_class(logits: Tensor, targets: Tensor) -> list[dict[str, float]]:
    """Return one row a class: ``label``, ``support`` (how often it occurs), ``precision``, ``recall``, ``f1``.

    Args:
        logits: Outputs of the model, ``[N, C]``.
        targets: Class of each example, ``[N]``.

    Raises:
        TrialError: The logits are not finite, or do not fit the targets.

    Example:
        >>> per_class(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))[0]
        {'label': 0, 'support': 2, 'precision': 1.0, 'recall': 0.5, 'f1': 0.6666666666666666}
    """
    if not _is_finite(logits, targets):
        raise TrialError("the logits are not finite: no class can be scored")
    hits, predicted, support = _count_classes(logits, targets)
    columns = (
        support.long().tolist(),
        (hits / predicted.clamp(min=1)).tolist(),
        (hits / support.clamp(min=1)).tolist(),
        (2 * hits / (predicted + support).clamp(min=1)).tolist(),
    )
    names = ("label", "support", "precision", "recall", "f1")
    return [dict(zip(names, (label, *row), strict=True)) for label, row in enumerate(zip(*columns, strict=True))]


def _count_classes(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the number of correct predictions, of predictions and of examples of each class, ``[C]`` each."""
    predicted = logits.argmax(1)
    classes = logits.shape[1]
    # Without minlength, the counts would end with the last class that occurs.
    hits = torch.bincount(targets[predicted == targets], minlength=classes)
    return (
        hits.double(),
        torch.bincount(predicted, minlength=classes).double(),
        torch.bincount(targets, minlength=classes).double(),
    )


def _average_classes(values: Tensor, weights: Tensor) -> float:
    return float((values * weights).sum() / weights.sum())


def _is_finite(logits: Tensor, targets: Tensor) -> bool:
    """Return whether the logits are finite.

    Raises:
        TrialError: There is no example, or logits and targets do not fit.
    """
    if logits.dim() != 2 or targets.shape != logits.shape[:1]:
        raise TrialError(
            f"logits {list(logits.shape)} do not fit targets {list(targets.shape)}: [N, C] and [N] are needed"
        )
    if len(targets) == 0:
        raise TrialError("there is no example to score; give the split at least one")
    low, high = (int(value) for value in targets.aminmax())
    if low < 0 or high >= logits.shape[1]:
        raise TrialError(f"a target lies in {low}..{high}, but the logits have the classes 0..{logits.shape[1] - 1}")
    return bool(logits.isfinite().all())


def _is_comparable(logits: Tensor, teacher: Tensor) -> bool:
    """Return whether both logits are finite.

    Raises:
        TrialError: There is no example, or the shapes of student and teacher differ.
    """
    if logits.dim() != 2 or logits.shape != teacher.shape or len(logits) == 0:
        raise TrialError(f"the student's logits {list(logits.shape)} do not fit the teacher's {list(teacher.shape)}")
    return bool(logits.isfinite().all() and teacher.isfinite().all())
