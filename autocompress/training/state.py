"""A fit that is interrupted between two epochs: everything that it goes on from, as bytes that hold no code."""

import copy
import io
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from autocompress.errors import TrialError


class Stateful(Protocol):
    """What torch's models, optimizers and schedules have in common."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return what it has learned or counted."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """Take up what another one of its kind had."""
        ...


def freeze(
    parts: Mapping[str, Stateful], generators: Mapping[str, torch.Generator], facts: Mapping[str, object]
) -> bytes:
    """Return the state of a fit: that of its parts, of its generators and of torch's own, and further facts.

    Args:
        parts: By name: model, optimizer, schedule.
        generators: By name.
        facts: Numbers, texts, lists and tensors.
    """
    buffer = io.BytesIO()
    state = {
        "parts": {name: _home(part.state_dict()) for name, part in parts.items()},
        "generators": {name: generator.get_state() for name, generator in generators.items()},
        "torch": torch.get_rng_state(),
        "facts": dict(facts),
    }
    torch.save(state, buffer)
    return buffer.getvalue()


def facts(content: bytes) -> dict[str, Any]:
    """Return the facts of a frozen fit.

    Raises:
        TrialError: It is damaged.
    """
    return dict(_read(content)["facts"])


def thaw(content: bytes, parts: Mapping[str, Stateful], generators: Mapping[str, torch.Generator]) -> None:
    """Give parts and generators the state that :func:`freeze` noted.

    Raises:
        TrialError: It is damaged, or belongs to another model.
    """
    state = _read(content)
    try:
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        for name, generator in generators.items():
            generator.set_state(state["generators"][name])
    except (KeyError, RuntimeError, ValueError) as misfit:
        raise TrialError(f"a paused training does not fit its config: {misfit}") from misfit
    torch.set_rng_state(state["torch"])


def _home(value: Any) -> Any:
    """Return a state whose tensors lie on the processor, wherever they were."""
    if isinstance(value, torch.Tensor):
        return value.to("cpu")
    if isinstance(value, Mapping):
        # What a model's state knows beside its tensors comes along.
        found = copy.copy(value)
        found.update((key, _home(each)) for key, each in value.items())  # type: ignore[attr-defined]
        return found
    return type(value)(map(_home, value)) if isinstance(value, list | tuple) else value


def _read(content: bytes) -> dict[str, Any]:
    try:
        # Tensors and plain values only: a run folder that came from somewhere else must not run code.
        state = torch.load(io.BytesIO(content), weights_only=True)
        return {name: state[name] for name in ("parts", "generators", "torch", "facts")}
    except Exception as damage:  # Whatever torch's reader meets in a damaged file.
        raise TrialError(f"a paused training cannot be read: {damage}") from damage
