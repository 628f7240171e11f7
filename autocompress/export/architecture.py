"""The schema of architecture.json: everything needed to rebuild a pruned, quantized module from its tensors."""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, PlainSerializer, PlainValidator, ValidationError
from torch import Tensor

from autocompress.core.config import CompressionConfig
from autocompress.core.heads import Head, head_from_json
from autocompress.core.method import LayerBits, MethodState
from autocompress.core.task import InputSpec
from autocompress.core.untrusted import is_newer
from autocompress.errors import ArtifactError, UsageError
from autocompress.measure.tensor_storage import Count, Packed, Shape
from autocompress.prune.expansion import ChannelMap

# The file may come from anywhere: a size or width beyond these bounds is refused.
Bits = Annotated[int, Field(ge=1, le=64)]
LARGEST_HEAD = 2**24
NEWEST_FORMAT = 2
# Bytes of parameters that any artifact may ask for before its tensors are read, and their ratio to the tensors beyond
# that: a pruned layer keeps at least a thousandth of its weights.
LARGEST_MODEL, LARGEST_SHRINKAGE = 2**28, 1024
# Bytes of the file: those that any artifact may have, their ratio to the tensors beyond that, and those that none has.
# A pruned network of a million channels takes 10 MiB; reading a megabyte takes up to a second.
SMALL_FILE, LARGEST_RATIO, LARGEST_FILE = 2**20, 4, 2**24


class _Strict(BaseModel):
    # An unknown entry or a value of another type is an error: the file is damaged or of another version.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _read_head(value: object) -> Head:
    if isinstance(value, bool) or not isinstance(value, int | Mapping):
        raise ValueError("give a number of classes, or an object with kind and size")
    head = head_from_json(value)
    if not 1 <= head <= LARGEST_HEAD:
        raise ValueError(f"a head has 1 to {LARGEST_HEAD:,} outputs, not {int(head):,}")
    return head


SavedHead = Annotated[Head, PlainValidator(_read_head), PlainSerializer(lambda head: head.to_json())]


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


class Adaptation(_Strict):
    """The record of an adaptation to recent data.

    Attributes:
        parent: Name of the artifact that was adapted.
        parent_sha256: SHA-256 of the manifest of that artifact.
        data: Fingerprint of the recent data, 12 hex digits.
        examples: Number of recent examples.
        is_labelled: Whether they have labels.
        method: The stage that was kept: ``re-estimated``, ``fine-tuned`` or ``quantization trained``.
        teacher: How the teacher was used, in words.
        epochs: Epochs of fine-tuning.
        seconds: Seconds of the adaptation.
        metric: Name of the scores.
        scores: Score on the held-out recent examples by stage; ``unchanged`` is that of the parent.
        earlier: The same on the test split of the run; empty if it is not known.
    """

    parent: str
    parent_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    data: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    examples: Count
    is_labelled: bool
    method: str
    teacher: str
    epochs: Count
    seconds: float
    metric: str
    scores: dict[str, float]
    earlier: dict[str, float] = {}


class Architecture(_Strict):
    """The content of architecture.json.

    Attributes:
        task: The task's registered name.
        options: The task's options.
        config: The candidate's config, as :meth:`CompressionConfig.to_json` writes it.
        heads: Head name to the head: a number of classes, or a kind with its settings.
        labels: Head name to the name of each class.
        inputs: The model's positional arguments.
        folded: Layers and the batch normalizations folded into them.
        start: Pruning steps applied to the teacher before training.
        prune: State of the pruning method.
        quantize: State of the quantization method.
        channels: Layer name to the original indices of its channels, for the layers that lost some by pruning; None if
            an earlier version wrote the artifact.
        packed: Forms of the tensors of model.safetensors that are not dense.
        aliases: Names of tensors that share another one's values.
        versions: Library name to the version that wrote the artifact.
        adapted: Record of the adaptation that made the model; None for a model as it was searched.
    """

    #: 2 leaves out the zeros of sparse tensors, which readers of 1 do not know.
    format: Literal[1, 2]
    task: str
    options: dict[str, JsonValue]
    config: dict[str, JsonValue]
    heads: Annotated[dict[str, SavedHead], Field(min_length=1, max_length=1024)]
    labels: dict[str, list[str]] | None
    inputs: Annotated[list[Input], Field(min_length=1, max_length=64)]
    folded: list[tuple[str, str]]
    start: Annotated[list[SavedStep], Field(max_length=64)] = []
    prune: SavedState | None
    quantize: SavedState | None
    channels: ChannelMap | None = None
    packed: dict[str, Packed]
    aliases: dict[str, str]
    versions: dict[str, str]
    adapted: Adaptation | None = None

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


def check_description_size(files: Mapping[str, bytes], name: str) -> bytes:
    """Return the content of the JSON file that describes the models of a folder, if it fits model.safetensors.

    Raises:
        ArtifactError: The file is too large.
    """
    content = files[name]
    limit = min(LARGEST_FILE, max(SMALL_FILE, LARGEST_RATIO * len(files["model.safetensors"])))
    if len(content) > limit:
        raise ArtifactError(f"{name} has {len(content):,} bytes; at most {limit:,} are read of this artifact")
    return content


def read_architecture_file(files: Mapping[str, bytes]) -> Architecture:
    """Return the validated content of architecture.json.

    Raises:
        ArtifactError: The file is too large, or something is missing, unknown, of another type or out of bounds.
    """
    return parse_architecture(check_description_size(files, "architecture.json"))


def parse_architecture(content: bytes) -> Architecture:
    """Return the validated content of architecture.json.

    Raises:
        ArtifactError: Something is missing, unknown, of another type or out of bounds.
    """
    try:
        return Architecture.model_validate_json(content)
    except ValidationError as error:
        if is_newer(content, NEWEST_FORMAT):
            newer = "architecture.json: its format was made by a newer version of autocompress; update it"
            raise ArtifactError(newer) from error
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
