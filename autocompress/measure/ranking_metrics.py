"""Scores of recommenders: clicks and ranked lists.

Logits are ``[N, C]`` and targets ``[N]`` here as everywhere. In a click head class 1 is the click; in a ranking head
the classes are the candidates of a list, and the target is the index of the true item among them.

Invalid and special inputs: logits that are not finite score NaN. An area under the curve needs two classes, so a split
with a single class scores NaN. Tied candidates have no order: ``ndcg_at_10`` and ``hit_rate_at_10`` are the mean over
all orders of them, and ``auc`` counts a tie as half a pair in the right order.
"""

import math
from statistics import fmean

import torch
from torch import Tensor

from autocompress.measure import quality
from autocompress.measure.objectives import Subject, objective

# Length of a recommended list; the names of the objectives contain it.
LIST_LENGTH = 10


def area_under_curve(logits: Tensor, targets: Tensor) -> float:
    """Return the share of pairs of a positive and a negative example in the right order; a tie is half a pair.

    Of two classes, class 1 is positive. With more, each class is compared with the rest, and the mean is over the
    classes that occur.

    Args:
        logits: Outputs of the model, ``[N, C]``.
        targets: Class of each example, ``[N]``.

    Raises:
        TrialError: Logits and targets do not fit.

    Example:
        >>> area_under_curve(torch.tensor([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0]]), torch.tensor([0, 1, 1]))
        1.0
    """
    if not _is_finite(logits, targets):
        return math.nan
    # Imported here: it takes a while, and only this score needs it.
    from sklearn.metrics import roc_auc_score

    present = targets.unique()
    if len(present) < 2:
        return math.nan
    if logits.shape[1] == 2:
        # The difference of the logits orders examples as the probability of class 1 does, and does not saturate.
        scores = {1: (logits[:, 1].double() - logits[:, 0].double())}
    else:
        shares = logits.double().softmax(1)
        scores = {int(number): shares[:, number] for number in present}
    return fmean(float(roc_auc_score((targets == number).numpy(), score.numpy())) for number, score in scores.items())


def ndcg(logits: Tensor, targets: Tensor, top: int = LIST_LENGTH) -> float:
    """Return the mean of ``1 / log2(1 + rank)`` of the true candidate, 0 where its rank is beyond ``top``.

    With one true candidate the ideal gain is 1, so this is the normalized discounted cumulative gain (Jarvelin and
    Kekalainen 2002).

    Args:
        logits: Score of each candidate, ``[N, K]``.
        targets: Index of the true candidate, ``[N]``.
        top: Length of the list.

    Raises:
        TrialError: Scores and indices do not fit.

    Example:
        >>> ndcg(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([0]))
        1.0
    """
    return _mean_gain(logits, targets, 1 / torch.arange(2, top + 2, dtype=torch.float64).log2())


def hit_rate(logits: Tensor, targets: Tensor, top: int = LIST_LENGTH) -> float:
    """Return the share of lists whose true candidate is among the ``top`` highest.

    Args:
        logits: Score of each candidate, ``[N, K]``.
        targets: Index of the true candidate, ``[N]``.
        top: Length of the list.

    Raises:
        TrialError: Scores and indices do not fit.

    Example:
        >>> hit_rate(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([2]), top=2)
        0.0
    """
    return _mean_gain(logits, targets, torch.ones(top, dtype=torch.float64))


@objective("auc", "maximize", "score", reads="classes")
def auc(subject: Subject) -> float:
    """Area under the ROC curve: share of pairs of a click and a non-click that are in the right order."""
    return subject.mean_over_heads(area_under_curve, "auc")


@objective("log_loss", "minimize", "score", unit="nats", reads="classes")
def log_loss(subject: Subject) -> float:
    """Mean negative log-likelihood of the true class."""
    return subject.remove_thresholds().mean_over_heads(quality.cross_entropy, "auc")


@objective("ndcg_at_10", "maximize", "score", reads="classes")
def ndcg_at_10(subject: Subject) -> float:
    """Normalized discounted cumulative gain of the ten highest candidates."""
    return subject.mean_over_heads(ndcg, "ndcg_at_10")


@objective("hit_rate_at_10", "maximize", "score", reads="classes")
def hit_rate_at_10(subject: Subject) -> float:
    """Share of lists whose true item is among the ten highest candidates."""
    return subject.mean_over_heads(hit_rate, "ndcg_at_10")


def _is_finite(logits: Tensor, targets: Tensor) -> bool:
    """Return whether the logits are finite.

    Raises:
        TrialError: There is no example, or logits and targets do not fit.
    """
    # Accuracy is NaN by this rule and by no other.
    return not math.isnan(quality.accuracy(logits, targets))


def gain_of_examples(logits: Tensor, targets: Tensor, gains: Tensor) -> Tensor:
    """Return the gain of the true candidate's rank of each example, ``[N]``, a mean over all orders of tied candidates.

    Args:
        logits: Score of each candidate, ``[N, K]``.
        targets: Index of the true candidate, ``[N]``.
        gains: Gain of each rank, from the first.
    """
    own = logits.gather(1, targets[:, None])
    above = (logits > own).sum(1)
    tied = (logits == own).sum(1)
    sums = torch.cat([gains.new_zeros(1), gains.cumsum(0)])
    # Ranks beyond the list gain nothing, so its end bounds the first and the last rank that tied candidates share.
    last = len(gains)
    reached = sums[(above + tied).clamp(max=last)] - sums[above.clamp(max=last)]
    return reached / tied


def _mean_gain(logits: Tensor, targets: Tensor, gains: Tensor) -> float:
    return float(gain_of_examples(logits, targets, gains).mean()) if _is_finite(logits, targets) else math.nan
