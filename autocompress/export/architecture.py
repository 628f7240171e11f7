"""The schema of architecture.json: everything needed to rebuild a pruned, quantized module from its tensors."""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from torch import Tensor

from autocompress.core.config import CompressionConfig
from autocompress.core.method import LayerBits, MethodState
from autocompress.core.task import InputSpec
from autocompress.errors import ArtifactError, UsageError
from autocompress.quantize.packing import pack_codes, unpack_codes

# The file may come from anywhere: a size or width beyond these bounds is refused.
Count = Annotated[int, Field(ge=0, le=2**31)]
Shape = Annotated[tuple[Count, ...], Field(max_length=8)]
Bits = Annotated[int, Field(ge=1, le=64)]
IntegerName = Literal["bool", "uint8", "int8", "int16", "int32", "int64"]
# A tensor of one repeated value takes no bytes, so its size is bounded here.
LARGEST_CONSTANT = 2**24


class _Strict(BaseModel):
    # An unknown entry or a value of another type is an error: the file is damaged or of another version.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Packed(_Strict):
    """An integer tensor stored as a stream of n-bit codes; zero bits for one repeated value."""

    bits: Annotated[int, Field(ge=0, le=8)]
    offset: int
    shape: Shape
    dtype: IntegerName


class Input(_Strict):
    """One positional argument of the model, for a batch of one; see :class:`autocompress.core.task.InputSpec`."""

    shape: Shape
    vocabulary: Count = 0
    missing: int | None = None
    dtype: Literal["float16", "bfloat16", "float32", "float64", "bool", "uint8", "int8", "int16", "int32", "int64"]


class SavedState(_Strict):
    """The JSON part of a :class:`~autocompress.core.method.MethodState`."""

    history: dict[str, JsonValue]
    bits: dict[str, tuple[Bits, Bits]]


class SavedStep(_Strict):
    """A pruning method that was applied before training, with its state."""

    part: dict[str, dict[str, bool | int | float | str | None]]
    state: SavedState


class Architecture(_Strict):
    """The content of architecture.json.

    Attributes:
        task: The task's registered name.
        options: The task's options.
        config: The candidate's config, as :meth:`CompressionConfig.to_json` writes it.
        heads: Head name to number of classes.
        labels: Head name to the name of each class.
        inputs: The model's positional arguments.
        folded: Layers and the batch normalizations folded into them.
        start: Pruning steps applied to the teacher before training.
        prune: State of the pruning method.
        quantize: State of the quantization method.
        packed: Tensors of model.safetensors that are packed.
        aliases: Names of tensors that share another one's values.
        versions: Library name to the version that wrote the artifact.
    """

    format: Literal[1]
    task: str
    options: dict[str, JsonValue]
    config: dict[str, JsonValue]
    heads: dict[str, Annotated[int, Field(ge=1, le=2**24)]]
    labels: dict[str, list[str]] | None
    inputs: Annotated[list[Input], Field(min_length=1, max_length=64)]
    folded: list[tuple[str, str]]
    start: list[SavedStep] = []
    prune: SavedState | None
    quantize: SavedState | None
    packed: dict[str, Packed]
    aliases: dict[str, str]
    versions: dict[str, str]

    @property
    def compression(self) -> CompressionConfig:
        """The candidate's config.

        Raises:
            ArtifactError: The config is malformed.
        """
        try:
            return CompressionConfig.from_json(self.config)
        except (UsageError, AttributeError, TypeError, ValueError) as error:
            raise ArtifactError(f"architecture.json: its config cannot be read ({error})") from error

    @property
    def specs(self) -> tuple[InputSpec, ...]:
        """Shape, vocabulary and missing value of each input, as a model family takes them."""
        # The first axis is the batch.
        return tuple(InputSpec(entry.shape[1:], entry.vocabulary, entry.missing) for entry in self.inputs)

    def example(self) -> tuple[Tensor, ...]:
        """Return a batch of one, all zeros, as the model's positional arguments."""
        return tuple(torch.zeros(entry.shape, dtype=getattr(torch, entry.dtype)) for entry in self.inputs)


def parse_architecture(content: bytes) -> Architecture:
    """Return the validated content of architecture.json.

    Raises:
        ArtifactError: Something is missing, unknown, of another type or out of bounds.
    """
    try:
        return Architecture.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(str(step) for step in first["loc"]) or "the file"
        raise ArtifactError(f"architecture.json: {location}: {first['msg']}") from error


def dump_state(state: MethodState | None) -> SavedState | None:
    """Return the JSON part of a method's state."""
    if state is None:
        return None
    bits = {name: (layer.weight, layer.activation) for name, layer in state.bits.items()}
    return SavedState.model_validate({"history": dict(state.history), "bits": bits})


def method_state(saved: SavedState, tensors: Mapping[str, Tensor]) -> MethodState:
    """Return a method's state from its JSON part and its tensors."""
    bits = {name: LayerBits(*widths) for name, widths in saved.bits.items()}
    return MethodState(history=saved.history, tensors=tensors, bits=bits)


def pack_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Packed], dict[str, str]]:
    """Return the tensors to store, the packing of integer ones, and aliases of tensors that share storage.

    Integer tensors take as many bits as their range needs: a 3-bit layer takes 3 bits per weight.
    """
    stored: dict[str, Tensor] = {}
    packed: dict[str, Packed] = {}
    aliases: dict[str, str] = {}
    owners: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        # Tied weights share memory: they are stored once.
        owner = owners.setdefault((tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()), name)
        # Empty tensors have no memory to share, whatever their address.
        if owner != name and tensor.numel():
            aliases[name] = owner
            continue
        spread = _code_range(tensor)
        if spread is None:
            # safetensors refuses tensors that are not contiguous or share memory.
            stored[name] = tensor.contiguous().clone()
            continue
        low, bits = spread
        dtype = str(tensor.dtype).removeprefix("torch.")
        packed[name] = Packed.model_validate(
            {"bits": bits, "offset": low, "shape": tuple(tensor.shape), "dtype": dtype}
        )
        if bits:
            stored[name] = pack_codes(tensor, bits, low)
    return stored, packed, aliases


def unpack_tensors(
    stored: Mapping[str, Tensor], packed: Mapping[str, Packed], aliases: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return the tensors that :func:`pack_tensors` was given.

    Raises:
        ArtifactError: A packed tensor has no bytes, the wrong number of them, or an alias has no owner.
    """
    tensors = dict(stored)
    for name, how in packed.items():
        if how.bits and name not in stored:
            raise ArtifactError(f"model.safetensors lacks '{name}'")
        if not how.bits and torch.Size(how.shape).numel() > LARGEST_CONSTANT:
            raise ArtifactError(f"architecture.json: '{name}' is too large for a constant")
        dtype = getattr(torch, how.dtype)
        try:
            if how.bits:
                tensors[name] = unpack_codes(stored[name], how.bits, how.shape, how.offset, dtype)
            else:
                tensors[name] = torch.full(how.shape, how.offset, dtype=dtype)
        except (OverflowError, RuntimeError, ValueError) as error:
            raise ArtifactError(f"model.safetensors: '{name}': {error}") from error
    # After unpacking, because the owner may be a packed tensor.
    for name, owner in aliases.items():
        if owner not in tensors:
            raise ArtifactError(f"model.safetensors lacks '{owner}'")
        tensors[name] = tensors[owner]
    return tensors


def _code_range(tensor: Tensor) -> tuple[int, int] | None:
    """Return the smallest value and the bits of the range above it; None if the tensor is not packed."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.numel() == 0:
        return None
    low, high = int(tensor.min()), int(tensor.max())
    bits = (high - low).bit_length()
    # A packed code fits into a byte; a constant has no bytes, so its size is limited separately.
    if bits > 8 or (bits == 0 and tensor.numel() > LARGEST_CONSTANT):
        return None
    return low, bits
