"""The state of a fit that is paused between two epochs, serialized as bytes that hold no code."""

import copy
import io
from collections.abc import Mapping, MutableMapping
from typing import Protocol, TypedDict

import torch

from autocompress.errors import TrialError


class Stateful(Protocol):
    """The interface that torch's models, optimizers and schedules share."""

    def state_dict(self) -> Mapping[str, object]:
        """Return the state by name."""
        ...

    def load_state_dict(self, state_dict: dict[str, object]) -> object:
        """Replace the state by that of another instance."""
        ...


class FitFacts(TypedDict, total=False):
    """Plain values of a paused fit; the keys belong to the stored format."""

    curve: list[dict[str, float]]
    #: Whether the fit runs in bfloat16.
    low: bool


class _FitState(TypedDict):
    parts: dict[str, dict[str, object]]
    generators: dict[str, torch.Tensor]
    torch: torch.Tensor
    facts: FitFacts


def serialize_state(parts: Mapping[str, Stateful], generators: Mapping[str, torch.Generator], facts: FitFacts) -> bytes:
    """Return the state of a fit: its parts, its generators, torch's global generator, and plain values.

    Args:
        parts: Model, adapters, optimizer and schedule by name.
        generators: Random number generators by name.
        facts: Training curve and precision.
    """
    buffer = io.BytesIO()
    state = {
        "parts": {name: _copy_to_cpu(part.state_dict()) for name, part in parts.items()},
        "generators": {name: generator.get_state() for name, generator in generators.items()},
        # Dropout draws from the global generator.
        "torch": torch.get_rng_state(),
        "facts": dict(facts),
    }
    torch.save(state, buffer)
    return buffer.getvalue()


def read_facts(content: bytes) -> FitFacts:
    """Return the plain values of a serialized fit.

    Raises:
        TrialError: The state is damaged.
    """
    return _deserialize(content)["facts"]


def restore_state(content: bytes, parts: Mapping[str, Stateful], generators: Mapping[str, torch.Generator]) -> None:
    """Give parts and generators the state that :func:`serialize_state` stored.

    Raises:
        TrialError: The state is damaged or belongs to another model.
    """
    state = _deserialize(content)
    try:
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        for name, generator in generators.items():
            generator.set_state(state["generators"][name])
    except (KeyError, RuntimeError, ValueError) as misfit:
        raise TrialError(f"the state of a paused trial does not fit its config: {misfit}") from misfit
    # Last, because building the parts may have drawn from the global generator.
    torch.set_rng_state(state["torch"])


def _copy_to_cpu(value: object) -> object:
    """Return a state with all tensors on the CPU, so that it can be loaded on a machine without the same device."""
    if isinstance(value, torch.Tensor):
        return value.to("cpu")
    if isinstance(value, MutableMapping):
        # A copy keeps the attributes of a mapping: the version of a model's state_dict is one.
        result = copy.copy(value)
        result.update({key: _copy_to_cpu(entry) for key, entry in value.items()})
        return result
    return type(value)(map(_copy_to_cpu, value)) if isinstance(value, list | tuple) else value


def _deserialize(content: bytes) -> _FitState:
    try:
        # Tensors and plain values only: a run folder that came from somewhere else must not run code.
        state = torch.load(io.BytesIO(content), weights_only=True)
        return _FitState(
            parts=state["parts"], generators=state["generators"], torch=state["torch"], facts=state["facts"]
        )
    except Exception as damage:  # The reader of torch raises many kinds of errors on a damaged file.
        raise TrialError(f"the state of a paused trial cannot be read: {damage}") from damage
