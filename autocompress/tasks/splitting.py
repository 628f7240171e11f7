"""Disjoint, stratified splits of a data set."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import Tensor

from autocompress.core.task import Split, Splits
from autocompress.errors import UsageError

FRACTIONS: Mapping[str, float] = MappingProxyType(
    {"test": 0.20, "select_val": 0.12, "search_val": 0.12, "calibration": 0.04}
)

# Beyond these sizes, examples are worth more in training: with 2,500, the standard error of a score is below a point.
MAX_SIZES: Mapping[str, int] = MappingProxyType({"select_val": 2500, "search_val": 2500, "calibration": 1000})

Rows = NDArray[np.int64]


def stratify_examples(
    inputs: tuple[Tensor, ...],
    targets: Mapping[str, Tensor],
    seed: int,
    fractions: Mapping[str, float] = FRACTIONS,
) -> Splits:
    """Return five splits stratified by the classes of the first head.

    Args:
        inputs: Positional arguments of the model, with the examples on axis 0.
        targets: Head name to class indices ``[N]``; the splits are stratified by the first head.
        seed: Seed of the splits.
        fractions: Share of the examples for each split except ``train``, which receives the rest.

    Raises:
        UsageError: A class has fewer than five examples, or the data has only one class.
    """
    parts = stratify_rows(next(iter(targets.values())), seed, fractions)
    whole = Split(inputs, targets)
    return Splits(**{name: whole.take(rows) for name, rows in parts.items()})


def complete_splits(parts: Mapping[str, Split], seed: int, names: Sequence[str] | None = None) -> Splits:
    """Return five splits: the given parts, such as ``test``, and the others taken out of ``train``.

    Args:
        parts: Split name to examples: ``train``, which is stratified by its first head, and optionally other splits.
        seed: Seed of the splits.
        names: Names of the classes, for messages.

    Raises:
        UsageError: A class has fewer examples than parts are needed, or the data has only one class.
    """
    train = parts["train"]
    fractions = {name: share for name, share in FRACTIONS.items() if name not in parts}
    rows = stratify_rows(next(iter(train.targets.values())), seed, fractions, names)
    new_parts = {name: train.take(torch.from_numpy(index)) for name, index in rows.items()}
    return Splits(**{**new_parts, **{name: part for name, part in parts.items() if name != "train"}})


def stratify_rows(
    labels: Tensor, seed: int, fractions: Mapping[str, float] = FRACTIONS, names: Sequence[str] | None = None
) -> dict[str, Rows]:
    """Return the row numbers of each part in ascending order, with the remaining rows as ``train``.

    Args:
        labels: Class indices ``[N]``.
        seed: Seed of the splits.
        fractions: Share of the examples for each part; validation and calibration also have a maximum size.
        names: Names of the classes, for messages.

    Raises:
        UsageError: A class has fewer examples than there are parts, or the data has only one class.
    """
    strata = labels.numpy()
    classes, counts = np.unique(strata, return_counts=True)
    if len(classes) < 2:
        raise UsageError("the targets have a single class; a task needs at least two")
    if counts.min() < len(fractions) + 1:
        rarest = int(classes[counts.argmin()])
        name = f"'{names[rarest]}'" if names else rarest
        raise UsageError(
            f"class {name} has {counts.min()} examples; "
            f"{len(fractions) + 1} disjoint splits need at least one of each class"
        )
    parts: dict[str, Rows] = {}
    remaining = np.arange(len(strata))
    for number, (name, fraction) in enumerate(fractions.items()):
        # At least one example of each class, which scikit-learn's stratification requires.
        size = max(min(round(fraction * len(strata)), MAX_SIZES.get(name, len(strata))), len(classes))
        remaining, parts[name] = train_test_split(
            remaining, test_size=size, random_state=seed + number, stratify=strata[remaining]
        )
    parts["train"] = remaining
    return {name: np.sort(rows) for name, rows in parts.items()}
