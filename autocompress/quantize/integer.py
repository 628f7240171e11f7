"""Integer arithmetic of a quantized layer: int8 products summed in int32, the bias on the grid of the products.

Runtimes store the bias as int32 on the scale ``input scale x weight scale`` (Jacob et al. 2018). On coarse weights
that is a coarse grid for the bias too, so codes are first widened to the whole of int8; their values stay the same.
"""

import torch
from torch import Tensor

LARGEST_BIAS = 2.0**30
TINY = torch.finfo(torch.float32).tiny


def widened_codes(
    codes: Tensor, scale: Tensor, zero_point: Tensor, bias: Tensor | None, input_scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return int8 codes, their scale and their zero point, for the same weights on a finer grid.

    The zero point is 0, and codes are multiplied to reach 127, wherever all lie from -128 to 127 around it; some 8-bit
    asymmetric ones do not, and are only moved into int8. A scale so small that a bias would not fit into
    int32 is raised: what the weights lose is below the bias's own float32 precision.

    Args:
        codes: ``[C, ...]``.
        scale: ``[C]``, or ``[]`` for the whole tensor.
        zero_point: Shaped like ``scale``.
        bias: ``[C]``, if the layer has one.
        input_scale: ``[]``, if the layer's input is quantized.

    Example:
        >>> codes, scale = torch.tensor([[-1, 0, 1]], dtype=torch.int8), torch.tensor([0.5])
        >>> widened_codes(codes, scale, torch.tensor([0]), None, None)[0].tolist()
        [[-127, 0, 127]]
    """
    axes = [-1, *[1] * (codes.ndim - 1)] if scale.ndim else []
    steps = codes.int() - zero_point.int().view(axes)
    reach = steps.abs().flatten(1).amax(1) if scale.ndim else steps.abs().amax()
    wide, fits = scale.double(), int(steps.min()) >= -128 and int(steps.max()) <= 127
    if fits:
        factor = (127 // reach.clamp(min=1)).clamp(min=1)
        steps, wide = steps * factor.view(axes), wide / factor
    if bias is not None and input_scale is not None:
        size = bias.detach().double().abs()
        finest = (size if scale.ndim else size.amax()) / (input_scale.double() * LARGEST_BIAS)
        # Where every weight is zero any scale will do, and the finest keeps the bias.
        wanted = torch.where(reach == 0, finest.clamp(min=TINY), torch.maximum(wide, finest))
        if bool((wanted > wide).any()):
            steps = steps.mul((wide / wanted).view(axes)).round().int()
        wide = wanted
    moved = torch.zeros_like(zero_point, dtype=torch.int32) if fits else zero_point.int() - 128
    return (steps + moved.view(axes)).to(torch.int8), wide.float(), moved.to(torch.int8)


def bias_grid(bias: Tensor, weight_scale: Tensor, input_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the int32 codes of a bias and their scale, ``[C]`` and ``[C]`` or ``[]``.

    Example:
        >>> bias_grid(torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor(0.25))[0].tolist()
        [8]
    """
    scale = (weight_scale.double() * input_scale.double()).clamp(min=TINY).float()
    return bias.detach().double().div(scale.double()).round().to(torch.int32), scale


def rounded_bias(codes: Tensor, scale: Tensor, zero_point: Tensor, bias: Tensor, input_scale: Tensor) -> Tensor:
    """Return the bias as an integer kernel adds it, shaped and typed like ``bias``."""
    _, wide, _ = widened_codes(codes, scale, zero_point, bias, input_scale)
    steps, step = bias_grid(bias, wide, input_scale)
    return (steps * step.double()).to(bias.dtype)
