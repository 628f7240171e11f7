"""Attacks on inputs, and distillation that withstands them.

Inputs of real numbers are moved themselves. Of whole numbers (words, items) there is no small change: there the
output of every embedding layer is moved instead.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.core.knobs import Choice, FloatRange, IntRange, knob
from autocompress.core.registry import DISTILL
from autocompress.core.task import Split, Task, as_heads
from autocompress.distill.base import Batch, Perturbation, Term
from autocompress.distill.kernels import Softened, mean_over_heads, mixed, softened_kl
from autocompress.errors import TrialError

Loss = Callable[[Any], Tensor]
Range = tuple[float, float]

EPSILON = 0.3
#: Attack to its number of steps, as the scores ``fgsm_accuracy`` and ``pgd_accuracy`` run them.
ATTACKS: Mapping[str, int] = {"fgsm": 1, "pgd": 10}


def fgsm(model: nn.Module, inputs: tuple[Tensor, ...], loss: Loss, epsilon: float) -> Perturbation:
    """Return a change by ``epsilon`` along the gradient's sign (Goodfellow et al. 2015, arXiv:1412.6572).

    Args:
        model: Attacked in evaluation mode; left as it was.
        inputs: Its positional arguments, axis 0 the examples.
        loss: Maps the model's raw output to what the attack raises, ``[]``.
        epsilon: Change of each number.

    Raises:
        TrialError: There is neither an input of real numbers nor an embedding layer.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0, -2.0]]))
        >>> fgsm(net, (torch.zeros(1, 2),), lambda output: output.sum(), 0.5).inputs[0]
        tensor([[ 0.5000, -0.5000]])
    """
    return pgd(model, inputs, loss, epsilon, steps=1, step_size=epsilon)


def pgd(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    loss: Loss,
    epsilon: float,
    steps: int,
    step_size: float,
    start: torch.Generator | None = None,
    ranges: Sequence[Range | None] = (),
) -> Perturbation:
    """Return a change step by step, at most ``epsilon`` in any number (Madry et al. 2018, arXiv:1706.06083).

    Args:
        model: Attacked in evaluation mode; left as it was.
        inputs: Its positional arguments, axis 0 the examples.
        loss: Maps the model's raw output to what the attack raises, ``[]``.
        epsilon: Largest change of each number.
        steps: Number of steps.
        step_size: Change of each number in one step.
        start: Draws the place in the ball where the attack starts; without it that is the centre.
        ranges: For each input the lowest and the highest number that may come out; without it all may.

    Raises:
        TrialError: There is neither an input of real numbers nor an embedding layer.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.enable_grad():
            found = _ascend(model, inputs, loss, epsilon, steps, step_size, start, ranges or [None] * len(inputs))
    finally:
        for module, mode in modes:
            module.training = mode
    return found


def _ascend(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    loss: Loss,
    epsilon: float,
    steps: int,
    step_size: float,
    start: torch.Generator | None,
    ranges: Sequence[Range | None],
) -> Perturbation:
    real = [value.is_floating_point() for value in inputs]
    outputs = {} if all(real) else _embedded(model, inputs)
    places = [torch.zeros_like(value) for value, is_real in zip(inputs, real, strict=True) if is_real]
    places += [torch.zeros_like(output) for calls in outputs.values() for output in calls]
    # A table of positions is read once for all examples; moving it would be one change for the whole batch.
    free = [len(place) == len(inputs[0]) for place in places]
    if not any(free):
        raise TrialError(
            "an attack moves inputs of real numbers or the outputs of embedding layers, and "
            f"{type(model).__name__} has neither; leave robust distillation out"
        )

    def moved(shifts: list[Tensor]) -> Perturbation:
        left = iter(shifts)
        at_inputs = tuple(value + next(left) if is_real else value for value, is_real in zip(inputs, real, strict=True))
        return Perturbation(at_inputs, {name: tuple(next(left) for _ in calls) for name, calls in outputs.items()})

    low, high = [torch.full_like(place, -epsilon) for place in places], [torch.full_like(p, epsilon) for p in places]
    bounded = [(value, span) for value, is_real, span in zip(inputs, real, ranges, strict=True) if is_real]
    for index, (value, span) in enumerate(bounded):
        if span is not None:
            low[index].clamp_(min=(span[0] - value).clamp(max=0))
            high[index].clamp_(max=(span[1] - value).clamp(min=0))
    if start is not None:
        for place, least, most, is_free in zip(places, low, high, free, strict=True):
            if is_free:
                drawn = torch.rand(place.shape, generator=start, device="cpu").to(place.device)
                place.copy_(least + (most - least) * drawn)
    for _ in range(steps):
        for place in places:
            place.requires_grad_()
        change = moved(places)
        with change.applied(model):
            raised = loss(model(*change.inputs))
        gradients = torch.autograd.grad(raised, places, allow_unused=True)
        places = [
            (place.detach() + step_size * gradient.sign()).clamp(least, most)
            if is_free and gradient is not None
            else place.detach()
            for place, gradient, is_free, least, most in zip(places, gradients, free, low, high, strict=True)
        ]
    return moved(places)


@torch.no_grad()
def _embedded(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, list[Tensor]]:
    """Return what each embedding layer returns in one pass, in the order of its calls."""
    outputs: dict[str, list[Tensor]] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, arguments, output: outputs.setdefault(name, []).append(output)

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                stack.callback(module.register_forward_hook(note(name)).remove)
        model(*inputs)
    return outputs


def attacked_logits(
    model: nn.Module,
    task: Task,
    split: Split,
    *,
    epsilon: float,
    steps: int,
    batch_size: int = 256,
    through: nn.Module | None = None,
) -> dict[str, Tensor]:
    """Return the model's logits on a split after an attack on the task's own loss, ``{head: [N, C]}``.

    Inputs keep to the range of the whole split: an attacked image is still an image. Otherwise a quantized model,
    which cuts its inputs to that range, would seem to withstand what no image can be.

    Args:
        model: The model to attack.
        task: Gives the loss.
        split: The examples.
        epsilon: Largest change of each number of the inputs.
        steps: 1 is FGSM; more are PGD with steps of 2.5 epsilon / steps.
        batch_size: Examples at a time.
        through: The model whose gradient is followed, for one whose own hides what would raise the loss: rounding
            and clipping do, so a quantized model is attacked through the float one that it was cut from.
    """
    model.eval()
    size = epsilon if steps == 1 else 2.5 * epsilon / steps
    ranges = [(float(x.min()), float(x.max())) if x.is_floating_point() else None for x in split.inputs]
    parts = []
    for batch in split.batches(batch_size):
        change = pgd(
            through or model, batch.inputs, _task_loss(task, batch.targets), epsilon, steps, size, ranges=ranges
        )
        with torch.no_grad(), change.applied(model):
            parts.append(as_heads(model(*change.inputs), task.heads))
    return {head: torch.cat([part[head] for part in parts]) for head in task.heads}


def _task_loss(task: Task, targets: Mapping[str, Tensor]) -> Loss:
    return lambda output: task.loss(as_heads(output, task.heads), targets)


@dataclass(frozen=True)
class RobustConfig(Softened):
    """Knobs of :class:`Robust`."""

    label = "distill.robust"

    alpha: float = knob(0.9, FloatRange(0.0, 1.0), "weight of the teacher against the targets")
    attack: str = knob("pgd", Choice(("fgsm", "pgd")), "one step, or several")
    epsilon: float = knob(0.3, FloatRange(1e-3, 2.0, log=True), "largest change of each number, as the model sees it")
    steps: int = knob(5, IntRange(1, 50), "steps of pgd")
    step_size: float = knob(0.5, FloatRange(0.01, 2.0, log=True), "change in one step of pgd, as a share of epsilon")
    random_start: bool = knob(True, Choice((True, False)), "pgd starts somewhere in the ball, not at its centre")


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
        self,
        config: RobustConfig,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        loss: Loss,
        generator: torch.Generator,
    ) -> Perturbation:
        """Return the attack on the student's own loss."""
        if config.attack == "fgsm":
            return fgsm(model, inputs, loss, config.epsilon)
        start = generator if config.random_start else None
        return pgd(model, inputs, loss, config.epsilon, config.steps, config.step_size * config.epsilon, start)

    def loss(self, config: RobustConfig, batch: Batch) -> Tensor:
        """Return the weighted sum, ``[]``; several heads are averaged."""
        soft = mean_over_heads(batch, lambda ours, theirs, head: softened_kl(ours, theirs, config.temperature))
        return mixed(config.alpha, soft, batch.hard)


DISTILL.add(Robust.name, Robust())
