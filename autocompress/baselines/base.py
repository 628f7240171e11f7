"""The interface of trivial baselines."""

from collections.abc import Callable
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from autocompress.core.registry import BASELINES
from autocompress.core.task import Logits, Split, Task

#: Returns the outputs of some heads of the task for the examples of a split, in the form of a model's outputs.
Predictor: TypeAlias = Callable[[Split], Logits]

# Enough for a linear model, whose fit must take seconds.
MAX_EXAMPLES = 20_000


class TrivialBaseline(Protocol):
    """A function that fits a simple model to a training split; the first line of its docstring describes it.

    It takes seconds, because it runs before the search. Heads that it leaves out are predicted as constants.
    """

    def __call__(self, task: Task, train: Split) -> Predictor | None:
        """Return the fitted model; ``None`` if the task has no head that it can predict."""
        ...


def draw_rows(count: int, most: int) -> Tensor:
    """Return the numbers of at most so many random rows in ascending order, always the same ones.

    Example:
        >>> draw_rows(3, 5).tolist(), len(draw_rows(100, 5))
        ([0, 1, 2], 5)
    """
    if count <= most:
        return torch.arange(count)
    # Data is often sorted by class, so the first rows would show few of them.
    return torch.from_numpy(np.sort(np.random.default_rng(0).permutation(count)[:most]))


def draw_examples(split: Split, most: int) -> Split:
    """Return at most so many random examples of a split, always the same ones."""
    return split.take(draw_rows(len(split), most))


def describe_baseline(name: str) -> str:
    """Return the first line of the docstring of a baseline.

    Example:
        >>> describe_baseline("constant")
        'the most frequent class, or the mean of the numbers, whatever the input'
    """
    lines = (BASELINES.get(name).__doc__ or name).strip().splitlines()
    text = lines[0].rstrip(".")
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text
