"""Differentiable rounding: the straight-through estimator (STE) and learned step size quantization (LSQ)."""

import math

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx


class _Context(FunctionCtx):
    """What a rounding keeps for its backward pass: autograd accepts any attribute."""

    saved_tensors: tuple[Tensor, ...]
    code_range: tuple[float, float]


class _StraightThrough(Function):
    @staticmethod
    def forward(ctx: _Context, values: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        steps = values / scale
        ctx.save_for_backward(steps)
        # A value within half a step of the range is rounded into it and still has a gradient.
        ctx.code_range = low - 0.5, high + 0.5
        return steps.round().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (steps,) = ctx.saved_tensors
        # One vectorised pass: the gradient inside the range, zero outside.
        return torch.ops.aten.hardtanh_backward(gradients[0], steps, *ctx.code_range), None, None, None


class _LearnedStep(Function):
    @staticmethod
    def forward(ctx: _Context, values: Tensor, step: Tensor, factor: Tensor, low: int, high: int) -> Tensor:
        steps = values / step
        codes = steps.round().clamp_(low, high)
        ctx.save_for_backward(steps, codes, factor)
        ctx.code_range = low, high
        return codes * step

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        steps, codes, factor = ctx.saved_tensors
        gradient = gradients[0]
        inside = torch.ops.aten.hardtanh_backward(gradient, steps, *ctx.code_range)
        # Gradient of the step (LSQ, equation 3): codes minus steps inside the range, the clipped code outside.
        if factor.ndim:
            step_gradient = ((gradient * codes).sum(1, keepdim=True) - (inside * steps).sum(1, keepdim=True)) * factor
        else:
            step_gradient = (gradient.flatten().dot(codes.flatten()) - inside.flatten().dot(steps.flatten())) * factor
        return inside, step_gradient, None, None, None


def ste_quantize(values: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """Return values rounded to the grid ``low * scale .. high * scale``; the gradient passes inside the range.

    It is the straight-through estimator (Bengio et al. 2013, arXiv:1308.3432).

    Example:
        >>> values = torch.tensor([0.6, 9.0], requires_grad=True)
        >>> ste_quantize(values, torch.tensor(0.5), 0, 3).sum().backward()
        >>> values.grad.tolist()
        [1.0, 0.0]
    """
    rounded: Tensor = _StraightThrough.apply(values, scale, low, high)  # type: ignore[no-untyped-call]
    return rounded


def lsq_quantize(values: Tensor, step: Tensor, factor: Tensor, low: int, high: int) -> Tensor:
    """Return values rounded to a grid with a learned step size (LSQ, Esser et al. 2020, arXiv:1902.08153).

    The gradient of the step is ``round(v / s) - v / s`` inside and ``low`` or ``high`` outside, summed over the
    values that share the step, and multiplied by ``factor``.

    Args:
        values: Values of any shape, or rows ``[B, n]`` with a step per row.
        step: Step size, ``[]`` or ``[B, 1]``.
        factor: Scale of the step's gradient, shaped like ``step``.
        low: Smallest code.
        high: Largest code.

    Example:
        >>> step = torch.tensor(1.0, requires_grad=True)
        >>> lsq_quantize(torch.tensor([0.25, 9.0]), step, torch.tensor(1.0), 0, 3).sum().backward()
        >>> step.grad.item()
        2.75
    """
    rounded: Tensor = _LearnedStep.apply(values, step, factor, low, high)  # type: ignore[no-untyped-call]
    return rounded


def gradient_scale(count: int, high: int) -> float:
    """Return the factor of the gradient of a step in LSQ: ``1 / sqrt(count * high)``.

    Example:
        >>> gradient_scale(25, 4)
        0.1
    """
    return 1 / math.sqrt(count * high)
