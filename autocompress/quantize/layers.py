"""Layers that can be quantized: finding them, hooking their calls and replacing their parameters."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeAlias, cast

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from autocompress.errors import CompressionError
from autocompress.quantize.conversion import WeightHolder
from autocompress.quantize.fake_quantize import INPUT
from autocompress.quantize.weight_coding import QuantizedWeight, WeightCoding

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (*CONVOLUTIONS, nn.Linear, *EMBEDDINGS, WeightHolder)
Layer: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear | nn.Embedding | nn.EmbeddingBag | WeightHolder
LayerHook: TypeAlias = Callable[[str, tuple[Tensor, ...], Mapping[str, Tensor], Tensor], Tensor | None]


@contextmanager
def add_layer_to_errors(layer: str, tensor: str) -> Iterator[None]:
    """Prefix a CompressionError about a tensor of a layer with the names of the layer and the tensor."""
    try:
        yield
    except CompressionError as error:
        # Without a cause: the message already contains the text of the original error.
        raise CompressionError(f"layer '{layer}', {tensor}: {error}") from None


@contextmanager
def forward_hooks(layers: Mapping[str, nn.Module], hook: LayerHook) -> Iterator[None]:
    """Register a forward hook on each layer inside the ``with`` block.

    Args:
        layers: Layers by name.
        hook: Function of name, arguments, keyword arguments and output of a call; its result replaces the output
            unless it is None.
    """
    handles = [
        layer.register_forward_hook(lambda _, *call, name=name: hook(name, *call), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def find_layers(model: nn.Module) -> dict[str, Layer]:
    """Return the layers that can be quantized, by name; :func:`~.conversion.convert_layers` makes more of them.

    Two kinds are left out: the output projection of torch's attention, whose weight is read without a call of the
    layer, and embeddings with ``max_norm``, which rescale their rows at each lookup.

    Raises:
        CompressionError: A layer has a parametrized weight, or is already quantized.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
        and not isinstance(module, NonDynamicallyQuantizableLinear)
        and getattr(module, "max_norm", None) is None
    }
    for name, layer in layers.items():
        # A parametrized weight is computed at each access and cannot be replaced by another parameter.
        if "weight" not in layer._parameters:
            raise CompressionError(f"layer '{name}' computes its weight; remove its parametrization first")
        if hasattr(layer, INPUT):
            raise CompressionError(f"layer '{name}' is quantized already; quantize the float model")
    return layers


def is_embedding(layer: nn.Module) -> bool:
    """Return whether a layer is an embedding: its inputs are indices, which stay integers, and it has no bias."""
    return isinstance(layer, EMBEDDINGS)


def is_weight_only(layer: nn.Module) -> bool:
    """Return whether only the weight of a layer is quantized: an embedding, or a held weight, which has no input."""
    return isinstance(layer, (*EMBEDDINGS, WeightHolder))


# The bits that 8-bit weights keep where sums of two products with the largest input must fit into 16 bits.
REDUCED_BITS = 7


def coding_for_layer(layer: nn.Module, coding: WeightCoding, reduce_range: bool = False) -> WeightCoding:
    """Return the coding for the weight of a layer; an embedding always has one scale per row.

    Rows of rare indices are often far smaller than rows of frequent ones, so a shared scale would round them to zero.
    A group that holds a whole channel is that channel, for which integer kernels exist.

    Args:
        layer: Layer whose weight is encoded.
        coding: Coding that the settings ask for.
        reduce_range: Whether 8-bit weights of an integer kernel keep 7 bits, see
            :attr:`autocompress.core.precisions.Precisions.reduce_range`.
    """
    # A parametrized weight is a property and no parameter.
    channel = cast("Tensor", layer.weight)[0]
    is_whole_channel = coding.granularity == "per_group" and coding.group_size >= channel.numel()
    if is_embedding(layer) or is_whole_channel:
        coding = replace(coding, granularity="per_channel")
    # An embedding multiplies nothing, and other grids than an even one are computed in floating point.
    is_reduced = reduce_range and coding.bits == 8 and coding.is_integer and not is_weight_only(layer)
    return replace(coding, bits=REDUCED_BITS) if is_reduced else coding


def set_weight(layer: Layer, quantized: QuantizedWeight) -> None:
    """Replace the weight of a layer by the dequantized one.

    It is a new parameter, so a weight that is shared with another layer does not change there.
    """
    values = quantized.dequantize().to(layer.weight.dtype)
    layer.weight = nn.Parameter(values, requires_grad=layer.weight.requires_grad)


def set_bias(layer: Layer, bias: Tensor) -> None:
    """Replace the bias of a layer by a new parameter."""
    current = layer_bias(layer)
    layer.bias = nn.Parameter(bias, requires_grad=current is not None and current.requires_grad)


def layer_bias(layer: Layer) -> Tensor | None:
    """Return the bias of a layer, ``[C]``, or None where it has none."""
    return None if isinstance(layer, nn.Embedding | nn.EmbeddingBag | WeightHolder) else layer.bias


def flatten_positions(layer: nn.Module, output: Tensor) -> Tensor:
    """Return the output of a layer with one row per position, ``[.., C] or [N, C, ..] -> [P, C]``."""
    return (output if isinstance(layer, nn.Linear) else output.movedim(1, -1)).flatten(0, -2)


def broadcast_channels(layer: nn.Module, values: Tensor, output: Tensor) -> Tensor:
    """Return values per channel in a shape that broadcasts to a layer's output, ``[C] -> [C, 1, ..]``."""
    return values if isinstance(layer, nn.Linear) else values.view(-1, *[1] * (output.ndim - 2))
