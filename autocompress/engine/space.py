"""The search space of a spec: dimensions for a sampler, and the grid of compression recipes.

Names are dotted: ``distill.soft_target.temperature``. In a spec a setting is a scalar (fixed), a list (choices),
``{low, high}`` (a narrower range) or ``{}`` (the whole range); a hyperparameter that is not named keeps its default.
A distillation term with ``required: true`` is part of every trial.

Search modes replace parts of the space: the default mode, and the simpler ones that it is compared with.
"""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias, cast

from pydantic import JsonValue

from autocompress.core.config import CompressionConfig, Part, fingerprint
from autocompress.core.knobs import Choice, Domain, FloatRange, IntRange, Knob, Leaf
from autocompress.core.records import CompressionRecipe, Job
from autocompress.core.registry import DISTILL, FITS, PRUNE, QUANTIZE, STUDENTS, Registry
from autocompress.engine.spec import Source
from autocompress.errors import AutocompressError, did_you_mean
from autocompress.trial.supernet import subnetwork_pruning

SECTIONS: Mapping[str, Registry[Any]] = {
    "student": STUDENTS,
    "distill": DISTILL,
    "fit": FITS,
    "prune": PRUNE,
    "quantize": QUANTIZE,
}
COMPRESSION_SECTIONS = ("prune", "quantize")
#: Key of a distillation term, no hyperparameter: whether the term is part of every trial.
REQUIRED = "required"
#: Key of the section ``distill``, no term: the data set that the teacher comes from.
TRANSFER = "transfer"
#: Leaf (fixed) or domain (searched) of each hyperparameter, by method and name.
Methods: TypeAlias = Mapping[str, Mapping[str, Leaf | Domain]]
# Points of a range in the grid of compression recipes: both bounds, and two evenly spaced between them.
GRID_POINTS = 4


class SuggestTrial(Protocol):
    """The methods of an Optuna trial that a search space calls."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a real number."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Return a whole number."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Leaf]) -> Leaf:
        """Return one of the choices."""
        ...


@dataclass(frozen=True)
class Space:
    """A search space; :func:`open_space` makes it from a spec.

    Attributes:
        sections: Leaf (fixed) or domain (searched) of each hyperparameter, by section, method and name.
        required: Names of the distillation terms that are part of every trial, besides a single term on logits.
        bit_pairs: (weight bits, activation bits) that a quantization method may combine, by method; every listed pair
            for a method without an entry.
    """

    sections: Mapping[str, Methods]
    required: tuple[str, ...] = ()
    bit_pairs: Mapping[str, Collection[tuple[int, int]]] = field(default_factory=dict)

    def default_settings(self, section: str, method: str, values: Mapping[str, Leaf]) -> Mapping[str, Leaf | Domain]:
        """Return fixed values for all hyperparameters of a method: ``values``, else the space's, else the defaults.

        Args:
            section: Section of the space, such as ``prune``.
            method: Registered name of the method, which need not be in the space.
            values: Values that take precedence, by name.
        """
        settings = self.sections[section].get(method, {})
        fixed = {name: leaf for name, leaf in settings.items() if not isinstance(leaf, FloatRange | IntRange | Choice)}
        defaults = {name: knob.default for name, knob in SECTIONS[section].get(method).config.knobs().items()}
        return {**defaults, **fixed, **values}

    def suggest_config(
        self, trial: SuggestTrial, *, with_compression: bool
    ) -> tuple[CompressionConfig, CompressionRecipe]:
        """Return one config and its compression recipe.

        Args:
            trial: The trial that suggests the values.
            with_compression: Whether pruning and quantization are sampled, too; otherwise the recipe is empty.
        """
        parts = {
            name: self._suggest_part(name, list(self.sections[name]), trial)
            for name in self.sections
            if name != "distill" and (with_compression or name not in COMPRESSION_SECTIONS)
        }
        training = CompressionConfig(parts["student"], self._suggest_distillation(trial), parts["fit"])
        prune, quantize = (_simplify_part(section, parts.get(section)) for section in COMPRESSION_SECTIONS)
        return training, CompressionRecipe(prune, quantize)

    def compression_grid(self) -> tuple[CompressionRecipe, ...]:
        """Return the grid of compression recipes, the empty one first; ranges give a few evenly spaced points."""
        grid = [
            CompressionRecipe(_simplify_part("prune", prune), _simplify_part("quantize", quantize))
            for prune, quantize in itertools.product(*(self._list_grid(section) for section in COMPRESSION_SECTIONS))
        ]
        return tuple(dict.fromkeys([CompressionRecipe(), *grid]))

    def default_values(self, teacher: Part) -> dict[str, Leaf]:
        """Return the default sampler values: the teacher's architecture where allowed, else each knob's default."""
        values: dict[str, Leaf] = {}
        for section, methods in self.sections.items():
            names = list(methods)
            required: list[str] = []
            if section == "distill":
                names = self._list_alternatives(section)
                # Any distillation before none.
                names.sort(key=lambda name: name == "none")
                values |= {f"distill.{name}": False for name in self._list_optional_terms()}
                required = [name for name in self._list_feature_terms() if name in self.required]
            elif len(names) > 1 and section in COMPRESSION_SECTIONS:
                names = ["none"] if "none" in names else names
            if len(self._list_alternatives(section)) > 1:
                values[section] = names[0]
            for method in (names[0], *required):
                preferred = teacher.values if section == "student" and method == teacher.name else {}
                values |= self._default_method_values(section, method, preferred)
        return values

    def _default_method_values(self, section: str, method: str, preferred: Mapping[str, Leaf]) -> dict[str, Leaf]:
        has_method = section not in COMPRESSION_SECTIONS or method != "none"
        declared = SECTIONS[section].get(method).config.knobs() if has_method else {}
        return {
            f"{section}.{method}.{name}": _nearest_value(domain, preferred.get(name, declared[name].default))
            for name, domain in self.sections[section][method].items()
            if isinstance(domain, FloatRange | IntRange | Choice)
        }

    def dimensions(self) -> Iterator[tuple[str, Domain]]:
        """Yield the domain of every searched hyperparameter with its dotted name."""
        for section, methods in self.sections.items():
            if len(self._list_alternatives(section)) > 1:
                yield section, Choice(tuple(self._list_alternatives(section)))
            for method, knobs in methods.items():
                if section == "distill" and method in self._list_optional_terms():
                    yield f"{section}.{method}", Choice((False, True))
                for name, domain in knobs.items():
                    if isinstance(domain, FloatRange | IntRange | Choice):
                        yield f"{section}.{method}.{name}", domain

    def _list_alternatives(self, section: str) -> list[str]:
        names = list(self.sections[section])
        return [name for name in names if _is_logit_term(name)] if section == "distill" else names

    def _list_feature_terms(self) -> list[str]:
        return [name for name in self.sections["distill"] if not _is_logit_term(name)]

    def _list_optional_terms(self) -> list[str]:
        """Return the terms on features that the sampler adds to the one on logits or leaves out."""
        return [name for name in self._list_feature_terms() if name not in self.required]

    def _suggest_distillation(self, trial: SuggestTrial) -> tuple[Part, ...]:
        parts = [self._suggest_part("distill", self._list_alternatives("distill"), trial)]
        parts.extend(
            self._suggest_settings("distill", name, trial)
            for name in self._list_feature_terms()
            if name in self.required or trial.suggest_categorical(f"distill.{name}", [False, True])
        )
        return tuple(sorted(parts, key=lambda part: part.name))

    def _suggest_part(self, section: str, names: list[str], trial: SuggestTrial) -> Part:
        method = names[0] if len(names) == 1 else str(trial.suggest_categorical(section, names))
        return self._suggest_settings(section, method, trial)

    def _suggest_settings(self, section: str, method: str, trial: SuggestTrial) -> Part:
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

    def _list_grid(self, section: str) -> Iterator[Part]:
        for method, knobs in self.sections[section].items():
            axes = [[(name, value) for value in _grid_points(domain)] for name, domain in knobs.items()]
            for values in itertools.product(*axes):
                part = Part.of(method, **dict(values))
                if section != "quantize" or self._allows_bits(part):
                    yield part

    def _allows_bits(self, part: Part) -> bool:
        pairs = self.bit_pairs.get(part.name)
        return pairs is None or any(
            pair == (part.values["weight_bits"], part.values["activation_bits"]) for pair in pairs
        )


def open_space(source: Source) -> Space:
    """Return the search space of a spec, after a check of every method and setting against the registries.

    A search of one trial cannot compare a term on features with its absence, so that trial uses every listed term.

    Raises:
        SpecError: A method or knob is unknown, a setting lies outside its knob's range, or ``required`` cannot be met;
            the message names the line.
    """
    sections: dict[str, dict[str, dict[str, Leaf | Domain]]] = {}
    for section, registry in SECTIONS.items():
        methods: dict[str, dict[str, Leaf | Domain]] = {}
        listed = source.spec.distill.terms if section == "distill" else getattr(source.spec, section)
        for method, settings in listed.items():
            key = (section, method)
            if method == "none" and section in COMPRESSION_SECTIONS:
                declared: Mapping[str, Knob] = {}
            else:
                try:
                    declared = registry.get(method).config.knobs()
                except AutocompressError as error:
                    raise source.make_error(key, _suggest_method(section, method, str(error))) from None
            if section == "distill" and REQUIRED in declared:
                message = f"the term has a hyperparameter named `{REQUIRED}`, which is a key of every term; rename it"
                raise source.make_error(key, message)
            for name in settings:
                if name == REQUIRED and name not in declared:
                    _check_required(source, section, method, settings[name])
                elif name not in declared:
                    keys = [*declared, REQUIRED] if section == "distill" else list(declared)
                    raise source.make_error((*key, name), f"unknown hyperparameter; {did_you_mean(name, keys)}")
            methods[method] = {
                name: _narrow_domain(source, (*key, name), settings[name], knob) if name in settings else knob.default
                for name, knob in declared.items()
            }
        sections[section] = methods
    if not any(map(_is_logit_term, sections["distill"])):
        raise source.make_error(("distill",), "name at least one term on logits, such as soft_target or none")
    return _require_terms(source, Space(sections))


def check_teacher_settings(source: Source) -> None:
    """Refuse unknown hyperparameters of the teacher; other faults show when it is built.

    Raises:
        SpecError: A hyperparameter is unknown; the message names its line and the nearest one.
    """
    for section in ("student", "fit"):
        for method, settings in (getattr(source.spec.teacher, section) or {}).items():
            registry = SECTIONS[section]
            declared = registry.get(method).config.knobs() if method in registry else settings
            for name in settings:
                if name not in declared:
                    message = f"unknown hyperparameter; {did_you_mean(name, declared)}"
                    raise source.make_error(("teacher", section, method, name), message)


def _suggest_method(section: str, method: str, message: str) -> str:
    """Return the message on an unknown method; in ``distill``, `transfer` is a key beside the terms."""
    hint = did_you_mean(method, [*DISTILL, TRANSFER])
    return f"unknown key; {hint}" if section == "distill" and TRANSFER in hint.split("'") else message


def _is_logit_term(name: str) -> bool:
    return DISTILL.get(name).kind == "logit"


def _check_required(source: Source, section: str, method: str, value: JsonValue) -> None:
    key = (section, method, REQUIRED)
    if section != "distill":
        raise source.make_error(
            key,
            f"only terms of distill take `{REQUIRED}`; every method of {section} is an alternative to the others, so "
            f"list {method} alone to use it always",
        )
    if not isinstance(value, bool):
        raise source.make_error(key, f"must be true or false, got {value!r}")
    if value and method == "none":
        raise source.make_error(
            key, f"none is the absence of distillation; remove `{REQUIRED}`, or list no other term to train without it"
        )


def _require_terms(source: Source, space: Space) -> Space:
    """Return the space with the required terms of its spec in every trial.

    Raises:
        SpecError: Two terms on logits are required; the message names the line of the second.
    """
    listed = source.spec.distill.terms
    # A single trial cannot show the effect of an optional term, and must not leave out a listed one silently.
    is_single_trial = source.spec.search.trials == 1
    required = tuple(
        name for name in listed if listed[name].get(REQUIRED, False) or (is_single_trial and not _is_logit_term(name))
    )
    logit_terms = [name for name in required if _is_logit_term(name)]
    if len(logit_terms) > 1:
        raise source.make_error(
            ("distill", logit_terms[1], REQUIRED),
            f"a trial uses one term on logits, and {logit_terms[0]} is required, too; remove `{REQUIRED}` from one of "
            "them",
        )
    # Beside a required term on logits, the others could never be used.
    terms = {
        name: settings
        for name, settings in space.sections["distill"].items()
        if not logit_terms or name in logit_terms or not _is_logit_term(name)
    }
    return Space({**space.sections, "distill": terms}, required)


def _narrow_domain(source: Source, key: tuple[str, ...], setting: JsonValue, knob: Knob) -> Leaf | Domain:
    domain = knob.domain
    if isinstance(setting, dict):
        return _narrow_range(source, key, setting, domain)
    if isinstance(setting, list):
        if not setting:
            raise source.make_error(key, "an empty list leaves nothing to choose; name at least one value")
        values = tuple(dict.fromkeys(_check_leaf(source, key, value, domain) for value in setting))
        return values[0] if len(values) == 1 else Choice(values)
    return _check_leaf(source, key, setting, domain)


def _check_leaf(source: Source, key: tuple[str, ...], value: object, domain: Domain) -> Leaf:
    if isinstance(domain, FloatRange) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not domain.accepts(value):
        raise source.make_error(key, f"{value!r} is outside the range {domain}")
    # A value that a domain accepts is a leaf.
    return cast(Leaf, value)


def _narrow_range(source: Source, key: tuple[str, ...], setting: Mapping[str, JsonValue], domain: Domain) -> Domain:
    for name in setting:
        if name not in ("low", "high", "log"):
            raise source.make_error((*key, name), f"unknown key; {did_you_mean(name, ['low', 'high', 'log'])}")
    if not setting:
        return domain
    if isinstance(domain, Choice):
        raise source.make_error(key, f"this hyperparameter is one of {domain}; list the values to choose from")
    low = _check_leaf(source, key, setting.get("low", domain.low), domain)
    high = _check_leaf(source, key, setting.get("high", domain.high), domain)
    log = setting.get("log", domain.log)
    if not isinstance(log, bool):
        raise source.make_error((*key, "log"), f"must be true or false, got {log!r}")
    if low >= high:  # type: ignore[operator]
        raise source.make_error(key, f"low {low} is not below high {high}")
    if log and low <= 0:  # type: ignore[operator]
        raise source.make_error(key, f"a logarithmic range needs low above 0, got {low}")
    return type(domain)(low, high, log)  # type: ignore[arg-type]


def _grid_points(domain: Leaf | Domain) -> list[Leaf]:
    """Return the grid values of one hyperparameter: all choices, or a few evenly spaced points of a range."""
    if isinstance(domain, Choice):
        return list(domain.options)
    if isinstance(domain, FloatRange | IntRange):
        low, high = domain.low, domain.high
        shares = [index / (GRID_POINTS - 1) for index in range(GRID_POINTS)]
        values = [low * (high / low) ** share if domain.log else low + (high - low) * share for share in shares]
        # Rounding may leave the last point beyond the bound.
        values[-1] = high
        return list(dict.fromkeys(round(value) if isinstance(domain, IntRange) else value for value in values))
    return [domain]


def _nearest_value(domain: Domain, value: Leaf) -> Leaf:
    """Return the value of a domain that is nearest to some value; the first choice where no order is defined."""
    if isinstance(domain, Choice):
        numeric = all(isinstance(option, int | float) and not isinstance(option, bool) for option in domain.options)
        if numeric and isinstance(value, int | float):
            return min(domain.options, key=lambda option: abs(option - value))  # type: ignore[operator]
        return value if value in domain.options else domain.options[0]
    if not isinstance(value, int | float):
        return domain.low
    return min(max(value, domain.low), domain.high)


def _simplify_part(section: str, part: Part | None) -> Part | None:
    """Return ``None`` for a part that leaves every model unchanged, so that equal models have equal configs."""
    if part is None or part.name == "none":
        return None
    method = SECTIONS[section].get(part.name)
    return None if method.is_identity(method.config.of(part.values)) else part


def derive_seed(search_seed: int, number: int) -> int:
    """Return the seed of a trial; it follows from its arguments alone, on every machine and after a resume."""
    return int(fingerprint([search_seed, number]), 16) % 2**31


def trial_key(job: Job, *, amortized: bool) -> str:
    """Return a key that is equal for duplicates, whatever their seeds.

    Args:
        job: Trial, or a segment of it.
        amortized: Whether a trial yields many candidates; otherwise its one compression recipe is part of the key.
    """
    training = job.training.to_json_without_seed()
    if amortized:
        return fingerprint(training)
    parts: list[Part | None] = [job.recipes[0].prune, job.recipes[0].quantize]
    return fingerprint([training, [None if part is None else part.to_json() for part in parts]])


# Shares of channels that the sub-networks of a supernet lack; each sub-network is part of the one before.
SUBNETWORK_RATIOS = (0.25, 0.5, 0.65, 0.8)
INT8 = MappingProxyType({"weight_bits": 8, "activation_bits": 8})


def _keep_space(space: Space) -> Space:
    return space


def _remove_distillation(space: Space) -> Space:
    return replace(_replace_sections(space, distill={"none": {}}), required=())


def _fix_int8(space: Space) -> Space:
    return _replace_sections(
        space, prune={"none": {}}, quantize={"post_training": space.default_settings("quantize", "post_training", INT8)}
    )


def _use_supernet(space: Space) -> Space:
    """Train the widest students together with their narrower sub-networks, which pruning extracts afterwards."""
    part = subnetwork_pruning(SUBNETWORK_RATIOS[-1])
    settings = space.default_settings("prune", part.name, part.values)
    pruning = {part.name: {**settings, "pruning_ratio": Choice(SUBNETWORK_RATIOS)}}
    students = {
        name: {knob: value.high if isinstance(value, IntRange) else value for knob, value in knobs.items()}
        for name, knobs in space.sections["student"].items()
    }
    fits = {name: {**knobs, "sandwich": SUBNETWORK_RATIOS[-1]} for name, knobs in space.sections["fit"].items()}
    return _replace_sections(space, student=students, fit=fits, prune={"none": {}, **pruning})


def _replace_sections(space: Space, **sections: Methods) -> Space:
    return replace(space, sections={**space.sections, **sections})


@dataclass(frozen=True)
class Mode:
    """A search strategy.

    Attributes:
        summary: Description in one line.
        amortized: Whether one trial yields many candidates; otherwise each trial is one candidate, all of it sampled.
        stages: Whether architecture, pruning and quantization are chosen one after the other.
        sampler: Sampler in place of the spec's; empty for the spec's own.
        promotion: Promotion rule in place of the spec's; empty for the spec's own.
        restrict_space: Function from the spec's search space to that of the mode.
    """

    summary: str
    amortized: bool = True
    stages: bool = False
    sampler: str = ""
    promotion: str = ""
    restrict_space: Callable[[Space], Space] = _keep_space


MODES: Mapping[str, Mode] = {
    "amortized": Mode("each trial yields many candidates, and the best trials are promoted"),
    "sampled": Mode("one candidate per trial, all of it sampled", amortized=False, promotion="always"),
    "supernet": Mode("the widest students and their sub-networks, trained together", restrict_space=_use_supernet),
    "random": Mode("as amortized, with random configs and no early stopping", sampler="random", promotion="always"),
    "sequential": Mode("architecture, pruning and quantization, one after the other", stages=True, promotion="always"),
    "uniform_int8": Mode("architecture and distillation only; every student has 8 bits", restrict_space=_fix_int8),
    "no_distillation": Mode("as amortized, without distillation", restrict_space=_remove_distillation),
}
