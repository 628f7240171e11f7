"""When the hand-made trainings begin: the first at once, a large one when others have taken as much effort."""

from collections.abc import Callable, Mapping, Sequence

from autocompress.core.knobs import Leaf
from autocompress.core.records import Cut, Job
from autocompress.engine.initial_design import Fixed
from autocompress.engine.limits import Price
from autocompress.engine.scheduler.compute_cost import epochs_of_fit, size_at
from autocompress.engine.space import Space

Values = Mapping[str, Leaf]


class Openings:
    """Hand-made trainings that have not begun.

    Args:
        values: What a sampler has to propose to get them, in their order.
        effort: Returns what one of them takes from its beginning to its end; 0 where it is not known.
    """

    def __init__(self, values: Sequence[Values], effort: Callable[[Values], float]) -> None:
        self._left = list(values)
        self._effort = effort
        self._known: float | None = None

    def __len__(self) -> int:
        return len(self._left)

    def next(self, allowed: Callable[[float], bool]) -> Values | None:
        """Take out the next if so much effort is allowed."""
        if not self._left:
            return None
        if self._known is None:
            self._known = self._effort(self._left[0])
        if not allowed(self._known):
            return None
        self._known = None
        return self._left.pop(0)


def opened(space: Space, values: Values, *, cut: bool) -> Job:
    """Return the job that values stand for."""
    training, sampled = space.suggest(Fixed(values), cut=cut)
    return Job(0, training, (sampled,))


def whole_effort(space: Space, price: Price | None, values: Values) -> float:
    """Return what a training takes from its beginning to its end; 0 where its costs are not known."""
    training = opened(space, values, cut=False).training
    costs = () if price is None else price(training, [Cut()])
    return size_at(costs[0], training) * epochs_of_fit(training.fit) if costs else 0.0
