"""Measurement of a model's costs and of its outputs' scores, as registered objectives."""

from collections.abc import Iterable

from autocompress.measure import builtin, ranking_metrics
from autocompress.measure.cost import LayerCost, layer_costs
from autocompress.measure.heads import get_objective
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
    """Return the value of each named objective on one subject; a score of several heads is their mean.

    A name such as ``accuracy@language`` is the score of one head.

    Raises:
        UnknownNameError: No objective has that name.
        UsageError: A cost is requested for one head.
        TrialError: The subject lacks the outputs or layers that an objective needs.

    Example:
        >>> measure(Subject(layers={"a": LayerCost("a", macs=12, weights=12, parameters=15, nonzero=15)}), ["flops"])
        {'flops': 24.0}
    """
    return {name: float(get_objective(name).measure(subject)) for name in names}
