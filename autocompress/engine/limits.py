"""Limits of a run as constraint violations, for the sampler and for skipping configurations before training."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from autocompress.core.config import CompressionConfig
from autocompress.core.records import Candidate, CompressionRecipe

#: Function that returns the costs of each compression recipe of a training without training it; empty if unknown.
CostEstimator: TypeAlias = Callable[[CompressionConfig, Sequence[CompressionRecipe]], Sequence[Mapping[str, float]]]


class CostLimits:
    """Violations of the limits, measured after training or predicted before it.

    Attributes:
        skipped_configs: Number of configurations that cannot meet a cost limit under any compression recipe.
        lowest_costs: Name of each limited cost to the lowest value that was predicted for any configuration.

    Args:
        limits: Bounds by name of a score or cost: ``{name: {"min": ..., "max": ...}}``.
        value: Function that returns a score or cost of a candidate by name.
        estimate_costs: Function that returns costs before training; without it, no violation is predicted.
    """

    def __init__(
        self,
        limits: Mapping[str, Mapping[str, float | None]],
        value: Callable[[Candidate, str], float],
        estimate_costs: CostEstimator | None,
    ) -> None:
        self._limits = limits
        self._value = value
        self._estimate_costs = estimate_costs
        self.skipped_configs = 0
        self.lowest_costs: dict[str, float] = {}

    def measure_violations(self, candidates: Sequence[Candidate]) -> dict[str, float]:
        """Return the violation of each limit by the best candidate of a trial; at most 0 if the limit is met."""
        violations = {}
        for name, limit in self._limits.items():
            values = [self._value(candidate, name) for candidate in candidates]
            if limit.get("max") is not None:
                violations[f"{name} max"] = min(values) - float(limit["max"] or 0)
            if limit.get("min") is not None:
                violations[f"{name} min"] = float(limit["min"] or 0) - max(values)
        return violations

    def predict_violations(self, training: CompressionConfig, recipes: Sequence[CompressionRecipe]) -> dict[str, float]:
        """Return the violation of each upper cost limit by the cheapest recipe; empty if all can be met.

        Scores are known only after training, so their limits are never predicted.
        """
        upper_limits = {name: limit["max"] for name, limit in self._limits.items() if limit.get("max") is not None}
        if self._estimate_costs is None or not upper_limits:
            return {}
        costs = self._estimate_costs(training, recipes)
        violations = {}
        for name, upper_limit in upper_limits.items():
            if costs and name in costs[0]:
                lowest = min(recipe_costs[name] for recipe_costs in costs)
                self.lowest_costs[name] = min(lowest, self.lowest_costs.get(name, lowest))
                violations[f"{name} max"] = lowest - float(upper_limit or 0)
        if all(violation <= 0 for violation in violations.values()):
            return {}
        self.skipped_configs += 1
        return violations
