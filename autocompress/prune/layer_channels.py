"""Sides of layers and parameters: which axes of which tensors hold the channels, and how they are shortened."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from autocompress.core.attention import update_attention

Side: TypeAlias = tuple[str, int]
"""Where channels lie: a layer and ``INPUTS`` or ``OUTPUTS``, or a parameter of another module and an axis of it."""

# A layer's sides are told from the axes of a parameter by their sign.
INPUTS, OUTPUTS = -2, -1

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
# Layers with one parameter for each channel, which have equal inputs and outputs.
_SCALES = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.PReLU)
_VECTORS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class SideTensors:
    """The tensors that hold the channels of one side.

    Attributes:
        side: The side.
        size: Number of channels along the axes; of a grouped convolution's inputs, those of one block.
        axes: Names of tensors in the model, each with the axis that holds the channels.
    """

    side: Side
    size: int
    axes: tuple[tuple[str, int], ...]


def is_matrix_layer(module: nn.Module) -> bool:
    """Return whether a layer multiplies its inputs by a parameter ``weight`` of a known layout.

    GPT-2 has linear layers of its own, whose weight ``[inputs, outputs]`` is transposed.
    """
    if not isinstance(module._parameters.get("weight"), Tensor):
        return False
    return isinstance(module, _ConvNd | nn.Linear) or is_transposed_linear(module)


def is_transposed_linear(module: nn.Module) -> bool:
    """Return whether a module is the linear layer of GPT-2, whose weight is ``[inputs, outputs]``."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def output_axis(layer: nn.Module) -> int:
    """Return the axis of a layer's weight that holds its outputs.

    Example:
        >>> output_axis(nn.Linear(2, 3)), output_axis(nn.Embedding(2, 3)), output_axis(nn.ConvTranspose1d(2, 3, 1))
        (0, 1, 1)
    """
    has_inputs_first = getattr(layer, "transposed", False) or isinstance(layer, EMBEDDINGS)
    return int(has_inputs_first or is_transposed_linear(layer))


def list_sides(model: nn.Module) -> Iterator[SideTensors]:
    """Yield the sides of all layers and of all other parameters and buffers; a shared tensor counts once."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        own = {**module._parameters, **module._buffers}
        tensors = {key: tensor for key, tensor in own.items() if tensor is not None and id(tensor) not in seen}
        tensors = {key: tensor for key, tensor in tensors.items() if tensor.is_floating_point() and tensor.dim()}
        seen.update(id(tensor) for tensor in tensors.values())
        for side, size, axes in _layer_sides(name, module, tensors):
            yield SideTensors(side, size, tuple((f"{prefix}{key}", axis) for key, axis in axes))


def _layer_sides(
    name: str, module: nn.Module, tensors: dict[str, Tensor]
) -> Iterator[tuple[Side, int, list[tuple[str, int]]]]:
    described: set[str] = set()
    weight = tensors.get("weight")
    if weight is not None and (is_matrix_layer(module) or isinstance(module, EMBEDDINGS)):
        axis = output_axis(module)
        yield (name, INPUTS), weight.shape[1 - axis], [("weight", 1 - axis)]
        outputs = [("weight", axis)]
        bias = tensors.get("bias")
        if bias is not None and len(bias) == weight.shape[axis]:
            outputs.append(("bias", 0))
            described.add("bias")
        yield (name, OUTPUTS), weight.shape[axis], outputs
        described.add("weight")
    elif isinstance(module, _SCALES):
        vectors = [key for key in _VECTORS if key in tensors and tensors[key].dim() == 1]
        sizes = {len(tensors[key]) for key in vectors}
        if len(sizes) == 1:
            yield (name, OUTPUTS), sizes.pop(), [(key, 0) for key in vectors]
            described.update(vectors)
    for key, tensor in tensors.items():
        if key not in described:
            path = f"{name}.{key}" if name else key
            for axis, size in enumerate(tensor.shape):
                yield (path, axis), size, [(key, axis)]


def shrink_side(model: nn.Module, side: SideTensors, remaining: Sequence[int]) -> None:
    """Keep only some channels of a side, in place, in every module that holds its tensors."""
    for path, axis in side.axes:
        parent, _, key = path.rpartition(".")
        tensor = getattr(model.get_submodule(parent), key)
        indices = torch.tensor(list(remaining), device=tensor.device)
        selected = tensor.detach().index_select(axis, indices)
        if isinstance(tensor, nn.Parameter):
            selected = nn.Parameter(selected, requires_grad=tensor.requires_grad)
            if tensor.grad is not None:
                selected.grad = tensor.grad.index_select(axis, indices)
        _replace_tensor(model, tensor, selected, remaining)


def _replace_tensor(model: nn.Module, before: Tensor, after: Tensor, remaining: Sequence[int]) -> None:
    """Replace a tensor wherever a module holds it: tied weights stay tied."""
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for key, tensor in own.items():
                if tensor is before:
                    own[key] = after  # type: ignore[assignment]
                    _update_sizes(module, remaining)


def _update_sizes(module: nn.Module, remaining: Sequence[int]) -> None:
    """Set the sizes that a layer keeps as numbers to those of its tensors, of which some channels remain."""
    # The types of torch declare these attributes as constants of the module.
    layer: Any = module
    if isinstance(module, nn.MultiheadAttention):
        update_attention(module)
    weight: Tensor | None = module._parameters.get("weight")
    if weight is None:
        # A batch normalization without weights still has statistics.
        weight = module._buffers.get("running_mean")
    if weight is None:
        return
    if isinstance(module, _ConvNd):
        _update_convolution(layer, weight, remaining)
    elif isinstance(module, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(module, EMBEDDINGS):
        layer.num_embeddings, layer.embedding_dim = weight.shape
    elif is_transposed_linear(module):
        layer.nx, layer.nf = weight.shape
    elif isinstance(module, _BatchNorm):
        layer.num_features = len(weight)
    elif isinstance(module, nn.LayerNorm):
        layer.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm):
        layer.num_channels = len(weight)
    elif isinstance(module, nn.PReLU):
        layer.num_parameters = len(weight)


def _update_convolution(layer: Any, weight: Tensor, remaining: Sequence[int]) -> None:
    first, second = weight.shape[:2]
    if layer.transposed:
        layer.in_channels, layer.out_channels = first, second * layer.groups
        return
    if is_depthwise(layer) and first < layer.out_channels:
        # A depthwise convolution that lost all outputs of some blocks has lost these blocks.
        outputs_of_block = layer.out_channels // layer.groups
        blocks = {index // outputs_of_block for index in remaining}
        if len(blocks) * outputs_of_block == first:
            layer.groups = len(blocks)
    layer.in_channels, layer.out_channels = second * layer.groups, first


def is_depthwise(layer: nn.Module) -> bool:
    """Return whether each block of a convolution reads one channel."""
    if not isinstance(layer, _ConvNd) or layer.transposed:
        return False
    return layer.groups > 1 and layer.groups == layer.in_channels
