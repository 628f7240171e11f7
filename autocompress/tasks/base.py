"""What most tasks share: labelled examples, a mean cross-entropy, models of the registered families."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.core.config import Part
from autocompress.core.task import InputSpec, Logits, Split, Targets
from autocompress.models.base import family_model

METRICS = ("accuracy", "f1_macro", "loss", "kl", "agreement", "retention")
IMBALANCE = 10


class Supervised:
    """A task that gives ``name``, ``inputs``, ``heads``, ``splits`` and ``teacher``; the rest is answered here."""

    name: str
    inputs: tuple[InputSpec, ...]
    heads: Mapping[str, int]
    labels: Mapping[str, Sequence[str]] = {}
    metrics: tuple[str, ...] = METRICS
    views: int = 1

    @property
    def pinned(self) -> Mapping[str, str]:
        """Nothing: what the constructor is given says it all."""
        return {}

    @property
    def preprocessing(self) -> str:
        """How a raw example becomes the model's inputs, in a sentence for whoever deploys it; empty if it does not."""
        return ""

    @property
    def notices(self) -> Sequence[str]:
        """What a reader of the results should know about the data."""
        return ()

    def view(self, split: Split, index: int) -> Split:
        """Return the split itself: nothing is augmented."""
        return split

    def example(self) -> tuple[Tensor, ...]:
        """Return a batch of one, all zeros."""
        return tuple(spec.zeros() for spec in self.inputs)

    def build(self, student: Part) -> nn.Module:
        """Build a model of any registered family that takes such inputs."""
        return family_model(student, self.inputs, self.heads)

    def loss(self, logits: Logits, targets: Targets) -> Tensor:
        """Return the cross-entropy, averaged over examples and heads, ``[]``."""
        return torch.stack([F.cross_entropy(logits[head], targets[head]) for head in logits]).mean()


def imbalance(counts: Mapping[str, int], what: str = "class") -> str:
    """Return a notice if the largest class has ten times the examples of the smallest, else nothing.

    Example:
        >>> imbalance({"cat": 50, "dog": 4})
        "class 'cat' has 50 examples and 'dog' has 4; look at f1_macro beside accuracy"
    """
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] < IMBALANCE * counts[least]:
        return ""
    return (
        f"{what} '{most}' has {counts[most]:,} examples and '{least}' has {counts[least]:,}; "
        "look at f1_macro beside accuracy"
    )
