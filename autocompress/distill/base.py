"""The seam of distillation terms: what a student can learn from a teacher."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor, nn

from autocompress.knobs import Settings

C = TypeVar("C", bound=Settings)

TaskLoss = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]


class Needs(IntEnum):
    """What a term reads of the teacher; each includes the one before."""

    NOTHING = 0
    LOGITS = 1
    MODEL = 2


@dataclass(frozen=True)
class Activations:
    """What one forward pass left behind.

    Attributes:
        logits: ``{head: [B, C]}``.
        taps: Layer name to its output, for the layers that a term reads.
        clean: The student's logits on the inputs as they were, where the others are on attacked ones.
    """

    logits: Mapping[str, Tensor]
    taps: Mapping[str, Any] = field(default_factory=dict)
    clean: Mapping[str, Tensor] = field(default_factory=dict)


class TeacherSource(Protocol):
    """A trained teacher, as the training loop sees it."""

    @property
    def model(self) -> nn.Module:
        """The teacher itself, in evaluation mode."""
        ...

    def view(self, index: int) -> Mapping[str, Tensor]:
        """Return cached logits on augmented view ``index`` of the training split, ``{head: [N, C]}``."""
        ...


class DistillTerm(Protocol, Generic[C]):
    """One term of the training loss; registered by name as an instance.

    A ``logit`` term carries the task's own loss with it, so a config has exactly one; a ``feature``
    term is added to it. A term derives from :class:`Term`, which answers everything but ``loss``.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    config: type[C]
    reads_clean: bool

    def needs(self, config: C) -> Needs:
        """Return what the term reads of the teacher."""
        ...

    def taps(self, config: C, model: nn.Module) -> tuple[str, ...]:
        """Return the names of the layers of ``model`` (student or teacher) whose outputs the term reads."""
        ...

    def learned(self, config: C, student: Activations, teacher: Activations) -> nn.Module:
        """Return a module with what the term itself learns, sized for these activations; it trains with the student."""
        ...

    def perturb(
        self, config: C, model: nn.Module, inputs: tuple[Tensor, ...], loss: Callable[[Any], Tensor]
    ) -> tuple[Tensor, ...]:
        """Return the inputs that the student sees; ``loss`` maps its raw output to what an attack would raise."""
        ...

    def loss(
        self,
        config: C,
        student: Activations,
        teacher: Activations,
        targets: Mapping[str, Tensor],
        task_loss: TaskLoss,
        learned: nn.Module,
    ) -> Tensor:
        """Return the mean over the batch, ``[]``."""
        ...


class Term:
    """What most terms answer: the teacher's logits are enough, nothing is tapped, learned or perturbed."""

    reads_clean = False

    def needs(self, config: Any) -> Needs:
        """Return :attr:`Needs.LOGITS`."""
        return Needs.LOGITS

    def taps(self, config: Any, model: nn.Module) -> tuple[str, ...]:
        """Return no layers."""
        return ()

    def learned(self, config: Any, student: Activations, teacher: Activations) -> nn.Module:
        """Return a module without parameters."""
        return nn.Identity()

    def perturb(
        self, config: Any, model: nn.Module, inputs: tuple[Tensor, ...], loss: Callable[[Any], Tensor]
    ) -> tuple[Tensor, ...]:
        """Return the inputs as they are."""
        return inputs
