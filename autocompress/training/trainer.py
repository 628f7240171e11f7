"""The training loop: one fit of one model, run by each process that takes part in it, and its paused state."""

import copy
import io
import logging
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autocompress.core.config import Part
from autocompress.core.registry import FITS
from autocompress.core.task import Split, Task, logits_by_head
from autocompress.distill.activations import head_layers
from autocompress.distill.base import AuxiliaryLoss, TaskLoss, TeacherSource
from autocompress.errors import TrialError
from autocompress.models.output_teacher import OutputTeacher
from autocompress.training.batch_norm import synchronize_batch_norms
from autocompress.training.device import (
    CPU,
    SINGLE_PROCESS,
    Precision,
    ProcessGroup,
    choose_precision,
    default_device,
    move_model,
)
from autocompress.training.objective import TrainingObjective
from autocompress.training.optimizers import SCHEDULES, FitConfig, fit_config
from autocompress.training.sharding import ProcessMemory, ShardedState, Stateful, map_tensors, measure_memory


class FitFacts(TypedDict, total=False):
    """Plain values of a paused fit; the keys belong to the stored format."""

    curve: list[dict[str, float]]
    #: Whether the fit runs in bfloat16.
    low: bool


class _RandomState(TypedDict):
    generators: dict[str, torch.Tensor]
    torch: torch.Tensor


class _FitState(TypedDict):
    parts: dict[str, dict[str, object]]
    generators: dict[str, torch.Tensor]
    torch: torch.Tensor
    facts: FitFacts
    #: Random states of the processes of rank 1 and above.
    others: list[_RandomState]


def serialize_state(
    parts: Mapping[str, Stateful],
    generators: Mapping[str, torch.Generator],
    facts: FitFacts,
    group: ProcessGroup = SINGLE_PROCESS,
) -> bytes:
    """Return the state of a fit: its parts, its generators, torch's global generator, and plain values.

    Args:
        parts: Model, adapters, optimizer and schedule by name.
        generators: Random number generators by name.
        facts: Training curve and precision.
        group: The processes of the fit, which call this together; only the state of rank 0 is complete.
    """
    buffer = io.BytesIO()
    own = _RandomState(
        generators={name: generator.get_state() for name, generator in generators.items()},
        # Dropout draws from the global generator.
        torch=torch.get_rng_state(),
    )
    first, *others = group.gather_objects(own)
    state = {
        # On the CPU, so that it can be loaded on a machine without the same device.
        "parts": {name: map_tensors(part.state_dict(), Tensor.cpu) for name, part in parts.items()},
        **first,
        "facts": dict(facts),
        "others": others,
    }
    torch.save(state, buffer)
    return buffer.getvalue()


def read_facts(content: bytes | Path) -> FitFacts:
    """Return the plain values of a serialized fit.

    Raises:
        TrialError: The state is damaged.
    """
    return _deserialize(content)["facts"]


def restore_state(
    content: bytes | Path,
    parts: Mapping[str, Stateful],
    generators: Mapping[str, torch.Generator],
    group: ProcessGroup = SINGLE_PROCESS,
) -> None:
    """Give parts and generators the state that :func:`serialize_state` stored.

    Args:
        content: The state, or the file that contains it.
        parts: Model, adapters, optimizer and schedule by name.
        generators: Random number generators by name.
        group: The processes of the fit. Their number may differ from that before the pause.

    Raises:
        TrialError: The state is damaged or belongs to another model.
    """
    state = _deserialize(content)
    try:
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        random_states = [_RandomState(generators=state["generators"], torch=state["torch"]), *state["others"]]
        random_state = random_states[min(group.rank, len(random_states) - 1)]
        for name, generator in generators.items():
            generator.set_state(random_state["generators"][name])
        # Last, because building the parts may have drawn from the global generator.
        torch.set_rng_state(random_state["torch"])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as misfit:
        raise TrialError(f"the state of a paused trial does not fit its config: {misfit}") from misfit


def _deserialize(content: bytes | Path) -> _FitState:
    try:
        # Tensors and plain values only: a run folder that came from somewhere else must not run code.
        _require_stored(content)
        if isinstance(content, Path):
            state = torch.load(content, weights_only=True, mmap=True)
        else:
            state = torch.load(io.BytesIO(content), weights_only=True)
        return _FitState(
            parts=state["parts"],
            generators=state["generators"],
            torch=state["torch"],
            facts=state["facts"],
            # States of earlier versions belong to one process.
            others=state.get("others", []),
        )
    except Exception as damage:  # The reader of torch raises many kinds of errors on a damaged file.
        raise TrialError(f"the state of a paused trial cannot be read: {damage}") from damage


def _require_stored(content: bytes | Path) -> None:
    """Check that a serialized state takes no more memory than its file: torch reads compressed archives, too.

    Raises:
        ValueError: An entry is compressed, or entries share bytes.
        zipfile.BadZipFile: It is no archive.
    """
    nbytes = len(content) if isinstance(content, bytes) else content.stat().st_size
    with zipfile.ZipFile(io.BytesIO(content) if isinstance(content, bytes) else content) as archive:
        entries = archive.infolist()
    is_stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not is_stored or sum(entry.file_size for entry in entries) > nbytes:
        raise ValueError("its entries take more memory than its file")


logger = logging.getLogger(__name__)

#: One row of the training curve: ``epoch``, ``loss`` and, with patience, ``held_out_loss``.
CurveRow = dict[str, float]

# Share of the training split that early stopping holds out, and the smallest split that can spare it.
HELD_OUT_SHARE = 0.1
MIN_EXAMPLES_TO_HOLD_OUT = 20
# Examples on which the adapters of distillation terms are sized: they need shapes, not statistics.
ADAPTER_BATCH = 8
# Distance of the noise seeds from the seed that orders the examples, and from process to process.
NOISE_SEED_STRIDE = 7919
# Share of the largest gradient norm below which torch's factor is certainly 1.
CLIP_MARGIN = 0.999


@dataclass(frozen=True)
class FitRequest:
    """Everything that determines one fit, except the model that it trains.

    Epoch ``e`` reads augmented view ``e % task.views`` of the training split, or ``e % fit.views`` if that is set and
    smaller, and the teacher's cached logits on that same view, so that student and teacher see the same pixels (Beyer
    et al. 2022, arXiv:2106.05237). Terms that read layers or perturb inputs, and mixup, run the teacher live.

    Attributes:
        task: The learning problem, which gives the augmented views and the loss.
        train: The training split.
        optimizer: The optimizer with its settings: epochs, batch size, learning rate. Its epochs are those of the whole
            fit, pauses included.
        terms: Distillation terms: exactly one on logits, any number on features.
        teacher: The teacher with its cached logits; ``None`` if no term reads one.
        seed: Seed of the order of the examples, of mixup and of attacks.
        until: Number of epochs after which the fit pauses; ``None`` for all epochs.
        paused: State of the earlier segment of this fit, which replaces the model's weights, or the file that contains
            it; empty for a new fit.
        auxiliary_loss: An additional loss of each batch, such as that of sub-networks trained with the model.
        on_epoch: Function that is called with each new row of the curve.
        after_step: Function that is called after each optimizer step, for example to apply pruning masks again.
        device: Device of the fit. The model is on the CPU before and after. On a GPU, resumed fits are equivalent to
            uninterrupted ones but not bit for bit the same.
    """

    task: Task
    train: Split
    optimizer: Part
    terms: Sequence[Part] = (Part("none"),)
    teacher: TeacherSource | None = None
    seed: int = 0
    until: int | None = None
    paused: bytes | Path = b""
    auxiliary_loss: AuxiliaryLoss | None = None
    on_epoch: Callable[[CurveRow], None] | None = None
    after_step: Callable[[], None] | None = None
    device: torch.device = CPU

    @property
    def config(self) -> FitConfig:
        """The typed settings of the optimizer."""
        return fit_config(self.optimizer)


@dataclass(frozen=True)
class FitResult:
    """The result of a fit or of one segment of it.

    Attributes:
        curve: One row per epoch, earlier segments included.
        paused: State from which the fit resumes; empty if the fit is complete.
        memory: Memory of each process at the end of the fit, before its model is whole again.
    """

    curve: list[CurveRow]
    paused: bytes = b""
    memory: tuple[ProcessMemory, ...] = ()


class Trainer:
    """Trains one model as one process of a process group.

    All processes draw the same order of the examples, and each takes its share of every batch. Attacks, mixup and terms
    that relate the examples of a batch see only that share; batch norms see the whole batch.

    Args:
        model: The model, trained in place and left in evaluation mode.
        request: The fit.
        group: The position of this process among those that share the fit.

    Raises:
        TrialError: A term needs a teacher and there is none, not exactly one term is on logits, or the paused state is
            damaged.
    """

    def __init__(self, model: nn.Module, request: FitRequest, group: ProcessGroup = SINGLE_PROCESS) -> None:
        self._model, self._request, self._group = model, request, group
        self._config = config = request.config
        # The weights of the heads may be parameters and belong on the device of the model.
        with default_device(request.device):
            self._objective = TrainingObjective.from_terms(
                request.terms, request.task, config, request.teacher, request.seed
            )
        self._objective.auxiliary_loss = request.auxiliary_loss
        self._objective.weight_classes(request.train)
        self._rows, self._held_out = hold_out(request.train, config, request.seed)
        self._batch_size = min(config.batch_size, len(self._rows))
        # A batch of one has no batch statistics, so the remainder is dropped instead of being normalized by itself.
        self._steps = len(self._rows) // self._batch_size
        self._order = torch.Generator().manual_seed(request.seed)
        # All processes share the order of the examples, but each has its own noise.
        self._noise = torch.Generator().manual_seed(request.seed + NOISE_SEED_STRIDE * (group.rank + 1))
        facts = read_facts(request.paused) if request.paused else {}
        # After a pause the precision is fixed: a second probe could choose the other one.
        self._precision_name = config.precision if not facts else "bfloat16" if facts["low"] else "float32"
        self._curve: list[CurveRow] = list(facts.get("curve", []))
        self._best = _BestWeights(config.patience)

    def run(self) -> FitResult:
        """Train the model up to the end of the fit or to its pause, and return the curve.

        The model, the batches and a live teacher are on the device of the request meanwhile.

        Raises:
            TrialError: The loss is no longer finite, a layer that a term names does not exist, or the paused state
                belongs to another model.
        """
        paused = b""
        with ExitStack() as stack:
            self._prepare(stack)
            if self._request.paused:
                self._resume()
            last_epoch = self._find_last_epoch()
            for epoch in range(len(self._curve), last_epoch):
                loss = self._train_epoch(epoch)
                held_out_loss = self._validate()
                self._record_epoch(epoch, loss, held_out_loss)
                if held_out_loss is not None and self._best.update(self._model, held_out_loss):
                    logger.debug("Early stopping after epoch %d: held-out loss %.4g", epoch + 1, held_out_loss)
                    break
            else:
                if last_epoch < self._config.epochs:
                    paused = self._serialize_state()
            memory = self._measure_memory()
            # Only now: a paused fit continues from the weights of its last epoch, not from the best ones.
            self._best.restore(self._model)
            self._precision.restore_layout(self._model)
        self._model.eval()
        return FitResult(self._curve, paused, (memory,))

    def _prepare(self, stack: ExitStack) -> None:
        """Move the models, attach hooks, and build adapters, optimizer and schedule."""
        model, request, config = self._model, self._request, self._config
        # First, because optimizers hold references to the parameters where they are.
        stack.enter_context(move_model(model, request.device))
        for teacher in self._list_live_teachers():
            stack.enter_context(move_model(teacher, request.device))
        probe = request.train.take(slice(0, self._batch_size)).to(request.device)
        self._precision: Precision = choose_precision(self._precision_name, model, request.task, probe)
        if config.backbone == "frozen":
            stack.enter_context(_freeze_backbone(model))
        stack.enter_context(synchronize_batch_norms(model, self._group.rank, self._group.size))
        self._objective.attach_hooks(stack, model)
        with self._precision.autocast():
            sample = request.train.take(self._rows[: min(self._batch_size, ADAPTER_BATCH)]).to(request.device)
            self._adapters = self._objective.build_adapters(sample)
        # Adapters come before: parameters that are added to a wrapped module later are not averaged.
        models = [model, *self._list_live_teachers()]
        self._batch_loss = self._group.wrap_module(_BatchLoss(self._objective, model, self._adapters), models)
        modules = (*model.parameters(), *self._adapters.parameters())
        self._parameters = [parameter for parameter in modules if parameter.requires_grad]
        self._optimizer = FITS.get(request.optimizer.name).optimizer(config, self._parameters)
        # The schedule spans all epochs, whether the fit pauses or not.
        self._schedule = SCHEDULES[config.schedule](self._optimizer, config, config.epochs * self._steps)

    def _resume(self) -> None:
        """Continue from the paused state of the request."""
        # Which kernel runs depends on this group of processes, not on that before the pause.
        kernels = [group.get("fused") for group in self._optimizer.param_groups]
        restore_state(self._request.paused, self._stateful_parts(), self._generators(), self._group)
        for group, kernel in zip(self._optimizer.param_groups, kernels, strict=True):
            group["fused"] = kernel
        logger.debug("Resumed a fit after %d of %d epochs", len(self._curve), self._config.epochs)

    def _serialize_state(self) -> bytes:
        """Return everything from which the fit resumes."""
        logger.debug("Paused a fit after %d of %d epochs", len(self._curve), self._config.epochs)
        facts = FitFacts(curve=self._curve, low=self._precision.is_bfloat16)
        return serialize_state(self._stateful_parts(), self._generators(), facts, self._group)

    def _stateful_parts(self) -> Mapping[str, Stateful]:
        # The names belong to the stored format of paused states.
        parts: dict[str, Stateful] = {
            "model": self._model,
            "learned": self._adapters,
            "optimizer": self._optimizer,
            "schedule": self._schedule,
            "best": self._best,
        }
        if self._group.shards == 1:
            return parts
        layouts: Mapping[str, Callable[[], Mapping[str, object]]] = {
            "model": self._model.state_dict,
            "learned": self._adapters.state_dict,
            # The optimizer numbers its parameters in their order.
            "optimizer": lambda: {"state": dict(enumerate(self._parameters))},
            "schedule": dict,
            "best": lambda: {"weights": self._model.state_dict()},
        }
        return {name: ShardedState(part, layouts[name]) for name, part in parts.items()}

    def _list_live_teachers(self) -> list[nn.Module]:
        """Return the teacher's model if it runs on each batch."""
        teacher = self._request.teacher
        return [teacher.model] if self._objective.is_teacher_live and teacher is not None else []

    def _measure_memory(self) -> ProcessMemory:
        """Return the memory of this process."""
        held = [self._model, self._adapters, *self._list_live_teachers()]
        parameters = (parameter for module in held for parameter in module.parameters())
        return measure_memory(parameters, self._optimizer.state_dict())

    def _generators(self) -> Mapping[str, torch.Generator]:
        return {"order": self._order, "noise": self._noise}

    def _find_last_epoch(self) -> int:
        until = self._request.until
        return self._config.epochs if until is None else min(until, self._config.epochs)

    def _train_epoch(self, epoch: int) -> float:
        """Train on each batch of one augmented view once and return the mean loss.

        Args:
            epoch: Number of the epoch, from 0.

        Raises:
            TrialError: The loss is no longer finite.
        """
        request = self._request
        _set_training_mode(self._model)
        index = epoch % min(self._config.views or request.task.views, request.task.views)
        view = request.task.view(request.train, index)
        cached_logits = self._objective.cached_logits(index)
        rows = self._rows[torch.randperm(len(self._rows), generator=self._order, device=CPU)]
        # The sum stays on the device: reading it in each step would make the host wait for the GPU.
        total = torch.zeros((), device=request.device)
        for step in range(self._steps):
            batch = rows[step * self._batch_size : (step + 1) * self._batch_size]
            total += self._train_step(view, cached_logits, batch)
        total = self._group.all_reduce_mean(total)
        loss = float(total / self._steps)
        # Once per epoch: a check in each step would wait for the GPU.
        if not torch.isfinite(total):
            raise TrialError(f"the loss is {loss} in epoch {epoch + 1}; lower fit.learning_rate")
        self._objective.after_epoch(self._group.all_reduce_mean)
        return loss

    def _train_step(self, view: Split, cached_logits: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """Take one optimizer step and return the loss of this process's share of the batch, ``[]``.

        Args:
            view: The augmented training split.
            cached_logits: The teacher's logits on the view, ``{head: [N, C]}``; empty if the teacher runs live.
            rows: Row numbers of the batch, ``[B]``.
        """
        device = self._request.device
        local = self._group.local_rows(rows)
        with self._precision.autocast():
            teacher_logits = {head: logits[local].to(device) for head, logits in cached_logits.items()}
            loss: Tensor = self._batch_loss(view.take(local).to(device), teacher_logits, self._noise)
            if self._group.size > 1:
                loss = loss * self._group.loss_scale(local, rows)
        # What the optimizer's own method does, without its hooks: small models are trained in steps of a millisecond.
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()
        if self._config.clip_norm > 0:
            self._clip_gradients()
        self._optimizer.step()
        self._schedule.after_step()
        if self._request.after_step is not None:
            self._request.after_step()
        return loss.detach()

    def _clip_gradients(self) -> None:
        """Scale the gradients down if their norm exceeds the largest one."""
        if self._request.device != CPU or self._group.shards > 1:
            nn.utils.clip_grad_norm_(self._parameters, self._config.clip_norm)
            return
        norm = nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        # On the CPU it costs less to read the norm than to multiply every gradient by 1. The margin covers the
        # rounding of torch's factor; a norm that is not a number is not below it.
        if not float(norm) < CLIP_MARGIN * self._config.clip_norm:
            nn.utils.clip_grads_with_norm_(self._parameters, self._config.clip_norm, norm)

    def _validate(self) -> float | None:
        """Return the task's loss on the held-out examples; ``None`` if the fit has no patience."""
        if self._held_out is None:
            return None
        request = self._request
        loss = _compute_task_loss(self._model, request.task, self._objective.task_loss, self._held_out, request.device)
        # All processes must stop in the same epoch, whatever the rounding of their running statistics.
        return float(self._group.all_reduce_mean(loss))

    def _record_epoch(self, epoch: int, loss: float, held_out_loss: float | None) -> None:
        """Append a row to the curve, step the schedule, and report the row."""
        row = {"epoch": float(epoch + 1), "loss": loss}
        if held_out_loss is not None:
            row["held_out_loss"] = held_out_loss
        self._curve.append(row)
        self._schedule.after_epoch(row.get("held_out_loss", loss))
        if self._request.on_epoch is not None:
            self._request.on_epoch(row)


class _BatchLoss(nn.Module):
    """The loss of one batch as a module of everything that is trained, so that processes average its gradients."""

    def __init__(self, objective: TrainingObjective, model: nn.Module, adapters: nn.Module) -> None:
        super().__init__()
        self.objective, self.model, self.adapters = objective, model, adapters

    def forward(self, examples: Split, teacher_logits: Mapping[str, Tensor], noise: torch.Generator) -> Tensor:
        """Return the loss, ``[]``."""
        return self.objective.loss(examples, teacher_logits, noise)


@torch.no_grad()
def predict(model: nn.Module, task: Task, split: Split, batch_size: int = 512) -> dict[str, Tensor]:
    """Return the model's logits on a split, ``{head: [N, C]}``, in evaluation mode and on the model's own device."""
    if isinstance(model, OutputTeacher):
        return model.predict_split(split)
    model.eval()
    device = next((parameter.device for parameter in model.parameters()), CPU)
    parts = [logits_by_head(model(*batch.to(device).inputs), task.heads) for batch in split.batches(batch_size)]
    return {head: torch.cat([part[head] for part in parts]) for head in task.heads}


def hold_out(train: Split, config: FitConfig, seed: int) -> tuple[Tensor, Split | None]:
    """Return the row numbers to train on, ``[N]``, and the held-out examples, which exist only with patience."""
    rows = torch.arange(len(train))
    if not config.patience or len(train) < MIN_EXAMPLES_TO_HOLD_OUT:
        return rows, None
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed + 1))
    count = int(len(train) * HELD_OUT_SHARE)
    return order[count:], train.take(order[:count])


def _set_training_mode(model: nn.Module) -> None:
    """Set training mode, except for batch norms with frozen weights: they use their running statistics unchanged."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.weight is not None and not module.weight.requires_grad:
            module.eval()


@contextmanager
def _freeze_backbone(model: nn.Module) -> Iterator[None]:
    """Freeze all parameters but those of the heads; afterwards each parameter is as trainable as before.

    Raises:
        TrialError: The model has no linear layer that could be its head.
    """
    # The dot keeps a head "fc" from matching a layer "fc2".
    heads = tuple(f"{name}." for name in head_layers(model))
    if not heads:
        raise TrialError(f"{type(model).__name__} has no linear layer that could be its head; leave fit.backbone tuned")
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name.startswith(heads))
    try:
        yield
    finally:
        for parameter, requires_grad in before:
            parameter.requires_grad_(requires_grad)


class _BestWeights:
    """The weights with the lowest held-out loss so far."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._loss = float("inf")
        self._epochs_without_improvement = 0
        self._weights: dict[str, Tensor] = {}

    def update(self, model: nn.Module, loss: float) -> bool:
        """Record the held-out loss of an epoch and return whether patience is exhausted."""
        if loss < self._loss:
            self._loss, self._epochs_without_improvement = loss, 0
            # A copy, because optimizers change the tensors of a state_dict in place.
            self._weights = copy.deepcopy(model.state_dict())
        else:
            self._epochs_without_improvement += 1
        return self._epochs_without_improvement >= self._patience

    def state_dict(self) -> Mapping[str, object]:
        """Return the best loss, the number of worse epochs since, and the weights."""
        return {"loss": self._loss, "worse": self._epochs_without_improvement, "weights": self._weights}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from the state of another instance."""
        self._loss, self._epochs_without_improvement = state_dict["loss"], state_dict["worse"]
        self._weights = dict(state_dict["weights"])

    def restore(self, model: nn.Module) -> None:
        """Load the best weights into the model, if any epoch was recorded."""
        if self._weights:
            model.load_state_dict(self._weights)


@torch.no_grad()
def _compute_task_loss(model: nn.Module, task: Task, task_loss: TaskLoss, split: Split, device: torch.device) -> Tensor:
    targets = {head: target.to(device) for head, target in split.targets.items()}
    with default_device(device):
        return task_loss(predict(model, task, split), targets)
