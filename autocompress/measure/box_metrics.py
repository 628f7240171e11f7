"""Mean average precision of boxes, as COCO measures it.

Boxes of an image are matched in the order of their scores: each takes the true box of its class that it overlaps most
and that none has taken, if their intersection over union (IoU) reaches a threshold. The average precision of a class is
the mean over 101 recalls of the largest precision at that recall or above. ``mean_ap`` is its mean over classes and the
thresholds 0.5, 0.55 to 0.95; a class without a true box is left out. An image has at most 100 boxes, and boxes have a
score of at least 0.01. Crowds, which COCO leaves out of the count, are no boxes of a task.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from autocompress.core.boxes import NO_BOX, measure_iou, select_boxes
from autocompress.core.heads import Detection
from autocompress.errors import TrialError
from autocompress.measure.objectives import Subject, objective

THRESHOLDS = tuple(number / 100 for number in range(50, 100, 5))
LEAST_SCORE = 0.01
# Metric to its thresholds of the IoU.
OVERLAPS = {"mean_ap": THRESHOLDS, "mean_ap_50": THRESHOLDS[:1]}


@objective("mean_ap", "maximize", "score", reads="boxes")
def mean_ap(subject: Subject) -> float:
    """Mean average precision of boxes over IoU thresholds from 0.5 to 0.95 (COCO's mAP)."""
    return _score_boxes(subject, "mean_ap")


@objective("mean_ap_50", "maximize", "score", reads="boxes")
def mean_ap_50(subject: Subject) -> float:
    """Mean average precision of boxes at an IoU of 0.5."""
    return _score_boxes(subject, "mean_ap_50")


def _score_boxes(subject: Subject, metric: str) -> float:
    names = [name for name in subject.logits if isinstance(subject.head(name), Detection)]
    if not names:
        raise TrialError(f"{metric} needs a head with boxes, and the subject has {sorted(subject.logits)}")
    scores = [resample_precision(subject, name, metric, torch.ones(1, len(subject.logits[name]))) for name in names]
    return float(torch.cat(scores).mean())


def resample_precision(subject: Subject, name: str, metric: str, weights: Tensor) -> Tensor:
    """Return the mean average precision of a head for several weightings of the examples, ``[D]``.

    Args:
        subject: Outputs of a model on a split.
        name: Name of the head.
        metric: ``mean_ap`` or ``mean_ap_50``.
        weights: Count of each example in each weighting, ``[D, N]``.

    Raises:
        TrialError: The head has no targets, or maps of another shape.
    """
    head, maps, targets = subject.head(name), subject.logits[name], subject.head_targets(name)
    if not isinstance(head, Detection):
        raise TrialError(f"{metric} needs boxes, and the head '{name}' has {head.describe()}")
    head.check_maps(maps)
    if not bool(maps.isfinite().all()):
        return torch.full((len(weights),), math.nan, dtype=torch.float64)
    objects = select_boxes(maps, LEAST_SCORE)
    return mean_precision(objects, targets, int(head), OVERLAPS[metric], weights.double())


def mean_precision(
    objects: Tensor, targets: Tensor, classes: int, thresholds: Sequence[float], weights: Tensor
) -> Tensor:
    """Return the mean average precision for several weightings of the images, ``[D]``; NaN without a true box.

    Args:
        objects: Class, score and box of each predicted object, best first, ``[N, K, 6]``.
        targets: Classes and boxes, ``[N, M, 5]``.
        classes: Number of classes.
        thresholds: Thresholds of the IoU.
        weights: Count of each image in each weighting, ``[D, N]`` in double precision.

    Example:
        >>> box = [0.0, 0.0, 0.5, 0.5]
        >>> objects = torch.tensor([[[0, 0.9, *box]]])
        >>> mean_precision(objects, torch.tensor([[[0, *box]]]), 1, (0.5,), torch.ones(1, 1).double()).tolist()
        [1.0]
    """
    is_hit = match_boxes(objects, targets, thresholds)
    images = torch.arange(len(objects))[:, None].expand(objects.shape[:2])
    precisions = []
    for number in range(classes):
        positives = weights @ (targets[..., 0] == number).sum(1).double()
        own = objects[..., 0] == number
        order = objects[..., 1][own].argsort(descending=True, stable=True)
        hits, counts = is_hit.movedim(1, -1)[own][order].double(), weights[:, images[own][order]]
        of_class = torch.stack([_average_precision(hits[:, row], counts, positives) for row in range(len(thresholds))])
        precisions.append(of_class.mean(0))
    return torch.stack(precisions).nanmean(0)


def match_boxes(objects: Tensor, targets: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Return whether each predicted box is a hit at each threshold, ``[N, T, K]``; boxes are sorted by score."""
    if not targets.shape[1]:
        return torch.zeros(len(objects), len(thresholds), objects.shape[1], dtype=torch.bool)
    iou = measure_iou(objects[:, :, None, 2:], targets[:, None, :, 1:])[0]
    is_rival = (objects[:, :, None, 0] == targets[:, None, :, 0]) & (targets[:, None, :, 0] != NO_BOX)
    iou = torch.where(is_rival, iou, -1.0)
    limits = torch.tensor(thresholds)
    taken = torch.zeros(len(objects), len(thresholds), targets.shape[1], dtype=torch.bool)
    hits = []
    for number in range(objects.shape[1]):
        best, index = torch.where(taken, -1.0, iou[:, number, None]).max(2)
        is_hit = best >= limits
        taken |= torch.zeros_like(taken).scatter_(2, index[..., None], is_hit[..., None])
        hits.append(is_hit)
    return torch.stack(hits, 2)


def _average_precision(hits: Tensor, counts: Tensor, positives: Tensor) -> Tensor:
    """Return the average precision of one class at one threshold, ``[D]``.

    Args:
        hits: Flag of each box, 1 for a hit, best score first, ``[Q]``.
        counts: Count of each box in each weighting, ``[D, Q]``.
        positives: Number of true boxes, ``[D]``.
    """
    right, all_boxes = (counts * hits).cumsum(1), counts.cumsum(1)
    precision = right / all_boxes.clamp(min=1e-12)
    # The largest precision at a recall or above.
    if len(hits):
        precision = precision.flip(1).cummax(1).values.flip(1)
    recalls = torch.linspace(0, 1, 101, dtype=torch.float64).expand(len(counts), -1).contiguous()
    # 1e-9: a recall of 0.3 is not missed for the rounding of a quotient.
    position = torch.searchsorted((right / positives.clamp(min=1)[:, None] + 1e-9).contiguous(), recalls)
    # Beyond the last recall that is reached, the precision is 0.
    padded = torch.cat([precision, precision.new_zeros(len(counts), 1)], 1)
    value = padded.gather(1, position).mean(1)
    return torch.where(positives > 0, value, math.nan)
