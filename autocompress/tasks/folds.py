"""Folds for cross-fitting: each example outside of the test split is held out once."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold
from torch import Tensor

from autocompress.core.heads import as_head
from autocompress.core.task import ExampleKeys, Split, Splits, Task
from autocompress.errors import UsageError
from autocompress.tasks.mapped_arrays import FileSplit
from autocompress.tasks.targets import make_strata

# Splits whose examples are divided into folds. The test split stays as it is, and is read once.
DIVIDED = ("train", "calibration", "search_val", "select_val")


def make_fold(task: Task, splits: Splits, index: int, count: int, seed: int) -> Splits:
    """Return the splits of one fold: the held-out examples are ``select_val``, and the others the first three splits.

    ``calibration`` and ``search_val`` keep their sizes, so that a model of a fold learns from about as many examples as
    one of the search. Groups stay whole; otherwise the classes of the first head keep their proportions.

    Args:
        task: The task of the splits.
        splits: The five splits of the search.
        index: Number of the fold, from 0.
        count: Number of folds.
        seed: Seed of the division.

    Raises:
        UsageError: There are fewer groups than folds.
    """
    whole = join_splits([getattr(splits, name) for name in DIVIDED])
    fold_of_row = _assign_folds(task, whole, count, seed)
    held_out, rest = (torch.from_numpy(np.flatnonzero(mask)) for mask in (fold_of_row == index, fold_of_row != index))
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed * count + index))
    sizes = [len(splits.calibration), len(splits.search_val)]
    calibration, search_val, train = rest[order].split([*sizes, len(rest) - sum(sizes)])
    # Ascending rows keep the order of the data, which a fit without shuffling would see.
    parts = {"train": train, "calibration": calibration, "search_val": search_val, "select_val": held_out}
    return replace(splits, **{name: whole.select(rows.sort().values) for name, rows in parts.items()})


def join_splits(parts: list[Split]) -> Split:
    """Return the examples of several splits as one: in memory, or with the inputs of one file, which stay there."""
    # Contents were compared before, and times have no folds.
    keys = ExampleKeys(
        groups=_join_keys([part.keys.groups for part in parts]), rows=_join_keys([part.keys.rows for part in parts])
    )
    files = [part for part in parts if isinstance(part, FileSplit)]
    if len(files) == len(parts) and all(part.columns == files[0].columns for part in files):
        labels = {head: torch.cat([part.targets[head] for part in files]) for head in files[0].targets}
        return FileSplit(files[0].columns, torch.cat([part.rows for part in files]), labels, keys)
    # A split that makes its examples when they are taken, such as one of images, becomes a plain one.
    taken = [part.take(slice(None)) for part in parts]
    inputs = tuple(torch.cat(tensors) for tensors in zip(*(part.inputs for part in taken), strict=True))
    targets = {head: torch.cat([part.targets[head] for part in taken]) for head in taken[0].targets}
    return Split(inputs, targets, keys)


def _join_keys(parts: Sequence[Tensor | None]) -> Tensor | None:
    tensors = [values for values in parts if values is not None]
    return torch.cat(tensors) if len(tensors) == len(parts) else None


def _assign_folds(task: Task, whole: Split, count: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each example, ``[N]``."""
    head = next(iter(task.heads))
    strata = make_strata(as_head(task.heads[head]), whole.targets[head])
    classes = np.zeros(len(whole), np.int64) if strata is None else strata.numpy()
    # A class with fewer examples than folds cannot be in all of them.
    if np.unique(classes, return_counts=True)[1].min() < count:
        classes = np.zeros_like(classes)
    divider: StratifiedGroupKFold | StratifiedKFold | KFold
    groups = whole.keys.groups
    if groups is not None:
        if (present := len(groups.unique())) < count:
            raise UsageError(f"{present} groups outside of the test split cannot be in {count} folds; give fewer folds")
        divider = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    elif classes.any():
        divider = StratifiedKFold(count, shuffle=True, random_state=seed)
    else:
        divider = KFold(count, shuffle=True, random_state=seed)
    fold_of_row = np.full(len(whole), -1)
    rows = np.zeros(len(whole))
    for number, (_, held_out) in enumerate(divider.split(rows, classes, None if groups is None else groups.numpy())):
        fold_of_row[held_out] = number
    return fold_of_row
