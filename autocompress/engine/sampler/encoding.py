"""Encoding of trials: sampler values by dotted name, and vectors that the surrogate's kernel compares.

Random proposals are drawn in the same values: from a search space, or mutated from a known config.
"""

import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.knobs import Choice, Domain, Leaf
from autocompress.engine.space import COMPRESSION_SECTIONS, Space

Vector: TypeAlias = NDArray[np.float64]
# Ranges whose bounds have a larger ratio are encoded in logarithms: 4 more channels matter at 4 and little at 64.
LOG_SCALE_RATIO = 4.0
# Coordinate of a hyperparameter that does not apply, half-way between the bounds.
INACTIVE = 0.5


class Encoding:
    """Coordinates from 0 to 1 of the searched hyperparameters of trials; compression recipes are left out.

    Args:
        space: The search space.
    """

    def __init__(self, space: Space) -> None:
        sections = {name: name.partition(".")[0] for name, _ in space.dimensions()}
        searched = {name: domain for name, domain in space.dimensions() if sections[name] not in COMPRESSION_SECTIONS}
        self.student = {name: domain for name, domain in searched.items() if sections[name] == "student"}
        self.recipe = {name: domain for name, domain in searched.items() if name not in self.student}
        #: The domain of each hyperparameter that a trial samples, by its dotted name.
        self.dimensions: Mapping[str, Domain] = {**self.student, **self.recipe}
        counts = [len(_encode_value(domain, None)) for domain in self.dimensions.values()]
        #: Number of the hyperparameter of each coordinate, those of students first, ``[S + R]``.
        self.groups: NDArray[np.int_] = np.repeat(np.arange(len(counts)), counts)

    def sampler_values(self, config: CompressionConfig) -> dict[str, Leaf]:
        """Return the values that a sampler has to propose to get a config."""
        values: dict[str, Leaf] = {}
        for section, part in _list_parts(config):
            if part.name in _list_options(self.dimensions.get(section)):
                values[section] = part.name
            for setting, value in part.settings:
                name = f"{section}.{part.name}.{setting}"
                if name in self.dimensions:
                    values[name] = value
        terms = {part.name for part in config.distill}
        for name in self.dimensions:
            section, _, rest = name.partition(".")
            # An optional distillation term is a flag, `distill.relational`.
            if section == "distill" and rest and "." not in rest:
                values[name] = rest in terms
        return values

    def encode_trial(self, config: CompressionConfig) -> tuple[Vector, Vector]:
        """Return the coordinates of the student, ``[S]``, and of distillation and fitting, ``[R]``."""
        values = self.sampler_values(config)
        return _encode_values(self.student, values), _encode_values(self.recipe, values)


def _list_parts(config: CompressionConfig) -> list[tuple[str, Part]]:
    return [("student", config.student), *(("distill", part) for part in config.distill), ("fit", config.fit)]


def _list_options(domain: Domain | None) -> tuple[Leaf, ...]:
    return domain.options if isinstance(domain, Choice) else ()


def _encode_values(dimensions: Mapping[str, Domain], values: Mapping[str, Leaf]) -> Vector:
    coordinates: list[float] = []
    for name, domain in dimensions.items():
        coordinates += _encode_value(domain, values.get(name))
    return np.array(coordinates)


def _encode_value(domain: Domain, value: Leaf | None) -> list[float]:
    """Return the coordinates of one hyperparameter: a number, or one-hot for names."""
    bounds = numeric_bounds(domain)
    if bounds is None:
        # Two different names have the distance 1.
        return [math.sqrt(0.5) * (value == option) for option in _list_options(domain)]
    if not isinstance(value, int | float):
        return [INACTIVE]
    low, high = bounds
    number = float(value)
    if low > 0 and high / low > LOG_SCALE_RATIO:
        # A value of an earlier run may be 0 and lie outside of the range.
        number = max(number, low / LOG_SCALE_RATIO)
        low, high, number = math.log(low), math.log(high), math.log(number)
    return [(number - low) / (high - low)]


def numeric_bounds(domain: Domain) -> tuple[float, float] | None:
    """Return the least and the greatest value of a numeric domain; ``None`` for names and for a single number."""
    if not isinstance(domain, Choice):
        return float(domain.low), float(domain.high)
    numbers = [option for option in domain.options if isinstance(option, int | float) and not isinstance(option, bool)]
    if len(numbers) < len(domain.options) or min(numbers) == max(numbers):
        return None
    return float(min(numbers)), float(max(numbers))


# Probability that a hyperparameter of a mutated config changes.
MUTATION_RATE = 0.35
# Standard deviation of the change of a number, as a share of its range.
MUTATION_STEP = 0.2


class MutationTrial:
    """A trial, as a search space asks an Optuna trial for values, that draws at random or mutates a parent.

    Args:
        parent: Sampler values of the parent by dotted name. Each stays with the probability ``1 - mutation_rate``, and
            numbers change by small steps; hyperparameters that it lacks are drawn from their whole range. A parent from
            outside of the search space, such as the teacher, is moved into it.
        random: The random number generator.
        mutation_rate: Probability that a hyperparameter of the parent changes.
    """

    def __init__(self, parent: Mapping[str, Leaf], random: Random, mutation_rate: float = MUTATION_RATE) -> None:
        self._parent = parent
        self._random = random
        self._mutation_rate = mutation_rate

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a real number."""
        return self._draw_number(name, low, high, log)

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Return a whole number."""
        # Wide ranges are drawn in logarithms, as the surrogate compares them.
        is_log = log or (low > 0 and high / low > LOG_SCALE_RATIO)
        return min(max(round(self._draw_number(name, low, high, is_log)), low), high)

    def suggest_categorical(self, name: str, choices: Sequence[Leaf]) -> Leaf:
        """Return one of the choices."""
        is_kept = self._keeps_value(name) and self._parent[name] in choices
        return self._parent[name] if is_kept else self._random.choice(list(choices))

    def _keeps_value(self, name: str) -> bool:
        return name in self._parent and self._random.random() >= self._mutation_rate

    def _draw_number(self, name: str, low: float, high: float, log: bool) -> float:
        value = min(max(float(self._parent.get(name) or low), low), high)
        if self._keeps_value(name):
            return value
        if name not in self._parent:
            share = self._random.random()
        else:
            before = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
            share = min(max(before + self._random.gauss(0.0, MUTATION_STEP), 0.0), 1.0)
        return float(low * (high / low) ** share) if log else low + (high - low) * share
