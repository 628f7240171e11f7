"""Measuring: what a model costs, and how good its outputs are, as registered objectives."""

from collections.abc import Iterable

from autocompress.measure import builtin, ranking_metrics
from autocompress.measure.cost import LayerCost, layer_costs
from autocompress.measure.heads import objective_called
from autocompress.measure.objectives import Objective, Subject, objective
from autocompress.measure.quality import per_class

__all__ = [
    "LayerCost",
    "Objective",
    "Subject",
    "builtin",
    "layer_costs",
    "measure",
    "objective",
    "per_class",
    "ranking_metrics",
]


def measure(subject: Subject, names: Iterable[str]) -> dict[str, float]:
    """Return the value of each named objective on one subject; several heads count alike.

    A name such as ``accuracy@language`` asks for the score of one head.

    Raises:
        UnknownNameError: No objective has that name.
        UsageError: A cost is asked of a head.
        TrialError: The subject lacks what an objective reads.

    Example:
        >>> measure(Subject(layers={"a": LayerCost("a", macs=12, weights=12, parameters=15, nonzero=15)}), ["flops"])
        {'flops': 24.0}
    """
    return {name: float(objective_called(name).measure(subject)) for name in names}
