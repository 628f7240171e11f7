"""Hyperparameters: the default and the range of a config's field, declared once.

    @dataclass(frozen=True)
    class SoftTargetConfig(Settings):
        temperature: float = knob(4.0, FloatRange(1.0, 10.0, log=True), "softens both outputs")

A search space may fix such a field, list values for it, or narrow its range. It cannot widen the range.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar, cast

from autocompress.errors import KnobError, did_you_mean

Leaf: TypeAlias = bool | int | float | str | None
T = TypeVar("T")
S = TypeVar("S", bound="Settings")


@dataclass(frozen=True)
class FloatRange:
    """Real numbers from ``low`` to ``high``, both included.

    Attributes:
        low: Smallest value.
        high: Largest value.
        log: Whether their logarithm is sampled; ``low`` is above 0 then.

    Example:
        >>> FloatRange(1.0, 10.0, log=True).accepts(4), str(FloatRange(1.0, 10.0, log=True))
        (True, '1..10 (log)')
    """

    low: float
    high: float
    log: bool = False

    def accepts(self, value: object) -> bool:
        """Return whether ``value`` is a finite number inside the range."""
        # bool is a subclass of int, but a switch is not a number.
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return math.isfinite(value) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}" + (" (log)" if self.log else "")


@dataclass(frozen=True)
class IntRange:
    """Whole numbers from ``low`` to ``high``, both included.

    Attributes:
        low: Smallest value.
        high: Largest value.
        log: Whether their logarithm is sampled; ``low`` is above 0 then.

    Example:
        >>> IntRange(1, 8).accepts(3), IntRange(1, 8).accepts(3.0)
        (True, False)
    """

    low: int
    high: int
    log: bool = False

    def accepts(self, value: object) -> bool:
        """Return whether ``value`` is a whole number inside the range."""
        if isinstance(value, bool) or not isinstance(value, int):
            return False
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low}..{self.high}" + (" (log)" if self.log else "")


@dataclass(frozen=True)
class Choice:
    """One of a few values.

    Attributes:
        options: The values, JSON leaves, in the order in which they are listed.

    Example:
        >>> Choice(("plain", "residual")).accepts("dense")
        False
    """

    options: tuple[Leaf, ...]

    def accepts(self, value: object) -> bool:
        """Return whether ``value`` is one of the options (``1`` and ``True`` differ)."""
        return any(value == option and isinstance(value, bool) == isinstance(option, bool) for option in self.options)

    def __str__(self) -> str:
        return ", ".join(str(option) for option in self.options)


class NameSource(Protocol):
    """A collection of names that may grow after a hyperparameter is declared, such as a registry."""

    def names(self) -> list[str]:
        """Return every name, sorted."""
        ...

    def __contains__(self, name: object) -> bool: ...


class RegisteredChoice(Choice):
    """One of the parts of a registry; a part that a plugin registers later is a choice, too.

    Args:
        source: The registry.
        first: Names of built-in parts. They come first, in this order: it is part of what a seeded search repeats.
        exclude: Names in the registry that are no choice.
    """

    _source: NameSource
    _first: tuple[str, ...]
    _exclude: tuple[str, ...]

    def __init__(self, source: NameSource, first: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> None:
        # The base class is a frozen dataclass, so plain assignment raises an error.
        object.__setattr__(self, "_source", source)
        object.__setattr__(self, "_first", first)
        object.__setattr__(self, "_exclude", exclude)

    @property
    def options(self) -> tuple[Leaf, ...]:
        """The names of all parts that are registered now."""
        return (*self._first, *(name for name in self._source.names() if name not in (*self._first, *self._exclude)))

    def accepts(self, value: object) -> bool:
        """Return whether ``value`` is the name of a part."""
        # A built-in name is accepted without a look into the registry, which may be loading at this moment.
        return value in self._first or (value in self._source and value not in self._exclude)

    def __reduce__(self) -> tuple[type[Choice], tuple[tuple[Leaf, ...]]]:
        # A pickle holds the options of this moment and not the registry with its parts.
        return Choice, (self.options,)


Domain: TypeAlias = FloatRange | IntRange | Choice


@dataclass(frozen=True)
class Knob:
    """One declared field of a config.

    Attributes:
        name: Name of the field.
        default: Value where a search space does not name the field.
        domain: Range or choice of values.
        doc: Meaning in a few words.
    """

    name: str
    default: Leaf
    domain: Domain
    doc: str


def knob(default: T, domain: Domain, doc: str = "") -> T:
    """Declare a field of a :class:`Settings` dataclass: its default, its range and its meaning.

    Args:
        default: Value where a search space does not name the field.
        domain: Range or choice of values; a search space can narrow it and cannot widen it.
        doc: Meaning in a few words, for the catalogue.

    Example:
        >>> @dataclass(frozen=True)
        ... class MyConfig(Settings):
        ...     ratio: float = knob(0.5, FloatRange(0.0, 0.9), "share of channels")
        >>> MyConfig(ratio=0.25)
        MyConfig(ratio=0.25)
        >>> MyConfig(ratio=2.0)
        Traceback (most recent call last):
        autocompress.errors.KnobError: MyConfig.ratio = 2.0 is outside 0..0.9

    Raises:
        KnobError: The default lies outside the range.
    """
    if not domain.accepts(default):
        raise KnobError(f"default {default!r} is outside {domain}")
    # Declared as T, so that a type checker sees the type of the value and not that of a dataclass field.
    declared: T = field(default=default, metadata={"domain": domain, "doc": doc})
    return declared


# Every config checks its fields when it is built, and a search builds many configs of few classes.
@cache
def _collect_knobs(config: Any) -> Mapping[str, Knob]:
    return {
        declared.name: Knob(
            declared.name, cast(Leaf, declared.default), declared.metadata["domain"], declared.metadata["doc"]
        )
        for declared in fields(config)
        # A field that was not declared by knob() is no hyperparameter.
        if "domain" in declared.metadata
    }


@dataclass(frozen=True)
class Settings:
    """Base class of every config: checks each field against its range when it is built.

    Attributes:
        label: Name in messages: the section and the method, such as ``prune.structured``.

    Raises:
        KnobError: A value lies outside its knob's range.
    """

    label: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for declared in self.knobs().values():
            value = getattr(self, declared.name)
            if isinstance(declared.domain, FloatRange) and isinstance(value, int) and not isinstance(value, bool):
                # YAML writes 1 for 1.0; both must have the same fingerprint.
                object.__setattr__(self, declared.name, float(value))
            if not declared.domain.accepts(value):
                where = f"{self.label or type(self).__name__}.{declared.name}"
                raise KnobError(f"{where} = {value!r} is outside {declared.domain}")

    @classmethod
    def knobs(cls) -> dict[str, Knob]:
        """Return every declared knob by name, in the order of declaration."""
        # A copy, so that no caller can change the cached mapping.
        return dict(_collect_knobs(cls))  # type: ignore[arg-type]

    @classmethod
    def of(cls: type[S], values: Mapping[str, Leaf]) -> S:
        """Build the config from a mapping; absent fields take their default.

        Raises:
            KnobError: An unknown field (the message suggests the nearest), or a value out of range.
        """
        declared = cls.knobs()
        for name in values:
            if name not in declared:
                raise KnobError(
                    f"{cls.label or cls.__name__} has no hyperparameter '{name}': {did_you_mean(name, declared)}"
                )
        return cls(**values)

    def to_dict(self) -> dict[str, Leaf]:
        """Return the fields as JSON leaves."""
        return asdict(self)

    def estimate_epochs(self) -> float:
        """Return about how many epochs of training a compression method takes with these settings."""
        return 0.0
