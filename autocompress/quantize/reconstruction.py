"""AdaRound's problem for one layer: which way to round each weight so that the layer's outputs stay as they were.

The squared error of the outputs is a quadratic form of what rounding changes, so the inputs are needed only for their
second moments: a step costs one product of the weight with a square matrix, however many calibration examples.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import CompressionError

# The rectified sigmoid (Louizos et al. 2018, arXiv:1712.01312) reaches past 0 and 1 by this much on either side.
OVERHANG = 0.1
# For this share of the steps nothing draws the roundings towards 0 or 1; beta falls over the others.
WARM_UP = 0.2
FIRST_BETA, LAST_BETA = 20.0, 2.0
REGULARISER = 1.0
LEARNING_RATE = 0.1
# Keeps a step finite where no gradient ever was.
TINY = 1e-8


@dataclass(frozen=True)
class Moments:
    """What inputs and wanted outputs say about changes to a layer's weight, ``[C, K]``, in ``g`` groups of channels.

    Attributes:
        inputs: Mean of ``x x^T`` over positions, ``[g, K, K]``.
        both: Mean of ``r x^T``, where ``r`` is what the unchanged weight leaves to be wanted, ``[g, C / g, K]``.
        left: Mean of ``r^2``, ``[g, C / g]``.
    """

    inputs: Tensor
    both: Tensor
    left: Tensor

    @classmethod
    def of(cls, layer: Any, inputs: Tensor, wanted: Tensor) -> "Moments":
        """Return the moments of what a layer reads and what it should give.

        Args:
            layer: A convolution or a linear layer.
            inputs: What it reads.
            wanted: What it should give, one row a position, ``[P, C]``.

        Raises:
            CompressionError: Squares of the outputs leave single precision.
        """
        groups = getattr(layer, "groups", 1)
        rows = unfold_patches(layer, inputs)
        x = rows.view(len(rows), groups, -1).movedim(1, 0)
        y = wanted if layer.bias is None else wanted - layer.bias.detach()
        weight = layer.weight.detach().reshape(groups, -1, x.shape[-1])
        left = y.reshape(len(y), groups, -1).movedim(1, 0) - x @ weight.mT
        moments = cls(x.mT @ x / len(rows), left.mT @ x / len(rows), left.square().mean(1))
        if not bool(moments.error(layer.weight.detach()).isfinite().all()):
            raise CompressionError(
                "the squares of what it gives are too large for 32 bits; scale the model's inputs down"
            )
        return moments

    def error(self, change: Tensor) -> Tensor:
        """Return the mean squared error of each output channel after a change of the weight, ``[C, K] -> [C]``."""
        rows = change.view(self.both.shape)
        return ((rows @ self.inputs - 2 * self.both) * rows).sum(-1).add(self.left).flatten()


@dataclass(frozen=True)
class WeightSteps:
    """A weight in units of its grid.

    Attributes:
        weight: The exact weight, ``[C, K]``.
        scale: The grid's step for each weight, ``[C, K]``.
        low: The smallest number of steps from zero, ``[C, K]``.
        high: The largest.
    """

    weight: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    @property
    def nearest(self) -> Tensor:
        """The nearest number of steps from zero."""
        return (self.weight / self.scale).round().clamp(self.low, self.high)

    def change(self, steps: Tensor) -> Tensor:
        """Return what a number of steps in place of each weight changes."""
        return steps * self.scale - self.weight


@dataclass(frozen=True)
class LearnedRounding:
    """What learning the roundings gave.

    Attributes:
        steps: How many steps from zero each weight is, ``[C, K]``.
        nearest: Mean squared error of the layer's outputs with every weight rounded to the nearest.
        error: The same with ``steps``; never larger.
        flipped: Share of the weights that are not rounded to the nearest.
    """

    steps: Tensor
    nearest: float
    error: float
    flipped: float


def learn_rounding(steps: WeightSteps, moments: Moments, iterations: int) -> LearnedRounding:
    """Learn which way to round (AdaRound, Nagel et al. 2020, arXiv:2004.10568).

    The error of the outputs, as a share of what rounding to the nearest leaves, plus the mean of
    ``1 - |2h - 1|^beta`` falls, where ``h`` from 0 (down) to 1 (up) is the rounding of a weight. A channel that ends
    up no better than rounded to the nearest is rounded to the nearest.
    """
    nearest = steps.nearest
    errors = moments.error(steps.change(nearest))
    unit = errors.sum().clamp(min=torch.finfo(errors.dtype).tiny)
    exact = steps.weight / steps.scale
    floor = exact.floor()
    # h starts at what the weight is above the step below it.
    logits = torch.logit((exact - floor + OVERHANG) / (1 + 2 * OVERHANG))
    problem = RoundingObjective(steps, floor, moments, unit)
    first, second = torch.zeros_like(logits), torch.zeros_like(logits)
    for iteration in range(iterations):
        gradient = problem.gradient(logits, anneal_beta(iteration / iterations))
        # Adam (Kingma and Ba 2015): a step of an optimizer object costs more than all the rest here.
        first.lerp_(gradient, 0.1)
        second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        rate = LEARNING_RATE * math.sqrt(1 - 0.999 ** (iteration + 1)) / (1 - 0.9 ** (iteration + 1))
        logits.addcdiv_(first, second.sqrt().add_(TINY), value=-rate)
    learned = (floor + (logits >= 0)).clamp(steps.low, steps.high)
    # A pruned weight stays pruned.
    learned = torch.where(steps.weight != 0, learned, nearest)
    found = moments.error(steps.change(learned))
    better = found < errors
    chosen = torch.where(better[:, None], learned, nearest)
    return LearnedRounding(
        chosen,
        float(errors.mean()),
        float(torch.where(better, found, errors).mean()),
        float((chosen != nearest).double().mean()),
    )


@dataclass(frozen=True)
class RoundingObjective:
    """What the logits of all roundings of a layer should make small.

    Attributes:
        steps: The weight in units of its grid.
        floor: Steps from zero when every weight is rounded down.
        moments: What the layer reads and should give.
        unit: The error that counts as 1.
    """

    steps: WeightSteps
    floor: Tensor
    moments: Moments
    unit: Tensor

    def loss(self, logits: Tensor, beta: float | None) -> Tensor:
        """Return the share of the error that is left, plus the regulariser where there is a beta."""
        up = rectify_sigmoid(logits)
        soft = (self.floor + up).clamp(self.steps.low, self.steps.high)
        loss = self.moments.error(self.steps.change(soft)).sum() / self.unit
        return loss if beta is None else loss + REGULARISER * (1 - (2 * up - 1).abs().pow(beta)).mean()

    def gradient(self, logits: Tensor, beta: float | None) -> Tensor:
        """Return the gradient of :meth:`loss`, written out: several times as fast as having it derived."""
        curve = torch.sigmoid(logits)
        open_up = curve * (1 + 2 * OVERHANG) - OVERHANG
        up = open_up.clamp(0, 1)
        raised = self.floor + up
        soft = raised.clamp(self.steps.low, self.steps.high)
        rows = self.steps.change(soft).view(self.moments.both.shape)
        of_steps = (rows @ self.moments.inputs - self.moments.both).view_as(soft).mul_(self.steps.scale)
        of_up = of_steps.mul_(raised == soft).mul_(2 / self.unit)
        if beta is not None:
            away = 2 * up - 1
            of_up -= away.abs().pow_(beta - 1).mul_(away.sign()).mul_(2 * beta * REGULARISER / up.numel())
        inside = (open_up > 0) & (open_up < 1)
        return of_up.mul_(inside).mul_(curve * (1 - curve)).mul_(1 + 2 * OVERHANG)


def anneal_beta(share: float) -> float | None:
    """Return beta after a share of the steps: none at first, then falling along half a cosine.

    Example:
        >>> anneal_beta(0.1), anneal_beta(0.2), round(anneal_beta(0.6), 3)
        (None, 20.0, 11.0)
    """
    if share < WARM_UP:
        return None
    progress = (share - WARM_UP) / (1 - WARM_UP)
    return LAST_BETA + (FIRST_BETA - LAST_BETA) * 0.5 * (1 + math.cos(math.pi * progress))


def unfold_patches(layer: Any, inputs: Tensor) -> Tensor:
    """Return what each output position of a layer reads, ``[P, groups * K]``."""
    if isinstance(layer, nn.Linear):
        return inputs.flatten(0, -2)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    kernel, dilation, stride = layer.kernel_size, layer.dilation, layer.stride
    if len(kernel) == 1:
        padded = padded.unsqueeze(2)
        kernel, dilation, stride = (1, *kernel), (1, *dilation), (1, *stride)
    return F.unfold(padded, kernel, dilation=dilation, stride=stride).movedim(1, -1).flatten(0, 1)


def rectify_sigmoid(logits: Tensor) -> Tensor:
    """Return how far each weight is rounded up, 0 to 1, from its logit."""
    return (torch.sigmoid(logits) * (1 + 2 * OVERHANG) - OVERHANG).clamp(0, 1)
