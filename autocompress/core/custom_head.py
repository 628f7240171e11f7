"""Heads of a user's own: a loss, metrics and distillation on the raw outputs of a model, for targets of any structure.

Splits hold tensors, so they hold the number of each example's targets, ``[N, 2]``: its position among the items, and a
digest of its content, by which changed data is noticed. Functions of the user get the items themselves.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import default_collate

from autocompress.errors import TrialError

Outputs = Tensor | Mapping[str, Tensor]
"""The output of a model, ``[B, ...]``, or several by name."""

#: Score that every custom head has: the loss itself.
TASK_LOSS = "task_loss"
#: Name of the only output of a model.
ONLY_OUTPUT = "output"


@dataclass(frozen=True)
class CustomHead:
    """A loss, metrics and distillation for outputs and targets of any form, such as boxes of a detector.

    Functions get the outputs of the model, a tensor ``[B, ...]`` or a mapping of names to tensors if it returns
    several, and the targets of the same examples.

    Attributes:
        loss: Function of outputs and targets that returns the mean loss of a batch, ``[]``.
        metrics: Name of each score to a function of the outputs and targets of a whole split. It returns a number, or
            one number for each example, ``[N]``, whose mean is the score: confidence bounds then need no further calls.
            The first is what the search selects by; without metrics it is the loss.
        higher_is_better: Whether larger scores are better: of all metrics, or by name.
        collate: Function of a list of targets that returns what the other functions get. By default, targets of one
            structure and shape are stacked, and others remain a list.
        distillation: Function of the student's outputs, the teacher's, and the targets that returns the loss of terms
            on outputs, ``[]``; by default the squared difference in standard deviations of the teacher's outputs.

    Example:
        >>> CustomHead(lambda outputs, boxes: outputs.square().mean(), {"map": lambda outputs, boxes: 0.5}).primary
        'map'
    """

    loss: Callable[..., Tensor]
    metrics: Mapping[str, Callable[..., float | Tensor]] = field(default_factory=dict)
    higher_is_better: bool | Mapping[str, bool] = True
    collate: Callable[..., object] | None = None
    distillation: Callable[..., Tensor] | None = None

    @property
    def primary(self) -> str:
        """Name of the score that the search selects by."""
        return next(iter(self.metrics), TASK_LOSS)

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of all scores, primary first."""
        return (*self.metrics, TASK_LOSS)

    def is_maximized(self, metric: str) -> bool:
        """Return whether a larger value of a score is better."""
        if metric == TASK_LOSS:
            return False
        if isinstance(self.higher_is_better, Mapping):
            return bool(self.higher_is_better.get(metric, True))
        return self.higher_is_better


@dataclass(frozen=True, eq=False)
class BoundHead:
    """A custom head with the targets of a data set.

    Attributes:
        head: The functions of the user.
        items: The targets of all examples.
        is_single: Whether the model returns one tensor.
        is_stacked: Whether all targets have one structure and shape.
    """

    head: CustomHead
    items: Sequence[object]
    is_single: bool = True
    is_stacked: bool = False

    def compute_loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of one batch, ``[]``.

        Args:
            outputs: Outputs by name.
            targets: Numbers of the targets by name, ``[B, 2]``.
        """
        return self.head.loss(self._select_outputs(outputs), self.collate(targets, outputs))

    def distill(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the distance of a student's outputs from a teacher's, ``[]``.

        Raises:
            TrialError: The function of the user returns no scalar.
        """
        if self.head.distillation is None:
            return torch.stack([measure_distance(student[name], teacher[name]) for name in student]).mean()
        value = self.head.distillation(
            self._select_outputs(student), self._select_outputs(teacher), self.collate(targets, student)
        )
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise TrialError("distillation returns no tensor with one number; return the mean over the batch")
        return value.reshape(())

    def measure(self, metric: str, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> float:
        """Return a score of the examples of a split.

        Raises:
            TrialError: The function of the user fails, or returns no number.
        """
        values = self.score_examples(metric, outputs, targets)
        return float(values.mean())

    def score_examples(self, metric: str, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Return the scores of the examples, ``[N]``, or the score of all of them, ``[1]``, as the metric returns it.

        Raises:
            TrialError: The function of the user fails, or returns no number.
        """
        count = len(next(iter(targets.values())))
        compute = self.head.loss if metric == TASK_LOSS else self.head.metrics[metric]
        try:
            with torch.no_grad():
                value = compute(self._select_outputs(outputs), self.collate(targets, outputs))
            values = torch.as_tensor(value, dtype=torch.float64).cpu().reshape(-1)
        except Exception as error:  # The user's code may raise any exception.
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise TrialError(f"the metric '{metric}' fails on {count} examples: {reason}") from error
        if len(values) not in (1, count):
            raise TrialError(
                f"the metric '{metric}' returns {len(values)} numbers for {count} examples; return one, or one for each"
            )
        return values

    def collate(self, targets: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> object:
        """Return the targets of some examples as the functions of the user get them, on the device of the outputs."""
        # All outputs have the same targets.
        numbers = next(iter(targets.values()))[:, 0].tolist()
        items = [self.items[number] for number in numbers]
        collate = self.head.collate or (default_collate if self.is_stacked and items else list)
        device = next(iter(outputs.values())).device
        return tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, collate(items))

    def _select_outputs(self, outputs: Mapping[str, Tensor]) -> Outputs:
        return next(iter(outputs.values())) if self.is_single else outputs


def measure_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference in standard deviations of the teacher's outputs, ``[]``."""
    scale = teacher.detach().std(correction=0).clamp(min=1e-6)
    return ((student - teacher) / scale).square().mean()


def number_targets(items: Sequence[object], start: int = 0) -> Tensor:
    """Return the number and the digest of each example's targets, ``[N, 2]``.

    Args:
        items: Targets of the examples.
        start: Number of the first one.
    """
    rows = [(start + position, digest_target(item)) for position, item in enumerate(items)]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)


def digest_target(item: object) -> int:
    """Return a number of 62 bits that depends on the content of nested mappings, sequences, arrays and values.

    Example:
        >>> digest_target([1, {"a": torch.ones(2)}]) == digest_target([1, {"a": torch.ones(2)}])
        True
    """
    digest = hashlib.sha256()
    for part in _list_content(item):
        digest.update(part)
    return int.from_bytes(digest.digest()[:8], "little") >> 2


def _list_content(item: object) -> Iterator[bytes]:
    if isinstance(item, Tensor):
        item = item.detach().cpu().numpy()
    if isinstance(item, Mapping):
        for name, value in item.items():
            yield f"{name!r}:".encode()
            yield from _list_content(value)
    elif isinstance(item, list | tuple):
        yield f"{len(item)}[".encode()
        for value in item:
            yield from _list_content(value)
    elif isinstance(item, np.ndarray) and item.dtype != object:
        yield f"{item.dtype}{item.shape}".encode()
        yield np.ascontiguousarray(item).tobytes()
    elif isinstance(item, str | bytes | int | float | bool | np.generic) or item is None:
        yield repr(item).encode()
    else:
        # The address of an object of another class would differ in each process.
        yield type(item).__qualname__.encode()


def have_one_shape(items: Sequence[object]) -> bool:
    """Return whether all items have the same structure, shapes and types, so that they can be stacked.

    Example:
        >>> have_one_shape([{"a": torch.ones(2)}, {"a": torch.ones(2)}]), have_one_shape([[1], [1, 2]])
        (True, False)
    """
    first = _describe_shape(items[0]) if len(items) else None
    return first is not None and all(_describe_shape(item) == first for item in items)


def _describe_shape(item: object) -> object:
    """Return the structure of an item; None for one that cannot be stacked."""
    if isinstance(item, Tensor | np.ndarray):
        return (type(item), str(item.dtype), tuple(item.shape))
    if isinstance(item, Mapping):
        parts = [(name, _describe_shape(value)) for name, value in item.items()]
        return None if any(part is None for _, part in parts) else ("mapping", tuple(parts))
    if isinstance(item, bool | int | float | np.generic):
        return type(item)
    return None


def is_number(value: object) -> bool:
    """Return whether a value is a finite number, or a tensor or array with a single one."""
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        return False
