"""Limits of a run, as what the sampler learns of them: by how much each is broken."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from autocompress.core.config import CompressionConfig
from autocompress.core.records import Candidate, Cut

#: Returns the costs of each cut of a training, without training it.
Price: TypeAlias = Callable[[CompressionConfig, Sequence[Cut]], Sequence[Mapping[str, float]]]


class CostLimits:
    """Tells by how much trainings break the limits.

    Attributes:
        refused: How many trainings cannot keep a limit on a cost, however they are cut.
        least: Limited cost to the least of it that a training was priced at.

    Args:
        limits: ``{name: {"min": ..., "max": ...}}``.
        value: Returns a score or a cost of a candidate.
        price: Asked only where a cost is limited; without it, every training is taken for affordable.
    """

    def __init__(
        self,
        limits: Mapping[str, Mapping[str, float | None]],
        value: Callable[[Candidate, str], float],
        price: Price | None,
    ) -> None:
        self._limits = limits
        self._value = value
        self._price = price
        self.refused = 0
        self.least: dict[str, float] = {}

    def violations(self, candidates: Sequence[Candidate]) -> dict[str, float]:
        """Return by how much the best candidate of a training breaks each limit; at most 0 keeps it."""
        found = {}
        for name, limit in self._limits.items():
            values = [self._value(candidate, name) for candidate in candidates]
            if limit.get("max") is not None:
                found[f"{name} max"] = min(values) - float(limit["max"] or 0)
            if limit.get("min") is not None:
                found[f"{name} min"] = float(limit["min"] or 0) - max(values)
        return found

    def excess(self, training: CompressionConfig, cuts: Sequence[Cut]) -> dict[str, float]:
        """Return by how much even the cheapest cut of a training breaks each limit on a cost; empty if none does."""
        limited = {name: limit["max"] for name, limit in self._limits.items() if limit.get("max") is not None}
        if self._price is None or not limited:
            return {}
        prices = self._price(training, cuts)
        found = {}
        for name, most in limited.items():
            if prices and name in prices[0]:
                cheapest = min(costs[name] for costs in prices)
                self.least[name] = min(cheapest, self.least.get(name, cheapest))
                found[f"{name} max"] = cheapest - float(most or 0)
        if all(excess <= 0 for excess in found.values()):
            return {}
        self.refused += 1
        return found
