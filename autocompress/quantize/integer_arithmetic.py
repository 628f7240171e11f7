"""Integer arithmetic of a quantized layer: 8-bit products are summed in int32, and so is the bias.

Runtimes store the bias as int32 with the scale ``input scale x weight scale`` (Jacob et al. 2018). Weights of few bits
have a large scale, which is too coarse for the bias. Codes are therefore multiplied to use more of the 8 bits, and the
scale is divided by the same factor; the weights stay the same.

The processor limits the factor. x86 without VNNI adds two products of an unsigned input and an int8 weight in 16
bits, which saturate (``vpmaddubsw``): beyond 64 a weight's code may then give another sum than on other processors.
So codes up to 64 are stored as int8, and larger ones as uint8, for which runtimes have kernels that are exact on every
processor (25% to 40% slower without VNNI, as fast as int8 with it).
"""

import torch
from torch import Tensor

# Codes of a bias stay below this, which leaves half of int32 to the sum of the products.
LARGEST_BIAS = 2.0**30
# Largest absolute weight code for which the sum of two products with the largest input, 255, fits into 16 bits.
LARGEST_EXACT_CODE = 64
# Smallest positive normal float32: a scale below it would be rounded to zero or lose precision.
TINY = torch.finfo(torch.float32).tiny


def widen_codes(
    codes: Tensor, scale: Tensor, zero_point: Tensor, bias: Tensor | None, input_scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return int8 or uint8 codes, their scale and their zero point, for the same weights on a finer grid.

    Codes within 64 of the zero point become int8 with zero point 0, multiplied to come close to 64. Codes from -128
    to 127 around it become uint8 with zero point 128. Some 8-bit asymmetric codes fit neither and keep their zero
    point. A scale that is too small for an int32 bias is raised; the error of the weights is then below the float32
    precision of the bias.

    Args:
        codes: Codes of the weight, ``[C, ...]``.
        scale: Scale of the weight, ``[C]``, or ``[]`` for the whole tensor.
        zero_point: Code of 0.0, shaped like ``scale``.
        bias: Bias of the layer, ``[C]``, if it has one.
        input_scale: Scale of the layer's input, ``[]``, if it is quantized.

    Example:
        >>> codes, scale = torch.tensor([[-1, 0, 1]], dtype=torch.int8), torch.tensor([0.5])
        >>> widen_codes(codes, scale, torch.tensor([0]), None, None)[0].tolist()
        [[-64, 0, 64]]
    """
    axes = [-1, *[1] * (codes.ndim - 1)] if scale.ndim else []
    steps = codes.int() - zero_point.int().view(axes)
    max_steps = steps.abs().flatten(1).amax(1) if scale.ndim else steps.abs().amax()
    new_scale, fits = scale.double(), int(steps.min()) >= -128 and int(steps.max()) <= 127
    exact = int(max_steps.max()) <= LARGEST_EXACT_CODE
    widest, middle, dtype = (LARGEST_EXACT_CODE, 0, torch.int8) if exact else (127, 128, torch.uint8)
    if fits:
        factor = (widest // max_steps.clamp(min=1)).clamp(min=1)
        steps, new_scale = steps * factor.view(axes), new_scale / factor
    if bias is not None and input_scale is not None:
        magnitude = bias.detach().double().abs()
        finest = (magnitude if scale.ndim else magnitude.amax()) / (input_scale.double() * LARGEST_BIAS)
        # Where all weights are zero any scale represents them, and the finest one represents the bias best.
        required = torch.where(max_steps == 0, finest.clamp(min=TINY), torch.maximum(new_scale, finest))
        if bool((required > new_scale).any()):
            steps = steps.mul((new_scale / required).view(axes)).round().int()
        new_scale = required
    new_zero_point = torch.full_like(zero_point, middle, dtype=torch.int32) if fits else zero_point.int()
    return (steps + new_zero_point.view(axes)).to(dtype), new_scale.float(), new_zero_point.to(dtype)


def quantize_bias(bias: Tensor, weight_scale: Tensor, input_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the int32 codes of a bias and their scale, ``[C]`` and ``[C]`` or ``[]``.

    Example:
        >>> quantize_bias(torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor(0.25))[0].tolist()
        [8]
    """
    scale = (weight_scale.double() * input_scale.double()).clamp(min=TINY).float()
    return bias.detach().double().div(scale.double()).round().to(torch.int32), scale


def round_bias(codes: Tensor, scale: Tensor, zero_point: Tensor, bias: Tensor, input_scale: Tensor) -> Tensor:
    """Return the bias that an integer kernel adds, with the shape and the type of ``bias``."""
    _, weight_scale, _ = widen_codes(codes, scale, zero_point, bias, input_scale)
    codes_of_bias, bias_scale = quantize_bias(bias, weight_scale, input_scale)
    return (codes_of_bias * bias_scale.double()).to(bias.dtype)
