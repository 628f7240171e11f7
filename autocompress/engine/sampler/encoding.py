"""Trainings as points: what a sampler would call their settings, and numbers that a model can compare."""

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.knobs import Choice, Domain, Leaf
from autocompress.engine.space import CUT_SECTIONS, Space

Vector: TypeAlias = NDArray[np.float64]
# A range whose ends differ by more is compared by ratios: 4 channels more are much to 4 and little to 64.
WIDE = 4.0
# Where a setting that does not apply stands.
NOWHERE = 0.5


class Encoding:
    """Coordinates of trainings: each searched setting of the student, then of everything else, from 0 to 1.

    Args:
        space: What may be chosen.
    """

    def __init__(self, space: Space) -> None:
        dimensions = dict(space.dimensions())
        searched = {name: each for name, each in dimensions.items() if name.partition(".")[0] not in CUT_SECTIONS}
        self.student = {name: each for name, each in searched.items() if name.partition(".")[0] == "student"}
        self.recipe = {name: each for name, each in searched.items() if name not in self.student}
        #: Everything that a training samples, by its dotted name.
        self.dimensions: Mapping[str, Domain] = {**self.student, **self.recipe}

    def values(self, training: CompressionConfig) -> dict[str, Leaf]:
        """Return what a sampler would have to propose to get a training."""
        found: dict[str, Leaf] = {}
        for section, part in _parts(training):
            if part.name in _options(self.dimensions.get(section)):
                found[section] = part.name
            for knob, value in part.settings:
                name = f"{section}.{part.name}.{knob}"
                if name in self.dimensions:
                    found[name] = value
        present = {part.name for part in training.distill}
        for name in self.dimensions:
            section, _, rest = name.partition(".")
            if section == "distill" and rest and "." not in rest:
                found[name] = rest in present
        return found

    def points(self, training: CompressionConfig) -> tuple[Vector, Vector]:
        """Return the coordinates of the student, and those of the rest."""
        values = self.values(training)
        return _coordinates(self.student, values), _coordinates(self.recipe, values)


def _parts(training: CompressionConfig) -> list[tuple[str, Part]]:
    return [("student", training.student), *(("distill", part) for part in training.distill), ("fit", training.fit)]


def _options(domain: Domain | None) -> tuple[Leaf, ...]:
    return domain.options if isinstance(domain, Choice) else ()


def _coordinates(dimensions: Mapping[str, Domain], values: Mapping[str, Leaf]) -> Vector:
    found: list[float] = []
    for name, domain in dimensions.items():
        found += _coordinate(domain, values.get(name))
    return np.array(found)


def _coordinate(domain: Domain, value: Any) -> list[float]:
    ends = numeric_ends(domain)
    if ends is None:
        # Two different names are 1 apart.
        return [math.sqrt(0.5) * (value == option) for option in _options(domain)]
    if value is None:
        return [NOWHERE]
    low, high = ends
    if low > 0 and high / low > WIDE:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return [(value - low) / (high - low)]


def numeric_ends(domain: Domain) -> tuple[float, float] | None:
    """Return the least and the greatest of numbers; ``None`` for names."""
    if not isinstance(domain, Choice):
        return float(domain.low), float(domain.high)
    numbers = [option for option in domain.options if isinstance(option, int | float) and not isinstance(option, bool)]
    if len(numbers) < len(domain.options) or min(numbers) == max(numbers):
        return None
    return float(min(numbers)), float(max(numbers))
