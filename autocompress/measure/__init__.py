"""Measuring: what a model costs, and how good its outputs are, as registered objectives."""

from collections.abc import Iterable

from autocompress.measure import builtin
from autocompress.measure.cost import LayerCost, layer_costs
from autocompress.measure.objectives import Objective, Subject, objective
from autocompress.measure.quality import per_class
from autocompress.registry import OBJECTIVES

__all__ = ["LayerCost", "Objective", "Subject", "builtin", "layer_costs", "measure", "objective", "per_class"]


def measure(subject: Subject, names: Iterable[str]) -> dict[str, float]:
    """Return the value of each named objective on one subject; several heads count alike.

    Raises:
        UnknownNameError: No objective has that name.
        TrialError: The subject lacks what an objective reads.

    Example:
        >>> measure(Subject(layers={"a": LayerCost("a", macs=12, weights=12, parameters=15, nonzero=15)}), ["flops"])
        {'flops': 24.0}
    """
    return {name: float(OBJECTIVES.get(name).measure(subject)) for name in names}
