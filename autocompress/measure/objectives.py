"""The seam of objectives: what a candidate is scored on, and in which direction."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from autocompress.core.method import LayerBits
from autocompress.core.registry import OBJECTIVES
from autocompress.measure.cost import LayerCost


@dataclass(frozen=True)
class Subject:
    """One measured model, as an objective sees it.

    Attributes:
        logits: The candidate's outputs on one split, ``{head: [N, C]}``; empty when only costs are asked.
        targets: ``{head: [N]}``.
        teacher_logits: The teacher's outputs on the same split, ``{head: [N, C]}``.
        attacked: Attack to the candidate's outputs on attacked inputs, ``{"pgd": {head: [N, C]}}``.
        layers: Multiply-accumulates and parameters per layer, for one example.
        bits: Bit-widths of the layers that are quantized; absent layers hold 32 bits.
        levels: Head to the value of each class, ``{head: [C]}``, for the heads whose classes are numbers.
    """

    logits: Mapping[str, Tensor] = field(default_factory=dict)
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    teacher_logits: Mapping[str, Tensor] = field(default_factory=dict)
    attacked: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    layers: Mapping[str, LayerCost] = field(default_factory=dict)
    bits: Mapping[str, LayerBits] = field(default_factory=dict)
    levels: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Objective:
    """A number measured on a candidate.

    Attributes:
        name: Axis, column and limit are called so.
        direction: Whether more or less of it is better.
        unit: Printed behind the value; empty for a plain fraction.
        kind: A ``score`` is measured on a split, a ``cost`` on the model alone.
        measure: The function that measures it.
        doc: One line for ``autocompress list objectives``.
    """

    name: str
    direction: Literal["maximize", "minimize"]
    unit: str
    kind: Literal["score", "cost"]
    measure: Callable[[Subject], float]
    doc: str


def objective(
    name: str, direction: Literal["maximize", "minimize"], kind: Literal["score", "cost"], unit: str = ""
) -> Callable[[Callable[[Subject], float]], Objective]:
    """Return a decorator that registers a measuring function as the objective ``name``."""

    def register(measure: Callable[[Subject], float]) -> Objective:
        doc = (measure.__doc__ or "").strip().splitlines()[0]
        return OBJECTIVES.add(name, Objective(name, direction, unit, kind, measure, doc))

    return register
