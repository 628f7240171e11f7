"""Rounding that gradients pass: straight through, or into a step size that is learned."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class _StraightThrough(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        steps = values / scale
        ctx.save_for_backward(steps)
        ctx.ends = low - 0.5, high + 0.5
        return steps.round().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None, None]:
        (steps,) = ctx.saved_tensors
        # One vectorised pass: the gradient inside the ends, zero outside.
        return torch.ops.aten.hardtanh_backward(gradients[0], steps, *ctx.ends), None, None, None


class _LearnedStep(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, step: Tensor, factor: Tensor, low: int, high: int) -> Tensor:
        steps = values / step
        codes = steps.round().clamp_(low, high)
        ctx.save_for_backward(steps, codes, factor)
        ctx.ends = low, high
        return codes * step

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None, None, None]:
        steps, codes, factor = ctx.saved_tensors
        gradient = gradients[0]
        inside = torch.ops.aten.hardtanh_backward(gradient, steps, *ctx.ends)
        if factor.ndim:
            of_step = ((gradient * codes).sum(1, keepdim=True) - (inside * steps).sum(1, keepdim=True)) * factor
        else:
            of_step = (gradient.flatten().dot(codes.flatten()) - inside.flatten().dot(steps.flatten())) * factor
        return inside, of_step, None, None, None


def ste_quantize(values: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """Return values on the grid ``low * scale .. high * scale``; gradients pass inside it (Bengio et al. 2013).

    Example:
        >>> values = torch.tensor([0.6, 9.0], requires_grad=True)
        >>> ste_quantize(values, torch.tensor(0.5), 0, 3).sum().backward()
        >>> values.grad.tolist()
        [1.0, 0.0]
    """
    rounded: Tensor = _StraightThrough.apply(values, scale, low, high)  # type: ignore[no-untyped-call]
    return rounded


def lsq_quantize(values: Tensor, step: Tensor, factor: Tensor, low: int, high: int) -> Tensor:
    """Return values on the grid of a step size that is learned too (LSQ, Esser et al. 2020, arXiv:1902.08153).

    The gradient of the step is ``round(v / s) - v / s`` inside and ``low`` or ``high`` outside, summed over the
    values that share the step, and multiplied by ``factor``.

    Args:
        values: ``[...]``, or rows ``[B, n]`` with a step each.
        step: ``[]``, or ``[B, 1]``.
        factor: Shaped like ``step``.
        low: The smallest code.
        high: The largest code.

    Example:
        >>> step = torch.tensor(1.0, requires_grad=True)
        >>> lsq_quantize(torch.tensor([0.25, 9.0]), step, torch.tensor(1.0), 0, 3).sum().backward()
        >>> step.grad.item()
        2.75
    """
    rounded: Tensor = _LearnedStep.apply(values, step, factor, low, high)  # type: ignore[no-untyped-call]
    return rounded


def gradient_scale(count: int, high: int) -> float:
    """Return what LSQ multiplies the gradient of a step by: ``1 / sqrt(count * high)``.

    Example:
        >>> gradient_scale(25, 4)
        0.1
    """
    return 1 / math.sqrt(count * high)
