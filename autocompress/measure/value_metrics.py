"""Scores of numbers: heads of regression, and classes that have values, such as ratings.

The prediction of a head whose classes have values is the mean of the values under the softmax of the logits
(Farebrother et al. 2024, arXiv:2403.03950). Scores of several values per example are the mean over the values, as
scikit-learn's ``uniform_average``. A missing target, NaN, is left out. Outputs that are not finite score NaN.
"""

import math
from collections.abc import Callable
from statistics import fmean

import torch
from torch import Tensor

from autocompress.core.heads import IGNORED, Levels, Regression
from autocompress.errors import TrialError
from autocompress.measure.objectives import Subject, objective

ValueScore = Callable[[Tensor, Tensor], float]
"""Predictions ``[N]`` and true values ``[N]``, double precision, to a score."""


def root_mean_square_error(predicted: Tensor, true: Tensor) -> float:
    """Return the root of the mean square difference.

    Example:
        >>> root_mean_square_error(torch.tensor([3.0]), torch.tensor([5.0]))
        2.0
    """
    return float((predicted - true).square().mean().sqrt())


def mean_absolute_error(predicted: Tensor, true: Tensor) -> float:
    """Return the mean absolute difference.

    Example:
        >>> mean_absolute_error(torch.tensor([3.0, 1.0]), torch.tensor([5.0, 1.0]))
        1.0
    """
    return float((predicted - true).abs().mean())


def determination(predicted: Tensor, true: Tensor) -> float:
    """Return R2, one minus the ratio of the squared errors to the squared deviations from the mean.

    It is 1 for exact predictions, 0 for the mean, and NaN where all true values are equal.

    Example:
        >>> determination(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0]))
        0.5
    """
    deviations = float((true - true.mean()).square().sum())
    return 1 - float((predicted - true).square().sum()) / deviations if deviations else math.nan


@objective("rmse", "minimize", "score", reads="values")
def rmse(subject: Subject) -> float:
    """Root mean square error of the predicted number or of the expected rating, in its own unit."""
    return score_values(subject, root_mean_square_error)


@objective("mae", "minimize", "score", reads="values")
def mae(subject: Subject) -> float:
    """Mean absolute error of the predicted number or of the expected rating, in its own unit."""
    return score_values(subject, mean_absolute_error)


@objective("r2", "maximize", "score", reads="values")
def r2(subject: Subject) -> float:
    """Share of the variance of the numbers that the predictions explain (R2)."""
    return score_values(subject, determination)


def score_values(subject: Subject, score: ValueScore) -> float:
    """Return the mean of a score over the heads that predict numbers, and over the values of each.

    Raises:
        TrialError: There are no outputs, or no head predicts numbers, or outputs and targets do not fit.
    """
    if not subject.logits:
        raise TrialError("a score needs logits, but the subject has none")
    names = [name for name in subject.logits if subject.head(name).has_values]
    if not names:
        described = ", ".join(f"'{name}' ({subject.head(name).describe()})" for name in subject.logits)
        raise TrialError(f"no head predicts numbers: {described}; use another score, such as accuracy")
    return fmean(_score_columns(*_select_values(subject, name), score) for name in names)


def squared_errors(subject: Subject, name: str) -> Tensor:
    """Return the squared error of each example of a head, the mean over its values, ``[N]`` in double precision."""
    predicted, true = _select_values(subject, name)
    return (predicted - true).square().mean(1)


def _select_values(subject: Subject, name: str) -> tuple[Tensor, Tensor]:
    """Return predicted and true values of a head, ``[N, D]`` in double precision; NaN where no value is described."""
    head, outputs, targets = subject.head(name), subject.logits[name], subject.head_targets(name)
    if isinstance(head, Regression):
        predicted, true = head.select_values(outputs.double(), targets)
        return predicted, true
    assert isinstance(head, Levels)
    # The same check of shapes as for all classes.
    head.select_rows(outputs, targets)
    # Double precision: half a million squared errors are summed.
    values = torch.tensor(head.levels, dtype=torch.float64, device=outputs.device)
    true = torch.where(targets == IGNORED, math.nan, values[targets.clamp(min=0)])
    return (outputs.double().softmax(1) @ values)[:, None], true[:, None]


def _score_columns(predicted: Tensor, true: Tensor, score: ValueScore) -> float:
    scores = []
    for column in range(true.shape[1]):
        is_known = ~true[:, column].isnan()
        if not bool(is_known.any()):
            raise TrialError("no example of the split has a known value")
        scores.append(score(predicted[is_known, column], true[is_known, column]))
    return fmean(scores)
