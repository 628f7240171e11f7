"""Integer arithmetic of a quantized layer: 8-bit products summed in int32, the bias on the grid of the products.

Runtimes store the bias as int32 on the scale ``input scale x weight scale`` (Jacob et al. 2018). On coarse weights
that is a coarse grid for the bias too, so codes are first widened; their values stay the same.

How far is a matter of the processor. x86 without VNNI adds two products of an unsigned input and an int8 weight in 16
bits, which saturate (``vpmaddubsw``): beyond 64 a weight's code may then give another sum than on other processors.
So codes are int8 up to 64, and what reaches beyond is stored as uint8, for which runtimes have kernels that are exact
everywhere (a quarter to two fifths slower there, as fast as int8 with VNNI).
"""

import torch
from torch import Tensor

LARGEST_BIAS = 2.0**30
# Twice 255 times this, two products with the largest input, is the last that fits into 16 bits.
EXACT = 64
TINY = torch.finfo(torch.float32).tiny


def widen_codes(
    codes: Tensor, scale: Tensor, zero_point: Tensor, bias: Tensor | None, input_scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return int8 or uint8 codes, their scale and their zero point, for the same weights on a finer grid.

    Where all lie from -64 to 64 around the zero point they are int8 around 0, multiplied to come close to 64; where
    all lie from -128 to 127, uint8 around 128. Some 8-bit asymmetric ones do not, and keep their zero point. A scale so
    small that a bias would not fit into int32 is raised: what the weights lose is below the bias's own float32
    precision.

    Args:
        codes: ``[C, ...]``.
        scale: ``[C]``, or ``[]`` for the whole tensor.
        zero_point: Shaped like ``scale``.
        bias: ``[C]``, if the layer has one.
        input_scale: ``[]``, if the layer's input is quantized.

    Example:
        >>> codes, scale = torch.tensor([[-1, 0, 1]], dtype=torch.int8), torch.tensor([0.5])
        >>> widen_codes(codes, scale, torch.tensor([0]), None, None)[0].tolist()
        [[-64, 0, 64]]
    """
    axes = [-1, *[1] * (codes.ndim - 1)] if scale.ndim else []
    steps = codes.int() - zero_point.int().view(axes)
    reach = steps.abs().flatten(1).amax(1) if scale.ndim else steps.abs().amax()
    wide, fits = scale.double(), int(steps.min()) >= -128 and int(steps.max()) <= 127
    exact = int(reach.max()) <= EXACT
    widest, middle, dtype = (EXACT, 0, torch.int8) if exact else (127, 128, torch.uint8)
    if fits:
        factor = (widest // reach.clamp(min=1)).clamp(min=1)
        steps, wide = steps * factor.view(axes), wide / factor
    if bias is not None and input_scale is not None:
        size = bias.detach().double().abs()
        finest = (size if scale.ndim else size.amax()) / (input_scale.double() * LARGEST_BIAS)
        # Where every weight is zero any scale will do, and the finest keeps the bias.
        wanted = torch.where(reach == 0, finest.clamp(min=TINY), torch.maximum(wide, finest))
        if bool((wanted > wide).any()):
            steps = steps.mul((wide / wanted).view(axes)).round().int()
        wide = wanted
    moved = torch.full_like(zero_point, middle, dtype=torch.int32) if fits else zero_point.int()
    return (steps + moved.view(axes)).to(dtype), wide.float(), moved.to(dtype)


def quantize_bias(bias: Tensor, weight_scale: Tensor, input_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the int32 codes of a bias and their scale, ``[C]`` and ``[C]`` or ``[]``.

    Example:
        >>> quantize_bias(torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor(0.25))[0].tolist()
        [8]
    """
    scale = (weight_scale.double() * input_scale.double()).clamp(min=TINY).float()
    return bias.detach().double().div(scale.double()).round().to(torch.int32), scale


def round_bias(codes: Tensor, scale: Tensor, zero_point: Tensor, bias: Tensor, input_scale: Tensor) -> Tensor:
    """Return the bias as an integer kernel adds it, shaped and typed like ``bias``."""
    _, wide, _ = widen_codes(codes, scale, zero_point, bias, input_scale)
    steps, step = quantize_bias(bias, wide, input_scale)
    return (steps * step.double()).to(bias.dtype)
