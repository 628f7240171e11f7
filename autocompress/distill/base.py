"""The seam of distillation terms: what a student can learn from a teacher."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Protocol, TypeVar

from torch import Tensor

from autocompress.knobs import Settings

C = TypeVar("C", bound=Settings)

TaskLoss = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Activations:
    """What one forward pass left behind.

    Attributes:
        logits: ``{head: [B, C]}``.
        taps: Layer name to its output, for the layers that a term reads.
    """

    logits: Mapping[str, Tensor]
    taps: Mapping[str, Tensor] = field(default_factory=dict)


class DistillTerm(Protocol, Generic[C]):
    """One term of the training loss; registered by name as an instance.

    A ``logit`` term carries the task's own loss with it, so a config has exactly one; a ``feature``
    term is added to it.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    config: type[C]

    def needs_teacher(self, config: C) -> bool:
        """Return whether the term reads the teacher at all."""
        ...

    def loss(
        self, config: C, student: Activations, teacher: Activations, targets: Mapping[str, Tensor], task_loss: TaskLoss
    ) -> Tensor:
        """Return the mean over the batch, ``[]``."""
        ...
