"""Random proposals: configs drawn from a search space, or mutated from a known one."""

import math
from collections.abc import Mapping, Sequence
from random import Random

from autocompress.core.knobs import Leaf
from autocompress.engine.sampler.encoding import LOG_SCALE_RATIO

# Probability that a hyperparameter of a mutated config changes.
MUTATION_RATE = 0.35
# Standard deviation of the change of a number, as a share of its range.
MUTATION_STEP = 0.2


class RandomTrial:
    """A trial, as a search space asks an Optuna trial for values, that draws at random or mutates a parent.

    Args:
        parent: Sampler values of the parent by dotted name. Each stays with the probability ``1 - MUTATION_RATE``, and
            numbers change by small steps; hyperparameters that it lacks are drawn from their whole range.
        random: The random number generator.
    """

    def __init__(self, parent: Mapping[str, Leaf], random: Random) -> None:
        self._parent = parent
        self._random = random

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
        return self._parent[name] if self._keeps_value(name) else self._random.choice(list(choices))

    def _keeps_value(self, name: str) -> bool:
        return name in self._parent and self._random.random() > MUTATION_RATE

    def _draw_number(self, name: str, low: float, high: float, log: bool) -> float:
        value = float(self._parent.get(name) or low)
        if self._keeps_value(name):
            return value
        if name not in self._parent:
            share = self._random.random()
        else:
            before = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
            share = min(max(before + self._random.gauss(0.0, MUTATION_STEP), 0.0), 1.0)
        return float(low * (high / low) ** share) if log else low + (high - low) * share
