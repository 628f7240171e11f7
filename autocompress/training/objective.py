"""The loss that a fit minimizes: distillation terms, the task's loss with label smoothing and mixup, L1 penalties."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from autocompress.core.config import Part
from autocompress.core.heads import as_head
from autocompress.core.knobs import Settings
from autocompress.core.registry import DISTILL
from autocompress.core.task import Split, Task, logits_by_head
from autocompress.distill.activations import has_token_output, record_activations
from autocompress.distill.base import Activations, AuxiliaryLoss, Batch, DistillTerm, Needs, TaskLoss, TeacherSource
from autocompress.distill.head_weighting import HEAD_WEIGHTS, HeadWeights
from autocompress.distill.kernels import TemperatureSettings
from autocompress.errors import TrialError
from autocompress.training.class_weights import BALANCED, WeightedTaskLoss, check_class_weights
from autocompress.training.optimizers import FitConfig
from autocompress.training.sharding import sum_magnitudes

#: A distillation term and its hyperparameters.
ConfiguredTerm = tuple[DistillTerm[Settings], Settings]


@dataclass
class InstrumentedModel:
    """The student or the teacher, with hooks on the layers that the terms read.

    Attributes:
        heads: Head name to number of classes.
        model: The model.
        layers: Names of the layers that each term reads, in the order of the terms.
        tokens: Names of those layers whose output is ``[B, T, D]``.
        outputs: Outputs of the layers in the last pass, by name.
    """

    heads: Mapping[str, int]
    model: nn.Module
    layers: list[tuple[str, ...]] = field(default_factory=list)
    tokens: frozenset[str] = frozenset()
    outputs: Mapping[str, object] = field(default_factory=dict)

    def attach_hooks(self, stack: ExitStack, terms: Sequence[ConfiguredTerm]) -> None:
        """Record the layers that the terms read for as long as ``stack`` is open."""
        self.layers = [term.select_layers(settings, self.model) for term, settings in terms]
        names = {name for layers in self.layers for name in layers}
        self.outputs = stack.enter_context(record_activations(self.model, sorted(names)))
        self.tokens = frozenset(name for name in names if has_token_output(self.model.get_submodule(name)))

    def compute_activations(self, inputs: tuple[Tensor, ...]) -> Activations:
        """Return the outputs of one forward pass, logits in single precision."""
        # Losses are computed in single precision, also under bfloat16 autocast.
        heads = {head: logits.float() for head, logits in logits_by_head(self.model(*inputs), self.heads).items()}
        return Activations(heads, dict(self.outputs), self.tokens)


@dataclass
class TrainingObjective:
    """The loss that one fit minimizes.

    Attributes:
        terms: Distillation terms with their hyperparameters.
        task: The learning problem, which gives the loss and the heads.
        config: Settings of the fit: label smoothing, mixup, penalties, weights of heads.
        teacher: The teacher; ``None`` if no term reads one.
        is_teacher_live: Whether the teacher runs on each batch instead of being read from its cached logits.
        seed: Seed of the initial weights of the adapters.
        head_weights: The weights of several heads; ``None`` for their mean.
        adapters: The modules that the terms train besides the student, one for each term.
        student: The student with its hooks.
        teacher_model: The live teacher with its hooks.
        auxiliary_loss: An additional loss of each batch.
        task_loss: The loss of the task, with weighted classes if the settings say so.
    """

    terms: list[ConfiguredTerm]
    task: Task
    config: FitConfig
    teacher: TeacherSource | None
    is_teacher_live: bool
    seed: int
    head_weights: HeadWeights | None = None
    adapters: nn.ModuleList = field(default_factory=nn.ModuleList)
    student: InstrumentedModel = field(init=False)
    teacher_model: InstrumentedModel | None = None
    auxiliary_loss: AuxiliaryLoss | None = None
    task_loss: TaskLoss = field(init=False)

    def __post_init__(self) -> None:
        """Take the task's own loss."""
        self.task_loss = self.task.loss

    @classmethod
    def from_terms(
        cls, terms: Sequence[Part], task: Task, config: FitConfig, teacher: TeacherSource | None, seed: int
    ) -> "TrainingObjective":
        """Return the objective of these terms.

        Args:
            terms: Names of distillation terms with their settings.
            task: The learning problem.
            config: Settings of the fit.
            teacher: The teacher; ``None`` if there is none.
            seed: Seed of the initial weights of the adapters.

        Raises:
            TrialError: Not exactly one term is on logits, or a term reads a teacher and there is none.
        """
        names = [part.name for part in terms]
        configured = [(DISTILL.get(part.name), DISTILL.get(part.name).config.of(part.values)) for part in terms]
        if [term.kind for term, _ in configured].count("logit") != 1:
            raise TrialError(f"distillation needs exactly one term on logits, got {names}")
        needs = max(term.needs(settings) for term, settings in configured)
        if needs and teacher is None:
            raise TrialError(f"distillation by {names} reads a teacher, but none was given")
        # Cached logits belong to unmixed examples, so mixup runs the teacher on the mixed ones.
        is_teacher_live = needs is Needs.MODEL or bool(needs and config.mixup)
        has_own_temperature = any(
            isinstance(settings, TemperatureSettings) and settings.first_temperature != 1 for _, settings in configured
        )
        is_weighted = config.head_weights != "fixed" or config.first_head != 1 or has_own_temperature
        weights = HEAD_WEIGHTS[config.head_weights](list(task.heads), config.first_head) if is_weighted else None
        # A single head has no other one to be weighted against.
        weights = weights if len(task.heads) > 1 else None
        return cls(configured, task, config, teacher if needs else None, is_teacher_live, seed, weights)

    def weight_classes(self, train: Split) -> None:
        """Weight the classes in the task's loss if the settings say so.

        Args:
            train: The training split, whose examples are counted.

        Raises:
            UsageError: The task's loss has no classes to weight.
        """
        check_class_weights(self.task, self.config.class_weights)
        if self.config.class_weights == BALANCED:
            self.task_loss = WeightedTaskLoss(self.task, train)

    def attach_hooks(self, stack: ExitStack, model: nn.Module) -> None:
        """Record the layers of student and live teacher that the terms read, for as long as ``stack`` is open."""
        self.student = InstrumentedModel(self.task.heads, model)
        self.student.attach_hooks(stack, self.terms)
        if self.is_teacher_live and self.teacher is not None:
            self.teacher_model = InstrumentedModel(self.task.heads, self.teacher.model)
            self.teacher_model.attach_hooks(stack, self.terms)

    def build_adapters(self, examples: Split) -> nn.ModuleList:
        """Return the modules that are trained besides the student: adapters of the terms and weights of the heads.

        Args:
            examples: A small batch, whose activations give the sizes. Batch-norm statistics do not change.
        """
        self.adapters = nn.ModuleList(nn.Identity() for _ in self.terms)
        if self.teacher_model is not None:
            self.student.model.eval()
            with torch.no_grad():
                student = self.student.compute_activations(examples.inputs)
                teacher = self.teacher_model.compute_activations(examples.inputs)
            # The initial weights depend on the seed alone, and building them leaves torch's random numbers unchanged.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                self.adapters = nn.ModuleList(
                    term.build_adapter(settings, *self._select_activations(index, student, teacher))
                    for index, (term, settings) in enumerate(self.terms)
                )
        return nn.ModuleList([*self.adapters, *([] if self.head_weights is None else [self.head_weights])])

    def cached_logits(self, view: int) -> Mapping[str, Tensor]:
        """Return the teacher's cached logits on a view, ``{head: [N, C]}``; empty if it is not read or runs live."""
        return {} if self.teacher is None or self.is_teacher_live else self.teacher.view(view)

    def loss(self, examples: Split, teacher_logits: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Return the loss of one batch, ``[]``.

        Args:
            examples: The batch.
            teacher_logits: Cached logits of the teacher on the batch, ``{head: [B, C]}``; empty if it runs live.
            generator: Generator of the noise of mixup and attacks.
        """
        inputs, hard_loss = self.prepare_hard_loss(examples, generator)
        teacher = Activations(teacher_logits)
        if self.teacher_model is not None:
            with torch.no_grad():
                teacher = self.teacher_model.compute_activations(inputs)
        student = self._run_student(inputs, examples.targets, hard_loss, generator)
        if any(term.reads_clean for term, _ in self.terms):
            # A second pass: the logits of the first one belong to attacked inputs.
            student = replace(student, clean=self.student.compute_activations(inputs).logits)
        losses = []
        for index in range(len(self.terms)):
            ours, theirs = self._select_activations(index, student, teacher)
            batch = Batch(ours, theirs, examples.targets, hard_loss, self.adapters[index], self.task.heads)
            losses.append(self._compute_term_loss(index, batch).float())
        if self.auxiliary_loss is not None:
            losses.append(self.auxiliary_loss(inputs, student.clean or student.logits))
        total = losses[0] if len(losses) == 1 and not losses[0].dim() else torch.stack(losses).sum()
        return sum(self._list_l1_penalties(), start=total)

    def after_epoch(self, mean: Callable[[Tensor], Tensor]) -> None:
        """Update the weights of the heads; ``mean`` averages a tensor over the processes of the fit."""
        if self.head_weights is not None:
            self.head_weights.after_epoch(mean)

    def _select_activations(
        self, index: int, student: Activations, teacher: Activations
    ) -> tuple[Activations, Activations]:
        """Return both passes with only the layers that the term at ``index`` reads."""
        theirs = () if self.teacher_model is None else self.teacher_model.layers[index]
        return student.restrict_to_layers(self.student.layers[index]), teacher.restrict_to_layers(theirs)

    def _compute_term_loss(self, index: int, batch: Batch) -> Tensor:
        """Return the loss of one term; a term on logits is computed for each head if the heads are weighted."""
        term, settings = self.terms[index]
        if term.kind != "logit" or self.head_weights is None:
            return term.loss(settings, batch)
        losses = {}
        for position, head in enumerate(self.task.heads):
            head_settings = settings
            if position == 0 and isinstance(settings, TemperatureSettings):
                head_settings = settings.for_first_head()
            head_batch = replace(
                batch,
                student=batch.student.select_head(head),
                teacher=batch.teacher.select_head(head),
                targets={name: target for name, target in batch.targets.items() if name == head},
            )
            try:
                losses[head] = term.loss(head_settings, head_batch).float()
            except KeyError as missing:
                raise TrialError(
                    f"the loss of task '{self.task.name}' cannot be computed for the head '{head}' alone (it reads "
                    f"{missing}); leave fit.head_weights, fit.first_head and first_temperature out"
                ) from missing
        total: Tensor = self.head_weights(losses)
        return total

    def _run_student(
        self, inputs: tuple[Tensor, ...], targets: Mapping[str, Tensor], hard_loss: TaskLoss, noise: torch.Generator
    ) -> Activations:
        """Return the student's pass on the inputs after the perturbations of all terms."""
        model = self.student.model

        def attack_loss(output: object) -> Tensor:
            heads = logits_by_head(output, self.task.heads)
            return hard_loss({head: logits.float() for head, logits in heads.items()}, targets)

        with ExitStack() as stack:
            for term, settings in self.terms:
                # Perturbations accumulate: each term changes the inputs that the term before returned.
                change = term.perturb(settings, model, inputs, attack_loss, noise)
                stack.enter_context(change.apply_to(model))
                inputs = change.inputs
            return self.student.compute_activations(inputs)

    def prepare_hard_loss(self, examples: Split, generator: torch.Generator) -> tuple[tuple[Tensor, ...], TaskLoss]:
        """Return the inputs and the loss on their targets, both with mixup (Zhang et al. 2018, arXiv:1710.09412).

        Raises:
            TrialError: Mixup is set and an input is not real-valued.
        """
        smooth_loss = self._smooth_targets(self.task_loss)
        if not self.config.mixup:
            return examples.inputs, smooth_loss
        if not all(tensor.is_floating_point() for tensor in examples.inputs):
            raise TrialError("mixup needs real-valued inputs; set fit.mixup to 0 for this task")
        # Two shares of a Dirichlet distribution with equal parameters follow Beta(alpha, alpha); torch's Beta takes no
        # generator. All draws are on the CPU, so that every device draws the same numbers.
        alpha = torch.full((2,), self.config.mixup, device="cpu")
        first, second = torch._sample_dirichlet(alpha, generator=generator).tolist()
        partner = torch.randperm(len(examples), generator=generator, device="cpu").to(examples.inputs[0].device)
        inputs = tuple(first * tensor + second * tensor[partner] for tensor in examples.inputs)

        def mixup_loss(logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
            partner_targets = {head: target[partner] for head, target in targets.items()}
            total: Tensor = first * smooth_loss(logits, targets) + second * smooth_loss(logits, partner_targets)
            return total

        return inputs, mixup_loss

    def _smooth_targets(self, loss: TaskLoss) -> TaskLoss:
        """Return the task's loss with a share of each target spread evenly (Szegedy et al. 2016, arXiv:1512.00567)."""
        share = self.config.label_smoothing
        if not share:
            return loss

        def smooth_loss(logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
            # The cross-entropy with a uniform target is the mean negative log-probability of the classes.
            negative = []
            for name, values in logits.items():
                head = as_head(self.task.heads[name])
                # Numbers have no classes to spread a target over.
                if head.has_classes:
                    negative.append(-F.log_softmax(head.select_rows(values, targets[name])[0], dim=1).mean())
            uniform = torch.stack(negative).mean() if negative else loss(logits, targets)
            return (1 - share) * loss(logits, targets) + share * uniform

        return smooth_loss

    def _list_l1_penalties(self) -> list[Tensor]:
        """Return the L1 penalties; on batch-norm scales it is network slimming (Liu et al. 2017, arXiv:1708.06519)."""
        penalties, model = [], self.student.model
        if self.config.l1_weights:
            # Biases and normalization parameters have one axis and are not penalized.
            weights = [p for p in model.parameters() if p.dim() > 1]
            penalties.append(self.config.l1_weights * sum_magnitudes(weights))
        if self.config.l1_batch_norm:
            scales = [m.weight for m in model.modules() if isinstance(m, _BatchNorm) and m.weight is not None]
            if scales:
                penalties.append(self.config.l1_batch_norm * sum_magnitudes(scales))
        return penalties
