"""Which weights matter: scores shaped like the weight, larger = keep.

One scorer serves every way of pruning: unstructured pruning ranks its scores one by one, structured pruning
sums them over each channel. To add a criterion, write one :class:`Importance` and list it in ``CRITERIA``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from autocompress.errors import CompressionError


class Importance(Protocol):
    """Scores a weight; a criterion on gradients reads ``weight.grad``, which the method fills beforehand."""

    def __call__(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return scores of the weight's shape, ``[D, C, k, k] -> [D, C, k, k]``, none negative."""
        ...


def absolute(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return each weight's magnitude (Li 2017, arXiv:1608.08710)."""
    return weight.abs()


def square(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return each weight's square: summed over a channel, its squared L2 norm."""
    return weight.square()


def chance(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return uniform noise from ``generator``: the criterion that every other one must beat."""
    return torch.rand(weight.shape, generator=generator).to(weight)


def alike(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return ones: no channel outranks another, so the first ones go first and what is left at two ratios is nested."""
    return torch.ones_like(weight)


def slope(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return how steeply the loss depends on each weight."""
    return _gradient(weight).abs()


def taylor(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return the first-order change of the loss if each weight were zero (Molchanov 2019, arXiv:1906.10771)."""
    return (weight * _gradient(weight)).abs()


def _gradient(weight: Tensor) -> Tensor:
    if weight.grad is None:
        raise CompressionError("a criterion on gradients met a weight without one; fill them first")
    return weight.grad


WEIGHTED = (_ConvNd, nn.Linear, nn.Embedding, _BatchNorm)


@dataclass(frozen=True)
class Criterion:
    """An importance, and what it reads.

    Attributes:
        importance: Scores one weight.
        layers: Types of layers whose ``weight`` it is asked about.
        gradients: Whether it reads gradients: of the loss, on the calibration split.
    """

    importance: Importance
    layers: tuple[type[nn.Module], ...] = WEIGHTED
    gradients: bool = False


CRITERIA: Mapping[str, Criterion] = {
    "l1": Criterion(absolute),
    "l2": Criterion(square),
    # The scale of a batch norm is the size of what the channel passes on (Liu 2017, arXiv:1708.06519).
    "batch_norm": Criterion(absolute, (_BatchNorm,)),
    "gradient": Criterion(slope, gradients=True),
    "taylor": Criterion(taylor, gradients=True),
    "random": Criterion(chance),
    "order": Criterion(alike),
}


@dataclass(frozen=True)
class Slice:
    """Channels of one layer that go together with channels of a group's first layer.

    Attributes:
        name: The layer's dotted name.
        layer: The layer.
        outputs: Whether these are output channels.
        indices: Channels of this layer.
        roots: For each of them, the channel of the first layer that it goes with.
    """

    name: str
    layer: nn.Module
    outputs: bool
    indices: Sequence[int]
    roots: Sequence[int]


@torch.no_grad()
def finite_scores(weight: Tensor, what: str, criterion: Criterion, generator: torch.Generator) -> Tensor:
    """Return the scores of one weight, in its shape.

    Raises:
        CompressionError: A weight or a score is not finite; ``what`` names the weights.
    """
    scores = criterion.importance(weight, generator)
    if not bool((weight.isfinite() & scores.isfinite()).all()):
        raise CompressionError(f"{what} are not finite: nothing can be ranked")
    return scores


def channel_scores(slices: Iterable[Slice], channels: int, criterion: Criterion, generator: torch.Generator) -> Tensor:
    """Return one score a channel, ``[channels]``, whose mean is 1 so that groups of any size compare.

    Each layer that a channel runs through adds the sum of its weights' scores in that channel (group
    importance, Fang 2023, arXiv:2301.12900).

    Raises:
        CompressionError: A weight is not finite.
    """
    total = torch.zeros(channels, dtype=torch.float64)
    for part in slices:
        weight = getattr(part.layer, "weight", None)
        if weight is None or not isinstance(part.layer, criterion.layers):
            continue
        scores = finite_scores(weight, f"the weights of layer '{part.name}'", criterion, generator)
        sums = by_channel(part.layer, scores, part.outputs).double().sum(1).cpu()
        total.index_add_(0, torch.tensor(part.roots), sums[list(part.indices)])
    mean = total.mean()
    return total / mean if mean > 0 else total


def by_channel(layer: nn.Module, weight: Tensor, outputs: bool) -> Tensor:
    """Return the weight with one row a channel, ``[D, C, k, k] -> [D, C k k]`` for outputs, else ``[C, D k k]``.

    A grouped convolution ``[D, C / groups, k, k]`` has one row for each of its ``C`` inputs as well. The outputs of an
    embedding table ``[R, D]`` are its columns.
    """
    if weight.dim() == 1:
        return weight.unsqueeze(1)
    if outputs != (getattr(layer, "transposed", False) or isinstance(layer, nn.Embedding)):
        return weight.flatten(1)
    return across(layer, weight).flatten(0, 1).flatten(1)


def across(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return a view with the other channel axis in front, ``[D, C / g, k, k] -> [g, C / g, D / g, k, k]``."""
    grouped: Tensor = weight.unflatten(0, (getattr(layer, "groups", 1), -1))
    return grouped.transpose(1, 2)
