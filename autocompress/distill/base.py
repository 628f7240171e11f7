"""The interface of distillation terms and the data that the training loop passes to them."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from autocompress.core.knobs import Settings

C = TypeVar("C", bound=Settings)

TaskLoss = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]
"""Logits ``{head: [B, C]}`` and targets ``{head: [B]}`` to the loss, ``[]``."""

AuxiliaryLoss = Callable[[tuple[Tensor, ...], Mapping[str, Tensor]], Tensor]
"""The student's inputs and its logits, ``{head: [B, C]}``, to an additional loss, ``[]``."""

AttackLoss = Callable[[object], Tensor]
"""The raw output of a model to the value that an attack increases, ``[]``."""


class Needs(IntEnum):
    """The part of the teacher that a term reads; each value includes the one before."""

    NOTHING = 0
    LOGITS = 1
    MODEL = 2


@dataclass(frozen=True)
class Activations:
    """The outputs of one forward pass.

    Attributes:
        logits: Logits by head, ``{head: [B, C]}``.
        layer_outputs: Outputs by layer name, for the layers that a term reads.
        tokens: Names of those layers whose output is ``[B, T, D]``, features last.
        clean: Logits of the student on the original inputs, if ``logits`` belong to attacked ones; otherwise empty.
    """

    logits: Mapping[str, Tensor]
    layer_outputs: Mapping[str, object] = field(default_factory=dict)
    tokens: frozenset[str] = frozenset()
    clean: Mapping[str, Tensor] = field(default_factory=dict)

    def select_head(self, head: str) -> "Activations":
        """Return the same pass with the logits of one head."""
        logits, clean = ({name: z for name, z in part.items() if name == head} for part in (self.logits, self.clean))
        # Layer outputs belong to the whole model, so they are not filtered by head.
        return Activations(logits, self.layer_outputs, self.tokens, clean)

    def restrict_to_layers(self, names: Collection[str]) -> "Activations":
        """Return the same pass with the outputs of only these layers."""
        outputs = {name: output for name, output in self.layer_outputs.items() if name in names}
        return Activations(self.logits, outputs, self.tokens.intersection(names), self.clean)


@dataclass(frozen=True)
class Perturbation:
    """A change of one batch by an attack.

    Attributes:
        inputs: The model's positional arguments; real-valued ones are changed.
        shifts: Name of an embedding layer to the terms added to its output, one for each of its calls in a pass.
    """

    inputs: tuple[Tensor, ...]
    shifts: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)

    @contextmanager
    def apply_to(self, model: nn.Module) -> Iterator[None]:
        """Add the shifts to the outputs of the model's embedding layers during one pass."""
        handles = [
            model.get_submodule(name).register_forward_hook(_build_shift_hook(iter(shifts)))
            for name, shifts in self.shifts.items()
        ]
        # Hooks are removed after an error as well, because the model is used again.
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _build_shift_hook(shifts: Iterator[Tensor]) -> Callable[[nn.Module, object, Tensor], Tensor]:
    # A layer that is called several times in a pass gets the next shift at each call.
    return lambda module, inputs, output: output + next(shifts)


class TeacherSource(Protocol):
    """The interface of a trained teacher for the training loop."""

    @property
    def model(self) -> nn.Module:
        """The teacher itself, in evaluation mode."""
        ...

    def view(self, index: int) -> Mapping[str, Tensor]:
        """Return cached logits on augmented view ``index`` of the training split, ``{head: [N, C]}``."""
        ...


@dataclass(frozen=True)
class Batch:
    """The data of one batch for a distillation term.

    Attributes:
        student: Outputs of the student's pass.
        teacher: Outputs of the teacher's pass; empty if the term reads nothing of the teacher.
        targets: Targets by head, ``{head: [B]}``.
        task_loss: The loss of the task, with label smoothing and mixup.
        adapter: The module that the term's ``build_adapter`` returned.
        heads: Heads of the task; a head that is missing here has one class index per example.
    """

    student: Activations
    teacher: Activations
    targets: Mapping[str, Tensor]
    task_loss: TaskLoss
    adapter: nn.Module
    heads: Mapping[str, int] = field(default_factory=dict)

    def hard_loss(self) -> Tensor:
        """Return the loss of the task, ``[]``, on the original inputs if the student's were attacked."""
        # Clean logits are empty unless the student's inputs were attacked.
        return self.task_loss(self.student.clean or self.student.logits, self.targets)


class DistillTerm(Protocol, Generic[C]):
    """One term of the training loss, registered by name as an instance.

    A ``logit`` term includes the task's own loss, so a config has exactly one; a ``feature`` term is added to it. Terms
    derive from :class:`Term`, which implements everything but ``loss``.

    Attributes:
        name: Name of the term in search spaces.
        kind: Whether the term replaces the task's loss (``logit``) or is added to it (``feature``).
        config: The class of the term's hyperparameters.
        reads_clean: Whether the term reads the student's logits on the original inputs besides those on attacked ones.
    """

    name: ClassVar[str]
    kind: ClassVar[Literal["logit", "feature"]]
    config: type[C]
    reads_clean: bool

    def needs(self, config: C) -> Needs:
        """Return the part of the teacher that the term reads."""
        ...

    def select_layers(self, config: C, model: nn.Module) -> tuple[str, ...]:
        """Return the names of the layers of ``model``, student or teacher, whose outputs the term reads."""
        ...

    def build_adapter(self, config: C, student: Activations, teacher: Activations) -> nn.Module:
        """Return a module with the term's own parameters, sized for these activations and trained with the student."""
        ...

    def perturb(
        self,
        config: C,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        loss: AttackLoss,
        generator: torch.Generator,
    ) -> Perturbation:
        """Return the inputs of the student; ``loss`` maps its raw output to the value that an attack increases."""
        ...

    def loss(self, config: C, batch: Batch) -> Tensor:
        """Return the mean over the batch, ``[]``."""
        ...


class Term(Generic[C]):
    """The defaults of most terms: the term reads the teacher's logits, no layers, and has no parameters of its own."""

    reads_clean = False

    def needs(self, config: C) -> Needs:
        """Return :attr:`Needs.LOGITS`."""
        # Logits are cached, so this default spares the teacher's forward pass.
        return Needs.LOGITS

    def select_layers(self, config: C, model: nn.Module) -> tuple[str, ...]:
        """Return no layers."""
        return ()

    def build_adapter(self, config: C, student: Activations, teacher: Activations) -> nn.Module:
        """Return a module without parameters."""
        # An identity instead of None: the caller needs no special case for a term without parameters.
        return nn.Identity()

    def perturb(
        self,
        config: C,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        loss: AttackLoss,
        generator: torch.Generator,
    ) -> Perturbation:
        """Return the inputs unchanged."""
        return Perturbation(inputs)
