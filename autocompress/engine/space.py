"""The space: what a spec lets vary, as dimensions that a sampler can fill.

Names are dotted: ``distill.soft_target.temperature``. In a spec a setting is a scalar (fixed), a list (choices),
``{low, high}`` (a narrower range) or ``{}`` (the knob's whole range); a knob that is not named keeps its default.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.knobs import Choice, Domain, FloatRange, IntRange, Knob, Leaf
from autocompress.core.records import Cut
from autocompress.core.registry import DISTILL, FITS, PRUNE, QUANTIZE, STUDENTS, Registry
from autocompress.engine.spec import Source
from autocompress.errors import AutocompressError, did_you_mean

SECTIONS: Mapping[str, Registry[Any]] = {
    "student": STUDENTS,
    "distill": DISTILL,
    "fit": FITS,
    "prune": PRUNE,
    "quantize": QUANTIZE,
}
CUT_SECTIONS = ("prune", "quantize")
#: Method to knob: a leaf (fixed) or a domain (searched).
Methods: TypeAlias = Mapping[str, Mapping[str, Leaf | Domain]]
GRID_POINTS = 4


class Suggest(Protocol):
    """The part of an Optuna trial that a space needs."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a real number."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Return a whole number."""
        ...

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Return one of the choices."""
        ...


@dataclass(frozen=True)
class Space:
    """What a spec lets vary; build it with :func:`open_space`.

    Attributes:
        sections: Section to method to knob: a leaf (fixed) or a domain (searched).
    """

    sections: Mapping[str, Methods]

    def declared(self, section: str, method: str, values: Mapping[str, Leaf]) -> Mapping[str, Leaf | Domain]:
        """Return a method's knobs, fixed: ``values``, else what the space fixes, else their defaults.

        Args:
            section: Such as ``prune``.
            method: Its registered name; the space need not name it.
            values: Knobs to fix.
        """
        given = self.sections[section].get(method, {})
        fixed = {name: value for name, value in given.items() if not isinstance(value, FloatRange | IntRange | Choice)}
        defaults = {name: each.default for name, each in SECTIONS[section].get(method).config.knobs().items()}
        return {**defaults, **fixed, **values}

    def suggest(self, trial: Suggest, *, cut: bool) -> tuple[CompressionConfig, Cut]:
        """Fill one config; ``cut`` samples pruning and quantization too, otherwise they stay unset."""
        parts = {
            name: self._part(name, list(self.sections[name]), trial)
            for name in self.sections
            if name != "distill" and (cut or name not in CUT_SECTIONS)
        }
        training = CompressionConfig(parts["student"], self._distill(trial), parts["fit"])
        return training, Cut(_effective("prune", parts.get("prune")), _effective("quantize", parts.get("quantize")))

    def cuts(self) -> tuple[Cut, ...]:
        """Return the grid of cuts, the uncut parent first; ranges give a few even points."""
        grid = [
            Cut(_effective("prune", prune), _effective("quantize", quantize))
            for prune, quantize in itertools.product(*(self._grid(section) for section in CUT_SECTIONS))
        ]
        return tuple(dict.fromkeys([Cut(), *grid]))

    def defaults(self, teacher: Part) -> dict[str, Leaf]:
        """Return sampler values for a hand-made start: the teacher's shape where allowed, each knob's default."""
        values: dict[str, Leaf] = {}
        for section, methods in self.sections.items():
            names = list(methods)
            if section == "distill":
                names = [name for name in names if DISTILL.get(name).kind == "logit"]
                names.sort(key=lambda name: name == "none")
                values |= {f"distill.{name}": False for name in methods if name not in self._selectable(section)}
            elif len(names) > 1 and section in CUT_SECTIONS:
                names = ["none"] if "none" in names else names
            if len(self._selectable(section)) > 1:
                values[section] = names[0]
            declared = (
                {} if names[0] == "none" and section in CUT_SECTIONS else SECTIONS[section].get(names[0]).config.knobs()
            )
            wanted = teacher.values if section == "student" and names[0] == teacher.name else {}
            for name, domain in methods[names[0]].items():
                if isinstance(domain, FloatRange | IntRange | Choice):
                    value = wanted.get(name, declared[name].default)
                    values[f"{section}.{names[0]}.{name}"] = _nearest(domain, value)
        return values

    def dimensions(self) -> Iterator[tuple[str, Domain]]:
        """Yield every searched knob by its dotted name."""
        for section, methods in self.sections.items():
            if len(self._selectable(section)) > 1:
                yield section, Choice(tuple(self._selectable(section)))
            for method, knobs in methods.items():
                if section == "distill" and method not in self._selectable(section):
                    # A term on features is added to the one on logits, or not.
                    yield f"{section}.{method}", Choice((False, True))
                for name, domain in knobs.items():
                    if isinstance(domain, FloatRange | IntRange | Choice):
                        yield f"{section}.{method}.{name}", domain

    def _selectable(self, section: str) -> list[str]:
        names = list(self.sections[section])
        return [name for name in names if DISTILL.get(name).kind == "logit"] if section == "distill" else names

    def _distill(self, trial: Suggest) -> tuple[Part, ...]:
        parts = [self._part("distill", self._selectable("distill"), trial)]
        for name in self.sections["distill"]:
            optional = DISTILL.get(name).kind != "logit"
            if optional and trial.suggest_categorical(f"distill.{name}", [False, True]):
                parts.append(self._filled("distill", name, trial))
        return tuple(sorted(parts, key=lambda part: part.name))

    def _part(self, section: str, names: list[str], trial: Suggest) -> Part:
        chosen = names[0] if len(names) == 1 else trial.suggest_categorical(section, names)
        return self._filled(section, chosen, trial)

    def _filled(self, section: str, method: str, trial: Suggest) -> Part:
        values: dict[str, Leaf] = {}
        for name, domain in self.sections[section][method].items():
            dotted = f"{section}.{method}.{name}"
            if isinstance(domain, FloatRange):
                values[name] = trial.suggest_float(dotted, domain.low, domain.high, log=domain.log)
            elif isinstance(domain, IntRange):
                values[name] = trial.suggest_int(dotted, domain.low, domain.high, log=domain.log)
            elif isinstance(domain, Choice):
                values[name] = trial.suggest_categorical(dotted, list(domain.options))
            else:
                values[name] = domain
        return Part.of(method, **values)

    def _grid(self, section: str) -> Iterator[Part]:
        for method, knobs in self.sections[section].items():
            axes = [[(name, value) for value in _points(domain)] for name, domain in knobs.items()]
            for values in itertools.product(*axes):
                yield Part.of(method, **dict(values))


def open_space(source: Source) -> Space:
    """Check every method and every setting of a spec against what is registered, and return the space.

    Raises:
        SpecError: An unknown method or knob, or a setting outside its knob's range; the message names the line.
    """
    sections: dict[str, dict[str, dict[str, Leaf | Domain]]] = {}
    for section, registry in SECTIONS.items():
        methods: dict[str, dict[str, Leaf | Domain]] = {}
        for method, settings in getattr(source.spec, section).items():
            place = (section, method)
            if method == "none" and section in CUT_SECTIONS:
                declared: Mapping[str, Knob] = {}
            else:
                try:
                    declared = registry.get(method).config.knobs()
                except AutocompressError as error:
                    raise source.error(place, str(error)) from None
            for name in settings:
                if name not in declared:
                    raise source.error((*place, name), f"unknown knob; {did_you_mean(name, declared)}")
            methods[method] = {
                name: _narrowed(source, (*place, name), settings[name], knob) if name in settings else knob.default
                for name, knob in declared.items()
            }
        sections[section] = methods
    if not any(DISTILL.get(name).kind == "logit" for name in sections["distill"]):
        raise source.error(("distill",), "name at least one term on logits, such as soft_target or none")
    return Space(sections)


def _narrowed(source: Source, place: tuple[str, ...], setting: Any, knob: Knob) -> Leaf | Domain:
    domain = knob.domain
    if isinstance(setting, dict):
        return _range(source, place, setting, domain)
    if isinstance(setting, list):
        if not setting:
            raise source.error(place, "an empty list leaves nothing to choose; name at least one value")
        values = tuple(dict.fromkeys(_leaf(source, place, value, domain) for value in setting))
        return values[0] if len(values) == 1 else Choice(values)
    return _leaf(source, place, setting, domain)


def _leaf(source: Source, place: tuple[str, ...], value: Any, domain: Domain) -> Leaf:
    if isinstance(domain, FloatRange) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not domain.accepts(value):
        raise source.error(place, f"{value!r} is outside the knob's range {domain}")
    leaf: Leaf = value
    return leaf


def _range(source: Source, place: tuple[str, ...], setting: Mapping[str, Any], domain: Domain) -> Domain:
    for key in setting:
        if key not in ("low", "high", "log"):
            raise source.error((*place, key), f"unknown key; {did_you_mean(key, ['low', 'high', 'log'])}")
    if not setting:
        return domain
    if isinstance(domain, Choice):
        raise source.error(place, f"this knob is one of {domain}; list the values to choose from")
    low = _leaf(source, place, setting.get("low", domain.low), domain)
    high = _leaf(source, place, setting.get("high", domain.high), domain)
    log = setting.get("log", domain.log)
    if not isinstance(log, bool):
        raise source.error((*place, "log"), f"must be true or false, got {log!r}")
    if low >= high:  # type: ignore[operator]
        raise source.error(place, f"low {low} is not below high {high}")
    if log and low <= 0:  # type: ignore[operator]
        raise source.error(place, f"a logarithmic range needs low above 0, got {low}")
    return type(domain)(low, high, log)  # type: ignore[arg-type]


def _points(domain: Leaf | Domain) -> list[Leaf]:
    """Return the grid values of one knob: all choices, or a few even points of a range."""
    if isinstance(domain, Choice):
        return list(domain.options)
    if isinstance(domain, FloatRange | IntRange):
        low, high = domain.low, domain.high
        shares = [index / (GRID_POINTS - 1) for index in range(GRID_POINTS)]
        values = [low * (high / low) ** share if domain.log else low + (high - low) * share for share in shares]
        values[-1] = high
        return list(dict.fromkeys(round(value) if isinstance(domain, IntRange) else value for value in values))
    return [domain]


def _nearest(domain: Domain, value: Leaf) -> Leaf:
    if isinstance(domain, Choice):
        numeric = all(isinstance(option, int | float) and not isinstance(option, bool) for option in domain.options)
        if numeric and isinstance(value, int | float):
            return min(domain.options, key=lambda option: abs(option - value))  # type: ignore[operator]
        return value if value in domain.options else domain.options[0]
    if not isinstance(value, int | float):
        return domain.low
    return min(max(value, domain.low), domain.high)


def _effective(section: str, part: Part | None) -> Part | None:
    """Return ``None`` for a part that changes nothing, so that equal models have equal configs."""
    if part is None or part.name == "none":
        return None
    method = SECTIONS[section].get(part.name)
    return None if method.is_identity(method.config.of(part.values)) else part
