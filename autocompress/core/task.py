"""The interface of tasks: data in five disjoint splits, a family of models, a loss and its metrics."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from autocompress.core.config import Part, fingerprint
from autocompress.core.knobs import Leaf
from autocompress.core.preprocessing import Preprocessing, RawExample
from autocompress.errors import TrialError

Logits = Mapping[str, Tensor]
Targets = Mapping[str, Tensor]
_BATCH_BYTES = 1 << 28


@dataclass(frozen=True)
class InputSpec:
    """What one positional argument of a model holds, for one example.

    Attributes:
        shape: Without the batch axis: ``(3, 32, 32)`` for an image, ``(64,)`` for 64 tokens, ``()`` for one number.
        vocabulary: For whole numbers, how many there are, from 0 up: a token, a user, an item. 0 for real numbers.
        missing: The number that stands for nothing, such as padding; ``None`` if every number means something.
    """

    shape: tuple[int, ...]
    vocabulary: int = 0
    missing: int | None = None

    def make_zeros(self, batch: int = 1) -> Tensor:
        """Return a batch of zeros, ``[B, *shape]``: single precision, or int64 where there is a vocabulary."""
        return torch.zeros(batch, *self.shape, dtype=torch.int64 if self.vocabulary else torch.float32)


@dataclass(frozen=True)
class ExampleKeys:
    """What examples are divided and compared by, which models do not see.

    Attributes:
        groups: Number of the group of each example, ``[N]``, such as its patient: a group is never in two splits, and
            examples of a group are not independent. None where all examples are independent.
        times: Time of each example, ``[N]``, larger is later; None where the order does not matter.
        contents: Digest of each example's normalized content, ``[N]``: equal ones are duplicates, even if their inputs
            differ. None where the inputs say all.
        column: Name of the column of groups or times, for messages.
        rows: Number of each example's row in its table, ``[N]``, by which what a row holds besides the inputs is found;
            None where the inputs say all.
    """

    groups: Tensor | None = None
    times: Tensor | None = None
    contents: Tensor | None = None
    column: str = ""
    rows: Tensor | None = None

    def take(self, index: Any) -> "ExampleKeys":
        """Return the keys of the examples that ``index`` selects."""
        tensors = (self.groups, self.times, self.contents, self.rows)
        if all(values is None for values in tensors):
            return self
        groups, times, contents, rows = (None if values is None else values[index] for values in tensors)
        return ExampleKeys(groups, times, contents, self.column, rows)


NO_KEYS = ExampleKeys()


@dataclass(frozen=True)
class Split:
    """Examples of one split, in memory; those of a subclass may be in files until they are taken.

    Attributes:
        inputs: The model's positional arguments, axis 0 the examples: ``([N, 1, 8, 8],)``.
        targets: Head name to class indices, ``{"label": [N]}``.
        keys: Groups, times and digests of the examples.
    """

    inputs: tuple[Tensor, ...]
    targets: Targets
    keys: ExampleKeys = NO_KEYS

    def __len__(self) -> int:
        return int(self.inputs[0].shape[0])

    def batches(self, size: int) -> "Iterator[Split]":
        """Yield consecutive batches of at most ``size`` examples, each made when it is asked for."""
        return (self.take(slice(start, start + size)) for start in range(0, len(self), size))

    def take(self, index: Any) -> "Split":
        """Return the examples that ``index`` selects along axis 0."""
        return Split(
            tuple(tensor[index] for tensor in self.inputs),
            {head: target[index] for head, target in self.targets.items()},
            self.keys.take(index),
        )

    def select(self, rows: Tensor) -> "Split":
        """Return the examples of some rows as a split of the same kind, which may leave its inputs in files."""
        return self.take(rows)

    def to(self, device: torch.device) -> "Split":
        """Return the examples on a device, without keys, which training does not read."""
        return Split(
            tuple(tensor.to(device) for tensor in self.inputs),
            {head: target.to(device) for head, target in self.targets.items()},
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

    # Not annotated, so it is a constant of the class and not a field.
    NAMES = ("train", "calibration", "search_val", "select_val", "test")

    def items(self) -> list[tuple[str, Split]]:
        """Return every split with its name."""
        return [(name, getattr(self, name)) for name in self.NAMES]

    def fingerprint(self) -> str:
        """Return 12 hex digits over the contents: the data's name in caches and reports."""
        return fingerprint({name: hash_split(split) for name, split in self.items()})


def bounded_batch(split: Split, most: int = 4096) -> int:
    """Return a number of examples whose inputs take at most 256 MB, for a pass over a split.

    Args:
        split: The split.
        most: Largest number.
    """
    example = split.take(slice(0, 1)).inputs
    return max(1, min(most, _BATCH_BYTES // max(1, sum(tensor.nbytes for tensor in example))))


def hash_split(split: Split) -> str:
    """Return the SHA-256 of all that a split holds, read in batches: the data may be larger than the memory."""
    digest = hashlib.sha256(json.dumps([len(split), sorted(split.targets)]).encode())
    for batch in split.batches(bounded_batch(split)):
        for tensor in (*batch.inputs, *(batch.targets[head] for head in sorted(batch.targets))):
            # The same bytes with another type or shape are other data.
            digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
            # Read as bytes, because NumPy has no bfloat16; contiguous, so that the memory layout does not matter.
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Task(Protocol):
    """What is to be learned; one class, registered by name, built without arguments or from a spec's options.

    A task derives from :class:`autocompress.tasks.base.Supervised`, which answers most of this.

    Attributes:
        name: What it is registered as.
        inputs: The model's positional arguments.
        heads: Head name to number of classes.
        labels: Head name to the name of each class; empty where they have none.
        metrics: What is scored, primary first.
        views: Augmented views of the training split, the plain one included.
        identity_options: Options in addition to the constructor's; a worker's task with the same ones counts as
            the same task.
        notices: What a reader of the results should know about the data.
    """

    name: str
    inputs: tuple[InputSpec, ...]
    heads: Mapping[str, int]
    labels: Mapping[str, Sequence[str]]
    metrics: tuple[str, ...]
    views: int

    @property
    def identity_options(self) -> Mapping[str, str]:
        """Options that tell this task from another one of its name."""
        ...

    @property
    def preprocessing(self) -> str:
        """How a raw example becomes the model's inputs, as a sentence; for a task without a specification."""
        ...

    def specify_preprocessing(self, seed: int) -> Preprocessing:
        """Return how a raw example becomes each input, for the splits of a seed; empty if the model takes tensors."""
        ...

    def list_test_examples(self, seed: int) -> Sequence[RawExample]:
        """Return the raw examples of the test split in its order; empty without a specification."""
        ...

    @property
    def notices(self) -> Sequence[str]:
        """What a reader of the results should know about the data."""
        ...

    def splits(self, seed: int) -> Splits:
        """Return the five splits; the same seed gives the same ones."""
        ...

    @property
    def has_distinct_inputs(self) -> bool:
        """Whether different examples have different inputs, so that equal inputs are duplicates."""
        ...

    @property
    def has_own_loss(self) -> bool:
        """Whether the loss is another one than the mean over the losses of the heads."""
        ...

    def resampling_groups(self, split: Split) -> Tensor | None:
        """Return the group of each example, ``[N]``, where examples of a group are not independent; else None."""
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


class TaskFactory(Protocol):
    """A task as the registry holds it: a class, or a function that returns a task that exists.

    Attributes:
        metrics: The scores, primary first.
    """

    metrics: tuple[str, ...]

    def __call__(self, **options: Leaf) -> Task:
        """Return the task with the options that a search space gives."""
        ...


def logits_by_head(output: Any, heads: Mapping[str, int]) -> dict[str, Tensor]:
    """Return a model's raw output as ``{head: [B, C]}``.

    A single tensor belongs to the only head; a mapping must hold every head.

    Raises:
        TrialError: The output does not fit the heads.
    """
    if isinstance(output, Tensor) and len(heads) == 1:
        return {next(iter(heads)): output}
    # Further outputs are ignored, and the order becomes that of the heads.
    if isinstance(output, Mapping) and set(output) >= set(heads):
        return {head: output[head] for head in heads}
    raise TrialError(f"the model returned {type(output).__name__}, but the task has the heads {sorted(heads)}")
