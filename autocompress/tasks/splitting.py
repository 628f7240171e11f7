"""Disjoint, stratified parts of a table of examples."""

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

# With more examples a validation score gains less than the training loses: at 2,500, its error is below a point.
LARGEST: Mapping[str, int] = MappingProxyType({"select_val": 2500, "search_val": 2500, "calibration": 1000})

Rows = NDArray[np.int64]


def stratified_splits(
    inputs: tuple[Tensor, ...],
    targets: Mapping[str, Tensor],
    seed: int,
    fractions: Mapping[str, float] = FRACTIONS,
) -> Splits:
    """Split examples so that every part holds each class of the first head in proportion.

    Args:
        inputs: Positional arguments of the model, axis 0 the examples.
        targets: Head name to class indices ``[N]``; the first head is stratified.
        seed: The same seed gives the same splits.
        fractions: Share of the examples for each split but ``train``, which takes the rest.

    Raises:
        UsageError: A class has fewer than five examples, or there is only one class.
    """
    parts = stratified_rows(next(iter(targets.values())), seed, fractions)
    whole = Split(inputs, targets)
    return Splits(**{name: whole.take(rows) for name, rows in parts.items()})


def five_splits(parts: Mapping[str, Split], seed: int, names: Sequence[str] | None = None) -> Splits:
    """Return five splits: parts that are given, such as ``test``, as they are, and the others out of ``train``.

    Args:
        parts: ``train`` and what else is given, by the name of its split; the first head of ``train`` is stratified.
        seed: The same seed gives the same splits.
        names: The classes' names, for the message.

    Raises:
        UsageError: A class has fewer examples than there are parts to make, or there is only one class.
    """
    train = parts["train"]
    fractions = {name: share for name, share in FRACTIONS.items() if name not in parts}
    rows = stratified_rows(next(iter(train.targets.values())), seed, fractions, names)
    made = {name: train.take(torch.from_numpy(index)) for name, index in rows.items()}
    return Splits(**{**made, **{name: part for name, part in parts.items() if name != "train"}})


def stratified_rows(
    labels: Tensor, seed: int, fractions: Mapping[str, float] = FRACTIONS, names: Sequence[str] | None = None
) -> dict[str, Rows]:
    """Return the row numbers of each part, in rising order, and of what is left as ``train``.

    Args:
        labels: Class indices ``[N]``.
        seed: The same seed gives the same rows.
        fractions: Share of the examples for each part; validation and calibration have a largest size too.
        names: The classes' names, for the message.

    Raises:
        UsageError: A class has fewer examples than there are parts, or there is only one class.
    """
    strata = labels.numpy()
    classes, counts = np.unique(strata, return_counts=True)
    if len(classes) < 2:
        raise UsageError("the targets hold a single class; a task needs at least two")
    if counts.min() < len(fractions) + 1:
        rarest = int(classes[counts.argmin()])
        name = f"'{names[rarest]}'" if names else rarest
        raise UsageError(
            f"class {name} has {counts.min()} examples; "
            f"{len(fractions) + 1} disjoint splits need at least one of each class"
        )
    parts: dict[str, Rows] = {}
    rest = np.arange(len(strata))
    for number, (name, fraction) in enumerate(fractions.items()):
        size = max(min(round(fraction * len(strata)), LARGEST.get(name, len(strata))), len(classes))
        rest, parts[name] = train_test_split(rest, test_size=size, random_state=seed + number, stratify=strata[rest])
    parts["train"] = rest
    return {name: np.sort(rows) for name, rows in parts.items()}
