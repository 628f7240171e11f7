"""Checkpoints of trials as bytes: weights with the history of their pruning, and states of paused trainings."""

import json
from collections.abc import Mapping, Sequence

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from autocompress.errors import TrialError

# Size of the little-endian length before a JSON header, as in a safetensors file.
HEADER_BYTES = 8

History = Mapping[str, object]


def write_checkpoint(model: nn.Module, prune: History | None, start: Sequence[History] = ()) -> bytes:
    """Return a model's weights and the history of its pruning as the bytes of a safetensors file.

    Args:
        model: The float model, pruned or not.
        prune: History of its pruning; ``None`` if it was not pruned.
        start: Histories of the pruning steps before the training.
    """
    # safetensors stores contiguous tensors only.
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    history = {"prune": dict(prune or {}), "start": [dict(step) for step in start]}
    # One key only: safetensors writes several keys in any order, and the same model must give the same bytes.
    return save(tensors, metadata={"history": json.dumps(history)})


def read_checkpoint(content: bytes) -> tuple[dict[str, Tensor], History, list[History]]:
    """Return the weights, the history of the pruning, and the histories of the pruning steps before the training.

    Raises:
        ValueError: The checkpoint is damaged.
    """
    try:
        weights = load(content)
    except SafetensorError as damage:
        raise ValueError(str(damage)) from damage
    # A safetensors file begins with the length of its header and a JSON header.
    size = int.from_bytes(content[:HEADER_BYTES], "little")
    history = json.loads(json.loads(content[HEADER_BYTES : HEADER_BYTES + size])["__metadata__"]["history"])
    return weights, history["prune"], history["start"]


def pack_paused_state(state: bytes, start: Sequence[History]) -> bytes:
    """Return the state of a paused fit together with the histories of the pruning steps before it.

    Example:
        >>> unpack_paused_state(pack_paused_state(b"state", [{"layers": [1]}]))
        (b'state', [{'layers': [1]}])
    """
    header = json.dumps([dict(step) for step in start]).encode()
    return len(header).to_bytes(HEADER_BYTES, "little") + header + state


def unpack_paused_state(content: bytes) -> tuple[bytes, list[History]]:
    """Return the state and the histories that :func:`pack_paused_state` packed.

    Raises:
        TrialError: The content is damaged.
    """
    size = int.from_bytes(content[:HEADER_BYTES], "little")
    try:
        start = json.loads(content[HEADER_BYTES : HEADER_BYTES + size])
    except ValueError as damage:
        raise TrialError(f"the state of a paused trial cannot be read: {damage}") from damage
    return content[HEADER_BYTES + size :], start
