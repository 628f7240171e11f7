"""Measurement of a model's costs and of its outputs' scores, as registered objectives."""

from autocompress.measure import builtin, entity_metrics, ranking_metrics, value_metrics
from autocompress.measure.cost import LayerCost, layer_costs
from autocompress.measure.heads import measure
from autocompress.measure.objectives import Objective, Subject, objective
from autocompress.measure.quality import per_class

__all__ = [
    "LayerCost",
    "Objective",
    "Subject",
    "builtin",
    "entity_metrics",
    "layer_costs",
    "measure",
    "objective",
    "per_class",
    "ranking_metrics",
    "value_metrics",
]
