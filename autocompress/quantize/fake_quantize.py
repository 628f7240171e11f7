"""Fake quantization of layer inputs and outputs: floating-point values that lie on an integer grid.

The codes are chosen so that integer kernels compute the same values exactly.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from autocompress.quantize.quantizers import Grid
from autocompress.quantize.ste import ste_quantize

INPUT = "input_quantizer"
OUTPUT = "output_quantizer"


class FakeQuantize(nn.Module):
    """Rounds a tensor to an n-bit grid; the result has the shape and the floating-point type of the input.

    The scale and the zero point are buffers, so the ``state_dict`` contains them. The gradient is the straight-through
    estimator: it passes inside the range and is zero outside (Bengio et al. 2013, arXiv:1308.3432).

    Args:
        grid: Grid of a whole tensor, with scale and zero point of shape ``[]``.
        bits: Bit-width of the grid's codes, for reports.

    Example:
        >>> grid = Grid(torch.tensor(0.5), torch.tensor(0, dtype=torch.int32), 0, 3)
        >>> FakeQuantize(grid, bits=2)(torch.tensor([-1.0, 0.6, 9.0])).tolist()
        [0.0, 0.5, 1.5]
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, grid: Grid, bits: int) -> None:
        super().__init__()
        self.register_buffer("scale", grid.scale)
        self.register_buffer("zero_point", grid.zero_point)
        self.low, self.high, self.bits = grid.low, grid.high, bits

    @property
    def grid(self) -> Grid:
        """The grid that inputs are rounded to."""
        return Grid(self.scale, self.zero_point, self.low, self.high)

    def forward(self, values: Tensor) -> Tensor:
        """Return the values rounded to the grid, ``[...] -> [...]``."""
        low, high = self.low - int(self.zero_point), self.high - int(self.zero_point)
        # The straight-through estimator stores a tensor for the backward pass; it runs only where a gradient is needed.
        if values.requires_grad and torch.is_grad_enabled():
            return ste_quantize(values, self.scale, low, high)
        # Ten times as fast as torch's operator, whose loop is not vectorised. It divides as ONNX does, where torch
        # multiplies by the reciprocal: the two differ at ties, which are frequent for discrete inputs such as pixels.
        steps = values.float().div(self.scale).round_().clamp_(low, high)
        return steps.mul_(self.scale).to(values.dtype)

    def extra_repr(self) -> str:
        """Return the text that ``repr`` shows between the parentheses."""
        return f"bits={self.bits}, scale={float(self.scale):.3g}, zero_point={int(self.zero_point)}"


def attach_input_quantizer(layer: nn.Module, quantizer: nn.Module) -> None:
    """Attach a quantizer of the first input of a layer, as its submodule ``input_quantizer``.

    It replaces the quantizer that the layer has already, if any.
    """
    # The hook reads the submodule by name, so one hook serves every quantizer that is attached later.
    if not hasattr(layer, INPUT):
        layer.register_forward_pre_hook(_quantize_first_input, with_kwargs=True)
    layer.add_module(INPUT, quantizer.train(layer.training))


def attach_output_quantizer(layer: nn.Module, quantizer: nn.Module) -> None:
    """Attach a quantizer of the output of a layer, as its submodule ``output_quantizer``."""
    layer.add_module(OUTPUT, quantizer.train(layer.training))
    layer.register_forward_hook(_quantize_layer_output)


def replace_quantizers(model: nn.Module, build: Callable[[FakeQuantize], nn.Module]) -> None:
    """Replace every :class:`FakeQuantize` in a model by the module that ``build`` returns for it."""
    for layer in list(model.modules()):
        for name, child in list(layer.named_children()):
            if isinstance(child, FakeQuantize):
                layer.add_module(name, build(child).train(child.training))


def _quantize_first_input(
    layer: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    quantizer = layer.get_submodule(INPUT)
    # Layers can be called with `input=`; only the first argument is quantized.
    if args:
        return (quantizer(args[0]), *args[1:]), kwargs
    return args, kwargs | {"input": quantizer(kwargs["input"])}


def _quantize_layer_output(layer: nn.Module, _: object, output: Tensor) -> Tensor:
    rounded: Tensor = layer.get_submodule(OUTPUT)(output)
    return rounded


# Codes of a bias stay below this, which leaves half of int32 to the sum of the products.
LARGEST_BIAS = 2.0**30
# Largest absolute weight code for which the sum of two products with the largest input, 255, fits into 16 bits.
LARGEST_EXACT_CODE = 64
# The code of 0.0 of symmetric weights in uint8.
ZERO_POINT = 128
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
    widest, middle, dtype = (LARGEST_EXACT_CODE, 0, torch.int8) if exact else (127, ZERO_POINT, torch.uint8)
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
