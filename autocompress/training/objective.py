"""What one fit minimises: distillation terms, the hard loss with smoothing and mixup, the penalties."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from autocompress.core.config import Part
from autocompress.core.registry import DISTILL
from autocompress.core.task import Split, Task, as_heads
from autocompress.distill.activations import over_tokens, tapped
from autocompress.distill.base import Activations, Batch, Beside, DistillTerm, Needs, TaskLoss, TeacherSource
from autocompress.distill.head_weighting import HEAD_WEIGHTS, HeadWeights
from autocompress.distill.kernels import Softened
from autocompress.errors import TrialError
from autocompress.training.optimizers import FitConfig


@dataclass
class Listener:
    """Runs one of the two models and hears the layers that the terms read."""

    heads: Mapping[str, int]
    model: nn.Module
    names: list[tuple[str, ...]] = field(default_factory=list)
    tokens: frozenset[str] = frozenset()
    heard: Mapping[str, Any] = field(default_factory=dict)

    def listen(self, stack: ExitStack, chosen: Sequence[tuple[DistillTerm[Any], Any]]) -> None:
        """Put the taps of the chosen terms on the model, for as long as ``stack`` is open."""
        self.names = [term.taps(settings, self.model) for term, settings in chosen]
        every = {name for names in self.names for name in names}
        self.heard = stack.enter_context(tapped(self.model, sorted(every)))
        self.tokens = frozenset(name for name in every if over_tokens(self.model.get_submodule(name)))

    def run(self, inputs: tuple[Tensor, ...]) -> Activations:
        """Return what one pass leaves behind, logits in single precision."""
        heads = {head: logits.float() for head, logits in as_heads(self.model(*inputs), self.heads).items()}
        return Activations(heads, dict(self.heard), self.tokens)


@dataclass
class Lesson:
    """What one fit minimises: its terms, the hard loss with smoothing and mixup, the penalties."""

    chosen: list[tuple[DistillTerm[Any], Any]]
    task: Task
    config: FitConfig
    teacher: TeacherSource | None
    live: bool
    seed: int
    weights: HeadWeights | None = None
    parts: nn.ModuleList = field(default_factory=nn.ModuleList)
    student: Listener = field(init=False)
    live_teacher: Listener | None = None
    beside: Beside | None = None

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
        apart = any(isinstance(settings, Softened) and settings.first_temperature != 1 for _, settings in chosen)
        weighted = config.head_weights != "fixed" or config.first_head != 1 or apart
        weights = HEAD_WEIGHTS[config.head_weights](list(task.heads), config.first_head) if weighted else None
        # A single head has nothing to be weighted against.
        weights = weights if len(task.heads) > 1 else None
        return cls(chosen, task, config, teacher if needs else None, live, seed, weights)

    def listen(self, stack: ExitStack, model: nn.Module) -> None:
        """Put the taps on both models, for as long as ``stack`` is open."""
        self.student = Listener(self.task.heads, model)
        self.student.listen(stack, self.chosen)
        if self.live and self.teacher is not None:
            self.live_teacher = Listener(self.task.heads, self.teacher.model)
            self.live_teacher.listen(stack, self.chosen)

    def learned(self, examples: Split) -> nn.ModuleList:
        """Build what is learned beside the model, from one small batch; the model's statistics stay as they were."""
        self.parts = nn.ModuleList(nn.Identity() for _ in self.chosen)
        if self.live_teacher is not None:
            self.student.model.eval()
            with torch.no_grad():
                student, teacher = self.student.run(examples.inputs), self.live_teacher.run(examples.inputs)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                self.parts = nn.ModuleList(
                    term.learned(settings, *self._read(index, student, teacher))
                    for index, (term, settings) in enumerate(self.chosen)
                )
        return nn.ModuleList([*self.parts, *([] if self.weights is None else [self.weights])])

    def known(self, view: int) -> Mapping[str, Tensor]:
        """Return the teacher's cached logits on a view, or nothing where it is not read or runs live."""
        return {} if self.teacher is None or self.live else self.teacher.view(view)

    def loss(self, examples: Split, known: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Return the loss of one batch, ``[]``."""
        inputs, hard = self.hard(examples, generator)
        teacher = Activations(known)
        if self.live_teacher is not None:
            with torch.no_grad():
                teacher = self.live_teacher.run(inputs)
        student = self._perturbed(inputs, examples.targets, hard, generator)
        if any(term.reads_clean for term, _ in self.chosen):
            student = replace(student, clean=self.student.run(inputs).logits)
        losses = [
            self._term(index, *self._read(index, student, teacher), examples.targets, hard).float()
            for index in range(len(self.chosen))
        ]
        if self.beside is not None:
            losses.append(self.beside(inputs, student.clean or student.logits))
        return torch.stack(losses).sum() + self._penalty(self.student.model)

    def after_epoch(self, mean: Callable[[Tensor], Tensor]) -> None:
        """Take note of the end of an epoch; ``mean`` averages over the processes of the fit."""
        if self.weights is not None:
            self.weights.after_epoch(mean)

    def _read(self, index: int, student: Activations, teacher: Activations) -> tuple[Activations, Activations]:
        """Return both passes as one term reads them: with the layers that it asked for."""
        theirs = () if self.live_teacher is None else self.live_teacher.names[index]
        return student.of_taps(self.student.names[index]), teacher.of_taps(theirs)

    def _term(
        self, index: int, student: Activations, teacher: Activations, targets: Mapping[str, Tensor], hard: TaskLoss
    ) -> Tensor:
        (term, settings), learned = self.chosen[index], self.parts[index]
        if term.kind != "logit" or self.weights is None:
            return term.loss(settings, Batch(student, teacher, targets, hard, learned))
        losses = {}
        for position, head in enumerate(self.task.heads):
            mine = settings.of_first_head() if position == 0 and isinstance(settings, Softened) else settings
            own = {name: values for name, values in targets.items() if name == head}
            try:
                losses[head] = term.loss(
                    mine, Batch(student.of_head(head), teacher.of_head(head), own, hard, learned)
                ).float()
            except KeyError as missing:
                raise TrialError(
                    f"task '{self.task.name}' cannot give the loss of the head '{head}' alone (it asks for {missing}); "
                    "leave fit.head_weights, fit.first_head and first_temperature out"
                ) from missing
        total: Tensor = self.weights(losses)
        return total

    def _perturbed(
        self, inputs: tuple[Tensor, ...], targets: Mapping[str, Tensor], hard: TaskLoss, generator: torch.Generator
    ) -> Activations:
        """Run the student on what the terms make of its inputs."""
        model = self.student.model
        with ExitStack() as stack:
            for term, settings in self.chosen:
                change = term.perturb(
                    settings, model, inputs, lambda output: self._attacked(output, targets, hard), generator
                )
                stack.enter_context(change.applied(model))
                inputs = change.inputs
            return self.student.run(inputs)

    def _attacked(self, output: Any, targets: Mapping[str, Tensor], hard: TaskLoss) -> Tensor:
        return hard({head: logits.float() for head, logits in as_heads(output, self.task.heads).items()}, targets)

    def hard(self, examples: Split, generator: torch.Generator) -> tuple[tuple[Tensor, ...], TaskLoss]:
        """Return the inputs, mixed where asked (Zhang et al. 2018, arXiv:1710.09412), and the loss on their targets."""
        smoothed = self._smoothed(self.task.loss)
        if not self.config.mixup:
            return examples.inputs, smoothed
        if not all(tensor.is_floating_point() for tensor in examples.inputs):
            raise TrialError("mixup needs inputs of real numbers; set fit.mixup to 0 for this task")
        alpha = torch.full((2,), self.config.mixup, device="cpu")
        first, second = torch._sample_dirichlet(alpha, generator=generator).tolist()
        partner = torch.randperm(len(examples), generator=generator, device="cpu").to(examples.inputs[0].device)
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
