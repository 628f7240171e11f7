"""The layers that quantization works on: finding them, watching them, and giving them other parameters."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from autocompress.errors import CompressionError
from autocompress.quantize.fake_quantize import INPUT
from autocompress.quantize.weight_coding import QuantizedWeight, WeightCoding

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear, *EMBEDDINGS)


@contextmanager
def add_layer_to_errors(layer: str, what: str) -> Iterator[None]:
    """Put the layer's name in front of an error about one of its tensors."""
    try:
        yield
    except CompressionError as error:
        raise CompressionError(f"layer '{layer}', {what}: {error}") from None


@contextmanager
def forward_hooks(layers: Mapping[str, nn.Module], watch: Callable[..., Any]) -> Iterator[None]:
    """Show ``watch`` every call of the layers: name, arguments, keyword arguments, output.

    What it returns takes the place of the output, unless it is None.
    """
    handles = [
        layer.register_forward_hook(lambda _, *call, name=name: watch(name, *call), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def find_layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers that can be quantized, by name.

    The output projection of torch's attention is none of them: attention reads its weight without calling it. Nor is
    an embedding table with ``max_norm``, which rescales its rows as they are looked up.

    Raises:
        CompressionError: A layer computes its weight, or is quantized already.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
        and not isinstance(module, NonDynamicallyQuantizableLinear)
        and getattr(module, "max_norm", None) is None
    }
    for name, layer in layers.items():
        if "weight" not in layer._parameters:
            raise CompressionError(f"layer '{name}' computes its weight; remove its parametrization first")
        if hasattr(layer, INPUT):
            raise CompressionError(f"layer '{name}' is quantized already; quantize the float model")
    return layers


def is_embedding(layer: nn.Module) -> bool:
    """Return whether a layer looks rows up: its input is row numbers, which are never rounded, and it has no bias."""
    return isinstance(layer, EMBEDDINGS)


def coding_for_layer(layer: nn.Module, coding: WeightCoding) -> WeightCoding:
    """Return how the weight of this layer becomes codes: an embedding table always has one scale a row.

    Only the rows of an example are read, and those of rare ones are far smaller than those of frequent ones.
    """
    return replace(coding, granularity="per_channel") if is_embedding(layer) else coding


def set_weight(layer: Any, coded: QuantizedWeight) -> None:
    """Give ``layer`` the values of the codes; as a new parameter, so that a shared weight stays as it was elsewhere."""
    values = coded.values().to(layer.weight.dtype)
    layer.weight = nn.Parameter(values, requires_grad=layer.weight.requires_grad)


def set_bias(layer: Any, bias: Tensor) -> None:
    """Give ``layer`` another bias, as a new parameter."""
    layer.bias = nn.Parameter(bias, requires_grad=layer.bias.requires_grad)


def flatten_positions(layer: nn.Module, output: Tensor) -> Tensor:
    """Return a layer's output with one row a position, ``[.., C] or [N, C, ..] -> [P, C]``."""
    return (output if isinstance(layer, nn.Linear) else output.movedim(1, -1)).flatten(0, -2)


def broadcast_channels(layer: nn.Module, values: Tensor, output: Tensor) -> Tensor:
    """Return one number a channel in a shape that broadcasts over a layer's output, ``[C] -> [C, 1, ..]``."""
    return values if isinstance(layer, nn.Linear) else values.view(-1, *[1] * (output.ndim - 2))
