"""A model of latency: a constant per run, and for each layer a sum over its work, fitted to times on a target."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

#: Name of the cost, as a column, an objective and a limit.
LATENCY = "latency_ms"
#: Coefficients of one layer: a constant, multiply-accumulates, output elements, weights.
FEATURES = 4


@dataclass(frozen=True)
class LayerWork:
    """The work of one layer for one example.

    Attributes:
        macs: Multiply-accumulates.
        activations: Output elements.
        weights: Elements of its weights.
        bits: (weight bits, activation bits) of the kernel that computes it.
    """

    macs: int
    activations: int
    weights: int
    bits: tuple[int, int] = (32, 32)

    def features(self) -> tuple[float, ...]:
        """Return the factors of the coefficients."""
        return 1.0, float(self.macs), float(self.activations), float(self.weights)


@dataclass(frozen=True)
class LatencyModel:
    """Milliseconds of one example on a target, from the work of its layers.

    Attributes:
        base: Milliseconds of a run without layers.
        coefficients: (weight bits, activation bits, coefficients) of each kernel.

    Example:
        >>> model = LatencyModel(0.01, ((32, 32, (0.001, 1e-6, 0.0, 0.0)),))
        >>> model.predict([LayerWork(4000, 10, 400)])
        0.015
    """

    base: float
    coefficients: tuple[tuple[int, int, tuple[float, ...]], ...]

    def predict(self, layers: Iterable[LayerWork]) -> float:
        """Return the milliseconds of one example.

        A layer on an integer kernel counts as in floating point if that is faster: an export chooses between the two.
        """
        # A kernel that was not calibrated is left out of the choice.
        by_bits = {(weight, activation): values for weight, activation, values in self.coefficients}
        total = self.base
        for layer in layers:
            options = {layer.bits, (32, 32)} & by_bits.keys()
            times = [sum(a * b for a, b in zip(by_bits[bits], layer.features(), strict=True)) for bits in options]
            total += min(times, default=0.0)
        return round(total, 9)

    def to_json(self) -> dict[str, JsonValue]:
        """Return the model as JSON values, which :meth:`from_json` reads."""
        rows: list[JsonValue] = [[weight, activation, list(values)] for weight, activation, values in self.coefficients]
        return {"base": self.base, "coefficients": rows}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "LatencyModel":
        """Return the model that :meth:`to_json` described."""
        rows = tuple((int(w), int(a), tuple(float(value) for value in values)) for w, a, values in data["coefficients"])
        return cls(float(data["base"]), rows)
