"""Five disjoint, stratified splits of a table of examples."""

from collections.abc import Mapping

import numpy as np
from sklearn.model_selection import train_test_split
from torch import Tensor

from autocompress.errors import UsageError
from autocompress.task import Split, Splits

FRACTIONS: Mapping[str, float] = {"test": 0.20, "select_val": 0.12, "search_val": 0.12, "calibration": 0.04}


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
    strata = next(iter(targets.values())).numpy()
    classes, counts = np.unique(strata, return_counts=True)
    if len(classes) < 2:
        raise UsageError("the targets hold a single class; a task needs at least two")
    if counts.min() < len(Splits.NAMES):
        raise UsageError(f"class {classes[counts.argmin()]} has {counts.min()} examples; five splits need five of each")
    parts: dict[str, np.ndarray] = {}
    rest = np.arange(len(strata))
    for number, (name, fraction) in enumerate(fractions.items()):
        size = max(round(fraction * len(strata)), len(classes))
        rest, parts[name] = train_test_split(rest, test_size=size, random_state=seed + number, stratify=strata[rest])
    parts["train"] = rest
    whole = Split(inputs, targets)
    return Splits(**{name: whole.take(np.sort(index)) for name, index in parts.items()})
