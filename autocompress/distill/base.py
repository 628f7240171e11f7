"""The seam of distillation terms: what a student can learn from a teacher."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from autocompress.core.knobs import Settings

C = TypeVar("C", bound=Settings)

TaskLoss = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]


Beside = Callable[[tuple[Tensor, ...], Mapping[str, Tensor]], Tensor]
"""What is trained beside the student: its inputs and its logits, ``{head: [B, C]}``, to a further loss, ``[]``."""


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
        tokens: Those of the tapped layers whose output is ``[B, T, D]``, features last.
        clean: The student's logits on the inputs as they were, where the others are on attacked ones.
    """

    logits: Mapping[str, Tensor]
    taps: Mapping[str, Any] = field(default_factory=dict)
    tokens: frozenset[str] = frozenset()
    clean: Mapping[str, Tensor] = field(default_factory=dict)

    def of_head(self, head: str) -> "Activations":
        """Return the same pass with the logits of one head."""
        logits, clean = ({name: z for name, z in part.items() if name == head} for part in (self.logits, self.clean))
        return Activations(logits, self.taps, self.tokens, clean)

    def of_taps(self, names: Collection[str]) -> "Activations":
        """Return the same pass with the outputs of these layers alone."""
        taps = {name: output for name, output in self.taps.items() if name in names}
        return Activations(self.logits, taps, self.tokens.intersection(names), self.clean)


@dataclass(frozen=True)
class Perturbation:
    """What an attack changes of one batch.

    Attributes:
        inputs: The model's positional arguments, those of real numbers moved.
        shifts: Embedding layer to what is added to its output, one tensor for each time that it runs in a pass.
    """

    inputs: tuple[Tensor, ...]
    shifts: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Add the shifts to the outputs of ``model``'s embedding layers, in one pass."""
        handles = [
            model.get_submodule(name).register_forward_hook(_add(iter(shifts))) for name, shifts in self.shifts.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _add(shifts: Iterator[Tensor]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda module, inputs, output: output + next(shifts)


class TeacherSource(Protocol):
    """A trained teacher, as the training loop sees it."""

    @property
    def model(self) -> nn.Module:
        """The teacher itself, in evaluation mode."""
        ...

    def view(self, index: int) -> Mapping[str, Tensor]:
        """Return cached logits on augmented view ``index`` of the training split, ``{head: [N, C]}``."""
        ...


@dataclass(frozen=True)
class Batch:
    """One batch as a term sees it.

    Attributes:
        student: What the student's pass left behind.
        teacher: What the teacher's did; empty where the term reads nothing of it.
        targets: ``{head: [B]}``.
        task_loss: The task's own loss, with smoothing and mixup.
        learned: What the term's ``learned`` returned.
    """

    student: Activations
    teacher: Activations
    targets: Mapping[str, Tensor]
    task_loss: TaskLoss
    learned: nn.Module

    def hard(self) -> Tensor:
        """Return the task's own loss, ``[]``: on the clean inputs, where the student was attacked."""
        return self.task_loss(self.student.clean or self.student.logits, self.targets)


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
        self,
        config: C,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        loss: Callable[[Any], Tensor],
        generator: torch.Generator,
    ) -> Perturbation:
        """Return what the student sees; ``loss`` maps its raw output to what an attack would raise."""
        ...

    def loss(self, config: C, batch: Batch) -> Tensor:
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
        self,
        config: Any,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        loss: Callable[[Any], Tensor],
        generator: torch.Generator,
    ) -> Perturbation:
        """Return the inputs as they are."""
        return Perturbation(inputs)
