"""Attacks on inputs, and distillation that withstands them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.distill.base import Activations, TaskLoss, Term
from autocompress.distill.losses import softened_kl
from autocompress.errors import TrialError
from autocompress.knobs import Choice, FloatRange, IntRange, Settings, knob
from autocompress.registry import DISTILL
from autocompress.task import Split, Task, as_heads

Loss = Callable[[Any], Tensor]

EPSILON = 0.3
#: Attack to its number of steps, as the scores ``fgsm_accuracy`` and ``pgd_accuracy`` run them.
ATTACKS: Mapping[str, int] = {"fgsm": 1, "pgd": 10}


def fgsm(model: nn.Module, inputs: tuple[Tensor, ...], loss: Loss, epsilon: float) -> tuple[Tensor, ...]:
    """Return inputs moved by ``epsilon`` along the gradient's sign (Goodfellow et al. 2015, arXiv:1412.6572).

    Args:
        model: Attacked in evaluation mode; left as it was.
        inputs: Its positional arguments; those of real numbers are moved.
        loss: Maps the model's raw output to what the attack raises, ``[]``.
        epsilon: Largest change of each number.

    Raises:
        TrialError: No input is of real numbers.
    """
    return pgd(model, inputs, loss, epsilon, steps=1, step_size=epsilon)


def pgd(
    model: nn.Module, inputs: tuple[Tensor, ...], loss: Loss, epsilon: float, steps: int, step_size: float
) -> tuple[Tensor, ...]:
    """Return inputs moved step by step, at most ``epsilon`` in any number (Madry et al. 2018, arXiv:1706.06083).

    Starts at the inputs themselves, so that equal inputs give equal attacks.

    Args:
        model: Attacked in evaluation mode; left as it was.
        inputs: Its positional arguments; those of real numbers are moved.
        loss: Maps the model's raw output to what the attack raises, ``[]``.
        epsilon: Largest change of each number.
        steps: Number of steps.
        step_size: Change of each number in one step.

    Raises:
        TrialError: No input is of real numbers.
    """
    real = [index for index, value in enumerate(inputs) if value.is_floating_point()]
    if not real:
        raise TrialError("attacks move inputs of real numbers, and this task has none; leave robust distillation out")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    moved = [value.detach() for value in inputs]
    try:
        for _ in range(steps):
            for index in real:
                moved[index] = moved[index].detach().requires_grad_()
            gradients = torch.autograd.grad(loss(model(*moved)), [moved[index] for index in real])
            for index, gradient in zip(real, gradients, strict=True):
                there = moved[index].detach() + step_size * gradient.sign()
                moved[index] = inputs[index] + (there - inputs[index]).clamp(-epsilon, epsilon)
    finally:
        for module, mode in modes:
            module.training = mode
    return tuple(moved)


def attacked_logits(
    model: nn.Module, task: Task, split: Split, *, epsilon: float, steps: int, batch_size: int = 256
) -> dict[str, Tensor]:
    """Return the model's logits on a split after an attack on the task's own loss, ``{head: [N, C]}``.

    Args:
        model: The model to attack.
        task: Gives the loss.
        split: The examples.
        epsilon: Largest change of each number of the inputs.
        steps: 1 is FGSM; more are PGD with steps of 2.5 epsilon / steps.
        batch_size: Examples at a time.
    """
    model.eval()
    size = epsilon if steps == 1 else 2.5 * epsilon / steps
    parts = []
    for batch in split.batches(batch_size):
        moved = pgd(model, batch.inputs, _task_loss(task, batch.targets), epsilon, steps, size)
        with torch.no_grad():
            parts.append(as_heads(model(*moved), task.heads))
    return {head: torch.cat([part[head] for part in parts]) for head in task.heads}


def _task_loss(task: Task, targets: Mapping[str, Tensor]) -> Loss:
    return lambda output: task.loss(as_heads(output, task.heads), targets)


@dataclass(frozen=True)
class RobustConfig(Settings):
    """Knobs of :class:`Robust`."""

    label = "distill.robust"

    attack: str = knob("pgd", Choice(("fgsm", "pgd")), "one step, or several")
    epsilon: float = knob(0.3, FloatRange(1e-3, 2.0, log=True), "largest change of each number, as the model sees it")
    steps: int = knob(5, IntRange(1, 50), "steps of pgd")
    temperature: float = knob(4.0, FloatRange(1.0, 10.0, log=True), "softens both outputs")
    alpha: float = knob(0.9, FloatRange(0.0, 1.0), "weight of the teacher against the targets")


class Robust(Term):
    """Adversarially robust distillation (ARD, Goldblum et al. 2020, arXiv:1905.09747, equation 4).

    (1 - alpha) CE(student(x)) + alpha T^2 KL(teacher(x) || student(x + delta)): the student answers an attacked
    input as the teacher answers the clean one.
    """

    name = "robust"
    kind = "logit"
    config = RobustConfig
    reads_clean = True

    def perturb(
        self, config: RobustConfig, model: nn.Module, inputs: tuple[Tensor, ...], loss: Loss
    ) -> tuple[Tensor, ...]:
        """Return attacked inputs."""
        if config.attack == "fgsm":
            return fgsm(model, inputs, loss, config.epsilon)
        return pgd(model, inputs, loss, config.epsilon, config.steps, 2.5 * config.epsilon / config.steps)

    def loss(
        self,
        config: RobustConfig,
        student: Activations,
        teacher: Activations,
        targets: Mapping[str, Tensor],
        task_loss: TaskLoss,
        learned: nn.Module,
    ) -> Tensor:
        """Return the weighted sum, ``[]``; several heads are averaged."""
        soft = torch.stack(
            [softened_kl(ours, teacher.logits[head], config.temperature) for head, ours in student.logits.items()]
        ).mean()
        return (1 - config.alpha) * task_loss(student.clean or student.logits, targets) + config.alpha * soft


DISTILL.add(Robust.name, Robust())
