"""The interface of objectives: scores and costs of a candidate, each with its direction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Literal

from torch import Tensor

from autocompress.core.heads import Head, as_head
from autocompress.core.latency_model import LatencyModel
from autocompress.core.method import LayerBits
from autocompress.core.registry import OBJECTIVES
from autocompress.errors import TrialError
from autocompress.measure.cost import LayerCost

Reads = Literal["any", "classes", "values", "entities", "boxes", "outputs"]


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
        stored_bytes: Bytes of the model's tensors in an exported file; ``None`` where only its layers are known.
        heads: Heads of the task; a head that is missing here has one class index per example.
        labels: Names of the classes, ``{head: [C]}``; scores of entities read them.
        latency: Latency model of the target; ``None`` where none was calibrated.
        groups: Number of the group of each example, ``[N]``, where examples of a group are not independent, such as
            the ratings of one user; ``None`` where all examples are independent.
        teacher_heads: Heads of the task with the thresholds of the teacher; empty if these are the candidate's.
    """

    logits: Mapping[str, Tensor] = field(default_factory=dict)
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    teacher_logits: Mapping[str, Tensor] = field(default_factory=dict)
    attacked: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    layers: Mapping[str, LayerCost] = field(default_factory=dict)
    bits: Mapping[str, LayerBits] = field(default_factory=dict)
    stored_bytes: int | None = None
    heads: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    latency: LatencyModel | None = None
    groups: Tensor | None = None
    teacher_heads: Mapping[str, int] = field(default_factory=dict)

    def head(self, name: str) -> Head:
        """Return a head with its kind."""
        return as_head(self.heads[name] if name in self.heads else self.logits[name].shape[-1])

    def select_teacher(self) -> "Subject":
        """Return the subject with outputs and thresholds of the teacher in place of the candidate's."""
        return replace(self, logits=self.teacher_logits, heads=self.teacher_heads or self.heads)

    def class_heads(self) -> list[str]:
        """Return the names of the heads that have classes.

        Raises:
            TrialError: There are no outputs, or no head has classes.
        """
        if not self.logits:
            # The mean of no heads is undefined, so the missing logits are named here.
            raise TrialError("a score needs logits, but the subject has none")
        names = [name for name in self.logits if self.head(name).has_classes]
        if not names:
            raise TrialError(f"no head of {sorted(self.logits)} has classes; use r2, rmse or mae")
        return names

    def head_targets(self, name: str) -> Tensor:
        """Return the targets of a head.

        Raises:
            TrialError: It has none.
        """
        if name not in self.targets:
            raise TrialError(f"the head '{name}' has no targets; heads with targets: {sorted(self.targets)}")
        return self.targets[name]

    def class_rows(self, name: str) -> tuple[Tensor, Tensor]:
        """Return class logits ``[M, C]`` and class indices ``[M]`` of the labelled decisions of a head.

        The logits are shifted by the threshold of the head, so that the largest is the predicted class.

        Raises:
            TrialError: The head has no targets, they do not fit, or no label is known.
        """
        rows, labels = self.head(name).select_rows(self.logits[name], self.head_targets(name))
        if not len(rows) and len(self.logits[name]):
            raise TrialError(f"no example of the split has a label of the head '{name}'")
        return self.head(name).shift_rows(rows), labels

    def remove_thresholds(self) -> "Subject":
        """Return the subject for scores of probabilities, which no threshold changes."""
        return replace(self, heads={name: as_head(size).with_threshold(None) for name, size in self.heads.items()})

    def mean_over_heads(self, score: Callable[[Tensor, Tensor], float], metric: str = "") -> float:
        """Return the mean of a score of class logits ``[M, C]`` and class indices ``[M]`` over the heads with classes.

        Args:
            score: The score of one head.
            metric: Heads with this metric are scored, if there are any; otherwise all with classes.

        Raises:
            TrialError: The subject lacks outputs or targets.
        """
        names = self.class_heads()
        # Every head counts alike, whatever its number of classes.
        names = [name for name in names if self.head(name).metric == metric] or names
        return fmean(score(*self.class_rows(name)) for name in names)

    def teacher_outputs(self, name: str) -> Tensor:
        """Return the teacher's outputs for a head.

        Raises:
            TrialError: It has none, or they do not fit the candidate's.
        """
        if name not in self.teacher_logits:
            available = sorted(self.teacher_logits)
            raise TrialError(f"the head '{name}' has no teacher logits; heads with them: {available}")
        ours, theirs = self.logits[name], self.teacher_logits[name]
        if ours.shape != theirs.shape:
            raise TrialError(
                f"the student's logits {list(ours.shape)} do not fit the teacher's {list(theirs.shape)} ('{name}')"
            )
        return theirs

    def paired_rows(self, name: str) -> tuple[Tensor, Tensor]:
        """Return class logits of the candidate and of the teacher for the same decisions of a head, ``[M, C]`` each.

        Raises:
            TrialError: The head has no outputs of the teacher.
        """
        teacher = self.teacher_outputs(name)
        return self.head(name).pair_rows(self.logits[name], teacher, self.targets.get(name))[:2]


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
        reads: Kind of head that a score needs: ``classes``, ``values`` (numbers), ``entities``, ``boxes``,
            ``outputs`` (all raw outputs, of a custom head), or ``any``.
    """

    name: str
    direction: Literal["maximize", "minimize"]
    unit: str
    kind: Literal["score", "cost"]
    measure: Callable[[Subject], float]
    doc: str
    reads: Reads = "any"

    def applies_to(self, size: int) -> bool:
        """Return whether a head of this kind has what the score needs."""
        head = as_head(size)
        needed = {
            "classes": head.has_classes,
            "values": head.has_values,
            "entities": head.metric == "entity_f1",
            "boxes": head.kind == "detection",
            "outputs": head.kind == "custom",
        }
        return needed.get(self.reads, True)


def objective(
    name: str,
    direction: Literal["maximize", "minimize"],
    kind: Literal["score", "cost"],
    unit: str = "",
    reads: Reads = "any",
) -> Callable[[Callable[[Subject], float]], Objective]:
    """Return a decorator that registers a measuring function as the objective ``name``."""

    def register_objective(measure: Callable[[Subject], float]) -> Objective:
        # The list of objectives shows one line for each, so the rest of the docstring is left out.
        doc = (measure.__doc__ or "").strip().splitlines()[0]
        # The decorated name becomes the objective, whose function is its `measure`.
        return OBJECTIVES.add(name, Objective(name, direction, unit, kind, measure, doc, reads))

    return register_objective
