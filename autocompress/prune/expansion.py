"""Expansion of a pruned model to the shapes before pruning: its values at their original positions, zeros elsewhere.

A removed channel computes zero, and every weight that reads it is zero, so the expanded model returns the outputs of
the pruned one. It has the parameters of the original model, so it can be compared with it tensor by tensor.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from autocompress.core.method import MethodState
from autocompress.core.registry import PRUNE
from autocompress.errors import CompressionError
from autocompress.prune.calibration import flatten_outputs, format_error, make_noise
from autocompress.prune.channels import have_close_outputs
from autocompress.prune.depth import DroppedBlock
from autocompress.prune.tokens import find_selecting_attention

Replay: TypeAlias = Callable[[nn.Module], nn.Module]
"""Function that repeats a pruning on a fresh model, in place or not, and returns the model."""

# The history of each built-in method has one of these entries, and a method that restores it.
_METHOD_OF_ENTRY = {
    "layers": "structured",
    "dropped": "depth",
    "heads": "heads",
    "tokens": "tokens",
    "masked": "unstructured",
    "factorized": "embedding_rank",
}
# Types that represent every position of a tensor exactly: up to 2**53 and 2**63.
_POSITION_TYPES = (torch.float64, torch.int64)
# One random input may leave all channels behind a rectifier at zero, and then any two models agree.
_CHECKED_INPUTS = 4
_NOTHING = torch.empty(0, dtype=torch.long)
_CHANNEL_LAYERS = (_ConvNd, nn.Linear, nn.Embedding, _BatchNorm, nn.LayerNorm, nn.PReLU)


class ChannelIndices(BaseModel):
    """Original indices of the channels that one layer keeps, in ascending order.

    Both are empty for a layer of a dropped block. The inputs of an embedding are its rows; batch normalization, layer
    normalization and PReLU have equal inputs and outputs.

    Attributes:
        inputs: Indices of the input channels.
        outputs: Indices of the output channels.
    """

    # The record is a part of architecture.json, where an unknown entry or another type means damage.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    inputs: list[Annotated[int, Field(ge=0)]]
    outputs: list[Annotated[int, Field(ge=0)]]


ChannelMap: TypeAlias = dict[str, ChannelIndices]
"""Layer name to the indices of its channels, for the layers that lost some; every other layer has all of them."""


def expand_model(
    pruned: nn.Module,
    original: nn.Module,
    history: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    example: tuple[Tensor, ...],
) -> nn.Module:
    """Return a copy of ``original`` with the values of ``pruned``, and with zeros where channels were removed.

    The outputs are those of ``pruned``, which is checked on random inputs. Batch normalizations keep the mean 0 and
    the variance 1 for removed channels. Zeros have no gradient while both sides of a channel are zero, so fine-tuning
    changes only the channels that were not removed. A dropped block comes back with zeros if it then returns its
    input, as a residual block does. After unstructured and N:M pruning the shapes are those of the original, so the
    result equals ``pruned``.

    Args:
        pruned: The pruned float model, before its batch normalizations are folded and before quantization.
        original: A model with the structure before pruning; only its shapes matter. It is not changed.
        history: ``MethodState.history`` of the pruning, or of several prunings in their order.
        example: A batch of one, as positional arguments of both models.

    Raises:
        CompressionError: The history or the pruned model does not belong to ``original``, the zeros of a dropped
            block cannot return its input, or the hidden size was reduced.
    """
    return OriginalPositions(original, _replay_of(history)).expand(pruned, example)


def map_channels(original: nn.Module, history: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> ChannelMap:
    """Return the original indices of the remaining channels of every layer that lost some.

    Args:
        original: A model with the structure before pruning. It is not changed.
        history: ``MethodState.history`` of the pruning, or of several prunings in their order.

    Raises:
        CompressionError: The history does not fit the model.
    """
    return OriginalPositions(original, _replay_of(history)).list_channels()


class OriginalPositions:
    """The position in the original tensors of every value of a pruned model.

    The pruning is repeated on a copy of the original whose tensors contain their own positions ``0, 1, 2, ...``.
    Whatever a method selects, by blocks of a grouped convolution for example, the positions that remain are known.

    Args:
        original: A model with the structure before pruning. It is not changed.
        replay: Function that repeats the pruning.

    Raises:
        CompressionError: The pruning does not fit the model, or does more than removing channels and blocks.
    """

    def __init__(self, original: nn.Module, replay: Replay) -> None:
        self._original = original
        numbered = copy.deepcopy(original).eval().double()
        for tensor in numbered.state_dict().values():
            if tensor.dtype in _POSITION_TYPES:
                tensor.copy_(torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape))
        numbered = replay(numbered)
        self._positions = {
            # Tensors of other types have no channels: they stay whole.
            name: tensor.long() if tensor.dtype in _POSITION_TYPES else _number_values(tensor)
            for name, tensor in numbered.state_dict().items()
        }
        modules = dict(self._original.named_modules())
        self._dropped = [
            name
            for name, module in numbered.named_modules()
            if isinstance(module, DroppedBlock) and not isinstance(modules.get(name), DroppedBlock)
        ]
        self._check_positions()

    def list_positions(self) -> dict[str, Tensor]:
        """Return the flat positions ``[...]`` in the original tensors of every value of the pruned model, by name."""
        return dict(self._positions)

    def list_channels(self) -> ChannelMap:
        """Return the original indices of the remaining channels of every layer that lost some."""
        originals = self._original.state_dict()
        channels = {}
        for name, layer in self._original.named_modules():
            if not isinstance(layer, _CHANNEL_LAYERS):
                continue
            # A batch normalization without weights still has statistics.
            attribute = "weight" if getattr(layer, "weight", None) is not None else "running_mean"
            tensor = f"{name}.{attribute}".lstrip(".")
            if tensor not in originals:
                continue
            position, shape = self._positions.get(tensor, _NOTHING), originals[tensor].shape
            if position.shape != shape:
                channels[name] = _select_channels(layer, position, shape)
        return channels

    def expand(self, pruned: nn.Module, example: tuple[Tensor, ...]) -> nn.Module:
        """Return a copy of the original with the values of ``pruned`` and zeros elsewhere, in evaluation mode.

        Raises:
            CompressionError: The pruned model has other shapes, its hidden size was reduced, or the result computes
                other outputs.
        """
        self._check_normalizations()
        values = pruned.state_dict()
        for name in [*self._positions, *values]:
            shapes = [tuple(tensors[name].shape) if name in tensors else None for tensors in (self._positions, values)]
            if shapes[0] != shapes[1]:
                raise CompressionError(
                    f"the pruned model does not fit its history: '{name}' is {_format_shape(shapes[1])} and should be "
                    f"{_format_shape(shapes[0])}; pass the float model that the history belongs to, before its "
                    "batch normalizations are folded and before quantization"
                )
        expanded = copy.deepcopy(self._original).eval()
        modules = dict(expanded.named_modules())
        for name, tensor in expanded.state_dict().items():
            layer, _, attribute = name.rpartition(".")
            # With the variance zero, fine-tuning in training mode would start from a division by almost zero.
            is_variance = attribute == "running_var" and isinstance(modules[layer], _BatchNorm)
            full = torch.full_like(tensor, 1 if is_variance else 0).flatten()
            if name in values:
                full[self._positions[name].flatten().to(full.device)] = values[name].flatten().to(full)
            tensor.copy_(full.view(tensor.shape))
        layers = find_selecting_attention(expanded)
        for name, attention in find_selecting_attention(pruned).items():
            # Dropping tokens changes no tensor, and the outputs depend on it.
            layers[name].kept_tokens = attention.kept_tokens
        self._check_outputs(pruned, expanded, example)
        return expanded

    def _check_normalizations(self) -> None:
        for name, layer in self._original.named_modules():
            if not isinstance(layer, nn.LayerNorm) or layer.weight is None:
                continue
            position = self._positions.get(f"{name}.weight".lstrip("."), _NOTHING)
            if 0 < len(position) < len(layer.weight):
                raise CompressionError(
                    f"the model cannot be expanded: the layer normalization '{name}' lost channels, and zeros would "
                    "change its mean; use the pruned model without expansion"
                )

    def _check_positions(self) -> None:
        originals = self._original.state_dict()
        for name, position in self._positions.items():
            if name not in originals:
                raise CompressionError(
                    f"the model cannot be expanded: its pruning adds the tensor '{name}', which the original model "
                    "does not have"
                )
            size = originals[name].numel()
            if position.shape == originals[name].shape and torch.equal(position, _number_values(position)):
                continue
            is_selection = bool(((position >= 0) & (position < size)).all())
            if not is_selection or position.unique().numel() < position.numel():
                raise CompressionError(
                    f"the model cannot be expanded: the pruning of '{name}' does more than removing channels"
                )

    @torch.no_grad()
    def _check_outputs(self, pruned: nn.Module, expanded: nn.Module, example: tuple[Tensor, ...]) -> None:
        pruned = copy.deepcopy(pruned).eval()
        try:
            outputs = [
                [flatten_outputs(model(*make_noise(example, seed))) for model in (expanded, pruned)]
                for seed in range(_CHECKED_INPUTS)
            ]
        except Exception as error:  # The forward pass of a user's model raises anything.
            raise CompressionError(f"the model fails on its example: {format_error(error)}") from error
        if all(have_close_outputs(actual, expected) for actual, expected in outputs):
            return
        if self._dropped:
            names = ", ".join(f"'{name}'" for name in self._dropped)
            raise CompressionError(
                f"the dropped blocks {names} cannot come back with zeros: only a block with a shortcut returns its "
                "input then; use the pruned model without expansion"
            )
        raise CompressionError(
            "the expanded model computes other outputs than the pruned one; pass the model and the history of the "
            "same pruning"
        )


def _select_channels(layer: nn.Module, position: Tensor, shape: torch.Size) -> ChannelIndices:
    """Return the channels of a layer whose values remain.

    Args:
        layer: The layer of the original model.
        position: Original positions of the remaining values of its weight.
        shape: Original shape of its weight.
    """
    indices = torch.unravel_index(position.flatten(), shape)
    first, second = indices[0], indices[min(1, len(shape) - 1)]
    blocks = getattr(layer, "groups", 1)
    if blocks > 1:
        # The second axis of a grouped convolution counts the channels within a block, the first one those of all.
        second = second + first // (shape[0] // blocks) * shape[1]
    has_inputs_first = isinstance(layer, nn.Embedding) or getattr(layer, "transposed", False)
    inputs, outputs = (first, second) if has_inputs_first else (second, first)
    return ChannelIndices(inputs=inputs.unique().tolist(), outputs=outputs.unique().tolist())


def _replay_of(history: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Replay:
    """Return the function that repeats prunings by built-in methods."""
    steps = [history] if isinstance(history, Mapping) else list(history)

    def replay(model: nn.Module) -> nn.Module:
        for step in steps:
            entries = [entry for entry in _METHOD_OF_ENTRY if entry in step] if isinstance(step, Mapping) else []
            if not entries:
                raise CompressionError(
                    "the pruning history has neither layers, dropped blocks, heads, tokens nor masked weights; pass "
                    "the history of the state that the pruning method returned"
                )
            method = PRUNE.get(_METHOD_OF_ENTRY[entries[0]])
            model = method.restore(model, method.config(), MethodState(history=step))
        return model

    return replay


def _number_values(tensor: Tensor) -> Tensor:
    """Return the positions of all values of a tensor, in its shape."""
    return torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape)


def _format_shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))
