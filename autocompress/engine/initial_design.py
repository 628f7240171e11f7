"""Initial design: the first trials of a search, chosen by hand and not by the sampler.

The cost of a student is known before it is trained, so the initial students are spread evenly between the cheapest one
and the one shaped like the teacher. Cheap students come first, as they train in a fraction of the time. The large
student starts when the other trials have used as much compute as it will.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

from autocompress.core.knobs import Choice, Domain, FloatRange, Leaf
from autocompress.core.records import CompressionRecipe, Job
from autocompress.engine.archive import CostEstimator
from autocompress.engine.scheduler.compute_cost import count_fit_epochs, estimate_epoch_cost
from autocompress.engine.space import Space

# Number of initial students.
INITIAL_STUDENTS = 4
# The learning rate that is scaled with the width of a student. The steps of Adam do not grow with the gradients, so its
# best rate depends on the width; the steps of plain gradient descent do, and need no scaling.
SCALED_LEARNING_RATE = "fit.adamw.learning_rate"
#: Field name to value, as a sampler proposes them.
Values = Mapping[str, Leaf]


class InitialDesign:
    """Queue of the initial trials that have not started.

    Args:
        values: Sampler values of the trials, in their order.
        estimate_cost: Function that returns the compute cost of a whole trial; 0 if it is unknown.
    """

    def __init__(self, values: Sequence[Values], estimate_cost: Callable[[Values], float]) -> None:
        self._queue = list(values)
        self._estimate_cost = estimate_cost
        self._first_cost: float | None = None

    def __len__(self) -> int:
        return len(self._queue)

    def pop_values(self, can_start: Callable[[float], bool]) -> Values | None:
        """Remove and return the values of the next trial if it can start, else ``None``.

        Args:
            can_start: Function that returns whether a trial of some compute cost can start now.
        """
        if not self._queue:
            return None
        # An estimate builds the student, so it is made once and not at each of the driver's decisions.
        if self._first_cost is None:
            self._first_cost = self._estimate_cost(self._queue[0])
        if not can_start(self._first_cost):
            return None
        self._first_cost = None
        return self._queue.pop(0)


class FixedTrial:
    """A trial that suggests given values, and the first or lowest one for every other field.

    Args:
        values: Field name to value.
    """

    def __init__(self, values: Values) -> None:
        self._values = values

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a real number."""
        return float(self._values.get(name, low) or 0)

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Return a whole number."""
        return int(self._values.get(name, low) or 0)

    def suggest_categorical(self, name: str, choices: Sequence[Leaf]) -> Leaf:
        """Return one of the choices."""
        return self._values.get(name, choices[0])


class RandomTrial:
    """A trial with uniformly random values.

    Args:
        seed: Seed of the values.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a real number."""
        if log:
            return math.exp(self._random.uniform(math.log(low), math.log(high)))
        return self._random.uniform(low, high)

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Return a whole number."""
        return self._random.randint(low, high)

    def suggest_categorical(self, name: str, choices: Sequence[Leaf]) -> Leaf:
        """Return one of the choices."""
        return self._random.choice(list(choices))


def make_initial_job(space: Space, values: Values, *, with_compression: bool) -> Job:
    """Return the job that sampler values describe, numbered 0.

    Args:
        space: Search space.
        values: Sampler values.
        with_compression: Whether the values choose pruning and quantization too.
    """
    training, recipe = space.suggest_config(FixedTrial(values), with_compression=with_compression)
    return Job(0, training, (recipe,))


def estimate_trial_cost(space: Space, estimate_costs: CostEstimator | None, values: Values) -> float:
    """Return the compute cost of a whole trial, in FLOPs per example; 0 if its costs are unknown."""
    training = make_initial_job(space, values, with_compression=False).training
    costs = () if estimate_costs is None else estimate_costs(training, [CompressionRecipe()])
    return estimate_epoch_cost(costs[0], training) * count_fit_epochs(training.fit) if costs else 0.0


def design_initial_trials(space: Space, first: Values, cost: Callable[[Values], float]) -> list[dict[str, Leaf]]:
    """Return the sampler values of the initial students, evenly spaced by the logarithm of their cost.

    The order is: a thin student of the teacher's shape, the cheapest student, the others by rising cost, and ``first``.

    Args:
        space: Search space.
        first: Sampler values of the student shaped like the teacher.
        cost: Function that returns the cost of a student, above 0; NaN if it cannot be built.
    """
    dimensions = {name: domain for name, domain in space.dimensions() if name in first and name.startswith("student.")}
    first_cost = cost(first)
    cheapest, lowest_cost = _minimize_cost(first, first_cost, dimensions, cost)
    # Also where a cost is NaN.
    if not lowest_cost < first_cost:
        return [dict(first)]
    path = [(values, cost(values)) for values in _grow_student(cheapest, first, dimensions)]
    students = [cheapest]
    for step in range(1, INITIAL_STUDENTS - 1):
        target = math.log(lowest_cost) + (math.log(first_cost) - math.log(lowest_cost)) * step / (INITIAL_STUDENTS - 1)
        distances = [(abs(math.log(path_cost) - target), values) for values, path_cost in path if path_cost > 0]
        if distances:
            students.append(min(distances, key=lambda pair: pair[0])[1])
    students = [values for index, values in enumerate(students) if values not in (first, *students[:index])]
    learning_rate = dict(space.dimensions()).get(SCALED_LEARNING_RATE)
    if isinstance(learning_rate, FloatRange) and SCALED_LEARNING_RATE in first:
        base_rate = float(first[SCALED_LEARNING_RATE] or 0)
        rates = [_scale_learning_rate(base_rate, first_cost / cost(values), learning_rate) for values in students]
        students = [{**values, SCALED_LEARNING_RATE: rate} for values, rate in zip(students, rates, strict=True)]
    # A thin student of the teacher's shape is nearly as cheap as the cheapest one, and its score is far better.
    return [*students[1:2], *students[:1], *students[2:], dict(first)]


def _minimize_cost(
    first: Values, first_cost: float, dimensions: Mapping[str, Domain], cost: Callable[[Values], float]
) -> tuple[dict[str, Leaf], float]:
    """Return the cheapest student and its cost, by coordinate descent over the ends of each dimension."""
    best: tuple[dict[str, Leaf], float] = (dict(first), first_cost)
    for name, domain in dimensions.items():
        values, lowest_cost = best
        ends = domain.options if isinstance(domain, Choice) else (domain.low, domain.high)
        options = [({**values, name: end}, cost({**values, name: end})) for end in ends]
        cheaper = [option for option in options if option[1] < lowest_cost]
        best = min([best, *cheaper], key=lambda option: option[1])
    return best


def _scale_learning_rate(rate: float, cost_ratio: float, domain: FloatRange) -> float:
    """Return the learning rate of a student that is ``cost_ratio`` times cheaper than the one of ``rate``.

    With Adam, the best rate falls as a network gets wider (muP: Yang et al. 2022, arXiv:2203.03466), and its cost grows
    with the square of its width.
    """
    return min(max(rate * math.sqrt(cost_ratio), domain.low), domain.high)


def _grow_student(cheapest: Values, first: Values, dimensions: Mapping[str, Domain]) -> Iterator[dict[str, Leaf]]:
    """Yield students from the cheapest to ``first``, one dimension at a time; a range is crossed in two steps."""
    student = dict(cheapest)
    # Choices (depth, kind of block) before ranges (width): deep and thin students score better than wide and shallow
    # ones of equal cost.
    for name, domain in sorted(dimensions.items(), key=lambda item: not isinstance(item[1], Choice)):
        low, high = student[name], first[name]
        if low == high:
            continue
        if not isinstance(domain, Choice):
            assert isinstance(low, int | float)
            assert isinstance(high, int | float)
            middle = math.sqrt(low * high) if min(low, high) > 0 else (low + high) / 2
            yield {**student, name: round(middle) if isinstance(low, int) and isinstance(high, int) else middle}
        student = {**student, name: high}
        yield student
