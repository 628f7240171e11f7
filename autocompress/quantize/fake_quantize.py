"""Fake quantization of layer inputs and outputs: floating-point values that lie on an integer grid."""

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
