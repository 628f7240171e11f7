"""What a training leaves behind, as bytes: weights with the history of their cuts, and paused states."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from autocompress.errors import TrialError

HEADER_BYTES = 8


def write_checkpoint(
    model: nn.Module, prune: Mapping[str, Any] | None, start: Sequence[Mapping[str, Any]] = ()
) -> bytes:
    """Return a model's weights and the history of its cuts as the bytes of a safetensors file.

    Args:
        model: Pruned, not quantized.
        prune: History of its pruning; ``None`` where it was not pruned.
        start: Histories of what was cut before the training.
    """
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    history = {"prune": dict(prune or {}), "start": [dict(step) for step in start]}
    # One key: safetensors writes several in any order, and the same model must give the same bytes.
    return save(tensors, metadata={"history": json.dumps(history)})


def read_checkpoint(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any], list[dict[str, Any]]]:
    """Return the weights, the history of the pruning, and those of what was cut before the training.

    Raises:
        ValueError: It is damaged.
    """
    try:
        weights = load(content)
    except SafetensorError as damage:
        raise ValueError(str(damage)) from damage
    # A safetensors file opens with its header's length (8 bytes, little-endian) and a JSON header.
    size = int.from_bytes(content[:HEADER_BYTES], "little")
    history = json.loads(json.loads(content[HEADER_BYTES : HEADER_BYTES + size])["__metadata__"]["history"])
    return weights, history["prune"], history["start"]


def pack_paused_state(state: bytes, start: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the state of a paused fit together with the histories of what was cut before it.

    Example:
        >>> unpack(pack(b"state", [{"layers": [1]}]))
        (b'state', [{'layers': [1]}])
    """
    header = json.dumps([dict(step) for step in start]).encode()
    return len(header).to_bytes(HEADER_BYTES, "little") + header + state


def unpack_paused_state(content: bytes) -> tuple[bytes, list[dict[str, Any]]]:
    """Return what :func:`pack` was given.

    Raises:
        TrialError: It is damaged.
    """
    size = int.from_bytes(content[:HEADER_BYTES], "little")
    try:
        start = json.loads(content[HEADER_BYTES : HEADER_BYTES + size])
    except ValueError as damage:
        raise TrialError(f"a paused training cannot be read: {damage}") from damage
    return content[HEADER_BYTES + size :], start
