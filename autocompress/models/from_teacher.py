"""Students that are the teacher itself, cut: its blocks dropped, its channels removed, its weights kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from autocompress.core.config import Part
from autocompress.core.knobs import Choice, FloatRange, Leaf, Settings, knob
from autocompress.core.registry import STUDENTS
from autocompress.core.task import InputSpec
from autocompress.errors import UsageError

NAME = "from_teacher"


@dataclass(frozen=True)
class FromTeacherConfig(Settings):
    """What is cut from the teacher before the student is trained.

    Example:
        >>> [part.name for part in FromTeacherConfig(pruning_ratio=0.3, depth_ratio=0.25).cuts()]
        ['depth', 'structured']
        >>> FromTeacherConfig(pruning_ratio=0.0).cuts()
        ()
    """

    label: ClassVar[str] = NAME

    pruning_ratio: float = knob(0.3, FloatRange(0.0, 0.9), "share of the channels to remove")
    depth_ratio: float = knob(0.0, FloatRange(0.0, 0.9), "share of the blocks that keep their shape to drop")
    allocation: str = knob(
        "uniform",
        Choice(("uniform", "global", "adaptive")),
        "alike in each layer, by importance over all of them, or by measured sensitivity",
    )
    round_to: int = knob(
        1, Choice((1, 2, 4, 8, 16)), "layers keep a multiple of it: int8 kernels take channels by fours"
    )
    criterion: str = knob("l2", Choice(("l1", "l2", "taylor", "random")), "what makes a channel important")

    def cuts(self) -> tuple[Part, ...]:
        """Return the pruning methods to apply to the teacher, in order; the fit of the student is the recovery."""
        parts = []
        if self.depth_ratio > 0:
            parts.append(Part.of("depth", pruning_ratio=self.depth_ratio, recovery_epochs=0))
        if self.pruning_ratio > 0:
            ratio = self.pruning_ratio
            knobs: dict[str, Leaf] = {"criterion": self.criterion, "round_to": self.round_to, "recovery_epochs": 0}
            if self.allocation == "adaptive":
                # With a share r of all channels gone, about 1 - (1 - r)^2 of the work is.
                parts.append(Part.of("adaptive", pruning_ratio=min(1 - (1 - ratio) ** 2, 0.98), **knobs))
            else:
                parts.append(Part.of("structured", pruning_ratio=ratio, scope=self.allocation, **knobs))
        return tuple(parts)


class FromTeacherFamily:
    """Stands for the user's own network; the task that brought it builds it, and a trial cuts it."""

    name: ClassVar[str] = NAME
    config = FromTeacherConfig

    def build(self, config: FromTeacherConfig, inputs: tuple[InputSpec, ...], heads: Mapping[str, int]) -> nn.Module:
        """Refuse: what the teacher is, only a task that brings one knows.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            f"student '{NAME}' is the teacher itself, cut; it needs a task that brings a model of its own: "
            "autocompress.search(teacher=model, data=...), or a plugin that calls autocompress.bring_model"
        )


STUDENTS.add(FromTeacherFamily.name, FromTeacherFamily())
