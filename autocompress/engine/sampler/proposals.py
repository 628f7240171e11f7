"""Trainings drawn at random, anew or near one that is known."""

import math
from collections.abc import Mapping, Sequence
from random import Random

from autocompress.core.knobs import Leaf
from autocompress.engine.sampler.encoding import WIDE

# Share of the settings that change, and how far a number moves: a share of its range.
CHANGED = 0.35
STEP = 0.2


class Drawn:
    """Answers a space, as a sampler's trial does.

    Args:
        values: A training near which to draw: most settings stay as they are there, and numbers move a little; what
            is not among them is drawn anew, so that without any all of it is.
        random: Where chance comes from.
    """

    def __init__(self, values: Mapping[str, Leaf], random: Random) -> None:
        self._values = values
        self._random = random

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a real number."""
        return self._number(name, low, high, log)

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Return a whole number."""
        return min(max(round(self._number(name, low, high, log or (low > 0 and high / low > WIDE))), low), high)

    def suggest_categorical(self, name: str, choices: Sequence[Leaf]) -> Leaf:
        """Return one of the choices."""
        return self._values[name] if self._stays(name) else self._random.choice(list(choices))

    def _stays(self, name: str) -> bool:
        return name in self._values and self._random.random() > CHANGED

    def _number(self, name: str, low: float, high: float, log: bool) -> float:
        known = float(self._values.get(name) or low)
        if self._stays(name):
            return known
        if name not in self._values:
            share = self._random.random()
        else:
            here = math.log(known / low) / math.log(high / low) if log else (known - low) / (high - low)
            share = min(max(here + self._random.gauss(0.0, STEP), 0.0), 1.0)
        return float(low * (high / low) ** share) if log else low + (high - low) * share
