"""Checks at registration: a part that lacks a method, an argument or a config is refused, with what it should have.

What the parts of a kind must have is read from their protocol, such as :class:`autocompress.core.method.Method`:
attributes, methods with their parameters, and the base class of the config.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib import import_module
from types import FunctionType
from typing import ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from autocompress.core.knobs import Settings
from autocompress.core.renamed import MEMBERS
from autocompress.errors import PluginError

# What these modules define is no part of an interface: object, Protocol, Generic, ABC.
_FOREIGN = ("abc", "builtins", "typing")


@dataclass(frozen=True)
class Interface:
    """What the parts of one kind must have.

    Attributes:
        source: The protocol, base class or dataclass that describes them.
        attributes: Attribute name to its declared type.
        methods: Method name to the function that declares its parameters.
    """

    source: type
    attributes: Mapping[str, object]
    methods: Mapping[str, FunctionType]


@cache
def load_interface(location: str) -> Interface:
    """Return the interface that a class describes.

    Args:
        location: The class, ``package.module:Name``; its module is imported.
    """
    module, _, name = location.partition(":")
    source: type = getattr(import_module(module), name)
    attributes: dict[str, object] = {}
    methods: dict[str, FunctionType] = {}
    # From the root down, so that a derived declaration replaces the inherited one.
    for base in reversed(source.__mro__):
        if base.__module__ in _FOREIGN:
            continue
        hints = get_type_hints(base)
        # The hints include those of base classes; only names that this class itself declares are taken.
        attributes.update({name: hints[name] for name in inspect.get_annotations(base)})
        for name, member in vars(base).items():
            if isinstance(member, property):
                # The type of a property is not compared.
                attributes.setdefault(name, object)
            elif isinstance(member, FunctionType) and (name == "__call__" or not name.startswith("_")):
                methods[name] = member
    return Interface(source, attributes, methods)


def check_part(
    title: str, part: object, location: str, is_class: bool, constructor: Sequence[str] | None = None, base: str = ""
) -> None:
    """Compare a part with the interface of its kind.

    Args:
        title: Kind and name of the part, for messages.
        part: The class, instance or function.
        location: The interface, ``package.module:Name``.
        is_class: Whether classes are registered, which are built for each run, and not instances.
        constructor: Names of the constructor's arguments; ``None`` where they differ from class to class.
        base: Dotted name of a base class that has all but the essential methods, for messages.

    Raises:
        PluginError: The part lacks something; the message names the class, what is missing and the signature.
    """
    interface = load_interface(location)
    if is_dataclass(interface.source):
        problems = list(_compare_record(part, interface))
    elif is_class and not isinstance(part, type):
        # A function in the place of a class: what it returns is known when it is called.
        problems = [] if callable(part) else ["it must be a class, or a function that returns an instance"]
    elif "__call__" in interface.methods:
        problems = list(_compare_call(part, interface.methods["__call__"], "it"))
    elif not is_class and isinstance(part, type):
        problems = [f"it must be an instance: {part.__name__}()"]
    else:
        problems = list(_compare_members(part, interface))
        # The base class helps where something is missing, not where a signature differs.
        if base and any(problem.startswith("it lacks") for problem in problems):
            problems.append(f"derive it from {base}, which has all but the essential methods")
        if constructor is not None and not _accepts(part, keywords=constructor):
            problems.append(f"its constructor must take ({', '.join(constructor)})")
    if problems:
        described = part if isinstance(part, type | FunctionType) else type(part)
        raise PluginError(f"{title} ({described.__module__}.{described.__qualname__}): {'; '.join(problems)}")


def _compare_record(part: object, interface: Interface) -> Iterator[str]:
    """Yield what is wrong with an instance of a dataclass whose fields hold functions."""
    if not isinstance(part, interface.source):
        yield f"it must be an instance of {interface.source.__module__}.{interface.source.__name__}"
        return
    for name, declared in interface.attributes.items():
        # The arguments of Callable[[A, B], R] are ([A, B], R).
        parameters = get_args(declared)[:1]
        # A field is declared as a protocol with __call__, or as a Callable.
        if isinstance(declared, type) and "__call__" in vars(declared):
            yield from _compare_call(getattr(part, name), vars(declared)["__call__"], name)
        elif parameters and isinstance(parameters[0], list) and not _accepts(getattr(part, name), len(parameters[0])):
            yield f"{name} must be a function of {len(parameters[0])} argument"


def _compare_call(part: object, declared: FunctionType, name: str) -> Iterator[str]:
    parameters = _parameters(declared)
    if not callable(part) or not _accepts(part, len(parameters)):
        yield f"{name} must be a function or a class that takes ({', '.join(parameters)})"


def _compare_members(part: object, interface: Interface) -> Iterator[str]:
    missing = list(_list_missing(part, interface))
    if missing:
        yield f"it lacks {', '.join(missing)}"
    for name, declared in interface.methods.items():
        member = inspect.getattr_static(part, name, None)
        if member is None or _is_undefined(member, declared, interface.source):
            continue
        # A method that is looked up on its class still takes self.
        extra = isinstance(part, type) and isinstance(member, FunctionType)
        if not _accepts(getattr(part, name), len(_parameters(declared)) + extra):
            yield f"its method {name} must take ({', '.join(_parameters(declared))})"
    for name, hint in interface.attributes.items():
        if name == "config" and hasattr(part, name):
            yield from _compare_config(getattr(part, name), hint)
        elif hasattr(part, name):
            yield from _compare_choice(name, getattr(part, name), hint)


def _list_missing(part: object, interface: Interface) -> Iterator[str]:
    """Yield the methods and attributes that a part lacks."""
    for name, declared in interface.methods.items():
        member = inspect.getattr_static(part, name, None)
        if member is None or _is_undefined(member, declared, interface.source):
            yield f"the method {name}({', '.join(_parameters(declared))}){_explain_old_member(part, name)}"
    # A constructor may set attributes: those of a class that has one are not known before it is built.
    if not isinstance(part, type) or inspect.getattr_static(part, "__init__") is object.__init__:
        for name in interface.attributes:
            if not hasattr(part, name):
                yield f"the attribute {name}{_explain_old_member(part, name)}"


def _is_undefined(member: object, declared: FunctionType, source: type) -> bool:
    """Return whether a class inherits a method that its interface only declares."""
    is_declaration = getattr(source, "_is_protocol", False) or getattr(declared, "__isabstractmethod__", False)
    return member is declared and is_declaration


def _compare_config(config: object, hint: object) -> Iterator[str]:
    required = get_args(hint)[0] if get_args(hint) else Settings
    # The config of a generic interface is type[C]: a config must derive from the bound of C.
    if isinstance(required, TypeVar):
        required = required.__bound__ or Settings
    if not (isinstance(config, type) and issubclass(config, required)):
        yield (
            f"its config must be a frozen dataclass that derives from {required.__module__}.{required.__qualname__}: "
            f"@dataclass(frozen=True) class MyConfig({required.__name__})"
        )
        return
    # Without the decorator, annotations are no fields and their values would never be checked.
    own = [name for name, kind in inspect.get_annotations(config).items() if not _is_class_variable(kind)]
    declared = {field.name: field for field in fields(config)}
    if missing := [name for name in own if name not in declared]:
        yield f"its config {config.__name__} must be decorated with @dataclass(frozen=True): {missing[0]} is no field"
    elif plain := [name for name in own if "domain" not in declared[name].metadata]:
        yield f"{config.__name__}.{plain[0]} must be declared with knob(default, range, meaning)"


def _is_class_variable(kind: object) -> bool:
    # With postponed annotations the kind is a text.
    return get_origin(kind) is ClassVar or kind is ClassVar or "ClassVar" in str(kind)


def _compare_choice(name: str, value: object, hint: object) -> Iterator[str]:
    if get_origin(hint) is ClassVar:
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal and value not in get_args(hint):
        yield f"its {name} is {value!r}, not one of {', '.join(map(repr, get_args(hint)))}"


def _explain_old_member(part: object, name: str) -> str:
    former = [key.partition(".")[2] for key, present in MEMBERS.items() if present == name]
    return next((f" (formerly {old})" for old in former if hasattr(part, old)), "")


def _parameters(function: FunctionType) -> list[str]:
    # Without self.
    return [str(parameter.name) for parameter in list(inspect.signature(function).parameters.values())[1:]]


def _accepts(function: object, positional: int = 0, keywords: Sequence[str] = ()) -> bool:
    """Return whether a function can be called with so many positional arguments and these keyword arguments."""
    if not callable(function):
        return False
    try:
        # bind knows defaults and variadic parameters, so a part may accept more than its interface asks for.
        inspect.signature(function).bind(*[None] * positional, **dict.fromkeys(keywords))
    # TypeError: the arguments do not fit. ValueError: a built-in function that has no signature.
    except (TypeError, ValueError):
        return False
    return True
