"""Hand-made first trainings: students evenly spaced between the cheapest and the one shaped like the teacher.

What a student costs is known before it is trained, so the ends of a front and what lies between are reached at once.
The cheap ones come first: they are trained in a fraction of the time.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from autocompress.core.knobs import Choice, Domain, FloatRange, Leaf
from autocompress.engine.space import Space

STUDENTS = 4
# Its steps do not grow with the gradients; those of plain descent do, and need no other rate.
ADAPTIVE = "fit.adamw.learning_rate"
Values = Mapping[str, Leaf]


def starts(space: Space, first: Values, cost: Callable[[Values], float]) -> list[dict[str, Leaf]]:
    """Return sampler values of a few students by rising cost, ``first`` the last of them.

    Args:
        space: What may be chosen.
        first: Values of the student shaped like the teacher.
        cost: Returns what a student costs, more than 0; NaN where it cannot be built.
    """
    dimensions = {name: domain for name, domain in space.dimensions() if name in first and name.startswith("student.")}
    end = cost(first)
    steps = [(dict(first), end)]
    for name, domain in dimensions.items():
        values, least = steps[-1]
        options = [({**values, name: value}, cost({**values, name: value})) for value in _ends(domain)]
        steps.append(min([(values, least), *(each for each in options if each[1] < least)], key=lambda each: each[1]))
    cheapest, least = steps[-1]
    if not least < end:
        return [dict(first)]
    between = [(values, cost(values)) for values in _way(cheapest, first, dimensions)]
    found = [cheapest]
    for share in range(1, STUDENTS - 1):
        wanted = math.log(least) + (math.log(end) - math.log(least)) * share / (STUDENTS - 1)
        able = [(abs(math.log(there) - wanted), values) for values, there in between if there > 0]
        if able:
            found.append(min(able, key=lambda each: each[0])[1])
    found = [values for place, values in enumerate(found) if values not in (first, *found[:place])]
    learning_rate = dict(space.dimensions()).get(ADAPTIVE)
    if isinstance(learning_rate, FloatRange) and ADAPTIVE in first:
        rates = [_rate(float(first[ADAPTIVE] or 0), end / cost(values), learning_rate) for values in found]
        found = [{**values, ADAPTIVE: rate} for values, rate in zip(found, rates, strict=True)]
    # A thin student of the teacher's shape is nearly as cheap as the cheapest, and worth far more.
    return [*found[1:2], *found[:1], *found[2:], dict(first)]


def _rate(rate: float, cheaper: float, domain: FloatRange) -> float:
    """Return the learning rate of a student that is so many times cheaper.

    With Adam, the best rate falls as a network gets wider (muP: Yang et al. 2022, arXiv:2203.03466), and its cost grows
    with the square of its width.
    """
    return min(max(rate * math.sqrt(cheaper), domain.low), domain.high)


class Fixed:
    """Answers a space with given values, and with the first or lowest where none is given."""

    def __init__(self, values: Values) -> None:
        self._values = values

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a real number."""
        return float(self._values.get(name, low) or 0)

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Return a whole number."""
        return int(self._values.get(name, low) or 0)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Return one of the choices."""
        return self._values.get(name, choices[0])


def _ends(domain: Domain) -> tuple[Leaf, ...]:
    return domain.options if isinstance(domain, Choice) else (domain.low, domain.high)


def _way(cheapest: Values, first: Values, dimensions: Mapping[str, Domain]) -> Iterator[dict[str, Leaf]]:
    """Yield students from the cheapest to the first, one knob at a time; a range is crossed in two steps."""
    here = dict(cheapest)
    # Deep and thin before wide and shallow: at equal cost it is the better student.
    for name, domain in sorted(dimensions.items(), key=lambda each: not isinstance(each[1], Choice)):
        low, high = here[name], first[name]
        if low == high:
            continue
        if not isinstance(domain, Choice):
            assert isinstance(low, int | float)
            assert isinstance(high, int | float)
            middle = math.sqrt(low * high) if min(low, high) > 0 else (low + high) / 2
            yield {**here, name: round(middle) if isinstance(low, int) and isinstance(high, int) else middle}
        here = {**here, name: high}
        yield here
