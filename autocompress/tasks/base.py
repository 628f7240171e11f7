"""Base class of tasks with labelled examples, and disjoint, stratified splits of their data."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.core.config import Part
from autocompress.core.task import InputSpec, Logits, Split, Splits, Targets
from autocompress.errors import UsageError
from autocompress.models.base import build_family_model

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


# Scores of classification heads; the first one is the primary metric.
METRICS = ("accuracy", "f1_macro", "loss", "kl", "agreement", "retention")
# Ratio of the largest class to the smallest above which accuracy alone is misleading.
IMBALANCE_RATIO = 10


class Supervised:
    """Base class of tasks: a subclass defines ``name``, ``inputs``, ``heads``, ``splits`` and ``teacher``."""

    name: str
    inputs: tuple[InputSpec, ...]
    heads: Mapping[str, int]
    labels: Mapping[str, Sequence[str]] = {}
    metrics: tuple[str, ...] = METRICS
    views: int = 1

    @property
    def identity_options(self) -> Mapping[str, str]:
        """Options in addition to the constructor's that identify the task; none by default."""
        return {}

    @property
    def preprocessing(self) -> str:
        """One sentence on how a raw example becomes the model's inputs, for users who deploy it; empty by default."""
        return ""

    @property
    def notices(self) -> Sequence[str]:
        """Remarks on the data for readers of the results, such as imbalanced classes."""
        return ()

    @property
    def has_distinct_inputs(self) -> bool:
        """Whether different examples have different inputs: equal inputs in two splits are then a leak; True here."""
        return True

    def resampling_groups(self, split: Split) -> Tensor | None:
        """Return the group of each example, ``[N]``, such as its user; None where all examples are independent.

        Confidence bounds draw whole groups.
        """
        return None

    def view(self, split: Split, index: int) -> Split:
        """Return the split itself; tasks without augmentation have one view."""
        return split

    def example(self) -> tuple[Tensor, ...]:
        """Return a batch of one example of zeros."""
        return tuple(spec.make_zeros() for spec in self.inputs)

    def build(self, student: Part) -> nn.Module:
        """Return an untrained model of a registered family that takes the task's inputs."""
        return build_family_model(student, self.inputs, self.heads)

    def loss(self, logits: Logits, targets: Targets) -> Tensor:
        """Return the cross-entropy averaged over examples and heads, a scalar ``[]``."""
        # All heads have the same weight.
        return torch.stack([F.cross_entropy(logits[head], targets[head]) for head in logits]).mean()


def check_positive(option: str, value: int) -> int:
    """Return the value of an option that counts something.

    Raises:
        UsageError: The value is not a whole number of at least 1.
    """
    # bool is a subclass of int, and YAML reads "yes" as True.
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"task.{option} is {value!r}; give a whole number of at least 1")
    return value


def sort_classes(names: Iterable[str]) -> list[str]:
    """Return class names in order: by value if all of them are numbers, otherwise alphabetically.

    Example:
        >>> sort_classes({"10", "9"}), sort_classes({"b", "a"})
        (['9', '10'], ['a', 'b'])
    """
    # Sorted as text first, so that equal numbers such as "1" and "1.0" have one order on every run.
    names = sorted(names)
    try:
        return sorted(names, key=float)
    except ValueError:
        return names


def describe_imbalance(counts: Mapping[str, int], what: str = "class") -> str:
    """Return a notice if the largest class has at least ten times the examples of the smallest, else an empty text.

    Example:
        >>> describe_imbalance({"cat": 50, "dog": 4})
        "class 'cat' has 50 examples and 'dog' has 4; compare f1_macro with accuracy"
    """
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] < IMBALANCE_RATIO * counts[least]:
        return ""
    return (
        f"{what} '{most}' has {counts[most]:,} examples and '{least}' has {counts[least]:,}; "
        "compare f1_macro with accuracy"
    )
