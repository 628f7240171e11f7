"""The one training loop: teachers, students and recovery after pruning all go through it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from autocompress.config import Part
from autocompress.distill.base import Activations
from autocompress.errors import TrialError
from autocompress.knobs import FloatRange, IntRange, Settings, knob
from autocompress.registry import DISTILL, FITS
from autocompress.task import Split, Task, as_heads


@dataclass(frozen=True)
class FitConfig(Settings):
    """Knobs that every optimizer shares."""

    epochs: int = knob(15, IntRange(1, 1000), "passes over the training split")
    batch_size: int = knob(64, IntRange(1, 4096, log=True), "examples a step")
    learning_rate: float = knob(5e-3, FloatRange(1e-5, 10.0, log=True), "peak of the one-cycle schedule")
    weight_decay: float = knob(1e-4, FloatRange(0.0, 1.0), "decay of the weights")
    clip_norm: float = knob(5.0, FloatRange(0.0, 1000.0), "largest gradient norm; 0 leaves gradients alone")


@dataclass(frozen=True)
class AdamWConfig(FitConfig):
    """Knobs of :class:`AdamW`."""

    label = "fit.adamw"


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    name = "adamw"
    config = AdamWConfig

    def optimizer(self, config: AdamWConfig, parameters: Iterator[nn.Parameter]) -> Optimizer:
        """Return the optimizer over ``parameters``."""
        return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


@dataclass(frozen=True)
class SGDConfig(FitConfig):
    """Knobs of :class:`SGD`."""

    label = "fit.sgd"

    learning_rate: float = knob(0.1, FloatRange(1e-5, 10.0, log=True), "peak of the one-cycle schedule")
    momentum: float = knob(0.9, FloatRange(0.0, 0.999), "share of the last step that goes on")


class SGD:
    """Stochastic gradient descent with Nesterov momentum (Sutskever et al. 2013)."""

    name = "sgd"
    config = SGDConfig

    def optimizer(self, config: SGDConfig, parameters: Iterator[nn.Parameter]) -> Optimizer:
        """Return the optimizer over ``parameters``."""
        return torch.optim.SGD(
            parameters,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
        )


FITS.add(AdamW.name, AdamW())
FITS.add(SGD.name, SGD())


def fit_config(part: Part) -> FitConfig:
    """Return the typed config of a ``fit`` part.

    Raises:
        UnknownNameError: No optimizer has that name.
        KnobError: A setting is unknown or outside its range.
    """
    config: FitConfig = FITS.get(part.name).config.of(part.values)
    return config


TeacherLogits = Callable[[int], Mapping[str, Tensor]]


def fit(
    model: nn.Module,
    task: Task,
    train: Split,
    part: Part,
    *,
    terms: Sequence[Part] = (Part("none"),),
    teacher_logits: TeacherLogits | None = None,
    seed: int = 0,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train ``model`` in place and return its curve, one row an epoch.

    Epoch ``e`` reads augmented view ``e % task.views`` of the training split, and the teacher's cached
    logits of just that view, so that student and teacher see the same pixels (Beyer et al. 2022,
    arXiv:2106.05237).

    Args:
        model: Trained in place and left in evaluation mode.
        task: Gives the views and the loss.
        train: The training split.
        part: The optimizer with its settings: epochs, batch size, learning rate.
        terms: Distillation terms: exactly one on logits, any number on features.
        teacher_logits: Maps a view's index to the teacher's logits on it, ``{head: [N, C]}``.
        seed: Seeds the order of the examples.
        on_epoch: Called with each row of the curve.

    Raises:
        TrialError: The loss is no longer finite, or a term needs a teacher and there is none.
    """
    chosen = [(DISTILL.get(part.name), DISTILL.get(part.name).config.of(part.values)) for part in terms]
    if [term.kind for term, _ in chosen].count("logit") != 1:
        raise TrialError(f"distillation needs exactly one term on logits, got {[part.name for part in terms]}")
    wanted = any(term.needs_teacher(settings) for term, settings in chosen)
    if wanted and teacher_logits is None:
        raise TrialError("this distillation reads the teacher's logits, but none were given")

    config = fit_config(part)
    generator = torch.Generator().manual_seed(seed)
    batch = min(config.batch_size, len(train))
    # A batch of one has no batch statistics, so a remainder is dropped rather than normalised by itself.
    steps = len(train) // batch
    optimizer = FITS.get(part.name).optimizer(config, model.parameters())
    schedule = OneCycleLR(optimizer, max_lr=config.learning_rate, total_steps=config.epochs * steps, pct_start=0.2)
    curve: list[dict[str, float]] = []
    for epoch in range(config.epochs):
        model.train()
        view = task.view(train, epoch % task.views)
        known = teacher_logits(epoch % task.views) if wanted and teacher_logits is not None else {}
        order = torch.randperm(len(train), generator=generator)
        total = torch.zeros(())
        for step in range(steps):
            index = order[step * batch : (step + 1) * batch]
            examples = view.take(index)
            student = Activations(as_heads(model(*examples.inputs), task.heads))
            teacher = Activations({head: logits[index] for head, logits in known.items()})
            loss = torch.stack(
                [term.loss(settings, student, teacher, examples.targets, task.loss) for term, settings in chosen]
            ).sum()
            optimizer.zero_grad()
            loss.backward()
            if config.clip_norm > 0:
                nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            schedule.step()
            total += loss.detach()
        row = {"epoch": float(epoch + 1), "loss": float(total / steps)}
        if not torch.isfinite(total):
            raise TrialError(f"the loss is {row['loss']} in epoch {epoch + 1}; lower fit.learning_rate")
        curve.append(row)
        if on_epoch is not None:
            on_epoch(row)
    model.eval()
    return curve


@torch.no_grad()
def predict(model: nn.Module, task: Task, split: Split, batch_size: int = 512) -> dict[str, Tensor]:
    """Return the model's logits on a split, ``{head: [N, C]}``, in evaluation mode."""
    model.eval()
    parts = [as_heads(model(*batch.inputs), task.heads) for batch in split.batches(batch_size)]
    return {head: torch.cat([part[head] for part in parts]) for head in task.heads}
