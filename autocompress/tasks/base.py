"""Base class of tasks with labelled examples, a mean cross-entropy and models of the registered families."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.core.config import Part
from autocompress.core.task import InputSpec, Logits, Split, Targets
from autocompress.errors import UsageError
from autocompress.models.base import build_family_model

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
