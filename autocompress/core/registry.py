"""Names to objects: a decorator for our own, an entry point for everybody else's.

A registry imports the package that holds its built-in objects on the first look-up, so that
importing :mod:`autocompress` stays light. Another package adds to it by an entry point in the
group ``autocompress.<kind>``, for example ``autocompress.task``.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from autocompress.errors import UnknownNameError, UsageError, did_you_mean

T = TypeVar("T")
_R = TypeVar("_R")


class Registry(Generic[T]):
    """Objects of one kind by name.

    Args:
        kind: What is registered, in the singular, as it stands in messages (``"task"``).
        builtins: The module whose import registers the objects that ship with autocompress.

    Example:
        >>> colours: Registry[str] = Registry("colour")
        >>> colours.add("red", "#f00")
        '#f00'
        >>> colours.get("red")
        '#f00'
    """

    def __init__(self, kind: str, builtins: str | None = None) -> None:
        self.kind = kind
        self._builtins = builtins
        self._objects: dict[str, T] = {}
        self._loaded = False

    def add(self, name: str, value: _R, *, replace: bool = False) -> _R:
        """Register a value and return it.

        Args:
            name: What a search space calls it.
            value: The class, instance or function.
            replace: Put it in the place of what had the name.

        Raises:
            UsageError: Something else already has that name.
        """
        present = None if replace else self._objects.get(name)
        if present is not None and present is not value:
            raise UsageError(f"{self.kind} '{name}' is registered twice; give one of them another name")
        self._objects[name] = value  # type: ignore[assignment]
        return value

    def register(self, name: str) -> Callable[[_R], _R]:
        """Return a decorator that registers the class or function below it under ``name``."""
        return lambda value: self.add(name, value)

    def get(self, name: str) -> T:
        """Return the object called ``name``.

        Raises:
            UnknownNameError: Nothing has that name; the message suggests the nearest one.
        """
        self._load()
        try:
            return self._objects[name]
        except (KeyError, TypeError):
            hint = did_you_mean(name, self._objects)
            raise UnknownNameError(f"unknown {self.kind} '{name}': {hint}") from None

    def names(self) -> list[str]:
        """Return every registered name, sorted."""
        self._load()
        return sorted(self._objects)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._objects

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        if self._builtins is not None:
            import_module(self._builtins)
        for point in entry_points(group=f"autocompress.{self.kind.replace(' ', '_')}"):
            self.add(point.name, point.load())


# The values are classes and functions of the seams, which live on the floors above.
TASKS: Registry[Any] = Registry("task", "autocompress.tasks")
STUDENTS: Registry[Any] = Registry("student", "autocompress.models")
DISTILL: Registry[Any] = Registry("distillation term", "autocompress.distill")
FITS: Registry[Any] = Registry("optimizer", "autocompress.training.optimizers")
PRUNE: Registry[Any] = Registry("pruning method", "autocompress.prune")
QUANTIZE: Registry[Any] = Registry("quantization method", "autocompress.quantize")
OBJECTIVES: Registry[Any] = Registry("objective", "autocompress.measure")
BACKENDS: Registry[Any] = Registry("backend", "autocompress.backends")
PROMOTION_RULES: Registry[Any] = Registry("promotion rule", "autocompress.engine.scheduler.promotion")
