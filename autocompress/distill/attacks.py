"""Adversarial attacks on inputs, and robust distillation.

Real-valued inputs are changed themselves. Whole numbers, such as words and items, have no small change: for them FGSM
and PGD change the output of every embedding layer instead, and HotFlip replaces tokens of a text.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.core.heads import as_head
from autocompress.core.knobs import Choice, FloatRange, IntRange, knob
from autocompress.core.registry import DISTILL
from autocompress.core.task import Split, Task, logits_by_head
from autocompress.distill.base import AttackLoss, Batch, Perturbation, Term
from autocompress.distill.kernels import TemperatureSettings, mean_over_heads, mix_losses, soft_target_kl
from autocompress.distill.substitution import evaluation_mode, substitute_tokens
from autocompress.errors import TrialError

Range = tuple[float, float]

EPSILON = 0.3
#: Attack to its number of steps, as in the scores ``fgsm_accuracy``, ``pgd_accuracy`` and ``hotflip_accuracy``.
ATTACKS: Mapping[str, int] = {"fgsm": 1, "pgd": 10, "hotflip": 2}
# Step size of scored attacks in units of epsilon / steps, as in Madry et al. 2018: the steps can reach the boundary of
# the ball from any point in it.
STEP_FACTOR = 2.5
ATTACK_BATCH = 256


@dataclass(frozen=True)
class AttackSettings:
    """The size and the steps of an attack.

    Attributes:
        epsilon: Largest change of each number.
        steps: Number of steps.
        step_size: Change of each number in one step.
        start: Generator for a random start inside the ball; ``None`` to start at its centre, the original input.
        ranges: Lowest and highest allowed number of each input, ``None`` for no bound; empty for no bounds at all.
    """

    epsilon: float
    steps: int
    step_size: float
    start: torch.Generator | None = None
    ranges: Sequence[Range | None] = ()


def fgsm(model: nn.Module, inputs: tuple[Tensor, ...], loss: AttackLoss, epsilon: float) -> Perturbation:
    """Return a change by ``epsilon`` along the sign of the gradient (Goodfellow et al. 2015, arXiv:1412.6572).

    Args:
        model: The model, which is attacked in evaluation mode and not changed.
        inputs: Positional arguments of the model, axis 0 the examples.
        loss: Function from the model's raw output to the value that the attack increases, ``[]``.
        epsilon: Change of each number.

    Raises:
        TrialError: The model has neither a real-valued input nor an embedding layer.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0, -2.0]]))
        >>> fgsm(net, (torch.zeros(1, 2),), lambda output: output.sum(), 0.5).inputs[0]
        tensor([[ 0.5000, -0.5000]])
    """
    return pgd(model, inputs, loss, AttackSettings(epsilon, steps=1, step_size=epsilon))


def pgd(model: nn.Module, inputs: tuple[Tensor, ...], loss: AttackLoss, settings: AttackSettings) -> Perturbation:
    """Return a change found by projected gradient ascent (PGD, Madry et al. 2018, arXiv:1706.06083).

    Args:
        model: The model, which is attacked in evaluation mode and not changed.
        inputs: Positional arguments of the model, axis 0 the examples.
        loss: Function from the model's raw output to the value that the attack increases, ``[]``.
        settings: Size and steps of the attack.

    Raises:
        TrialError: The model has neither a real-valued input nor an embedding layer.
    """
    with evaluation_mode(model), torch.enable_grad():
        return _ascend_gradient(model, inputs, loss, settings)


@dataclass(frozen=True)
class _AttackedValues:
    """The values that an attack changes: real-valued inputs, and outputs of embedding layers if an input is not real.

    Attributes:
        inputs: Positional arguments of the model.
        outputs: Outputs of each embedding layer by name, in the order of its calls; empty if all inputs are real.
    """

    inputs: tuple[Tensor, ...]
    outputs: Mapping[str, list[Tensor]]

    def zero_shifts(self) -> list[Tensor]:
        """Return a change of zeros, one tensor for each value: real inputs first, then outputs of embeddings."""
        shifts = [torch.zeros_like(value) for value in self.inputs if value.is_floating_point()]
        return shifts + [torch.zeros_like(output) for calls in self.outputs.values() for output in calls]

    def apply_shifts(self, shifts: Sequence[Tensor]) -> Perturbation:
        """Return the change of the batch by these shifts, in the order of :meth:`zero_shifts`."""
        rest = iter(shifts)
        inputs = tuple(value + next(rest) if value.is_floating_point() else value for value in self.inputs)
        return Perturbation(inputs, {name: tuple(next(rest) for _ in calls) for name, calls in self.outputs.items()})

    def bound_shifts(self, settings: AttackSettings) -> tuple[list[Tensor], list[Tensor]]:
        """Return the lowest and the highest allowed shift of each number."""
        shifts = self.zero_shifts()
        low = [torch.full_like(shift, -settings.epsilon) for shift in shifts]
        high = [torch.full_like(shift, settings.epsilon) for shift in shifts]
        ranges = settings.ranges or [None] * len(self.inputs)
        bounded = [(x, span) for x, span in zip(self.inputs, ranges, strict=True) if x.is_floating_point()]
        for index, (value, span) in enumerate(bounded):
            if span is not None:
                # A value that is outside its range already is neither moved further away nor forced back.
                low[index].clamp_(min=(span[0] - value).clamp(max=0))
                high[index].clamp_(max=(span[1] - value).clamp(min=0))
        return low, high


def _ascend_gradient(
    model: nn.Module, inputs: tuple[Tensor, ...], loss: AttackLoss, settings: AttackSettings
) -> Perturbation:
    is_real = all(value.is_floating_point() for value in inputs)
    values = _AttackedValues(inputs, {} if is_real else _record_embeddings(model, inputs))
    shifts = values.zero_shifts()
    # A table of positions is read once for all examples; its shift would be one change for the whole batch.
    free = [len(shift) == len(inputs[0]) for shift in shifts]
    if not any(free):
        raise TrialError(
            "an attack changes real-valued inputs or the outputs of embedding layers, and "
            f"{type(model).__name__} has neither; leave robust distillation out"
        )
    low, high = values.bound_shifts(settings)
    if settings.start is not None:
        for shift, least, most, is_free in zip(shifts, low, high, free, strict=True):
            if is_free:
                # Drawn on the CPU, so that all devices draw the same numbers.
                drawn = torch.rand(shift.shape, generator=settings.start, device="cpu").to(shift.device)
                shift.copy_(least + (most - least) * drawn)
    for _ in range(settings.steps):
        for shift in shifts:
            shift.requires_grad_()
        change = values.apply_shifts(shifts)
        with change.apply_to(model):
            value = loss(model(*change.inputs))
        # An input that the loss does not depend on has no gradient and is not changed.
        gradients = torch.autograd.grad(value, shifts, allow_unused=True)
        shifts = [
            (shift.detach() + settings.step_size * gradient.sign()).clamp(least, most)
            if is_free and gradient is not None
            else shift.detach()
            for shift, gradient, is_free, least, most in zip(shifts, gradients, free, low, high, strict=True)
        ]
    return values.apply_shifts(shifts)


@torch.no_grad()
def _record_embeddings(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, list[Tensor]]:
    """Return the outputs of each embedding layer in one pass, in the order of its calls."""
    outputs: dict[str, list[Tensor]] = {}

    def build_hook(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda module, arguments, output: outputs.setdefault(name, []).append(output)

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                stack.callback(module.register_forward_hook(build_hook(name)).remove)
        model(*inputs)
    return outputs


def predict_under_attack(
    model: nn.Module,
    task: Task,
    split: Split,
    *,
    epsilon: float,
    steps: int,
    through: nn.Module | None = None,
) -> dict[str, Tensor]:
    """Return the model's logits on a split after an attack on the task's own loss, ``{head: [N, C]}``.

    Inputs stay in the range of the whole split, so that an attacked image is still an image. Otherwise a quantized
    model, which clips its inputs to that range, would seem to resist changes that no image can have.

    Args:
        model: The model to attack.
        task: The learning problem, which gives the loss.
        split: The examples.
        epsilon: Largest change of each number of the inputs.
        steps: Number of steps: 1 for FGSM, more for PGD with steps of 2.5 epsilon / steps.
        through: The model whose gradient is followed; ``None`` for ``model`` itself. Rounding and clipping hide the
            gradient of a quantized model, so it is attacked through the float model that it was made from.
    """
    model.eval()
    step_size = epsilon if steps == 1 else STEP_FACTOR * epsilon / steps
    ranges = [(float(x.min()), float(x.max())) if x.is_floating_point() else None for x in split.inputs]
    settings = AttackSettings(epsilon, steps, step_size, ranges=ranges)
    parts = []
    for batch in split.batches(ATTACK_BATCH):
        change = pgd(through or model, batch.inputs, _build_task_loss(task, batch.targets), settings)
        with torch.no_grad(), change.apply_to(model):
            parts.append(logits_by_head(model(*change.inputs), task.heads))
    return {head: torch.cat([part[head] for part in parts]) for head in task.heads}


def predict_under_attacks(
    model: nn.Module, task: Task, split: Split, attack: str, sources: Sequence[nn.Module]
) -> dict[str, Tensor]:
    """Return the model's logits on a split under an attack of :data:`ATTACKS`, ``{head: [N, C]}``.

    Rounding and clipping hide a part of the gradient of a quantized model, so that it seems to resist. The attack is
    made through each of ``sources``, and of their results the worst counts for each example and head (an ensemble of
    attacks, Croce and Hein 2020, arXiv:2003.01690).

    Args:
        model: The model to attack.
        task: The learning problem, which gives the loss.
        split: The examples.
        attack: Name of the attack.
        sources: The models whose gradients are followed: the model itself, and the float model that it was made from.

    Raises:
        TrialError: The model has no values that the attack could change.
    """
    model.eval()
    ranges = [(float(x.min()), float(x.max())) if x.is_floating_point() else None for x in split.inputs]
    parts = []
    for batch in split.batches(ATTACK_BATCH):
        loss = _build_task_loss(task, batch.targets)
        outputs = []
        for source in sources:
            for change in _generate_changes(attack, source, batch.inputs, loss, ranges):
                with torch.no_grad(), change.apply_to(model):
                    outputs.append(logits_by_head(model(*change.inputs), task.heads))
        parts.append(_select_worst(outputs, batch.targets, task.heads))
    return {head: torch.cat([part[head] for part in parts]) for head in task.heads}


def _generate_changes(
    attack: str, source: nn.Module, inputs: tuple[Tensor, ...], loss: AttackLoss, ranges: Sequence[Range | None]
) -> Iterator[Perturbation]:
    """Yield the changes of a batch that a scored attack tries."""
    steps = ATTACKS[attack]
    if attack == "hotflip":
        # Up to `steps` tokens are replaced, so fewer and none count as well.
        yield Perturbation(inputs)
        yield from map(Perturbation, substitute_tokens(source, inputs, loss, steps))
    else:
        step_size = EPSILON if steps == 1 else STEP_FACTOR * EPSILON / steps
        yield pgd(source, inputs, loss, AttackSettings(EPSILON, steps, step_size, ranges=ranges))


def _select_worst(
    outputs: Sequence[Mapping[str, Tensor]], targets: Mapping[str, Tensor], heads: Mapping[str, int]
) -> dict[str, Tensor]:
    """Return for each head and example the outputs with the largest loss among several."""
    worst = dict(outputs[0])
    for output in outputs[1:]:
        for name, values in output.items():
            head = as_head(heads[name])
            is_worse = head.losses(values, targets[name]) > head.losses(worst[name], targets[name])
            worst[name] = torch.where(is_worse.reshape(-1, *[1] * (values.dim() - 1)), values, worst[name])
    return worst


def _build_task_loss(task: Task, targets: Mapping[str, Tensor]) -> AttackLoss:
    return lambda output: task.loss(logits_by_head(output, task.heads), targets)


@dataclass(frozen=True)
class RobustConfig(TemperatureSettings):
    """Hyperparameters of :class:`Robust`."""

    label = "distill.robust"

    alpha: float = knob(0.9, FloatRange(0.0, 1.0), "weight of the teacher against the targets")
    attack: str = knob(
        "pgd", Choice(("fgsm", "pgd", "hotflip")), "attack: one step (fgsm), several (pgd), replaced tokens (hotflip)"
    )
    epsilon: float = knob(0.3, FloatRange(1e-3, 2.0, log=True), "largest change of each number of the model's inputs")
    steps: int = knob(5, IntRange(1, 50), "steps of pgd")
    step_size: float = knob(0.5, FloatRange(0.01, 2.0, log=True), "step size of pgd, as a share of epsilon")
    substitutions: int = knob(2, IntRange(1, 10), "tokens that hotflip replaces in each text")
    random_start: bool = knob(
        True, Choice((True, False)), "whether pgd starts at a random point of the ball instead of its centre"
    )


class Robust(Term[RobustConfig]):
    """Adversarially robust distillation (ARD, Goldblum et al. 2020, arXiv:1905.09747, equation 4).

    (1 - alpha) CE(student(x)) + alpha T^2 KL(teacher(x) || student(x + delta)): the student's output on an attacked
    input approaches the teacher's output on the original one.
    """

    name = "robust"
    kind = "logit"
    config = RobustConfig
    reads_clean = True

    def perturb(
        self,
        config: RobustConfig,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        loss: AttackLoss,
        generator: torch.Generator,
    ) -> Perturbation:
        """Return the attack on the student's own loss."""
        if config.attack == "hotflip":
            *_, attacked = substitute_tokens(model, inputs, loss, config.substitutions)
            return Perturbation(attacked)
        if config.attack == "fgsm":
            return fgsm(model, inputs, loss, config.epsilon)
        start = generator if config.random_start else None
        settings = AttackSettings(config.epsilon, config.steps, config.step_size * config.epsilon, start)
        return pgd(model, inputs, loss, settings)

    def loss(self, config: RobustConfig, batch: Batch) -> Tensor:
        """Return the weighted sum, ``[]``; several heads are averaged."""
        soft = mean_over_heads(batch, lambda ours, theirs, labels: soft_target_kl(ours, theirs, config.temperature))
        return mix_losses(config.alpha, soft, batch.hard_loss)


DISTILL.add(Robust.name, Robust())
