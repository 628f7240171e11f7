"""Baselines of recommenders: popularity, neighbours of items, and biases of users and items."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from autocompress.baselines.base import Predictor
from autocompress.core.heads import IGNORED, Head, as_head
from autocompress.core.registry import BASELINES
from autocompress.core.task import Split, Task

# Number of ratings after which a bias counts half: few ratings say little of a user or an item.
_DAMPING = 10.0
# Examples scored at once, each with one number for every item.
_BLOCK = 512
# With fewer users in common, a cosine is mostly chance.
_SHRINKAGE = 10.0


@BASELINES.register("popularity")
def fit_popularity(task: Task, train: Split) -> Predictor | None:
    """Popularity: candidate items by their number of interactions in the training split."""
    names = _list_candidate_heads(task)
    if not names:
        return None
    scores = {name: torch.from_numpy(_count_interactions(task, train, name).sum(0).A1).float() for name in names}

    def predict(split: Split) -> dict[str, Tensor]:
        candidates = _join_candidates(split)
        return {name: scores[name][candidates].log1p() for name in names}

    return predict


@BASELINES.register("item_knn")
def fit_item_neighbours(task: Task, train: Split) -> Predictor | None:
    """Item neighbours: candidate items by their cosine to the user's items (Sarwar et al. 2001)."""
    names = _list_candidate_heads(task)
    if not names:
        return None
    counts = {name: _count_interactions(task, train, name) for name in names}

    def predict(split: Split) -> dict[str, Tensor]:
        users, candidates = split.inputs[0].numpy(), _join_candidates(split).numpy()
        return {name: torch.from_numpy(_score_neighbours(counts[name], users, candidates)) for name in names}

    return predict


@BASELINES.register("biases")
def fit_biases(task: Task, train: Split) -> Predictor | None:
    """Biases: the mean rating, and a damped deviation from it for each user and each item (Koren 2008)."""
    names = [name for name, size in task.heads.items() if _has_levels(as_head(size))] if _has_ids(task) else []
    if not names:
        return None
    fitted = {name: _fit_deviations(as_head(task.heads[name]), train, name) for name in names}

    def predict(split: Split) -> dict[str, Tensor]:
        return {
            name: _as_level_logits(as_head(task.heads[name]), fitted[name](split.inputs[0], split.inputs[1]))
            for name in names
        }

    return predict


def _has_ids(task: Task) -> bool:
    """Return whether the first two inputs are ids, of a user and of one or several items."""
    return (
        len(task.inputs) >= 2
        and task.inputs[0].vocabulary > 0
        and task.inputs[0].shape == ()
        and task.inputs[1].vocabulary > 0
        and len(task.inputs[1].shape) <= 1
    )


def _has_levels(head: Head) -> bool:
    """Return whether a head predicts a rating, or a click as two classes."""
    return head.kind == "levels" or (head.kind == "classes" and int(head) == 2)


def _list_candidate_heads(task: Task) -> list[str]:
    """Return the heads that rank the items of the inputs behind the first, which is the user."""
    if not _has_ids(task):
        return []
    items = sum(int(np.prod(spec.shape)) for spec in task.inputs[1:] if spec.vocabulary)
    return [name for name, size in task.heads.items() if as_head(size).kind == "candidates" and int(size) == items]


def _join_candidates(split: Split) -> Tensor:
    """Return the items of each list, ``[N, K]``: a single item comes before the list of others."""
    lists = [items for items in split.inputs[1:] if not items.is_floating_point()]
    return torch.cat([items.reshape(len(items), -1) for items in lists], 1)


def _count_interactions(task: Task, train: Split, name: str) -> sparse.csr_matrix:
    """Return a matrix of users by items with 1 for each interaction of the training split."""
    positions = train.targets[name]
    labelled = positions != IGNORED
    items = _join_candidates(train)[labelled].gather(1, positions[labelled, None])[:, 0].numpy()
    users = train.inputs[0][labelled].numpy()
    shape = task.inputs[0].vocabulary, max(spec.vocabulary for spec in task.inputs[1:])
    counts = sparse.csr_matrix((np.ones(len(users), np.float32), (users, items)), shape=shape)
    counts.data[:] = 1.0
    return counts


def _score_neighbours(
    counts: sparse.csr_matrix, users: NDArray[np.int64], candidates: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the sum of cosines of each candidate to the items of its user, ``[N, K]``."""
    norms = np.sqrt(counts.sum(0).A1)
    scaled = counts.multiply(1 / (norms + _SHRINKAGE)).tocsr()
    columns = scaled.T.tocsr()
    scores = np.zeros(candidates.shape, np.float32)
    for start in range(0, len(users), _BLOCK):
        rows = slice(start, start + _BLOCK)
        # A user's items, then the other users of these items, then the items of those users.
        similar = np.asarray(((scaled[users[rows]] @ columns) @ scaled).todense())
        scores[rows] = np.take_along_axis(similar, candidates[rows], 1)
    return scores


def _fit_deviations(head: Head, train: Split, name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function of users and items that predicts a value: items are fitted first, then users."""
    labels = train.targets[name]
    labelled = labels != IGNORED
    values = _list_levels(head)[labels[labelled]]
    users, items = (ids[labelled].reshape(-1) for ids in train.inputs[:2])
    mean = values.mean()
    of_item = _average_by_id(items, values - mean)
    of_user = _average_by_id(users, values - mean - of_item[items])

    def predict(users: Tensor, items: Tensor) -> Tensor:
        sides = (_look_up(of_user, users.reshape(-1)), _look_up(of_item, items.reshape(-1)))
        return mean + sides[0] + sides[1]

    return predict


def _average_by_id(ids: Tensor, values: Tensor) -> Tensor:
    sums = torch.bincount(ids, values.double())
    return sums / (torch.bincount(ids) + _DAMPING)


def _look_up(table: Tensor, ids: Tensor) -> Tensor:
    """Return the value of each id; 0 for those that the training split does not have."""
    return torch.where(ids < len(table), table[ids.clamp(max=len(table) - 1)], 0.0)


def _list_levels(head: Head) -> Tensor:
    levels = getattr(head, "levels", None) or range(int(head))
    return torch.tensor([float(level) for level in levels], dtype=torch.float64)


def _as_level_logits(head: Head, values: Tensor) -> Tensor:
    """Return logits whose softmax is a mixture of the two nearest levels, so that its mean is the value, ``[N, C]``."""
    levels = _list_levels(head)
    values = values.clamp(levels[0], levels[-1])
    above = torch.searchsorted(levels, values).clamp(1, len(levels) - 1)
    low, high = levels[above - 1], levels[above]
    share = ((values - low) / (high - low)).clamp(1e-6, 1 - 1e-6)
    logits = torch.full((len(values), len(levels)), -30.0, dtype=torch.float64)
    logits.scatter_(1, (above - 1)[:, None], (1 - share).log()[:, None])
    logits.scatter_(1, above[:, None], share.log()[:, None])
    return logits.float()
