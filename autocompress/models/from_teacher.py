"""Students that are the pruned teacher: blocks dropped, channels removed, remaining weights kept."""

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
    """Pruning of the teacher before the student is trained.

    Example:
        >>> [part.name for part in FromTeacherConfig(pruning_ratio=0.3, depth_ratio=0.25).list_pruning_steps()]
        ['depth', 'structured']
        >>> FromTeacherConfig(pruning_ratio=0.0).list_pruning_steps()
        ()
    """

    label: ClassVar[str] = NAME

    pruning_ratio: float = knob(0.3, FloatRange(0.0, 0.9), "share of the channels to remove")
    hidden_ratio: float = knob(
        0.0, FloatRange(0.0, 0.9), "share of the hidden size to remove: the channels that a layer normalization reads"
    )
    embedding_ratio: float = knob(
        0.0,
        FloatRange(0.0, 0.98),
        "share of the columns of embedding tables to remove: a linear layer behind a narrower table widens it",
    )
    depth_ratio: float = knob(0.0, FloatRange(0.0, 0.9), "share of the blocks that keep their shape to drop")
    depth_selection: str = knob(
        "loss",
        Choice(("loss", "spread")),
        "which blocks are dropped: those with the smallest rise of the loss, or evenly spread ones",
    )
    allocation: str = knob(
        "uniform",
        Choice(("uniform", "global", "adaptive")),
        "the same ratio in each layer, by importance over all layers, or by measured sensitivity",
    )
    budget: str = knob(
        "flops",
        Choice(("flops", "parameters")),
        "what the allocation `adaptive` reduces to the square of the share of channels that remains",
    )
    round_to: int = knob(
        1,
        Choice((1, 2, 4, 8, 16)),
        "layers keep a multiple of this number of channels: int8 kernels read channels in groups of four",
    )
    criterion: str = knob("l2", Choice(("l1", "l2", "taylor", "random")), "what makes a channel important")

    def list_pruning_steps(self) -> tuple[Part, ...]:
        """Return the pruning methods to apply to the teacher, in order; training the student is the fine-tuning."""
        parts = []
        # Blocks first, so that channels are ranked in the network without the dropped blocks.
        # No recovery epochs after either step, because the training of the student follows.
        if self.depth_ratio > 0:
            settings: dict[str, Leaf] = {"pruning_ratio": self.depth_ratio, "recovery_epochs": 0}
            # Without the default, configs of earlier runs keep their fingerprints.
            settings |= {} if self.depth_selection == "loss" else {"selection": self.depth_selection}
            parts.append(Part.of("depth", **settings))
        if self.pruning_ratio > 0 or self.hidden_ratio > 0:
            ratio = self.pruning_ratio
            knobs: dict[str, Leaf] = {"criterion": self.criterion, "round_to": self.round_to, "recovery_epochs": 0}
            # Without the default, configs of earlier runs keep their fingerprints.
            knobs |= {} if self.hidden_ratio == 0 else {"hidden_ratio": self.hidden_ratio}
            if self.allocation == "adaptive":
                # Without a share r of all channels, about 1 - (1 - r)^2 of the FLOPs are removed.
                # 0.98 is the largest ratio that the method accepts.
                knobs |= {} if self.budget == "flops" else {"budget": self.budget}
                parts.append(Part.of("adaptive", pruning_ratio=min(1 - (1 - ratio) ** 2, 0.98), **knobs))
            else:
                parts.append(Part.of("structured", pruning_ratio=ratio, scope=self.allocation, **knobs))
        if self.embedding_ratio > 0:
            # Last, because the tables have the width of the model that the channels leave.
            parts.append(Part.of("embedding_rank", pruning_ratio=self.embedding_ratio, recovery_epochs=0))
        return tuple(parts)


class FromTeacherFamily:
    """Stands for the user's own network: the task that holds it builds it, and a trial prunes it."""

    name: ClassVar[str] = NAME
    config = FromTeacherConfig

    def build(self, config: FromTeacherConfig, inputs: tuple[InputSpec, ...], heads: Mapping[str, int]) -> nn.Module:
        """Refuse to build: only a task that holds the user's network can build it.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            f"student '{NAME}' is the pruned teacher; it needs a task with a model of its own: "
            "autocompress.search(teacher=model, data=...), or a plugin that calls autocompress.bring_model"
        )


STUDENTS.add(FromTeacherFamily.name, FromTeacherFamily())
