"""Boxes of a detector: what its maps mean, which cells learn a box, and which boxes overlap.

The outputs of a detector are maps of a grid, ``[B, C + 5, h, w]``. A cell has a logit for each of C classes, the logit
of the intersection over union (IoU) that its box will have, the offset of the box's center from the center of the cell,
x and y, and its width and height before a softplus, all in cells. It is the grid without anchors of FCOS (Tian et al.
2019, arXiv:1904.01355), with centers and sizes instead of four distances: a box that is smaller than a cell need not
hold the center of the cell.

Boxes are ``x1, y1, x2, y2`` as shares of the image's width and height, whatever its size. A box of the targets has its
class in front, ``[B, M, 5]``; rows that are filled up have the class ``NO_BOX``. ``pipeline.py`` decodes maps in the
same way with numpy.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

#: Outputs of a cell besides its classes.
BOX_OUTPUTS = 5
#: Class of a row without a box.
NO_BOX = -1.0
#: Largest number of boxes of an image, and of those that are compared before.
MOST_BOXES, MOST_COMPARED = 100, 300
#: IoU of two boxes of one class above which the one with the lower score is removed.
OVERLAP = 0.5
# Cells this near to the center of a box, in cells along both axes, learn it, as in FCOS with center sampling.
RADIUS = 1.5


def measure_iou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the IoU of pairs of boxes, ``[..., 4]`` to ``[...]``, and their generalized IoU.

    The generalized IoU is that of Rezatofighi et al. 2019 (arXiv:1902.09630).

    Example:
        >>> measure_iou(torch.tensor([0.0, 0.0, 0.5, 1.0]), torch.tensor([0.0, 0.0, 1.0, 1.0]))[0]
        tensor(0.5000)
    """
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    inner = (high - low).clamp(min=0).prod(-1)
    union = measure_area(first) + measure_area(second) - inner
    outer_low = torch.minimum(first[..., :2], second[..., :2])
    outer = (torch.maximum(first[..., 2:], second[..., 2:]) - outer_low).clamp(min=0).prod(-1)
    # Two boxes without an area would divide by 0.
    iou = inner / union.clamp(min=1e-12)
    return iou, iou - (outer - union) / outer.clamp(min=1e-12)


def measure_area(boxes: Tensor) -> Tensor:
    """Return the area of boxes ``[..., 4]``, ``[...]``; 0 for a box whose corners are reversed."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def decode_boxes(maps: Tensor) -> Tensor:
    """Return the box of each cell, ``[B, h w, 4]``, from the last four maps of a detector, ``[B, ..., h, w]``."""
    height, width = maps.shape[2:]
    rows = torch.arange(height, device=maps.device, dtype=maps.dtype) + 0.5
    columns = torch.arange(width, device=maps.device, dtype=maps.dtype) + 0.5
    centers = torch.stack([maps[:, -4] + columns, maps[:, -3] + rows[:, None]], -1)
    halves = F.softplus(maps[:, -2:]).movedim(1, -1) / 2
    grid = maps.new_tensor([width, height])
    return torch.cat([(centers - halves) / grid, (centers + halves) / grid], -1).flatten(1, 2)


def assign_boxes(targets: Tensor, height: int, width: int) -> Tensor:
    """Return the number of the box that each cell learns, ``[B, h w]``; -1 for the background.

    A cell learns a box if its center lies in the box and near the box's center, or if it holds the box's center; of
    several boxes it learns the smallest.

    Args:
        targets: Classes and boxes, ``[B, M, 5]``.
        height: Rows of the grid.
        width: Columns of the grid.
    """
    grid = targets.new_tensor([width, height])
    low, high = targets[:, None, :, 1:3] * grid, targets[:, None, :, 3:5] * grid
    rows = torch.arange(height, device=targets.device, dtype=targets.dtype).repeat_interleave(width)
    columns = torch.arange(width, device=targets.device, dtype=targets.dtype).repeat(height)
    cells = torch.stack([columns, rows], -1)[None, :, None]
    middle = (low + high) / 2
    is_inside = ((cells + 0.5 > low) & (cells + 0.5 < high)).all(-1)
    is_near = ((cells + 0.5 - middle).abs() < RADIUS).all(-1)
    # A center on the last edge lies in the last cell.
    holds_center = (torch.minimum(middle.floor(), grid - 1) == cells).all(-1)
    is_learned = ((is_inside & is_near) | holds_center) & (targets[:, None, :, 0] != NO_BOX)
    area = torch.where(is_learned, measure_area(targets[:, None, :, 1:]), torch.inf)
    if not targets.shape[1]:
        return torch.full(area.shape[:2], -1, device=targets.device)
    smallest, index = area.min(2)
    return torch.where(smallest < torch.inf, index, -1)


def score_cells(maps: Tensor) -> Tensor:
    """Return the score of each cell, ``[B, h, w]``.

    It is the root of the largest probability of a class times the predicted IoU.
    """
    return (maps[:, :-BOX_OUTPUTS].amax(1).sigmoid() * maps[:, -BOX_OUTPUTS].sigmoid()).sqrt()


def select_boxes(maps: Tensor, least: float, most: int = MOST_BOXES) -> Tensor:
    """Return class, score and box of the objects of each image, best first, ``[B, K, 6]``.

    Each cell has the class with the largest logit. Its score is the root of the class's probability times the predicted
    IoU. A box is removed if one of its class with a higher score overlaps it by more than ``OVERLAP``. Images with
    fewer than K boxes are filled up with the class ``NO_BOX`` and the score 0.

    Args:
        maps: Outputs of a detector, ``[B, C + 5, h, w]``.
        least: Smallest score.
        most: Largest number of boxes of an image.
    """
    # Blocks bound the memory of all pairs of boxes.
    parts = [_select_block(block, least, most) for block in maps.detach().float().split(64)]
    count = max([1, *(part.shape[1] for part in parts)])
    if not parts:
        return maps.new_zeros(0, 1, 6)
    return torch.cat([_fill_rows(part, count) for part in parts])


def _select_block(maps: Tensor, least: float, most: int) -> Tensor:
    classes, scores = maps[:, :-BOX_OUTPUTS].flatten(2).argmax(1), score_cells(maps).flatten(1)
    # NaN is no score.
    scores = torch.where(scores >= least, scores, 0.0)
    count = min(MOST_COMPARED, int((scores > 0).sum(1).max()))
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    rows = torch.arange(len(maps), device=maps.device)[:, None]
    scores, classes, boxes = scores[rows, order], classes[rows, order], decode_boxes(maps)[rows, order]
    iou = measure_iou(boxes[:, :, None], boxes[:, None])[0]
    rivals = (iou > OVERLAP) & (classes[:, :, None] == classes[:, None])
    is_kept = scores > 0
    for number in range(count):
        # A box that was removed removes no other one.
        is_kept[:, number + 1 :] &= ~(rivals[:, number, number + 1 :] & is_kept[:, number, None])
    objects = torch.cat([classes[..., None].float(), scores[..., None], boxes.clamp(0, 1)], -1)
    objects = torch.where(is_kept[..., None], objects, _empty_row(objects))
    # Kept boxes first, in the order of their scores.
    front = is_kept.int().argsort(dim=1, descending=True, stable=True)
    return objects[rows, front][:, : min(most, int(is_kept.sum(1).max()))]


def _fill_rows(boxes: Tensor, count: int) -> Tensor:
    filled = _empty_row(boxes).expand(len(boxes), count, -1).clone()
    filled[:, : boxes.shape[1]] = boxes
    return filled


def _empty_row(like: Tensor) -> Tensor:
    return like.new_tensor([NO_BOX, 0, 0, 0, 0, 0])


def pad_boxes(boxes: Sequence[Tensor], count: int) -> Tensor:
    """Return boxes of images ``[m, 5]`` as one tensor ``[N, count, 5]``, filled up with the class ``NO_BOX``."""
    padded = torch.zeros(len(boxes), count, 5)
    padded[:, :, 0] = NO_BOX
    for row, own in zip(padded, boxes, strict=True):
        row[: len(own)] = own
    return padded


def compare_boxes(objects: Tensor, expected: Tensor, least: float) -> float:
    """Return the share of the boxes of both with a counterpart in the other: the class and the corners agree.

    Args:
        objects: Boxes of :func:`select_boxes`, ``[N, K, 6]``.
        expected: Boxes that they are compared with, ``[N, L, 6]``.
        least: Smallest score of a box that needs a counterpart, which may have half of it: a rounding near the smallest
            score is no difference.
    """
    iou = measure_iou(objects[:, :, None, 2:], expected[:, None, :, 2:])[0]
    alike = (objects[:, :, None, 0] == expected[:, None, :, 0]) & (iou > 0.8)
    ours, theirs = objects[..., 1] >= least, expected[..., 1] >= least
    hits = (alike.any(2) & ours).sum() + (alike.any(1) & theirs).sum()
    total = ours.sum() + theirs.sum()
    return float(hits / total) if total else 1.0
