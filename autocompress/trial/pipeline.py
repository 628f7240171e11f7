"""What every trial of one run shares: the task, its splits, its teacher, and how a checkpoint is cut."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.method import Context, MethodState, Recovery
from autocompress.core.registry import OBJECTIVES, PRUNE, QUANTIZE, TASKS
from autocompress.core.task import Split, Splits, Task, logits_by_head
from autocompress.distill.attacks import ATTACKS, EPSILON, predict_under_attack
from autocompress.errors import ArtifactError, TrialError
from autocompress.measure import Subject, measure
from autocompress.prune import inherit_weights, reestimate_batch_norm
from autocompress.training.device import CPU
from autocompress.training.fit import FitRequest, fit, predict
from autocompress.training.optimizers import fit_config
from autocompress.trial.checkpoints import pack_paused_state, read_checkpoint, unpack_paused_state
from autocompress.trial.recipe import list_teacher_pruning
from autocompress.trial.supernet import SubNetworks
from autocompress.trial.teacher import Teacher, TeacherRecipe, load_teacher

CALIBRATION_BATCH = 64
BATCH_NORM_BATCH = 256
BATCH_NORM_BATCHES = 32


@dataclass(frozen=True)
class Setup:
    """What a worker must know beside the job; travels to it once.

    Attributes:
        task: The task's name and options.
        split_seed: Seed of the five splits.
        teacher: How the teacher was trained, so that a worker finds it in the cache.
        scores: Names of the scores to measure on every split.
        costs: Names of the costs to measure on every candidate.
        device: Where trainings run, as torch calls it: ``cpu`` or ``cuda``. Candidates are cut and measured on the
            processor wherever they were trained, as the models that are exported are.
    """

    task: Part
    split_seed: int
    teacher: TeacherRecipe
    scores: tuple[str, ...]
    costs: tuple[str, ...]
    device: str = "cpu"

    def to_json(self) -> dict[str, Any]:
        """Return the setup as JSON values, for the run's description; where it ran is not in it."""
        teacher = {
            "student": self.teacher.student.to_json(),
            "fit": self.teacher.fit.to_json(),
            "seed": self.teacher.seed,
        }
        return {
            "task": self.task.to_json(),
            "split_seed": self.split_seed,
            "teacher": teacher,
            "scores": list(self.scores),
            "costs": list(self.costs),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Setup":
        """Rebuild a setup from :meth:`to_json`."""
        teacher = data["teacher"]
        recipe = TeacherRecipe(Part.from_json(teacher["student"]), Part.from_json(teacher["fit"]), teacher["seed"])
        return cls(
            Part.from_json(data["task"]), data["split_seed"], recipe, tuple(data["scores"]), tuple(data["costs"])
        )


@dataclass(frozen=True)
class RebuiltCandidate:
    """One candidate's model, cut again from its checkpoint.

    Attributes:
        float_model: Pruned, 32-bit, in evaluation mode.
        model: Quantized, or the same object as ``float_model``.
        prune: What pruning did.
        quantize: What quantization did.
        start: What was cut before the training.
    """

    float_model: nn.Module
    model: nn.Module
    prune: MethodState | None
    quantize: MethodState | None
    start: tuple["PruningStep", ...] = ()


@dataclass(frozen=True)
class PruningStep:
    """A pruning method with its settings, and what it did."""

    part: Part
    state: MethodState


@dataclass(frozen=True)
class TrainedStudent:
    """A trained student.

    Attributes:
        model: In evaluation mode.
        curve: One row an epoch.
        start: What was cut before the training.
        paused: What a training that is not at its end goes on from.
    """

    model: nn.Module
    curve: list[dict[str, float]]
    start: tuple[PruningStep, ...] = ()
    paused: bytes = b""


@dataclass(frozen=True)
class TrialPipeline:
    """Task, splits and teacher of one run, in this process, and where it trains."""

    task: Task
    splits: Splits
    teacher: Teacher
    device: torch.device = CPU

    def train(self, training: CompressionConfig, until: int | None = None, paused: bytes = b"") -> "TrainedStudent":
        """Build the student of ``training``, distil it, and return it with its curve.

        Args:
            training: What to train.
            until: Epochs after which to pause; ``None`` for all of them.
            paused: What the segment before left.

        Raises:
            CompressionError: The student is the teacher, cut, and it cannot be cut so.
            TrialError: The training diverged, or ``paused`` is damaged.
            KnobError: A setting is outside its range.
        """
        torch.manual_seed(training.seed)
        state, histories = unpack_paused_state(paused) if paused else (b"", None)
        model, start = self.build_student(training, histories)
        config = fit_config(training.fit)
        # One that is the teacher, cut, has its weights.
        if config.init == "teacher" and not paused and not start:
            inherit_weights(model, self.teacher.model, self.task.example())
        sub_networks = (
            SubNetworks(model, self.task.heads, self.build_context(training), config.sandwich)
            if config.sandwich
            else None
        )
        request = replace(self._build_request(training), until=until, paused=state, auxiliary_loss=sub_networks)
        result = fit(model, request)
        left = pack_paused_state(result.paused, [step.state.history for step in start]) if result.paused else b""
        return TrainedStudent(model, result.curve, start, left)

    def build_student(
        self, training: CompressionConfig, histories: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[nn.Module, tuple[PruningStep, ...]]:
        """Return the student before its training: fresh, or the teacher cut anew or as ``histories`` say."""
        model = self.task.build(training.student)
        parts = list_teacher_pruning(training.student)
        if histories is not None:
            return self._restore_student(model, parts, histories)
        start = []
        for part in parts:
            method = PRUNE.get(part.name)
            model, state = method.apply(model, method.config.of(part.values), self.build_context(training))
            start.append(PruningStep(part, state))
        if start:
            self._reestimate_batch_norm(model)
        return model, tuple(start)

    def _restore_student(
        self, model: nn.Module, parts: Sequence[Part], histories: Sequence[Mapping[str, Any]]
    ) -> tuple[nn.Module, tuple[PruningStep, ...]]:
        start = []
        for part, history in zip(parts, histories, strict=True):
            method = PRUNE.get(part.name)
            start.append(PruningStep(part, MethodState(history=history)))
            model = method.restore(model, method.config.of(part.values), start[-1].state)
        return model, tuple(start)

    def prune(
        self, model: nn.Module, training: CompressionConfig, part: Part | None
    ) -> tuple[nn.Module, MethodState | None]:
        """Prune a trained model and let it recover under the same distillation; ``model`` stays as it was.

        Raises:
            CompressionError: The method cannot compress this model.
            TrialError: The recovery diverged.
        """
        if part is None:
            return model, None
        method = PRUNE.get(part.name)
        settings = method.config.of(part.values)
        pruned, state = method.apply(model, settings, self.build_context(training))
        if isinstance(settings, Recovery) and settings.recovery_epochs > 0:
            hold = partial(state.apply_masks, pruned) if state.masks else None
            self.fine_tune(training, pruned, settings.recovery_epochs, settings.recovery_learning_rate, hold)
        # After a recovery too: its running averages still remember the first steps after the cut.
        self._reestimate_batch_norm(pruned)
        return pruned.eval(), state

    def _reestimate_batch_norm(self, model: nn.Module) -> None:
        batches = islice(self.splits.train.batches(BATCH_NORM_BATCH), BATCH_NORM_BATCHES)
        reestimate_batch_norm(model, (batch.inputs for batch in batches))

    def fine_tune(
        self,
        training: CompressionConfig,
        model: nn.Module,
        epochs: int,
        learning_rate: float,
        after_step: Callable[[], None] | None = None,
    ) -> None:
        """Train a compressed model in place, under the distillation of its trial.

        Raises:
            TrialError: The training diverged.
        """
        values = {**training.fit.values, "epochs": epochs, "learning_rate": learning_rate, "sandwich": 0.0}
        request = replace(
            self._build_request(training),
            optimizer=Part.of(training.fit.name, **values),
            # Another order of the examples than in the training before.
            seed=training.seed + 1,
            after_step=after_step,
        )
        fit(model, request)

    def _build_request(self, training: CompressionConfig) -> FitRequest:
        """Return the fit of a student under the distillation of its trial."""
        return FitRequest(
            self.task,
            self.splits.train,
            training.fit,
            terms=training.distill,
            teacher=self.teacher,
            seed=training.seed,
            device=self.device,
        )

    def quantize(
        self,
        model: nn.Module,
        training: CompressionConfig,
        part: Part | None,
        shared: dict[Hashable, Any] | None = None,
    ) -> tuple[nn.Module, MethodState | None]:
        """Quantize a float model; ``model`` stays as it was.

        Args:
            model: In single precision.
            training: How it was trained.
            part: The quantization method with its settings; ``None`` changes nothing.
            shared: What earlier quantizations of this very model found out.

        Raises:
            CompressionError: The method cannot compress this model.
        """
        if part is None:
            return model, None
        method = QUANTIZE.get(part.name)
        context = replace(self.build_context(training), shared=shared)
        quantized, state = method.apply(model, method.config.of(part.values), context)
        return quantized, state

    def build_context(self, training: CompressionConfig) -> Context:
        """Return what compression methods may look at: the calibration split, the task's loss, further training."""
        batches = list(self.splits.calibration.batches(CALIBRATION_BATCH))

        def loss(output: Any, targets: Mapping[str, Tensor]) -> Tensor:
            return self.task.loss(logits_by_head(output, self.task.heads), targets)

        return Context(
            self.task.example(),
            tuple(batch.inputs for batch in batches),
            tuple(batch.targets for batch in batches),
            loss,
            training.seed,
            partial(self.fine_tune, training),
            self.score,
        )

    def score(self, model: nn.Module) -> float:
        """Return the task's first metric on ``search_val``, turned so that more is better.

        Raises:
            TrialError: A logit is not finite.
        """
        metric = self.task.metrics[0]
        subject = self.build_subject(model, self.splits.search_val, self.teacher.logits["search_val"], [metric])
        value = measure(subject, [metric])[metric]
        return value if OBJECTIVES.get(metric).direction == "maximize" else -value

    def rebuild(self, config: CompressionConfig, checkpoint: bytes) -> RebuiltCandidate:
        """Cut one candidate again from its checkpoint.

        Raises:
            ArtifactError: The checkpoint is damaged or does not fit the config.
        """
        try:
            weights, history, starts = read_checkpoint(checkpoint)
        except ValueError as damage:
            raise ArtifactError(f"a checkpoint is damaged ({damage}); run the search again") from damage
        model, start = self._restore_student(
            self.task.build(config.student), list_teacher_pruning(config.student), starts
        )
        pruned: MethodState | None = None
        if config.prune is not None:
            method = PRUNE.get(config.prune.name)
            pruned = MethodState(history=history)
            model = method.restore(model, method.config.of(config.prune.values), pruned)
        model.load_state_dict(weights)
        model.eval()
        quantized, state = self.quantize(model, config.training, config.quantize)
        return RebuiltCandidate(model, quantized, pruned, state, start)

    def build_subject(
        self, model: nn.Module, split: Split, teacher: Mapping[str, Tensor], scores: Sequence[str]
    ) -> Subject:
        """Return what scores are measured on: the model's outputs on a split, and under attacks where one asks.

        Raises:
            TrialError: A logit is not finite.
        """
        asked = [attack for attack in ATTACKS if f"{attack}_accuracy" in scores]
        attacked = {
            attack: predict_under_attack(model, self.task, split, epsilon=EPSILON, steps=ATTACKS[attack])
            for attack in asked
        }
        levels = getattr(self.task, "levels", {})
        return Subject(self.predict(model, split), split.targets, teacher, attacked, levels=levels)

    def predict(self, model: nn.Module, split: Split) -> dict[str, Tensor]:
        """Return the model's logits on a split, ``{head: [N, C]}``.

        Raises:
            TrialError: A logit is not finite.
        """
        logits = predict(model, self.task, split)
        for head, values in logits.items():
            if not bool(torch.isfinite(values).all()):
                raise TrialError(f"the model's logits for '{head}' are not finite")
        return logits


@contextmanager
def reproducible_torch() -> Iterator[None]:
    """Make results repeatable and workers independent: one thread, denormals flushed to zero, both put back after.

    Results differ between thread counts; with two threads and a busy neighbour a fit takes ten times as long.
    """
    threads = torch.get_num_threads()
    flushed = bool(torch.tensor(torch.finfo(torch.float32).tiny).div(2) == 0)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flushed)


@lru_cache(maxsize=2)
def load_pipeline(setup: Setup) -> TrialPipeline:
    """Return this process's lab for a run; task and teacher are loaded once.

    Raises:
        UsageError: The task's options do not fit it.
    """
    task, splits = load_task(setup)
    return TrialPipeline(task, splits, load_teacher(task, splits, setup.teacher), torch.device(setup.device))


@lru_cache(maxsize=2)
def load_task(setup: Setup) -> tuple[Task, Splits]:
    """Return this process's task and splits of a run, loaded once.

    Raises:
        UsageError: The task's options do not fit it.
    """
    task: Task = TASKS.get(setup.task.name)(**setup.task.values)
    return task, task.splits(setup.split_seed)
