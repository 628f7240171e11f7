"""Copies of models that cost little: of a model's modules alone, where nothing else hangs on them."""

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
LEAVES = (type(None), bool, int, float, complex, str, bytes)
# What ``nn.Module`` itself keeps in tables of its own.
TABLES = ("_parameters", "_buffers", "_modules")
OWN = frozenset(vars(nn.Module()))


def copy_model(model: M) -> M:
    """Return an independent copy of a model, as :func:`copy.deepcopy` does.

    Most of a deep copy's time goes into the empty tables of each module's hooks. A model whose modules hold nothing
    but plain values, parameters, buffers and modules is copied module by module; any other is copied deeply.
    """
    if not all(_is_plain(module) for module in model.modules()):
        return copy.deepcopy(model)
    tensors: dict[int, Tensor] = {}
    modules: dict[int, nn.Module] = {}

    def tensor(old: Tensor | None) -> Tensor | None:
        if old is not None and id(old) not in tensors:
            tensors[id(old)] = copy.deepcopy(old)
        return None if old is None else tensors[id(old)]

    def module(old: Any) -> Any:
        if old is None or id(old) in modules:
            return None if old is None else modules[id(old)]
        new = old.__class__.__new__(old.__class__)
        modules[id(old)] = new
        state = {name: value.copy() if isinstance(value, dict | set) else value for name, value in vars(old).items()}
        for table, each in zip(TABLES, (tensor, tensor, module), strict=True):
            state[table] = {name: each(value) for name, value in getattr(old, table).items()}
        vars(new).update(state)
        return new

    found: M = module(model)
    return found


def _is_plain(module: nn.Module) -> bool:
    state = vars(module)
    hooked = any(value for name, value in state.items() if name.endswith("_hooks"))
    defined = any("__deepcopy__" in vars(kind) or "__getstate__" in vars(kind) for kind in _own_kinds(module))
    return not hooked and not defined and all(_is_leaf(value) for name, value in state.items() if name not in OWN)


def _own_kinds(module: nn.Module) -> Iterable[type]:
    kinds = type(module).__mro__
    return kinds[: kinds.index(nn.Module)]


def _is_leaf(value: Any) -> bool:
    return isinstance(value, LEAVES) or (isinstance(value, tuple) and all(map(_is_leaf, value)))
