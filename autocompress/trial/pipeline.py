"""The steps of a trial, train, prune, quantize and score, on the task, splits and teacher that a run shares.

Checkpoints of trials are bytes: weights with the history of their pruning, and states of paused trials.
"""

import hashlib
import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from itertools import islice
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.duplicates import remove_duplicates
from autocompress.core.latency_model import LatencyModel
from autocompress.core.method import Context, LayerBits, MethodState, Recovery
from autocompress.core.precisions import UNRESTRICTED, Precisions
from autocompress.core.registry import OBJECTIVES, PRUNE, QUANTIZE, STUDENTS, TASKS
from autocompress.core.task import Split, Splits, Task, logits_by_head
from autocompress.core.threads import single_threaded_blas
from autocompress.core.untrusted import check_tensor_header
from autocompress.distill.attacks import ATTACKS, predict_under_attacks
from autocompress.errors import ArtifactError, NothingRemovedError, TrialError
from autocompress.measure import LayerCost, Subject, measure
from autocompress.measure.heads import AT
from autocompress.measure.shilling import PUSHED
from autocompress.measure.tensor_storage import count_stored_bytes
from autocompress.measure.thresholds import choose_thresholds, set_head_thresholds, set_thresholds
from autocompress.models.from_teacher import FromTeacherConfig
from autocompress.prune import inherit_weights, reestimate_batch_norm
from autocompress.quantize import fold_batch_norm
from autocompress.tasks.folds import make_fold
from autocompress.training.device import CPU
from autocompress.training.fit import FitRequest, fit, predict
from autocompress.training.optimizers import fit_config
from autocompress.trial.supernet import SubNetworks
from autocompress.trial.teacher import Teacher, TeacherRecipe, copy_state, load_teacher
from autocompress.trial.transfer import remove_labels


def list_teacher_pruning(student: Part) -> tuple[Part, ...]:
    """Return the pruning steps that make a student from the teacher before its training; empty for most families."""
    settings = STUDENTS.get(student.name).config.of(student.values)
    return settings.list_pruning_steps() if isinstance(settings, FromTeacherConfig) else ()


def list_operations(config: CompressionConfig) -> tuple[str, ...]:
    """Return the training and compression steps of a candidate in order.

    The fine-tuning after a compression step is a setting of its method: ``recovery_epochs`` of a pruning method, and
    ``epochs`` of a quantization method, which trains with simulated rounding.

    Example:
        >>> list_operations(
        ...     CompressionConfig(
        ...         Part.of("cnn"),
        ...         (Part("none"),),
        ...         Part.of("adamw", epochs=20),
        ...         Part.of("structured", pruning_ratio=0.5, recovery_epochs=6),
        ...         Part.of("qat", epochs=4),
        ...     )
        ... )
        ('train 20 epochs', 'prune (structured)', 'tune 6 epochs', 'quantize (qat)', 'tune 4 epochs')
    """
    # The texts are stored with each candidate, so their wording must stay.
    steps = [f"cut the teacher ({part.name})" for part in list_teacher_pruning(config.student)]
    fit = fit_config(config.fit)
    if fit.init == "teacher" and not steps:
        steps.append("take the teacher's weights")
    steps.append(f"train {fit.epochs} epochs")
    if config.prune is not None:
        settings = PRUNE.get(config.prune.name).config.of(config.prune.values)
        steps.append(f"prune ({config.prune.name})")
        if isinstance(settings, Recovery) and settings.recovery_epochs:
            steps.append(f"tune {settings.recovery_epochs} epochs")
    if config.quantize is not None:
        settings = QUANTIZE.get(config.quantize.name).config.of(config.quantize.values)
        steps.append(f"quantize ({config.quantize.name})")
        epochs = settings.to_dict().get("epochs")
        if epochs:
            steps.append(f"tune {epochs} epochs")
    return tuple(steps)


# Size of the little-endian length before a JSON header, as in a safetensors file.
HEADER_BYTES = 8

History = Mapping[str, object]


def write_checkpoint(model: nn.Module, prune: History | None, start: Sequence[History] = ()) -> bytes:
    """Return a model's weights and the history of its pruning as the bytes of a safetensors file.

    Args:
        model: The float model, pruned or not.
        prune: History of its pruning; ``None`` if it was not pruned.
        start: Histories of the pruning steps before the training.
    """
    history = {"prune": dict(prune or {}), "start": [dict(step) for step in start]}
    # One key only: safetensors writes several keys in any order, and the same model must give the same bytes.
    return save(copy_state(model), metadata={"history": json.dumps(history)})


def read_checkpoint(content: bytes) -> tuple[dict[str, Tensor], History, list[History]]:
    """Return the weights, the history of the pruning, and the histories of the pruning steps before the training.

    Raises:
        ValueError: The checkpoint is damaged.
    """
    check_tensor_header(content)
    try:
        weights = load(content)
    except SafetensorError as damage:
        raise ValueError(str(damage)) from damage
    # A safetensors file begins with the length of its header and a JSON header.
    size = int.from_bytes(content[:HEADER_BYTES], "little")
    history = json.loads(json.loads(content[HEADER_BYTES : HEADER_BYTES + size])["__metadata__"]["history"])
    return weights, history["prune"], history["start"]


def pack_paused_state(state: bytes, start: Sequence[History]) -> bytes:
    """Return the state of a paused fit together with the histories of the pruning steps before it.

    Example:
        >>> unpack_paused_state(pack_paused_state(b"state", [{"layers": [1]}]))
        (b'state', [{'layers': [1]}])
    """
    header = json.dumps([dict(step) for step in start]).encode()
    return len(header).to_bytes(HEADER_BYTES, "little") + header + state


def unpack_paused_state(content: bytes) -> tuple[bytes, list[History]]:
    """Return the state and the histories that :func:`pack_paused_state` packed.

    Raises:
        TrialError: The content is damaged.
    """
    size = int.from_bytes(content[:HEADER_BYTES], "little")
    try:
        start = json.loads(content[HEADER_BYTES : HEADER_BYTES + size])
    except ValueError as damage:
        raise TrialError(f"the state of a paused trial cannot be read: {damage}") from damage
    return content[HEADER_BYTES + size :], start


CALIBRATION_BATCH = 64
# Batch-norm statistics are estimated on this many batches of this size at most.
BATCH_NORM_BATCH = 256
BATCH_NORM_BATCHES = 32


@dataclass(frozen=True)
class Setup:
    """The data of a run that every worker receives once, before its first job.

    Attributes:
        task: The task's name and options.
        split_seed: Seed of the five splits.
        teacher: The recipe of the teacher, by which a worker finds it in the cache.
        scores: Names of the scores to measure on every split.
        costs: Names of the costs to measure on every candidate.
        device: Name of the device for training: ``cpu`` or ``cuda``. Candidates are pruned, quantized and measured on
            the CPU in either case, as exported models are.
        precisions: Bit-widths of the target, by which operations are counted.
        latency: Latency model of the target, for a search that names ``latency_ms``.
        primary: Name of the score that candidates are selected by; its examples are stored for paired comparisons.
            Empty in runs of earlier versions, which store none.
        is_distinct: Whether examples that equal one of an earlier split are removed; False in runs of earlier versions.
        fold: Number of a fold, from 0, and the number of folds, where the splits are those of a fold; None for the
            splits of the search.
        thresholds: (head, threshold) of each head of two classes that has another threshold than 0.5; None for one that
            each model gets on ``search_val``, the best one for the primary score.
    """

    task: Part
    split_seed: int
    teacher: TeacherRecipe
    scores: tuple[str, ...]
    costs: tuple[str, ...]
    device: str = "cpu"
    precisions: Precisions = UNRESTRICTED
    latency: LatencyModel | None = None
    primary: str = ""
    is_distinct: bool = False
    fold: tuple[int, int] | None = None
    # Pairs, because a setup is a key of caches and a mapping has no hash.
    thresholds: tuple[tuple[str, float | None], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the setup as JSON values for the description of the run, without device and fold."""
        restricted = {"precisions": self.precisions.to_json()} if self.precisions.restricts else {}
        latency = {} if self.latency is None else {"latency": self.latency.to_json()}
        return {
            **restricted,
            **latency,
            "task": self.task.to_json(),
            "split_seed": self.split_seed,
            "teacher": self.teacher.to_json(),
            "scores": list(self.scores),
            "costs": list(self.costs),
            **({"primary": self.primary} if self.primary else {}),
            **({"is_distinct": True} if self.is_distinct else {}),
            **({"thresholds": dict(self.thresholds)} if self.thresholds else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Setup":
        """Return the setup that :meth:`to_json` described."""
        recipe = TeacherRecipe.from_json(data["teacher"])
        return cls(
            Part.from_json(data["task"]),
            data["split_seed"],
            recipe,
            tuple(data["scores"]),
            tuple(data["costs"]),
            precisions=Precisions.from_json(data.get("precisions", {})),
            latency=LatencyModel.from_json(data["latency"]) if "latency" in data else None,
            primary=data.get("primary", ""),
            is_distinct=data.get("is_distinct", False),
            thresholds=tuple(data.get("thresholds", {}).items()),
        )


@dataclass(frozen=True)
class RebuiltCandidate:
    """The model of one candidate, rebuilt from its checkpoint.

    Attributes:
        float_model: The pruned 32-bit model in evaluation mode.
        model: The quantized model; ``float_model`` with folded batch norms if it is not quantized.
        prune: State of the pruning method; ``None`` if the candidate is not pruned.
        quantize: State of the quantization method; ``None`` if the candidate is not quantized.
        start: Pruning steps between the teacher and the student, before the training.
    """

    float_model: nn.Module
    model: nn.Module
    prune: MethodState | None
    quantize: MethodState | None
    start: tuple["PruningStep", ...] = ()


@dataclass(frozen=True)
class PruningStep:
    """A pruning step that was applied to a model.

    Attributes:
        part: The pruning method with its settings.
        state: State of the method, from which the step can be repeated.
    """

    part: Part
    state: MethodState


@dataclass(frozen=True)
class TrainedStudent:
    """A trained student.

    Attributes:
        model: The student in evaluation mode.
        curve: Training curve, one row per epoch.
        start: Pruning steps between the teacher and the student, before the training.
        paused: State from which the training resumes; empty if it is complete.
    """

    model: nn.Module
    curve: list[dict[str, float]]
    start: tuple[PruningStep, ...] = ()
    paused: bytes = b""


@dataclass(frozen=True)
class TrialPipeline:
    """The steps of a trial on the task, splits and teacher of one run, which this process has loaded.

    Attributes:
        task: The learning problem.
        splits: The five splits of its data.
        teacher: The trained teacher.
        device: Device for training.
        reduce_range: Whether 8-bit weights use 7 bits, because of the target's kernels.
        thresholds: Threshold of each head that has another one than 0.5; None for one that each model gets.
        primary: Name of the score that thresholds are chosen for.
    """

    task: Task
    splits: Splits
    teacher: Teacher
    device: torch.device = CPU
    reduce_range: bool = False
    thresholds: Mapping[str, float | None] = field(default_factory=dict)
    primary: str = ""

    def choose_thresholds(self, subject: Subject) -> dict[str, float]:
        """Return the thresholds of a model by head; those that are chosen are the best ones on ``search_val``.

        The split steers the search, so that the selection split and the test split stay unseen.

        Args:
            subject: Outputs of the model on ``search_val``.
        """
        return choose_thresholds(self.thresholds, subject, self.primary)

    @cached_property
    def teacher_thresholds(self) -> Mapping[str, float]:
        """The thresholds of the teacher by head; empty without any."""
        if not self.thresholds:
            return {}
        split = self.splits.search_val
        outputs = self.teacher.logits["search_val"]
        return self.choose_thresholds(Subject(outputs, split.targets, heads=self.task.heads, labels=self.task.labels))

    def train(self, training: CompressionConfig, until: int | None = None, paused: bytes = b"") -> "TrainedStudent":
        """Build the student of a config, train it with distillation, and return it with its curve.

        Args:
            training: Config of the trial: student, distillation, fit and seed.
            until: Number of epochs after which the training pauses; ``None`` for all epochs.
            paused: State of the earlier segment of this training; empty for a new one.

        Raises:
            CompressionError: The student is a pruned teacher, and the teacher cannot be pruned so.
            TrialError: The training diverged, or ``paused`` is damaged.
            KnobError: A setting is outside its range.
        """
        # Initial weights are drawn from torch's global generator.
        torch.manual_seed(training.seed)
        state, histories = unpack_paused_state(paused) if paused else (b"", None)
        model, start = self.build_student(training, histories)
        config = fit_config(training.fit)
        # A pruned teacher has the teacher's weights already.
        if config.init == "teacher" and not paused and not start:
            inherit_weights(model, self.teacher.model, self.task.example())
        sub_networks = None
        if config.sandwich:
            sub_networks = SubNetworks(model, self.task.heads, self.build_context(training), config.sandwich)
        request = replace(self._build_request(training), until=until, paused=state, auxiliary_loss=sub_networks)
        result = fit(model, request)
        if not result.paused:
            return TrainedStudent(model, result.curve, start)
        packed = pack_paused_state(result.paused, [step.state.history for step in start])
        return TrainedStudent(model, result.curve, start, packed)

    def build_student(
        self, training: CompressionConfig, histories: Sequence[History] | None = None
    ) -> tuple[nn.Module, tuple[PruningStep, ...]]:
        """Return the student before its training, with the pruning steps that made it from the teacher.

        Args:
            training: Config of the trial.
            histories: Histories of earlier pruning steps to repeat; ``None`` to prune the teacher anew.

        Raises:
            CompressionError: The teacher cannot be pruned so.
        """
        model = self.task.build(training.student)
        parts = list_teacher_pruning(training.student)
        if histories is not None:
            return self._restore_student(model, parts, histories)
        start = []
        for part in parts:
            method = PRUNE.get(part.name)
            try:
                model, state = method.apply(model, method.config.of(part.values), self.build_context(training))
            except NothingRemovedError:
                # The student of such a small ratio is the whole teacher.
                state = MethodState(history={"layers": []})
            start.append(PruningStep(part, state))
        if start:
            # The batch-norm statistics of the teacher do not fit a model with fewer channels.
            self._reestimate_batch_norm(model)
        return model, tuple(start)

    def _restore_student(
        self, model: nn.Module, parts: Sequence[Part], histories: Sequence[History]
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
        """Return a pruned copy of a trained model, fine-tuned with the same distillation, and the state of the method.

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
            # The optimizer would move the removed weights away from zero.
            apply_masks = partial(state.apply_masks, pruned) if state.masks else None
            self.fine_tune(training, pruned, settings.recovery_epochs, settings.recovery_learning_rate, apply_masks)
        # After a recovery as well: the running averages still include the first steps after pruning.
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
        """Train a compressed model in place with the distillation of its trial.

        Args:
            training: Config of the trial.
            model: The compressed model.
            epochs: Number of epochs.
            learning_rate: Peak learning rate.
            after_step: Function that is called after each optimizer step.

        Raises:
            TrialError: The training diverged.
        """
        # Sub-networks are trained only with the whole student, not with compressed models.
        values = {**training.fit.values, "epochs": epochs, "learning_rate": learning_rate, "sandwich": 0.0}
        request = replace(
            self._build_request(training),
            optimizer=Part.of(training.fit.name, **values),
            # The order of the examples differs from that of the training before.
            seed=training.seed + 1,
            after_step=after_step,
        )
        fit(model, request)

    def _build_request(self, training: CompressionConfig) -> FitRequest:
        """Return the request for the training of a student, on the data and the device of the run."""
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
        shared: dict[Hashable, object] | None = None,
    ) -> tuple[nn.Module, MethodState | None]:
        """Return a quantized copy of a float model and the state of the method; without a method, the model itself.

        Args:
            model: The float model.
            training: Config of the trial.
            part: The quantization method with its settings; ``None`` for no quantization.
            shared: Intermediate results that quantizations of the same model share.

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
        """Return the data and functions for compression methods: calibration split, loss, fine-tuning, score."""
        batches = list(self.splits.calibration.batches(CALIBRATION_BATCH))

        def loss(output: object, targets: Mapping[str, Tensor]) -> Tensor:
            return self.task.loss(logits_by_head(output, self.task.heads), targets)

        return Context(
            self.task.example(),
            tuple(batch.inputs for batch in batches),
            tuple(batch.targets for batch in batches),
            loss,
            training.seed,
            partial(self.fine_tune, training),
            self.score,
            self.score_heads if len(self.task.heads) > 1 else None,
            self.reduce_range,
            # A task that is no `Supervised` has neither.
            ignore=getattr(self.task, "ignore", ()),
            float_layers=getattr(self.task, "float_layers", ()),
        )

    def score(self, model: nn.Module) -> float:
        """Return the task's first metric on ``search_val``, negated if smaller is better.

        Raises:
            TrialError: A logit is not finite.
        """
        metric = self.task.metrics[0]
        return self._measure_larger_is_better(model, [metric])[metric]

    def score_heads(self, model: nn.Module) -> dict[str, float]:
        """Return the task's first metric of each head on ``search_val``, negated if smaller is better.

        Raises:
            TrialError: A logit is not finite.
        """
        names = {f"{self.task.metrics[0]}{AT}{head}": head for head in self.task.heads}
        return {names[name]: value for name, value in self._measure_larger_is_better(model, list(names)).items()}

    def _measure_larger_is_better(self, model: nn.Module, names: Sequence[str]) -> dict[str, float]:
        # On the split that steers the search: the selection split and the test split stay unused.
        subject = self.build_subject(model, self.splits.search_val, self.teacher.logits["search_val"], names)
        decided = set_thresholds(subject, self.choose_thresholds(subject))
        sign = 1 if OBJECTIVES.get(self.task.metrics[0]).direction == "maximize" else -1
        return {name: sign * value for name, value in measure(decided, names).items()}

    def rebuild(self, config: CompressionConfig, checkpoint: bytes) -> RebuiltCandidate:
        """Return the model of a candidate, pruned and quantized again from its checkpoint.

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
        # The weights are those of the pruned structure, so they are loaded after it is restored.
        model.load_state_dict(weights)
        model.eval()
        quantized, state = self.quantize(model, config.training, config.quantize)
        # As it was scored: batch norms are part of the layers before them.
        quantized = fold_batch_norm(model, self.task.example()) if state is None else quantized
        return RebuiltCandidate(model, quantized, pruned, state, start)

    def build_subject(
        self,
        model: nn.Module,
        split: Split,
        teacher: Mapping[str, Tensor],
        scores: Sequence[str],
        float_model: nn.Module | None = None,
    ) -> Subject:
        """Return the data for scores: the model's outputs on a split, and those under the attacks that the scores name.

        Args:
            model: The model to score.
            split: The examples.
            teacher: The teacher's logits on them, ``{head: [N, C]}``.
            scores: Names of the scores.
            float_model: The model before its quantization, through which a quantized model is attacked besides.

        Raises:
            TrialError: A logit is not finite, or a score attacks inputs that the model does not have.
        """
        sources = [model] if float_model is None or float_model is model else [model, float_model]
        named = {score.partition(AT)[0] for score in scores}
        attacked = {
            attack: predict_under_attacks(model, self.task, split, attack, sources)
            for attack in ATTACKS
            if f"{attack}_accuracy" in named
        }
        push_item = getattr(self.task, "push_item", None)
        if push_item is not None and any(name.startswith(PUSHED) for name in named):
            attacked[PUSHED] = self.predict(model, push_item(split, self.splits.train))
        return Subject(
            self.predict(model, split),
            split.targets,
            teacher,
            attacked,
            heads=self.task.heads,
            labels=self.task.labels,
            groups=self.task.resampling_groups(split),
            teacher_heads=set_head_thresholds(self.task.heads, self.teacher_thresholds),
        )

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
    """Make results repeatable: torch and BLAS use one thread, and torch flushes denormals to zero inside the context.

    Results differ between numbers of threads, and the threads of several workers would compete for the same cores.
    """
    threads = torch.get_num_threads()
    is_flushing = bool(torch.tensor(torch.finfo(torch.float32).tiny).div(2) == 0)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        with single_threaded_blas():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(is_flushing)


@lru_cache(maxsize=2)
def load_pipeline(setup: Setup) -> TrialPipeline:
    """Return the pipeline of a run; task and teacher are loaded once per process.

    Raises:
        UsageError: The task does not take these options.
    """
    task, splits = load_task(setup)
    teacher = load_teacher(task, splits, setup.teacher)
    if not setup.teacher.is_trained:
        splits = remove_labels(splits, teacher.logits, task.heads)
    return TrialPipeline(
        task,
        splits,
        teacher,
        torch.device(setup.device),
        setup.precisions.reduce_range,
        dict(setup.thresholds),
        setup.primary or task.metrics[0],
    )


@lru_cache(maxsize=2)
def load_task(setup: Setup) -> tuple[Task, Splits]:
    """Return the task and the splits of a run, loaded once per process.

    Raises:
        UsageError: The task does not take these options.
    """
    task: Task = TASKS.get(setup.task.name)(**setup.task.values)
    splits = task.splits(setup.split_seed)
    if setup.is_distinct:
        splits = remove_duplicates(splits, compares_inputs=task.has_distinct_inputs).splits
    if setup.fold is not None:
        splits = make_fold(task, splits, *setup.fold, setup.split_seed)
    return task, splits


def list_stored_tensors(
    model: nn.Module, prune_state: MethodState | None, quantize_state: MethodState | None
) -> dict[str, Tensor]:
    """Return the tensors that an exported file contains, named ``model/...``, ``prune/...`` and ``quantize/...``.

    Args:
        model: The compressed model.
        prune_state: State of the pruning method; ``None`` if nothing was pruned.
        quantize_state: State of the quantization method; ``None`` if nothing was quantized.
    """
    # The restore of a method fills these tensors from its own state, so the model's copies are not stored.
    restored = list_restored_tensors(quantize_state) | list_restored_tensors(prune_state)
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items() if name not in restored}
    for stage, state in (("prune", prune_state), ("quantize", quantize_state)):
        tensors |= {f"{stage}/{name}": tensor for name, tensor in (state.tensors if state else {}).items()}
    return tensors


def list_restored_tensors(state: MethodState | None) -> set[str]:
    """Return the names in the ``state_dict`` that the ``restore`` of a method fills."""
    return set() if state is None else set(state.history.get("restored", []))


def build_cost_subject(
    model: nn.Module,
    layers: Mapping[str, LayerCost],
    quantize_state: MethodState | None = None,
    prune_state: MethodState | None = None,
    setup: Setup | None = None,
) -> Subject:
    """Return the data for costs: layers, computed bit-widths and the bytes that the tensors take in an exported file.

    Args:
        model: The compressed model.
        layers: Costs of its layers.
        quantize_state: State of the quantization method; ``None`` if nothing was quantized.
        prune_state: State of the pruning method; ``None`` if nothing was pruned.
        setup: Setup of the run, for the target's bit-widths and latency model.
    """
    # Without a setup, costs are those of the bits themselves.
    precisions = UNRESTRICTED if setup is None else setup.precisions
    latency = None if setup is None else setup.latency
    tensors = list_stored_tensors(model, prune_state, quantize_state)
    bits = {} if quantize_state is None else list_computed_bits(quantize_state, precisions)
    return Subject(layers=layers, bits=bits, stored_bytes=count_stored_bytes(tensors), latency=latency)


def list_computed_bits(state: MethodState, precisions: Precisions) -> dict[str, LayerBits]:
    """Return the bit-widths that a target computes each quantized layer with.

    Args:
        state: State of the quantization method.
        precisions: Bit-widths of the target; without a restriction, every layer is computed at its own widths.
    """
    if not precisions.restricts:
        return dict(state.bits)
    # Groups and lookup tables have no integer kernel: their weights are decoded to floating point.
    decoded = {entry["name"] for entry in state.history.get("layers", []) if entry["decoded"] is not None}
    computed: dict[str, LayerBits] = {}
    for name, bits in state.bits.items():
        widths = (32, 32) if name in decoded else precisions.computed_bits(bits.weight, bits.activation)
        computed[name] = LayerBits(*widths, stored=bits.weight)
    return computed


def digest_model(model: nn.Module, prune_state: MethodState | None, quantize_state: MethodState | None) -> str:
    """Return a digest of everything that an exported file contains; equal digests compute the same outputs."""
    digest = hashlib.sha256()
    if quantize_state is not None:
        digest.update(json.dumps(quantize_state.history, sort_keys=True, default=str).encode())
    for name, tensor in list_stored_tensors(model, prune_state, quantize_state).items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        # numpy has no bfloat16, so the bytes are read as integers.
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
