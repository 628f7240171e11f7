"""The epochs of one fit, as each process of a team runs them."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autocompress.core.config import Part
from autocompress.core.registry import FITS
from autocompress.core.task import Split, Task, as_heads
from autocompress.distill.activations import head_layers
from autocompress.distill.base import Beside, TeacherSource
from autocompress.errors import TrialError
from autocompress.training.device import CPU, made_on, moved
from autocompress.training.objective import Lesson
from autocompress.training.optimizers import SCHEDULES, FitConfig, fit_config
from autocompress.training.precision import choose_precision
from autocompress.training.process_group import ALONE, Team
from autocompress.training.state import facts, freeze, thaw

HELD_OUT = 0.1


class _Step(nn.Module):
    """The model, what is learned beside it, and the loss of one batch: what a team synchronises."""

    def __init__(self, lesson: Lesson, model: nn.Module, learned: nn.Module) -> None:
        super().__init__()
        self.lesson, self.model, self.learned = lesson, model, learned

    def forward(self, examples: Split, known: Mapping[str, Tensor], noise: torch.Generator) -> Tensor:
        """Return the loss, ``[]``."""
        return self.lesson.loss(examples, known, noise)


@dataclass(frozen=True)
class Fitted:
    """What a fit came to.

    Attributes:
        curve: One row an epoch, those before a pause included.
        paused: What it goes on from; empty when it has ended.
    """

    curve: list[dict[str, float]]
    paused: bytes = b""


def run(
    model: nn.Module,
    task: Task,
    train: Split,
    part: Part,
    *,
    terms: Sequence[Part],
    teacher: TeacherSource | None,
    seed: int,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    after_step: Callable[[], None] | None = None,
    team: Team = ALONE,
    until: int | None = None,
    paused: bytes = b"",
    beside: Beside | None = None,
    device: torch.device = CPU,
) -> Fitted:
    """Train ``model`` in place, as one process of ``team``, and return its curve.

    Model, batches and the teacher where it runs live are on ``device`` meanwhile; afterwards the model is back on the
    processor.

    With ``until`` it pauses after that many epochs, and goes on from ``paused`` as if it never had: the schedule is
    that of all epochs. Where the fit pauses, ``model`` is left as evaluation wants it.

    Every process draws the same order of the examples and takes its share of each batch. Attacks, mixup and the
    terms that relate the examples of a batch see the share alone, and so do the statistics of batch norms.

    Raises:
        TrialError: The loss is no longer finite, a term needs a teacher and there is none, or a tap does not exist.
    """
    config = fit_config(part)
    with made_on(device):
        lesson = Lesson.of(terms, task, config, teacher, seed)
    lesson.beside = beside
    kept, held = hold_out(train, config, seed)
    batch = min(config.batch_size, len(kept))
    # A batch of one has no batch statistics, so a remainder is dropped rather than normalised by itself.
    steps = len(kept) // batch
    order = torch.Generator().manual_seed(seed)
    noise = torch.Generator().manual_seed(seed + 7919 * (team.rank + 1))
    before = facts(paused) if paused else {}
    # A probe must not answer differently after a pause.
    wanted = config.precision if not before else "bfloat16" if before["low"] else "float32"
    curve: list[dict[str, float]] = list(before.get("curve", []))
    best = _Best(config.patience)
    frozen = b""
    with ExitStack() as stack:
        stack.enter_context(moved(model, device))
        if lesson.live and teacher is not None:
            stack.enter_context(moved(teacher.model, device))
        precision = choose_precision(wanted, model, task, train.take(slice(0, batch)).to(device))
        if config.backbone == "frozen":
            stack.enter_context(_frozen_backbone(model))
        lesson.listen(stack, model)
        with precision.running():
            learned = lesson.learned(train.take(kept[: min(batch, 8)]).to(device))
        step_loss = team.join(_Step(lesson, model, learned))
        parameters = [p for p in (*model.parameters(), *learned.parameters()) if p.requires_grad]
        optimizer = FITS.get(part.name).optimizer(config, parameters)
        schedule = SCHEDULES[config.schedule](optimizer, config, config.epochs * steps)
        parts = {"model": model, "learned": learned, "optimizer": optimizer, "schedule": schedule, "best": best}
        generators = {"order": order, "noise": noise}
        if paused:
            thaw(paused, parts, generators)
        last = config.epochs if until is None else min(until, config.epochs)
        for epoch in range(len(curve), last):
            _train(model)
            index = epoch % task.views
            view = task.view(train, index)
            known = lesson.known(index)
            shuffled = kept[torch.randperm(len(kept), generator=order, device=CPU)]
            total = torch.zeros((), device=device)
            for step in range(steps):
                rows = shuffled[step * batch : (step + 1) * batch]
                mine = team.share(rows)
                with precision.running():
                    says = {head: logits[mine].to(device) for head, logits in known.items()}
                    loss = step_loss(view.take(mine).to(device), says, noise)
                    loss = loss * team.factor(mine, rows)
                optimizer.zero_grad()
                loss.backward()
                if config.clip_norm > 0:
                    nn.utils.clip_grad_norm_(parameters, config.clip_norm)
                optimizer.step()
                schedule.after_step()
                if after_step is not None:
                    after_step()
                total += loss.detach()
            total = team.mean(total)
            row = {"epoch": float(epoch + 1), "loss": float(total / steps)}
            if not torch.isfinite(total):
                raise TrialError(f"the loss is {row['loss']} in epoch {epoch + 1}; lower fit.learning_rate")
            lesson.after_epoch(team.mean)
            if held is not None:
                # Statistics of batch norms differ between processes, but all of them must end in the same epoch.
                row["held_out_loss"] = float(team.mean(_loss(model, task, held, device)))
            curve.append(row)
            schedule.after_epoch(row.get("held_out_loss", row["loss"]))
            if on_epoch is not None:
                on_epoch(row)
            if held is not None and best.ends(model, row["held_out_loss"]):
                break
        else:
            if last < config.epochs:
                frozen = freeze(parts, generators, {"curve": curve, "low": precision.low})
        best.put_back(model)
        precision.leave(model)
    model.eval()
    return Fitted(curve, frozen)


@torch.no_grad()
def predict(model: nn.Module, task: Task, split: Split, batch_size: int = 512) -> dict[str, Tensor]:
    """Return the model's logits on a split, ``{head: [N, C]}``, in evaluation mode and on the model's own device."""
    model.eval()
    device = next((parameter.device for parameter in model.parameters()), CPU)
    parts = [as_heads(model(*batch.to(device).inputs), task.heads) for batch in split.batches(batch_size)]
    return {head: torch.cat([part[head] for part in parts]) for head in task.heads}


def hold_out(train: Split, config: FitConfig, seed: int) -> tuple[Tensor, Split | None]:
    """Return the rows to train on, and what is held out of the training split where patience asks for it."""
    rows = torch.arange(len(train))
    if not config.patience or len(train) < 20:
        return rows, None
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed + 1))
    cut = int(len(train) * HELD_OUT)
    return order[cut:], train.take(order[:cut])


def _train(model: nn.Module) -> None:
    """Set the training mode, but leave the statistics of frozen batch norms in use and as they are."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.weight is not None and not module.weight.requires_grad:
            module.eval()


@contextmanager
def _frozen_backbone(model: nn.Module) -> Iterator[None]:
    """Let the heads alone be trained; afterwards every parameter is what it was.

    Raises:
        TrialError: The model has no linear layer that could be its head.
    """
    heads = tuple(f"{name}." for name in head_layers(model))
    if not heads:
        raise TrialError(f"{type(model).__name__} has no linear layer that could be its head; leave fit.backbone tuned")
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name.startswith(heads))
    try:
        yield
    finally:
        for parameter, trained in before:
            parameter.requires_grad_(trained)


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

    def state_dict(self) -> Mapping[str, Any]:
        """Return the loss, how many epochs have been worse since, and the weights."""
        return {"loss": self._loss, "worse": self._worse, "weights": self._weights}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up what another one knew."""
        self._loss, self._worse = state_dict["loss"], state_dict["worse"]
        self._weights = dict(state_dict["weights"])

    def put_back(self, model: nn.Module) -> None:
        """Give the model its best weights, if any epoch was noted."""
        if self._weights:
            model.load_state_dict(self._weights)


@torch.no_grad()
def _loss(model: nn.Module, task: Task, split: Split, device: torch.device) -> Tensor:
    targets = {head: target.to(device) for head, target in split.targets.items()}
    with made_on(device):
        return task.loss(predict(model, task, split), targets)
