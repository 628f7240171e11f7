"""What one fit minimises: distillation terms, the hard loss with smoothing and mixup, the penalties."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from autocompress.config import Part
from autocompress.distill.base import Activations, DistillTerm, Needs, TaskLoss, TeacherSource
from autocompress.distill.optimizers import FitConfig
from autocompress.distill.taps import tapped
from autocompress.errors import TrialError
from autocompress.registry import DISTILL
from autocompress.task import Split, Task, as_heads


@dataclass
class Lesson:
    """What one fit minimises: its terms, the hard loss with smoothing and mixup, the penalties."""

    chosen: list[tuple[DistillTerm[Any], Any]]
    task: Task
    config: FitConfig
    teacher: TeacherSource | None
    live: bool
    parts: nn.ModuleList = field(default_factory=nn.ModuleList)
    student_taps: Mapping[str, Any] = field(default_factory=dict)
    teacher_taps: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, terms: Sequence[Part], task: Task, config: FitConfig, teacher: TeacherSource | None, seed: int
    ) -> "Lesson":
        """Choose the terms and see what they read.

        Raises:
            TrialError: Not exactly one term on logits, or a term reads a teacher and there is none.
        """
        chosen = [(DISTILL.get(part.name), DISTILL.get(part.name).config.of(part.values)) for part in terms]
        if [term.kind for term, _ in chosen].count("logit") != 1:
            raise TrialError(f"distillation needs exactly one term on logits, got {[part.name for part in terms]}")
        needs = max(term.needs(settings) for term, settings in chosen)
        if needs and teacher is None:
            raise TrialError(f"distillation by {[part.name for part in terms]} reads a teacher, but none was given")
        live = needs is Needs.MODEL or bool(needs and config.mixup)
        return cls(chosen, task, config, teacher if needs else None, live)

    def listen(self, stack: ExitStack, model: nn.Module) -> None:
        """Put the taps on both models, for as long as ``stack`` is open."""
        self.student_taps = stack.enter_context(tapped(model, self._tap_names(model)))
        if self.live and self.teacher is not None:
            self.teacher_taps = stack.enter_context(tapped(self.teacher.model, self._tap_names(self.teacher.model)))

    def learned(self, model: nn.Module, examples: Split) -> nn.ModuleList:
        """Build what the terms themselves learn, from one small batch; the model's statistics stay as they were."""
        if self.teacher is None or not self.live:
            self.parts = nn.ModuleList(nn.Identity() for _ in self.chosen)
            return self.parts
        model.eval()
        with torch.no_grad():
            student = self._run(model, examples.inputs, self.student_taps)
            teacher = self._run(self.teacher.model, examples.inputs, self.teacher_taps)
        self.parts = nn.ModuleList(term.learned(settings, student, teacher) for term, settings in self.chosen)
        return self.parts

    def known(self, view: int) -> Mapping[str, Tensor]:
        """Return the teacher's cached logits on a view, or nothing where it is not read or runs live."""
        return {} if self.teacher is None or self.live else self.teacher.view(view)

    def loss(
        self, model: nn.Module, examples: Split, known: Mapping[str, Tensor], generator: torch.Generator
    ) -> Tensor:
        """Return the loss of one batch, ``[]``."""
        inputs, hard = self.hard(examples, generator)
        teacher = Activations(known)
        if self.live and self.teacher is not None:
            with torch.no_grad():
                teacher = self._run(self.teacher.model, inputs, self.teacher_taps)
        seen = inputs
        for term, settings in self.chosen:
            seen = term.perturb(settings, model, seen, lambda output: self._attacked(output, examples.targets, hard))
        student = self._run(model, seen, self.student_taps)
        if any(term.reads_clean for term, _ in self.chosen):
            student = replace(student, clean=self._run(model, inputs, {}).logits)
        losses = [
            term.loss(settings, student, teacher, examples.targets, hard, learned)
            for (term, settings), learned in zip(self.chosen, self.parts, strict=True)
        ]
        return torch.stack([loss.float() for loss in losses]).sum() + self._penalty(model)

    def _run(self, model: nn.Module, inputs: tuple[Tensor, ...], taps: Mapping[str, Any]) -> Activations:
        output = model(*inputs)
        heads = {head: logits.float() for head, logits in as_heads(output, self.task.heads).items()}
        return Activations(heads, dict(taps))

    def _attacked(self, output: Any, targets: Mapping[str, Tensor], hard: TaskLoss) -> Tensor:
        return hard({head: logits.float() for head, logits in as_heads(output, self.task.heads).items()}, targets)

    def _tap_names(self, model: nn.Module) -> list[str]:
        return [name for term, settings in self.chosen for name in term.taps(settings, model)]

    def hard(self, examples: Split, generator: torch.Generator) -> tuple[tuple[Tensor, ...], TaskLoss]:
        """Return the inputs, mixed where asked (Zhang et al. 2018, arXiv:1710.09412), and the loss on their targets."""
        smoothed = self._smoothed(self.task.loss)
        if not self.config.mixup:
            return examples.inputs, smoothed
        if not all(tensor.is_floating_point() for tensor in examples.inputs):
            raise TrialError("mixup needs inputs of real numbers; set fit.mixup to 0 for this task")
        alpha = torch.full((2,), self.config.mixup)
        first, second = torch._sample_dirichlet(alpha, generator=generator)
        partner = torch.randperm(len(examples), generator=generator)
        inputs = tuple(first * tensor + second * tensor[partner] for tensor in examples.inputs)

        def mixed(logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
            other = {head: target[partner] for head, target in targets.items()}
            both: Tensor = first * smoothed(logits, targets) + second * smoothed(logits, other)
            return both

        return inputs, mixed

    def _smoothed(self, loss: TaskLoss) -> TaskLoss:
        """Return the task's loss with a share of each target spread evenly (Szegedy et al. 2016, arXiv:1512.00567)."""
        share = self.config.label_smoothing
        if not share:
            return loss

        def smoothed(logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
            even = torch.stack([-F.log_softmax(values, dim=1).mean() for values in logits.values()]).mean()
            return (1 - share) * loss(logits, targets) + share * even

        return smoothed

    def _penalty(self, model: nn.Module) -> Tensor:
        """Return the L1 penalties; on batch-norm scales it is network slimming (Liu et al. 2017, arXiv:1708.06519)."""
        total = torch.zeros(())
        if self.config.l1_weights:
            weights = [p for p in model.parameters() if p.dim() > 1]
            total = total + self.config.l1_weights * torch.stack([p.abs().sum() for p in weights]).sum()
        if self.config.l1_batch_norm:
            scales = [m.weight for m in model.modules() if isinstance(m, _BatchNorm) and m.weight is not None]
            if scales:
                total = total + self.config.l1_batch_norm * torch.stack([p.abs().sum() for p in scales]).sum()
        return total
