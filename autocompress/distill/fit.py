"""The one training loop: teachers, students, recovery after a cut and quantization-aware training go through it."""

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autocompress.config import Part
from autocompress.distill.base import TeacherSource
from autocompress.distill.lesson import Lesson
from autocompress.distill.optimizers import SCHEDULES, FitConfig, fit_config
from autocompress.distill.precision import choose_precision
from autocompress.errors import TrialError
from autocompress.registry import FITS
from autocompress.task import Split, Task, as_heads

HELD_OUT = 0.1


def fit(
    model: nn.Module,
    task: Task,
    train: Split,
    part: Part,
    *,
    terms: Sequence[Part] = (Part("none"),),
    teacher: TeacherSource | None = None,
    seed: int = 0,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    after_step: Callable[[], None] | None = None,
) -> list[dict[str, float]]:
    """Train ``model`` in place and return its curve, one row an epoch.

    Epoch ``e`` reads augmented view ``e % task.views`` of the training split, and the teacher's cached
    logits of just that view, so that student and teacher see the same pixels (Beyer et al. 2022,
    arXiv:2106.05237). Terms that read layers or perturb inputs, and mixup, run the teacher live.

    Args:
        model: Trained in place and left in evaluation mode.
        task: Gives the views and the loss.
        train: The training split.
        part: The optimizer with its settings: epochs, batch size, learning rate.
        terms: Distillation terms: exactly one on logits, any number on features.
        teacher: The teacher with its cached logits.
        seed: Seeds the order of the examples, mixup and attacks.
        on_epoch: Called with each row of the curve.
        after_step: Called after each optimizer step; masks are put back on here.

    Raises:
        TrialError: The loss is no longer finite, a term needs a teacher and there is none, or a tap does not exist.
    """
    config = fit_config(part)
    lesson = Lesson.of(terms, task, config, teacher, seed)
    kept, held = _hold_out(train, config, seed)
    batch = min(config.batch_size, len(kept))
    # A batch of one has no batch statistics, so a remainder is dropped rather than normalised by itself.
    steps = len(kept) // batch
    generator = torch.Generator().manual_seed(seed)
    precision = choose_precision(config.precision, model, task, train.take(slice(0, batch)))
    curve: list[dict[str, float]] = []
    best = _Best(config.patience)
    with ExitStack() as stack:
        lesson.listen(stack, model)
        with precision.running():
            learned = lesson.learned(model, train.take(kept[: min(batch, 8)]))
        parameters = [p for p in (*model.parameters(), *learned.parameters()) if p.requires_grad]
        optimizer = FITS.get(part.name).optimizer(config, parameters)
        schedule = SCHEDULES[config.schedule](optimizer, config, config.epochs * steps)
        for epoch in range(config.epochs):
            _train(model)
            index = epoch % task.views
            view = task.view(train, index)
            known = lesson.known(index)
            order = kept[torch.randperm(len(kept), generator=generator)]
            total = torch.zeros(())
            for step in range(steps):
                rows = order[step * batch : (step + 1) * batch]
                with precision.running():
                    loss = lesson.loss(model, view.take(rows), {head: z[rows] for head, z in known.items()}, generator)
                optimizer.zero_grad()
                loss.backward()
                if config.clip_norm > 0:
                    nn.utils.clip_grad_norm_(parameters, config.clip_norm)
                optimizer.step()
                schedule.after_step()
                if after_step is not None:
                    after_step()
                total += loss.detach()
            row = {"epoch": float(epoch + 1), "loss": float(total / steps)}
            if not torch.isfinite(total):
                raise TrialError(f"the loss is {row['loss']} in epoch {epoch + 1}; lower fit.learning_rate")
            if held is not None:
                row["held_out_loss"] = _loss(model, task, held)
            curve.append(row)
            schedule.after_epoch(row.get("held_out_loss", row["loss"]))
            if on_epoch is not None:
                on_epoch(row)
            if held is not None and best.ends(model, row["held_out_loss"]):
                break
    best.put_back(model)
    precision.leave(model)
    model.eval()
    return curve


@torch.no_grad()
def predict(model: nn.Module, task: Task, split: Split, batch_size: int = 512) -> dict[str, Tensor]:
    """Return the model's logits on a split, ``{head: [N, C]}``, in evaluation mode."""
    model.eval()
    parts = [as_heads(model(*batch.inputs), task.heads) for batch in split.batches(batch_size)]
    return {head: torch.cat([part[head] for part in parts]) for head in task.heads}


def _train(model: nn.Module) -> None:
    """Set the training mode, but leave the statistics of frozen batch norms in use and as they are."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.weight is not None and not module.weight.requires_grad:
            module.eval()


class _Best:
    """The weights of the best held-out loss so far."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._loss = float("inf")
        self._worse = 0
        self._weights: dict[str, Tensor] = {}

    def ends(self, model: nn.Module, loss: float) -> bool:
        """Take note of an epoch; return whether the fit should end."""
        if loss < self._loss:
            self._loss, self._worse = loss, 0
            self._weights = copy.deepcopy(model.state_dict())
        else:
            self._worse += 1
        return self._worse >= self._patience

    def put_back(self, model: nn.Module) -> None:
        """Give the model its best weights, if any epoch was noted."""
        if self._weights:
            model.load_state_dict(self._weights)


def _hold_out(train: Split, config: FitConfig, seed: int) -> tuple[Tensor, Split | None]:
    """Return the rows to train on, and what is held out of the training split where patience asks for it."""
    rows = torch.arange(len(train))
    if not config.patience or len(train) < 20:
        return rows, None
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed + 1))
    cut = int(len(train) * HELD_OUT)
    return order[cut:], train.take(order[:cut])


@torch.no_grad()
def _loss(model: nn.Module, task: Task, split: Split) -> float:
    return float(task.loss(predict(model, task, split), split.targets))
