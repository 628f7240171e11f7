"""Importance scores of weights, shaped like the weight; larger = keep.

The same scores serve all pruning methods: unstructured pruning ranks them one by one, structured pruning
sums them over each channel. To add a criterion, register one :class:`Criterion` in ``CRITERIA``, in its own module.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from autocompress.core.knobs import RegisteredChoice
from autocompress.core.registry import CRITERIA
from autocompress.errors import CompressionError
from autocompress.prune.layer_channels import is_transposed_linear, output_axis


class Importance(Protocol):
    """Function that scores a weight; gradient criteria read ``weight.grad``, which the method fills beforehand."""

    def __call__(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return non-negative scores of the weight's shape, ``[D, C, k, k] -> [D, C, k, k]``."""
        ...


def weight_magnitude(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return each weight's magnitude (Li 2017, arXiv:1608.08710)."""
    return weight.abs()


def weight_square(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return each weight's square; summed over a channel, it is the squared L2 norm."""
    return weight.square()


def random_scores(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return uniform noise from ``generator``, the baseline of all criteria."""
    return torch.rand(weight.shape, generator=generator).to(weight)


def constant_scores(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return ones: channels are removed in their order, so the models of two ratios are nested."""
    return torch.ones_like(weight)


def gradient_magnitude(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return the magnitude of the loss gradient with respect to each weight."""
    return _weight_gradient(weight).abs()


def taylor_change(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return the first-order change of the loss when a weight becomes zero (Molchanov 2019, arXiv:1906.10771)."""
    return (weight * _weight_gradient(weight)).abs()


def _weight_gradient(weight: Tensor) -> Tensor:
    if weight.grad is None:
        raise CompressionError("a gradient criterion needs a gradient for each weight; compute gradients first")
    return weight.grad


# Layers whose weights enter the importance of a channel.
WEIGHTED_LAYERS = (_ConvNd, nn.Linear, nn.Embedding, _BatchNorm)


@dataclass(frozen=True)
class Criterion:
    """An importance function with the layers and gradients that it needs.

    Attributes:
        importance: Function that scores one weight.
        layers: Types of the layers whose ``weight`` is scored.
        gradients: Whether the function reads gradients of the loss on the calibration split.
    """

    importance: Importance
    layers: tuple[type[nn.Module], ...] = WEIGHTED_LAYERS
    gradients: bool = False

    def can_score(self, layer: nn.Module) -> bool:
        """Return whether the weight of a layer is scored; GPT-2's linear layers count as linear layers."""
        return isinstance(layer, self.layers) or (nn.Linear in self.layers and is_transposed_linear(layer))


_BUILTIN: Mapping[str, Criterion] = {
    "l1": Criterion(weight_magnitude),
    "l2": Criterion(weight_square),
    # The scale of a batch norm is the magnitude of the channel's output (Liu 2017, arXiv:1708.06519).
    "batch_norm": Criterion(weight_magnitude, (_BatchNorm,)),
    "gradient": Criterion(gradient_magnitude, gradients=True),
    "taylor": Criterion(taylor_change, gradients=True),
    "random": Criterion(random_scores),
    "order": Criterion(constant_scores),
}
for _name, _criterion in _BUILTIN.items():
    CRITERIA.add(_name, _criterion)

CRITERION_CHOICE = RegisteredChoice(CRITERIA, first=tuple(_BUILTIN))
# The scale of a batch norm ranks channels; it says nothing about a single weight.
WEIGHT_CRITERIA = tuple(name for name in _BUILTIN if name != "batch_norm")
WEIGHT_CRITERION_CHOICE = RegisteredChoice(CRITERIA, first=WEIGHT_CRITERIA, exclude=("batch_norm",))


@dataclass(frozen=True)
class LayerSlice:
    """Channels of one layer that are coupled to channels of a group's first layer.

    Attributes:
        name: Dotted name of the layer.
        layer: Module of the layer.
        outputs: Whether the channels are outputs rather than inputs.
        indices: Channels of this layer.
        roots: Channel of the group's first layer that each of them is coupled to.
    """

    name: str
    layer: nn.Module
    outputs: bool
    indices: Sequence[int]
    roots: Sequence[int]


@dataclass(frozen=True)
class ParameterSlice:
    """Channels of a parameter, such as a table of positions, that are coupled to the channels of a group.

    Attributes:
        name: Dotted name of the parameter.
        axis: Axis of the channels.
        indices: Channels of this parameter.
        roots: Channel of the group that each of them belongs to.
    """

    name: str
    axis: int
    indices: Sequence[int]
    roots: Sequence[int]


@torch.no_grad()
def score_weight(weight: Tensor, description: str, criterion: Criterion, generator: torch.Generator) -> Tensor:
    """Return the scores of one weight, in its shape.

    Raises:
        CompressionError: A weight or a score is not finite; the message names it by ``description``.
    """
    scores = criterion.importance(weight, generator)
    if not bool((weight.isfinite() & scores.isfinite()).all()):
        raise CompressionError(f"{description} are not finite and cannot be ranked")
    return scores


def score_channels(
    slices: Iterable[LayerSlice],
    channels: int,
    criterion: Criterion,
    generator: torch.Generator,
    parameters: Iterable[tuple[ParameterSlice, Tensor]] = (),
) -> Tensor:
    """Return one score per channel, ``[channels]``, scaled to mean 1 so that groups of different sizes compare.

    Each layer that a channel runs through contributes the sum of its weights' scores in that channel (group
    importance, Fang 2023, arXiv:2301.12900).

    Args:
        slices: Channels of layers.
        channels: Number of channels of the group.
        criterion: Criterion of importance.
        generator: Source of random scores.
        parameters: Channels of parameters with their values, of at least two axes, which contribute in the same way.

    Raises:
        CompressionError: A weight is not finite.
    """
    # Double precision: sums over many weights must rank channels alike on every platform.
    totals = torch.zeros(channels, dtype=torch.float64)
    for part in slices:
        weight = getattr(part.layer, "weight", None)
        if weight is None or not criterion.can_score(part.layer):
            continue
        scores = score_weight(weight, f"the weights of layer '{part.name}'", criterion, generator)
        sums = flatten_by_channel(part.layer, scores, part.outputs).double().sum(1).cpu()
        totals.index_add_(0, torch.tensor(part.roots), sums[list(part.indices)])
    for piece, weight in parameters:
        scores = score_weight(weight, f"the weights '{piece.name}'", criterion, generator)
        sums = scores.movedim(piece.axis, 0).flatten(1).double().sum(1).cpu()
        totals.index_add_(0, torch.tensor(piece.roots), sums[list(piece.indices)])
    mean = totals.mean()
    # A group of zeros has no scale; its scores stay zero.
    return totals / mean if mean > 0 else totals


def flatten_by_channel(layer: nn.Module, weight: Tensor, outputs: bool) -> Tensor:
    """Return the weight with one row per channel, ``[D, C, k, k] -> [D, C k k]`` for outputs, else ``[C, D k k]``.

    A grouped convolution ``[D, C / groups, k, k]`` also has one row for each of its ``C`` inputs. The outputs of an
    embedding table ``[R, D]`` are its columns.
    """
    if weight.dim() == 1:
        return weight.unsqueeze(1)
    # Transposed convolutions and embedding tables have their outputs on the second axis.
    if outputs != bool(output_axis(layer)):
        return weight.flatten(1)
    return swap_channel_axes(layer, weight).flatten(0, 1).flatten(1)


def swap_channel_axes(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return a view with the second channel axis in front, ``[D, C / g, k, k] -> [g, C / g, D / g, k, k]``."""
    grouped: Tensor = weight.unflatten(0, (getattr(layer, "groups", 1), -1))
    return grouped.transpose(1, 2)
