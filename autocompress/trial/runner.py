"""The recipe of one trial: build the student, train it with distillation, compress it, measure the candidates.

One training yields many candidates: its checkpoint is pruned to each ratio, each pruned model is fine-tuned with the
same distillation, and each of these is quantized to each pair of bit-widths. Costs can be estimated
before the training.
"""

import copy
import logging
import signal
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.method import LayerBits, MethodState, match_layers
from autocompress.core.records import (
    THRESHOLDS,
    BaseCheckpoint,
    Candidate,
    CompressionRecipe,
    Job,
    Role,
    State,
    TrialResult,
)
from autocompress.core.registry import PRUNE, QUANTIZE, WorkerPlugins
from autocompress.core.task import Task
from autocompress.errors import AutocompressError, TrialError, UsageError
from autocompress.measure import layer_costs, measure
from autocompress.measure.cost import LayerCost, list_float_layers
from autocompress.measure.example_scores import pack_examples
from autocompress.measure.heads import describe_decisions, pack_correct, resample_score
from autocompress.measure.objectives import Subject
from autocompress.measure.thresholds import set_thresholds
from autocompress.models.output_teacher import OutputTeacher
from autocompress.quantize import convert_layers, fold_batch_norm
from autocompress.quantize.conversion import is_convertible
from autocompress.training.device import require_device
from autocompress.trial.pipeline import (
    History,
    Setup,
    TrialPipeline,
    build_cost_subject,
    digest_model,
    list_operations,
    load_pipeline,
    load_task,
    reproducible_torch,
    write_checkpoint,
)
from autocompress.trial.teacher import SerializedTeacher, teacher_name

logger = logging.getLogger(__name__)

VALIDATION = ("search_val", "select_val")
# Trials that confirm a front read the test split, because the front is final before they start.
CONFIRMED = (*VALIDATION, "test")


@dataclass(frozen=True)
class TrialRunner:
    """The function that a backend calls in its workers: ``prepare`` once, then the runner itself for each job.

    Attributes:
        setup: The data that the trials of the run share.
        plugins: The plugins that the run uses.
        serialized_teacher: The teacher, for workers on machines that do not share this cache.
    """

    setup: Setup
    plugins: WorkerPlugins = field(default_factory=WorkerPlugins)
    serialized_teacher: SerializedTeacher | None = None

    def prepare(self) -> None:
        """Prepare this process: leave Ctrl-C to the driver, and load plugins, task and teacher.

        Raises:
            UsageError: The setup needs a GPU that this machine does not have, or the data differ from the driver's.
        """
        if threading.current_thread() is threading.main_thread():
            # Ctrl-C reaches the whole process group; only the driver answers it.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        require_device(self.setup.device)
        self.plugins.load()
        with reproducible_torch():
            if self.serialized_teacher is not None:
                self._install_teacher(self.serialized_teacher)
            load_pipeline(self.setup)

    def _install_teacher(self, teacher: SerializedTeacher) -> None:
        """Write the driver's teacher into this machine's cache and check that it belongs to this machine's data.

        Raises:
            UsageError: The data on this machine differ from the driver's.
        """
        teacher.install()
        name = teacher_name(*load_task(self.setup), self.setup.teacher)
        if name != teacher.name:
            raise UsageError(
                f"the data of the task '{self.setup.task.name}' differ from the driver's; the same files must lie at "
                "the same path on every node"
            )

    def __call__(self, job: Job) -> TrialResult:
        """Run one job and return its result; an error becomes a failed result with its reason."""
        started = time.perf_counter()
        try:
            with reproducible_torch():
                result = run_trial(job, self.setup)
        except AutocompressError as error:
            return TrialResult(job.number, State.FAILED, reason=str(error), seconds=time.perf_counter() - started)
        except (
            Exception
        ) as error:  # A user's task may raise anything; the search continues and the report names the reason.
            reason = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
            return TrialResult(job.number, State.FAILED, reason=reason, seconds=time.perf_counter() - started)
        return result


def is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out; torch raises an exception of its own for GPU memory, RuntimeError for the CPU."""
    is_cpu_memory = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return is_cpu_memory or isinstance(error, MemoryError | torch.OutOfMemoryError)


def retrain_checkpoint(candidate: Candidate, setup: Setup) -> bytes:
    """Return the checkpoint of a candidate from another run of its trial, for one whose file was deleted.

    Raises:
        TrialError: The trial fails.
    """
    recipe = CompressionRecipe(candidate.config.prune, candidate.config.quantize)
    result = run_trial(Job(candidate.trial, candidate.config.training, (recipe,)), setup)
    # One recipe leaves one checkpoint.
    (content,) = result.checkpoints.values()
    return content


def run_trial(job: Job, setup: Setup) -> TrialResult:
    """Train a student once, then compress and measure every candidate of a job.

    A candidate that fails does not affect the other ones; the result names its reason.

    Raises:
        TrialError: The training diverged.
    """
    started = time.perf_counter()
    pipeline = load_pipeline(setup)
    trained = _load_base(pipeline, job, job.base) if job.base is not None else _train_student(pipeline, job)
    candidates: list[Candidate] = []
    reasons: list[str] = []
    checkpoints: dict[str, bytes] = {}
    for index, (prune, recipes) in enumerate(_group_by_pruning(job.recipes)):
        try:
            pruned = trained.prune_model(pipeline, job, prune)
            name = pruned.checkpoint or f"t{job.number}p{index}"
            if trained.complete and not pruned.checkpoint:
                checkpoints[name] = write_checkpoint(pruned.model, pruned.history, trained.histories)
            source = _fold_model(pipeline, trained, pruned, name)
        except AutocompressError as error:
            reasons.append(f"{prune.name if prune else 'without pruning'}: {error}")
            continue
        seen: set[str] = set()
        for number, recipe in recipes:
            identity = f"t{job.number}{'' if trained.complete else f'r{job.rung}'}c{number}"
            try:
                model, quantized = pipeline.quantize(source.model, job.training, recipe.quantize, source.shared)
                # Settings that differ in name only give one candidate: a group as long as the channel, for example.
                digest = digest_model(model, source.prune_state, quantized)
                if digest in seen:
                    logger.debug("%s equals an earlier candidate of this trial", identity)
                    continue
                seen.add(digest)
                candidates.append(_measure_candidate(pipeline, setup, job, identity, recipe, source, model, quantized))
            except AutocompressError as error:
                reasons.append(f"{identity}: {error}")
    for reason in reasons:
        logger.info("Trial %d leaves out a candidate: %s", job.number, reason)
    state = State.FAILED if not candidates else State.COMPLETE if trained.complete else State.PAUSED
    return TrialResult(
        job.number,
        state,
        # In the order of the job, which grouping by pruning has changed.
        tuple(sorted(candidates, key=lambda candidate: int(candidate.id.rpartition("c")[2]))),
        time.perf_counter() - started,
        # Several candidates may fail for the same reason.
        "; ".join(dict.fromkeys(reasons)),
        tuple(trained.curve),
        checkpoints,
        trained.paused if state is State.PAUSED else b"",
    )


@dataclass(frozen=True)
class PrunedModel:
    """One pruned model, the source of its quantized candidates.

    Attributes:
        model: The pruned float model.
        history: History of the pruning; ``None`` if the model is not pruned.
        report: Report of the pruning method for the candidate's details.
        checkpoint: Name of the stored weights; empty if they are not stored yet.
    """

    model: nn.Module
    history: History | None = None
    report: Mapping[str, object] = field(default_factory=dict)
    checkpoint: str = ""


@dataclass(frozen=True)
class TrainedSource:
    """The trained model that the candidates of one job are made from.

    It comes from a training, from a segment of a training, or from the checkpoint of an earlier trial.

    Attributes:
        model: The model in evaluation mode.
        curve: Training curve, one row per epoch.
        epochs: Number of epochs of training so far.
        complete: Whether the training is complete.
        paused: State from which the training resumes.
        histories: Histories of the pruning steps before the training.
        report: Reports of those steps.
        base: The earlier checkpoint as a pruned model; ``None`` after a training.
        prune: The pruning method of the earlier checkpoint.
    """

    model: nn.Module
    curve: Sequence[Mapping[str, float]]
    epochs: int
    complete: bool = True
    paused: bytes = b""
    histories: tuple[History, ...] = ()
    report: Mapping[str, object] = field(default_factory=dict)
    base: PrunedModel | None = None
    prune: Part | None = None

    def prune_model(self, pipeline: TrialPipeline, job: Job, part: Part | None) -> PrunedModel:
        """Return the model pruned by ``part``, or the earlier checkpoint if it was pruned with these settings.

        Raises:
            TrialError: The earlier checkpoint was pruned with other settings.
        """
        if self.base is not None and part == self.prune:
            return self.base
        if self.prune is not None:
            raise TrialError("a pruned checkpoint cannot be pruned again")
        model, state = pipeline.prune(self.model, job.training, part)
        return PrunedModel(model) if state is None else PrunedModel(model, state.history, {"prune": dict(state.report)})


def _train_student(pipeline: TrialPipeline, job: Job) -> TrainedSource:
    trained = pipeline.train(job.training, job.until, job.paused)
    reports = {step.part.name: dict(step.state.report) for step in trained.start}
    return TrainedSource(
        trained.model,
        trained.curve,
        len(trained.curve),
        not trained.paused,
        trained.paused,
        tuple(step.state.history for step in trained.start),
        {"start": reports} if reports else {},
    )


def _load_base(pipeline: TrialPipeline, job: Job, base: BaseCheckpoint) -> TrainedSource:
    rebuilt = pipeline.rebuild(replace(job.training, prune=base.prune, quantize=None), base.content)
    return TrainedSource(
        rebuilt.float_model,
        (),
        base.epochs,
        histories=tuple(step.state.history for step in rebuilt.start),
        base=PrunedModel(rebuilt.float_model, checkpoint=base.checkpoint),
        prune=base.prune,
    )


@dataclass(frozen=True)
class SplitScores:
    """Scores of one model on one split.

    Attributes:
        scores: Metric name to value.
        examples: Scores of its examples in the primary score, packed; empty if they are not stored.
    """

    scores: Mapping[str, float]
    examples: str = ""


def _score_split(setup: Setup, subject: Subject, thresholds: Mapping[str, float]) -> SplitScores:
    decided = set_thresholds(subject, thresholds)
    examples = pack_examples(decided, setup.primary) if setup.primary else ""
    return SplitScores(measure(decided, setup.scores), examples)


def score_test_split(
    candidates: Mapping[str, tuple[Candidate, bytes]], setup: Setup
) -> tuple[dict[str, SplitScores], SplitScores]:
    """Return the scores of candidates on the test split by id, and those of the teacher, at their thresholds.

    Args:
        candidates: Id to the candidate and the content of its checkpoint.
        setup: The setup of the run.

    Raises:
        ArtifactError: A checkpoint is damaged.
    """
    pipeline = load_pipeline(setup)
    teacher, test = pipeline.teacher.model, pipeline.splits.test
    logits = pipeline.predict(teacher, test)
    scores = {}
    for identity, (candidate, content) in candidates.items():
        rebuilt = pipeline.rebuild(candidate.config, content)
        float_model = None if rebuilt.quantize is None else rebuilt.float_model
        subject = pipeline.build_subject(rebuilt.model, test, logits, setup.scores, float_model)
        scores[identity] = _score_split(setup, subject, candidate.thresholds)
    subject = pipeline.build_subject(teacher, test, logits, setup.scores)
    return scores, _score_split(setup, subject, pipeline.teacher_thresholds)


@lru_cache(maxsize=6)
def _teacher_logits(setup: Setup, split: str) -> Mapping[str, Tensor]:
    pipeline = load_pipeline(setup)
    cached = pipeline.teacher.logits.get(split)
    if cached is not None:
        return cached
    # The teacher's cache has no logits of the test split.
    return pipeline.predict(pipeline.teacher.model, getattr(pipeline.splits, split))


def teacher_record(setup: Setup) -> dict[str, dict[str, Any]]:
    """Return what is stored of the teacher.

    The keys are ``scores`` and ``examples`` on the validation splits, ``costs``, and ``thresholds``.
    """
    pipeline = load_pipeline(setup)
    teacher, example = pipeline.teacher, pipeline.task.example()
    measured = {}
    for name in VALIDATION:
        split = getattr(pipeline.splits, name)
        subject = pipeline.build_subject(teacher.model, split, teacher.logits[name], setup.scores)
        measured[name] = _score_split(setup, subject, pipeline.teacher_thresholds)
    if isinstance(teacher.model, OutputTeacher):
        # What it computes is unknown. The bytes of a file are those that a device would store.
        costs = {} if teacher.model.file_bytes is None else {"bytes": float(teacher.model.file_bytes)}
    else:
        folded = fold_batch_norm(teacher.model, example)
        costs = measure(build_cost_subject(folded, layer_costs(folded, example), setup=setup), setup.costs)
    return {
        "scores": {name: {**split.scores} for name, split in measured.items()},
        "examples": {name: split.examples for name, split in measured.items() if split.examples},
        "costs": costs,
        "thresholds": dict(pipeline.teacher_thresholds),
    }


def cpu_capability() -> str:
    """Return the instruction set of torch on this machine, such as ``AVX512``; results may differ between them."""
    return torch.backends.cpu.get_cpu_capability()


def _group_by_pruning(
    recipes: tuple[CompressionRecipe, ...],
) -> list[tuple[Part | None, list[tuple[int, CompressionRecipe]]]]:
    """Return the candidates of a job, each with its index, grouped by their pruning."""
    groups: dict[Part | None, list[tuple[int, CompressionRecipe]]] = {}
    for number, recipe in enumerate(recipes):
        groups.setdefault(recipe.prune, []).append((number, recipe))
    return list(groups.items())


@dataclass(frozen=True)
class QuantizationSource:
    """The float model that candidates are quantized from.

    Attributes:
        model: The float model with folded batch norms.
        layers: Costs of each layer.
        report: Reports of the steps so far.
        checkpoint: Name of the stored weights; empty if they are not stored.
        epochs: Number of epochs of training so far.
        complete: Whether the training is complete.
        prune_state: State of the pruning method as an exported file holds it; ``None`` if the model is not pruned.
        shared: Intermediate results that the quantizations of this model share.
    """

    model: nn.Module
    layers: Mapping[str, LayerCost]
    report: Mapping[str, object]
    checkpoint: str
    epochs: int
    complete: bool
    prune_state: MethodState | None = None
    shared: dict[Hashable, object] = field(default_factory=dict)


def _fold_model(pipeline: TrialPipeline, trained: TrainedSource, pruned: PrunedModel, name: str) -> QuantizationSource:
    """Return the source of quantized candidates; ``name`` is that of the checkpoint of the pruned model."""
    folded = fold_batch_norm(pruned.model, pipeline.task.example())
    return QuantizationSource(
        folded,
        count_layers(folded, pipeline.task),
        {**trained.report, **pruned.report},
        # The weights of a paused trial are not kept.
        name if trained.complete else "",
        trained.epochs,
        trained.complete,
        None if pruned.history is None else MethodState(history=pruned.history),
    )


def _measure_candidate(
    pipeline: TrialPipeline,
    setup: Setup,
    job: Job,
    identity: str,
    recipe: CompressionRecipe,
    source: QuantizationSource,
    model: nn.Module,
    state: MethodState | None,
) -> Candidate:
    """Return the candidate with scores and costs of a quantized model and the state of its quantization."""
    details: dict[str, object] = dict(source.report)
    if state is not None:
        details.update(state.report)
        if any(bits != LayerBits() for bits in state.bits.values()):
            details["in_float"] = list_float_layers(model, source.layers, state.bits)
    config = replace(job.training, prune=recipe.prune, quantize=recipe.quantize)
    details["order"] = list(list_operations(config))
    scores, measured = _score_candidate(pipeline, setup, job, source, model)
    details |= measured
    return Candidate(
        identity,
        job.number,
        config,
        source.epochs,
        scores,
        measure(build_cost_subject(model, source.layers, state, source.prune_state, setup), setup.costs),
        details,
        source.checkpoint,
        source.complete,
    )


def _score_candidate(
    pipeline: TrialPipeline, setup: Setup, job: Job, source: QuantizationSource, model: nn.Module
) -> tuple[dict[str, dict[str, float]], dict[str, object]]:
    """Return the scores of a model on each split, and the entries of its details that were measured there."""
    scores: dict[str, dict[str, float]] = {}
    details: dict[str, object] = {}
    replicates: dict[str, list[float]] = {}
    examples: dict[str, str] = {}
    thresholds: dict[str, float] = {}
    # The first split is the one that thresholds are chosen on.
    for split_name in CONFIRMED if job.role is Role.CONFIRM else VALIDATION:
        split = getattr(pipeline.splits, split_name)
        teacher = _teacher_logits(setup, split_name)
        subject = pipeline.build_subject(model, split, teacher, setup.scores, source.model)
        if split_name == "search_val":
            thresholds = pipeline.choose_thresholds(subject)
        subject = set_thresholds(subject, thresholds)
        scores[split_name] = measure(subject, setup.scores)
        if job.resampled and split_name != "search_val":
            replicates[split_name] = resample_score(subject, job.resampled)
        if split_name == "select_val":
            details |= {**describe_decisions(subject), **pack_correct(subject)}
        # Only complete candidates are selected, so only theirs are compared with the teacher's.
        if setup.primary and source.complete:
            examples[split_name] = pack_examples(subject, setup.primary)
    optional = {"replicates": replicates, "examples": examples, THRESHOLDS: thresholds}
    return scores, {**details, **{name: value for name, value in optional.items() if value}}


def count_layers(model: nn.Module, task: Task) -> dict[str, LayerCost]:
    """Return the costs of the layers of a folded model, under the names that they have once they are quantized."""
    if any(is_convertible(module) for module in model.modules()):
        stay = match_layers(model, getattr(task, "float_layers", ()))
        model = convert_layers(copy.deepcopy(model), stay)
    return layer_costs(model, task.example())


BITS = ("weight_bits", "activation_bits")
# Other settings that change what a file stores. A lookup table takes more than an even grid: costs are a lower bound.
STORED = ("weight_scheme", "granularity", "group_size")


def estimate_costs(
    setup: Setup, training: CompressionConfig, recipes: Sequence[CompressionRecipe]
) -> list[Mapping[str, float]]:
    """Return the costs of compressed variants of the untrained student, in any order.

    Variants that cannot be compressed are left out. Of the variants with the same pruning, only the quantized one with
    the fewest bits is estimated, besides the float one: a limit on a cost can be met if the cheapest variant meets it.
    If channels are selected by their weights across layers, training may select others; the estimates are for the
    untrained weights.

    Args:
        setup: The setup of the run.
        training: Config of the trial.
        recipes: Compression settings of the variants.
    """
    with reproducible_torch():
        pipeline = load_pipeline(setup)
        example = pipeline.task.example()
        torch.manual_seed(training.seed)
        model, _ = pipeline.build_student(training)
        # Without fine-tuning and scores, methods do not train or evaluate between their steps.
        context = replace(pipeline.build_context(training), fine_tune=None, score=None)
        estimates: list[Mapping[str, float]] = []
        for part in dict.fromkeys(recipe.prune for recipe in recipes):
            quantizations = [recipe.quantize for recipe in recipes if recipe.prune == part]
            try:
                pruned, prune_state = model, None
                if part is not None:
                    method = PRUNE.get(part.name)
                    pruned, prune_state = method.apply(model, method.config.of(part.values), context)
                folded = fold_batch_norm(pruned, example)
                layers = count_layers(folded, pipeline.task)
                for quantization in _select_fewest_bits(quantizations):
                    quantized, quantize_state = pipeline.quantize(folded, training, quantization)
                    subject = build_cost_subject(quantized, layers, quantize_state, prune_state, setup)
                    estimates.append(measure(subject, setup.costs))
            except AutocompressError as error:
                # The trial itself reports the error.
                logger.debug("The costs of %s cannot be estimated: %s", part, error)
        return estimates


def _select_fewest_bits(parts: Sequence[Part | None]) -> list[Part | None]:
    """Return the quantization with the fewest bits, and ``None``, no quantization, if it is among ``parts``."""
    bits = {part: _multiply_bits(part) for part in parts if part is not None and _multiply_bits(part) > 0}
    cheapest: list[Part | None] = []
    if bits:
        cheapest = [_to_post_training(min(bits, key=lambda part: (bits[part], _scales_per_weight(part))))]
    return [*cheapest, *([None] if None in parts else [])]


def _multiply_bits(part: Part) -> float:
    settings = QUANTIZE.get(part.name).config.of(part.values).to_dict()
    weight_bits, activation_bits = (settings.get(name, 0) for name in BITS)
    # Bits are numbers; other hyperparameters may be texts or None.
    return float(weight_bits or 0) * float(activation_bits or 0)


def _scales_per_weight(part: Part) -> float:
    """Return a number that grows with the number of scales which a method stores."""
    settings = QUANTIZE.get(part.name).config.of(part.values).to_dict()
    if settings.get("granularity") == "per_group":
        return 1 / float(settings.get("group_size") or 1)
    return 0.0 if settings.get("granularity") == "per_tensor" else 2**-20


def _to_post_training(part: Part) -> Part:
    """Return post-training quantization with the bits and the scales of another method, which determine the costs."""
    settings = QUANTIZE.get(part.name).config.of(part.values).to_dict()
    shared = {name: settings[name] for name in (*BITS, *STORED) if name in settings}
    return Part.of("post_training", **shared)
