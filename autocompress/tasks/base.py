"""Base class of tasks with labelled examples, and disjoint, stratified splits of their data."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from autocompress.core.config import Part
from autocompress.core.heads import IGNORED, Head, as_head, average_losses
from autocompress.core.preprocessing import Preprocessing, RawExample
from autocompress.core.task import InputSpec, Logits, Split, Splits, Targets
from autocompress.errors import UsageError
from autocompress.models.base import build_family_model
from autocompress.tasks.split_rows import (
    FRACTIONS as FRACTIONS,
    MAX_SIZES as MAX_SIZES,
    Rows,
    choose_shares,
    choose_sizes,
    divide_by_keys,
    draw_rows,
)


def stratify_examples(
    inputs: tuple[Tensor, ...],
    targets: Mapping[str, Tensor],
    seed: int,
    fractions: Mapping[str, float] | None = None,
) -> Splits:
    """Return five splits stratified by the classes of the first head.

    Args:
        inputs: Positional arguments of the model, with the examples on axis 0.
        targets: Head name to class indices ``[N]``; the splits are stratified by the first head.
        seed: Seed of the splits.
        fractions: Share of the examples for each split except ``train``, which receives the rest; by default those of
            :func:`~autocompress.tasks.split_rows.choose_shares`.

    Raises:
        UsageError: A class has fewer than five examples, or the data has only one class.
    """
    parts = stratify_rows(next(iter(targets.values())), seed, fractions)
    whole = Split(inputs, targets)
    return Splits(**{name: whole.take(rows) for name, rows in parts.items()})


def complete_splits(
    parts: Mapping[str, Split], seed: int, names: Sequence[str] | None = None, strata: Tensor | None = None
) -> Splits:
    """Return five splits: the given parts, such as ``test``, and the others taken out of ``train``.

    Args:
        parts: Part to examples: ``train``, which is stratified by its first head, and optionally other splits, or
            ``val``, which is halved into both validation splits.
        seed: Seed of the splits.
        names: Names of the classes, for messages.
        strata: Group of each example of ``train``, ``[N]``; by default the classes of the first head.

    Raises:
        UsageError: A class has fewer examples than parts are needed, or the data has only one class.
    """
    train = parts["train"]
    strata = next(iter(train.targets.values())) if strata is None else strata
    return _take_rows(parts, _divide_part(parts, seed, strata, names), seed)


def split_randomly(parts: Mapping[str, Split], seed: int) -> Splits:
    """Return five splits: the given parts, and the others taken out of ``train`` at random.

    Examples with groups or times are divided by them.

    Args:
        parts: Part to examples: ``train``, and optionally other splits, or ``val`` for both validation splits.
        seed: Seed of the splits.

    Raises:
        UsageError: There are too few examples.
    """
    return _take_rows(parts, _divide_part(parts, seed, None), seed)


def locate_test_rows(
    parts: Mapping[str, Split], seed: int, strata: Tensor | None = None, *, at_random: bool = False
) -> tuple[str, Rows]:
    """Return the part that holds the test split, and the rows of the split there.

    Args:
        parts: Split name to examples, as :func:`complete_splits` takes them.
        seed: Seed of the splits.
        strata: Group of each example of ``train``, ``[N]``; by default the classes of the first head.
        at_random: Whether the splits are those of :func:`split_randomly`.
    """
    if "test" in parts:
        return "test", np.arange(len(parts["test"]))
    if strata is None and not at_random:
        strata = next(iter(parts["train"].targets.values()))
    return "train", _divide_part(parts, seed, strata)["test"]


def _divide_part(
    parts: Mapping[str, Split], seed: int, strata: Tensor | None, names: Sequence[str] | None = None
) -> dict[str, Rows]:
    """Return the rows of ``train`` that belong to each missing split: by keys, by class, or at random."""
    train = parts["train"]
    shares = choose_shares(len(train), list(parts))
    by_keys = divide_by_keys(train.keys, seed, shares, strata)
    if by_keys is not None:
        return by_keys
    return draw_rows(len(train), seed, shares) if strata is None else stratify_rows(strata, seed, shares, names)


def _take_rows(parts: Mapping[str, Split], rows: Mapping[str, Rows], seed: int) -> Splits:
    splits = {name: part for name, part in parts.items() if name not in ("train", "val")}
    splits |= {name: parts["train"].select(torch.from_numpy(index)) for name, index in rows.items()}
    if (val := parts.get("val")) is not None:
        shares = {"select_val": 0.5}
        halves = divide_by_keys(val.keys, seed, shares) or draw_rows(len(val), seed, shares)
        # Functions that divide call the remainder "train"; by time, the examples of the search come first.
        splits["search_val"] = val.select(torch.from_numpy(halves["train"]))
        splits["select_val"] = val.select(torch.from_numpy(halves["select_val"]))
    return Splits(**splits)


def stratify_rows(
    labels: Tensor, seed: int, fractions: Mapping[str, float] | None = None, names: Sequence[str] | None = None
) -> dict[str, Rows]:
    """Return the row numbers of each part in ascending order, with the remaining rows as ``train``.

    Args:
        labels: Class indices ``[N]``.
        seed: Seed of the splits.
        fractions: Share of the examples for each part; validation and calibration also have a maximum size. By default
            those of :func:`~autocompress.tasks.split_rows.choose_shares`.
        names: Names of the classes, for messages.

    Raises:
        UsageError: A class has fewer examples than there are parts, or the data has only one class.
    """
    strata = labels.numpy()
    fractions = choose_shares(len(strata)) if fractions is None else fractions
    classes, counts = np.unique(strata, return_counts=True)
    if len(classes) < 2:
        raise UsageError("the targets have a single class; a task needs at least two")
    if counts.min() < len(fractions) + 1:
        rarest = int(classes[counts.argmin()])
        name = f"'{names[rarest]}'" if names else rarest
        raise UsageError(
            f"class {name} has {counts.min()} example{'s' * int(counts.min() > 1)}; "
            f"{len(fractions) + 1} disjoint splits need at least one of each class"
        )
    parts: dict[str, Rows] = {}
    remaining = np.arange(len(strata))
    for number, (name, size) in enumerate(choose_sizes(len(strata), fractions).items()):
        remaining, parts[name] = train_test_split(
            # At least one example of each class, which scikit-learn's stratification requires.
            remaining,
            test_size=max(size, len(classes)),
            random_state=seed + number,
            stratify=strata[remaining],
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
    # What the section `splits` of a search space may name: "groups", "time" or both.
    split_keys: tuple[str, ...] = ()
    # Whether any examples may be held out: not where they are in order of time, or where some are attacks.
    has_folds: bool = True
    # Patterns of layer names that pruning leaves alone, and of those that stay in floating point.
    ignore: tuple[str, ...] = ()
    float_layers: tuple[str, ...] = ()

    @property
    def identity_options(self) -> Mapping[str, str]:
        """Options in addition to the constructor's that identify the task; none by default."""
        return {}

    @property
    def preprocessing(self) -> str:
        """A sentence for the card of a model whose task has no :meth:`specify_preprocessing`; empty by default."""
        return ""

    def specify_preprocessing(self, seed: int) -> Preprocessing:
        """Return how a raw example becomes each input of the model; empty by default: the model takes tensors.

        Args:
            seed: Seed of the splits, because statistics are those of the training split.
        """
        return ()

    def list_test_examples(self, seed: int) -> Sequence[RawExample]:
        """Return the raw examples of the test split of a seed, in its order; empty by default.

        The verification of an export runs them. An example is an image, a text or a series; or a mapping of names if
        the model has several inputs.
        """
        return ()

    @property
    def notices(self) -> Sequence[str]:
        """Remarks on the data for readers of the results, such as imbalanced classes."""
        return ()

    @property
    def has_distinct_inputs(self) -> bool:
        """Whether different examples have different inputs: equal inputs in two splits are then a leak; True here."""
        return True

    @property
    def has_own_loss(self) -> bool:
        """Whether the loss is another one than the mean over the losses of the heads."""
        return type(self).loss is not Supervised.loss

    def resampling_groups(self, split: Split) -> Tensor | None:
        """Return the group of each example, ``[N]``, such as its user; None where all examples are independent.

        Confidence bounds draw whole groups. By default they are those of the split's keys.
        """
        return split.keys.groups

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
        """Return the loss averaged over examples and heads, a scalar ``[]``: cross-entropy for heads of classes."""
        # All heads have the same weight.
        return average_losses([as_head(self.heads[head]).loss(logits[head], targets[head]) for head in logits])


def check_positive(option: str, value: int, least: int = 1) -> int:
    """Return the value of an option that counts something.

    Raises:
        UsageError: The value is not a whole number of at least ``least``.
    """
    # bool is a subclass of int, and YAML reads "yes" as True.
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"task.{option} is {value!r}; give a whole number of at least {least}")
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


def is_imbalanced(head: Head, targets: Sequence[Tensor]) -> bool:
    """Return whether one class of a head scored by accuracy has ten times the examples of another one that occurs.

    Args:
        head: The head; other kinds than single classes are never imbalanced.
        targets: Targets of the head on each split, ``[N]`` each.

    Example:
        >>> is_imbalanced(Head(3), [torch.tensor([0] * 30), torch.tensor([1] * 3)])
        True
    """
    if head.kind not in ("classes", "binary") or head.metric != "accuracy":
        return False
    labels = torch.cat([head.flatten_targets(part) for part in targets])
    counts = labels[labels != IGNORED].bincount()
    counts = counts[counts > 0]
    return len(counts) > 1 and int(counts.max()) >= IMBALANCE_RATIO * int(counts.min())


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
