"""Distillation terms on logits: no distillation, and soft targets; and the functions that other terms share."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor
from torch.nn import functional as F

from autocompress.core.heads import Head, as_head, average_losses, find_custom_head
from autocompress.core.knobs import FloatRange, Settings, knob
from autocompress.core.registry import DISTILL
from autocompress.distill.base import Batch, Needs, Term


@dataclass(frozen=True)
class NoneConfig(Settings):
    """The config of :class:`NoDistillation`, which has no hyperparameters."""

    label = "distill.none"


class NoDistillation(Term[NoneConfig]):
    """The task's own loss without a teacher: the baseline of every report."""

    name = "none"
    kind = "logit"
    config = NoneConfig

    def needs(self, config: NoneConfig) -> Needs:
        """Return :attr:`Needs.NOTHING`."""
        return Needs.NOTHING

    def loss(self, config: NoneConfig, batch: Batch) -> Tensor:
        """Return the task's own loss, ``[]``."""
        return batch.hard_loss()


TEMPERATURES = FloatRange(1.0, 10.0, log=True)


@dataclass(frozen=True)
class TemperatureSettings(Settings):
    """Hyperparameters of every term that divides logits by a temperature.

    With several heads, the first may have its own temperature.

    Example:
        >>> TemperatureSettings(temperature=2.0, first_temperature=3.0).for_first_head().temperature
        6.0
    """

    temperature: float = knob(4.0, TEMPERATURES, "temperature that divides the logits of both models")
    first_temperature: float = knob(
        1.0, FloatRange(0.1, 10.0, log=True), "temperature of the first of several heads, as a multiple of temperature"
    )

    def for_first_head(self) -> Self:
        """Return the settings for the first of several heads, whose temperature is clamped to its range."""
        product = self.temperature * self.first_temperature
        return replace(self, temperature=min(max(product, TEMPERATURES.low), TEMPERATURES.high), first_temperature=1.0)


RowLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Class logits of student and teacher, ``[M, C]``, and class indices, ``[M]``, to the loss, ``[]``."""


def mean_over_heads(batch: Batch, loss: RowLoss) -> Tensor:
    """Return the mean of a loss over the heads, ``[]``.

    The loss reads the logits of each decision: of an example, a token, a pixel, or one of several labels. A head of
    numbers has no logits, and the squared distance of the numbers takes the place of the loss. A custom head has a
    distillation of its own.

    Args:
        batch: Outputs of student and teacher.
        loss: Function of the logits ``[M, C]`` of student and teacher, and of the class indices ``[M]``. Where a label
            is missing, the class is the teacher's most probable one.
    """
    custom = find_custom_head(batch.heads)
    if custom is not None:
        return custom.distill(batch.student.logits, batch.teacher.logits, batch.targets)
    per_head = []
    for name, ours in batch.student.logits.items():
        head, theirs = as_head(batch.heads.get(name, ours.shape[-1])), batch.teacher.logits[name]
        if head.has_classes:
            per_head.append(loss(*head.pair_rows(ours, theirs, batch.targets.get(name))))
        else:
            per_head.append(head.distance(ours, theirs))
    return average_losses(per_head)


def mix_losses(alpha: float, soft: Tensor, hard: Callable[[], Tensor]) -> Tensor:
    """Return (1 - alpha) hard + alpha soft; at ``alpha`` 1 the hard loss is not computed, so no labels are needed."""
    return soft if alpha == 1 else (1 - alpha) * hard() + alpha * soft


@dataclass(frozen=True)
class SoftTargetConfig(TemperatureSettings):
    """Hyperparameters of :class:`SoftTarget`."""

    label = "distill.soft_target"

    alpha: float = knob(0.5, FloatRange(0.0, 1.0), "weight of the teacher against the targets; at 1 no label is read")


def soft_target_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch.

    The factor T^2 keeps the gradient's size independent of the temperature (Hinton et al. 2015,
    arXiv:1503.02531, section 2.1). Finite for logits of any finite size and any T > 0.

    Args:
        student: Logits of the student, ``[B, C]``.
        teacher: Logits of the teacher, ``[B, C]``.
        temperature: Temperature T, above 0.

    Example:
        >>> import torch
        >>> soft_target_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]]), 4.0).item()
        0.0
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    # Logarithms of both: a probability that underflows to 0 would have none.
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def output_distance(head: Head, student: Tensor, teacher: Tensor) -> Tensor:
    """Return the distance of a student's outputs from a teacher's, ``[]``: KL divergence, or squared for numbers.

    Args:
        head: The head.
        student: Outputs of the student.
        teacher: Outputs of the teacher, of the same shape.
    """
    if not head.has_classes:
        return head.distance(student, teacher)
    return soft_target_kl(head.flatten(student), head.flatten(teacher), 1.0)


class SoftTarget(Term[SoftTargetConfig]):
    """(1 - alpha) CE + alpha T^2 KL(teacher || student) on softened outputs (Hinton et al. 2015, arXiv:1503.02531).

    At a high temperature the term is a squared difference of logits (section 2.1), so the student must also reach the
    scale of the teacher's logits. A small student with few epochs is then underfitted;
    :class:`~autocompress.distill.logit_losses.LogitStandardized` compares logits without their scale.
    """

    name = "soft_target"
    kind = "logit"
    config = SoftTargetConfig

    def needs(self, config: SoftTargetConfig) -> Needs:
        """Return :attr:`Needs.LOGITS`, or :attr:`Needs.NOTHING` if the teacher has no weight."""
        return Needs.LOGITS if config.alpha > 0 else Needs.NOTHING

    def loss(self, config: SoftTargetConfig, batch: Batch) -> Tensor:
        """Return the weighted sum, ``[]``, averaged over heads."""
        if config.alpha == 0:
            return batch.hard_loss()
        soft = mean_over_heads(batch, lambda ours, theirs, labels: soft_target_kl(ours, theirs, config.temperature))
        return mix_losses(config.alpha, soft, batch.hard_loss)


DISTILL.add(NoDistillation.name, NoDistillation())
DISTILL.add(SoftTarget.name, SoftTarget())
