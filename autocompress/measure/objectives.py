"""The interface of objectives: scores and costs of a candidate, each with its direction."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from autocompress.core.method import LayerBits
from autocompress.core.registry import OBJECTIVES
from autocompress.measure.cost import LayerCost


@dataclass(frozen=True)
class Subject:
    """The outputs and layers of one model: all that an objective may read.

    Attributes:
        logits: The candidate's outputs on one split, ``{head: [N, C]}``; empty where only costs are measured.
        targets: Class of each example, ``{head: [N]}``.
        teacher_logits: The teacher's outputs on the same split, ``{head: [N, C]}``.
        attacked: The candidate's outputs on attacked inputs by attack, ``{"pgd": {head: [N, C]}}``.
        layers: Multiply-accumulates and parameters per layer, for one example.
        bits: Bit-widths of the quantized layers; all others have 32 bits.
        levels: Value of each class, ``{head: [C]}``, for the heads whose classes are numbers.
        stored_bytes: Bytes of the model's tensors in an exported file; ``None`` where only its layers are known.
        groups: Number of the group of each example, ``[N]``, where examples of a group are not independent, such as
            the ratings of one user; ``None`` where all examples are independent.
    """

    logits: Mapping[str, Tensor] = field(default_factory=dict)
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    teacher_logits: Mapping[str, Tensor] = field(default_factory=dict)
    attacked: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    layers: Mapping[str, LayerCost] = field(default_factory=dict)
    bits: Mapping[str, LayerBits] = field(default_factory=dict)
    levels: Mapping[str, Tensor] = field(default_factory=dict)
    stored_bytes: int | None = None
    groups: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """A number measured on a candidate.

    Attributes:
        name: Name of the axis, the column and the limit.
        direction: Direction in which it improves.
        unit: Unit printed after the value; empty for a plain fraction.
        kind: ``score`` if it is measured on a split, ``cost`` if on the model alone.
        measure: Function from a subject to the value.
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

    def register_objective(measure: Callable[[Subject], float]) -> Objective:
        # The list of objectives shows one line for each, so the rest of the docstring is left out.
        doc = (measure.__doc__ or "").strip().splitlines()[0]
        # The decorated name becomes the objective, whose function is its `measure`.
        return OBJECTIVES.add(name, Objective(name, direction, unit, kind, measure, doc))

    return register_objective
