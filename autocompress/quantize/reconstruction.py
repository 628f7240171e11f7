"""AdaRound for one layer: choose the rounding direction of each weight that preserves the outputs of the layer.

The squared error of the outputs is a quadratic form of the change of the weight, so only the second moments of the
inputs are needed. A step costs one product of the weight with a square matrix, whatever the number of examples.
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import CompressionError

# The rectified sigmoid (Louizos et al. 2018, arXiv:1712.01312) exceeds 0 and 1 by this much before it is clipped.
STRETCH = 0.1
# Share of the steps without the regularizer that draws roundings towards 0 or 1; beta falls over the other steps.
WARM_UP = 0.2
FIRST_BETA, LAST_BETA = 20.0, 2.0
REGULARIZER_WEIGHT = 1.0
LEARNING_RATE = 0.1
# Adam's epsilon: it keeps a step finite where every gradient was zero.
EPSILON = 1e-8

WeightedLayer: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


@dataclass(frozen=True)
class Moments:
    """Second moments of inputs and residuals of a layer with a weight ``[C, K]`` in ``g`` groups of channels.

    The residual ``r`` is the target output minus the output with the exact weight.

    Attributes:
        inputs: Mean of ``x x^T`` over positions, ``[g, K, K]``.
        cross: Mean of ``r x^T`` over positions, ``[g, C / g, K]``.
        residual: Mean of ``r^2`` over positions, ``[g, C / g]``.
    """

    inputs: Tensor
    cross: Tensor
    residual: Tensor

    @classmethod
    def from_batch(cls, layer: WeightedLayer, inputs: Tensor, targets: Tensor) -> "Moments":
        """Return the moments of the inputs and the target outputs of a layer.

        Args:
            layer: Convolution or linear layer.
            inputs: Inputs of the layer.
            targets: Target outputs with one row per position, ``[P, C]``.

        Raises:
            CompressionError: The squares of the outputs overflow single precision.
        """
        groups = 1 if isinstance(layer, nn.Linear) else layer.groups
        rows = unfold_patches(layer, inputs)
        # Channel groups become the batch dimension, so that one product serves all groups.
        x = rows.view(len(rows), groups, -1).movedim(1, 0)
        y = targets if layer.bias is None else targets - layer.bias.detach()
        weight = layer.weight.detach().reshape(groups, -1, x.shape[-1])
        residual = y.reshape(len(y), groups, -1).movedim(1, 0) - x @ weight.mT
        moments = cls(x.mT @ x / len(rows), residual.mT @ x / len(rows), residual.square().mean(1))
        # An infinite error has no gradient that the rounding could follow.
        if not bool(moments.output_error(layer.weight.detach()).isfinite().all()):
            raise CompressionError(
                "the squares of what it gives are too large for 32 bits; scale the model's inputs down"
            )
        return moments

    def output_error(self, change: Tensor) -> Tensor:
        """Return the mean squared error of each output channel for a change of the weight, ``[C, K] -> [C]``."""
        rows = change.view(self.cross.shape)
        return ((rows @ self.inputs - 2 * self.cross) * rows).sum(-1).add(self.residual).flatten()


@dataclass(frozen=True)
class WeightSteps:
    """A weight in units of the step of its grid.

    Attributes:
        weight: Exact weight, ``[C, K]``.
        scale: Step of the grid for each weight, ``[C, K]``.
        low: Smallest number of steps from zero, ``[C, K]``.
        high: Largest number of steps from zero, ``[C, K]``.
    """

    weight: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    @property
    def nearest(self) -> Tensor:
        """The number of steps from zero with each weight rounded to the nearest, ``[C, K]``."""
        return (self.weight / self.scale).round().clamp(self.low, self.high)

    def weight_change(self, steps: Tensor) -> Tensor:
        """Return the difference of the rounded and the exact weight for a number of steps, ``[C, K]``."""
        return steps * self.scale - self.weight


@dataclass(frozen=True)
class LearnedRounding:
    """Result of learning the rounding of a layer.

    Attributes:
        steps: Number of steps from zero of each weight, ``[C, K]``.
        nearest: Mean squared error of the layer's outputs with all weights rounded to the nearest.
        error: Mean squared error of the layer's outputs with ``steps``, never larger than ``nearest``.
        flipped: Share of the weights that are not rounded to the nearest.
    """

    steps: Tensor
    nearest: float
    error: float
    flipped: float


def learn_rounding(steps: WeightSteps, moments: Moments, iterations: int) -> LearnedRounding:
    """Learn the rounding direction of each weight (AdaRound, Nagel et al. 2020, arXiv:2004.10568).

    Minimizes the output error, relative to the error of rounding to the nearest, plus the mean of
    ``1 - |2h - 1|^beta``, where ``h`` from 0 (down) to 1 (up) is the rounding of a weight. A channel whose error does
    not fall is rounded to the nearest.

    Args:
        steps: Weight in units of its grid.
        moments: Moments of the inputs and target outputs of the layer.
        iterations: Number of optimizer steps.
    """
    nearest = steps.nearest
    errors = moments.output_error(steps.weight_change(nearest))
    # The regularizer has a fixed scale, so the error is measured relative to that of rounding to the nearest.
    unit = errors.sum().clamp(min=torch.finfo(errors.dtype).tiny)
    exact = steps.weight / steps.scale
    floor = exact.floor()
    # h starts at the fraction of a step by which the weight exceeds the step below, so the start has no error.
    logits = torch.logit((exact - floor + STRETCH) / (1 + 2 * STRETCH))
    objective = RoundingObjective(steps, floor, moments, unit)
    first, second = torch.zeros_like(logits), torch.zeros_like(logits)
    for iteration in range(iterations):
        gradient = objective.gradient(logits, anneal_beta(iteration / iterations))
        # Adam (Kingma and Ba 2015), written out: a step of torch's optimizer costs more than the rest of the loop.
        first.lerp_(gradient, 0.1)
        second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        rate = LEARNING_RATE * math.sqrt(1 - 0.999 ** (iteration + 1)) / (1 - 0.9 ** (iteration + 1))
        logits.addcdiv_(first, second.sqrt().add_(EPSILON), value=-rate)
    rounded = (floor + (logits >= 0)).clamp(steps.low, steps.high)
    # A pruned weight stays pruned.
    rounded = torch.where(steps.weight != 0, rounded, nearest)
    rounded_errors = moments.output_error(steps.weight_change(rounded))
    improved = rounded_errors < errors
    chosen = torch.where(improved[:, None], rounded, nearest)
    return LearnedRounding(
        chosen,
        float(errors.mean()),
        float(torch.where(improved, rounded_errors, errors).mean()),
        float((chosen != nearest).double().mean()),
    )


@dataclass(frozen=True)
class RoundingObjective:
    """Objective of the rounding logits of a layer.

    Attributes:
        steps: Weight in units of its grid.
        floor: Number of steps from zero with all weights rounded down, ``[C, K]``.
        moments: Moments of the inputs and target outputs of the layer.
        unit: Output error that the loss counts as 1.
    """

    steps: WeightSteps
    floor: Tensor
    moments: Moments
    unit: Tensor

    def loss(self, logits: Tensor, beta: float | None) -> Tensor:
        """Return the relative output error, plus the regularizer if ``beta`` is given."""
        up = rectify_sigmoid(logits)
        soft = (self.floor + up).clamp(self.steps.low, self.steps.high)
        loss = self.moments.output_error(self.steps.weight_change(soft)).sum() / self.unit
        return loss if beta is None else loss + REGULARIZER_WEIGHT * (1 - (2 * up - 1).abs().pow(beta)).mean()

    def gradient(self, logits: Tensor, beta: float | None) -> Tensor:
        """Return the gradient of :meth:`loss`, written out because that is several times as fast as autograd."""
        curve = torch.sigmoid(logits)
        stretched = curve * (1 + 2 * STRETCH) - STRETCH
        up = stretched.clamp(0, 1)
        unclipped = self.floor + up
        soft = unclipped.clamp(self.steps.low, self.steps.high)
        rows = self.steps.weight_change(soft).view(self.moments.cross.shape)
        step_gradient = (rows @ self.moments.inputs - self.moments.cross).view_as(soft).mul_(self.steps.scale)
        up_gradient = step_gradient.mul_(unclipped == soft).mul_(2 / self.unit)
        if beta is not None:
            distance = 2 * up - 1
            up_gradient -= (
                distance.abs().pow_(beta - 1).mul_(distance.sign()).mul_(2 * beta * REGULARIZER_WEIGHT / up.numel())
            )
        inside = (stretched > 0) & (stretched < 1)
        return up_gradient.mul_(inside).mul_(curve * (1 - curve)).mul_(1 + 2 * STRETCH)


def anneal_beta(share: float) -> float | None:
    """Return the exponent beta after a share of the steps: None during warm-up, then falling along half a cosine.

    Example:
        >>> anneal_beta(0.1), anneal_beta(0.2), round(anneal_beta(0.6), 3)
        (None, 20.0, 11.0)
    """
    # Without the regularizer the roundings first move to a good soft solution.
    if share < WARM_UP:
        return None
    progress = (share - WARM_UP) / (1 - WARM_UP)
    return LAST_BETA + (FIRST_BETA - LAST_BETA) * 0.5 * (1 + math.cos(math.pi * progress))


def unfold_patches(layer: WeightedLayer, inputs: Tensor) -> Tensor:
    """Return the inputs that each output position of a layer reads, ``[P, groups * K]``."""
    if isinstance(layer, nn.Linear):
        return inputs.flatten(0, -2)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    windows = padded
    for axis, (size, dilation, stride) in enumerate(
        zip(layer.kernel_size, layer.dilation, layer.stride, strict=True), 2
    ):
        windows = windows.unfold(axis, (size - 1) * dilation + 1, stride)[..., ::dilation]
    # [N, K, positions, windows] -> [N, positions, K, windows]
    axes = len(layer.kernel_size)
    return windows.movedim(1, axes + 1).flatten(axes + 1).flatten(0, axes)


def rectify_sigmoid(logits: Tensor) -> Tensor:
    """Return the rounding of each weight, 0 (down) to 1 (up), from its logit."""
    return (torch.sigmoid(logits) * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1)
