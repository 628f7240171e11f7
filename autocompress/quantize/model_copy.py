"""A fast copy of a model: only its modules and tensors are copied where they hold no other objects."""

import copy
from collections.abc import Iterable
from typing import TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
IMMUTABLE_TYPES = (type(None), bool, int, float, complex, str, bytes)
# Attributes that every `nn.Module` has; their dictionaries are copied separately.
MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))


def copy_model(model: M) -> M:
    """Return an independent copy of a model, as :func:`copy.deepcopy` does.

    A deep copy spends most of its time on the empty hook dictionaries of each module. A model whose modules hold only
    immutable values, parameters, buffers and modules is copied module by module; any other is copied deeply.
    """
    if not all(_is_plain(module) for module in model.modules()):
        return copy.deepcopy(model)
    # Copies by the identity of the original, so that a shared tensor or module stays shared in the copy.
    tensors: dict[int, Tensor] = {}
    modules: dict[int, nn.Module] = {}

    def copy_tensor(old: Tensor | None) -> Tensor | None:
        if old is not None and id(old) not in tensors:
            tensors[id(old)] = copy.deepcopy(old)
        return None if old is None else tensors[id(old)]

    def copy_module(old: nn.Module | None) -> nn.Module | None:
        if old is None or id(old) in modules:
            return None if old is None else modules[id(old)]
        new = old.__class__.__new__(old.__class__)
        modules[id(old)] = new
        state = {name: value.copy() if isinstance(value, dict | set) else value for name, value in vars(old).items()}
        for tensors_name in ("_parameters", "_buffers"):
            state[tensors_name] = {name: copy_tensor(value) for name, value in getattr(old, tensors_name).items()}
        state["_modules"] = {name: copy_module(value) for name, value in old._modules.items()}
        vars(new).update(state)
        return new

    duplicate = copy_module(model)
    assert isinstance(duplicate, type(model))
    return duplicate


def _is_plain(module: nn.Module) -> bool:
    state = vars(module)
    has_hooks = any(value for name, value in state.items() if name.endswith("_hooks"))
    copies_itself = any("__deepcopy__" in vars(kind) or "__getstate__" in vars(kind) for kind in _user_classes(module))
    attributes = (value for name, value in state.items() if name not in MODULE_ATTRIBUTES)
    return not has_hooks and not copies_itself and all(_is_immutable(value) for value in attributes)


def _user_classes(module: nn.Module) -> Iterable[type]:
    classes = type(module).__mro__
    return classes[: classes.index(nn.Module)]


def _is_immutable(value: object) -> bool:
    return isinstance(value, IMMUTABLE_TYPES) or (isinstance(value, tuple) and all(map(_is_immutable, value)))
