"""The seam of tasks: data in five disjoint splits, a family of models, a loss and its metrics."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from autocompress.config import Part, fingerprint
from autocompress.errors import TrialError

Logits = Mapping[str, Tensor]
Targets = Mapping[str, Tensor]


@dataclass(frozen=True)
class Split:
    """Examples of one split, in memory.

    Attributes:
        inputs: The model's positional arguments, axis 0 the examples: ``([N, 1, 8, 8],)``.
        targets: Head name to class indices, ``{"label": [N]}``.
    """

    inputs: tuple[Tensor, ...]
    targets: Targets

    def __len__(self) -> int:
        return int(self.inputs[0].shape[0])

    def batches(self, size: int) -> "list[Split]":
        """Return consecutive batches of at most ``size`` examples (views, nothing is copied)."""
        return [self.take(slice(start, start + size)) for start in range(0, len(self), size)]

    def take(self, index: Any) -> "Split":
        """Return the examples that ``index`` selects along axis 0."""
        return Split(
            tuple(tensor[index] for tensor in self.inputs),
            {head: target[index] for head, target in self.targets.items()},
        )


@dataclass(frozen=True)
class Splits:
    """Five disjoint parts of the data, each with one use.

    Attributes:
        train: Gradient steps.
        calibration: Quantization ranges, pruning criteria and batch-norm re-estimation.
        search_val: Scores that steer the search.
        select_val: Scores that the front and the pick are made of.
        test: Read once, after the front is frozen.
    """

    train: Split
    calibration: Split
    search_val: Split
    select_val: Split
    test: Split

    NAMES = ("train", "calibration", "search_val", "select_val", "test")

    def items(self) -> list[tuple[str, Split]]:
        """Return every split with its name."""
        return [(name, getattr(self, name)) for name in self.NAMES]

    def fingerprint(self) -> str:
        """Return 12 hex digits over sizes and contents: the data's name in caches and reports."""
        return fingerprint(
            {
                name: [
                    [list(t.shape), float(t.double().sum()), float((t.double() * _ramp(t)).sum())] for t in split.inputs
                ]
                + [[head, t.tolist()] for head, t in split.targets.items()]
                for name, split in self.items()
            }
        )


def _ramp(tensor: Tensor) -> Tensor:
    return torch.linspace(0, 1, tensor.numel(), dtype=torch.float64).view(tensor.shape)


class Task(Protocol):
    """What is to be learned; one class, registered by name, built without arguments or from a spec's options."""

    name: str
    heads: Mapping[str, int]
    metrics: tuple[str, ...]
    views: int

    def splits(self, seed: int) -> Splits:
        """Return the five splits; the same seed gives the same ones."""
        ...

    def view(self, split: Split, index: int) -> Split:
        """Return augmented view ``index`` of a split; view 0 is the split itself.

        Views are deterministic, so that the teacher's logits for each can be cached.
        """
        ...

    def example(self) -> tuple[Tensor, ...]:
        """Return a batch of one, as the model's positional arguments."""
        ...

    def teacher(self) -> tuple[Part, Part]:
        """Return the default teacher: its student part (architecture) and its fit part."""
        ...

    def build(self, student: Part) -> nn.Module:
        """Build an untrained model; the teacher too is built from such a part."""
        ...

    def loss(self, logits: Logits, targets: Targets) -> Tensor:
        """Return the mean loss, ``{head: [B, C]}, {head: [B]} -> []``."""
        ...


def as_heads(output: Any, heads: Mapping[str, int]) -> dict[str, Tensor]:
    """Return a model's raw output as ``{head: [B, C]}``.

    A single tensor belongs to the only head; a mapping must hold every head.

    Raises:
        TrialError: The output does not fit the heads.
    """
    if isinstance(output, Tensor) and len(heads) == 1:
        return {next(iter(heads)): output}
    if isinstance(output, Mapping) and set(output) >= set(heads):
        return {head: output[head] for head in heads}
    raise TrialError(f"the model returned {type(output).__name__}, but the task has the heads {sorted(heads)}")
