"""Adaptation of a trained candidate to recent data, in stages that are compared on data that none of them has seen.

    unchanged              the candidate as it is
    re-estimated           batch-norm statistics and quantization ranges from the recent data (Schneider et al. 2020,
                           arXiv:2006.16971); no weight is trained
    fine-tuned             the same after training on the recent data, under distillation from the teacher
    quantization trained   the fine-tuned model, quantized by the candidate's own method, if that method trains; the
                           stages before have post-training quantization with the same bits

With labels the stage with the best score is kept. Without labels the one that agrees most with the teacher is kept.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.heads import as_head
from autocompress.core.registry import OBJECTIVES, QUANTIZE
from autocompress.core.task import Split, Splits, Task
from autocompress.errors import CompressionError, UsageError
from autocompress.measure import measure
from autocompress.prune import masks_from_zeros, reestimate_batch_norm
from autocompress.quantize import fold_batch_norm
from autocompress.quantize.folding import copy_model
from autocompress.training.optimizers import fit_config
from autocompress.trial.pipeline import BATCH_NORM_BATCH, BATCH_NORM_BATCHES, RebuiltCandidate, TrialPipeline
from autocompress.trial.recent_data import RecentData, RecentSplits, split_recent_data
from autocompress.trial.teacher import Teacher, compute_teacher_logits

UNCHANGED, REESTIMATED, FINE_TUNED = "unchanged", "re-estimated", "fine-tuned"
QUANTIZATION_TRAINED = "quantization trained"

# Share of the candidate's peak learning rate for fine-tuning, unless a rate is given: its weights are trained already.
LEARNING_RATE_SHARE = 0.5
# Temperature and weight of the teacher; without labels its weight is 1.
TEMPERATURE, ALPHA = 2.0, 0.5
LABELLED = (Part.of("soft_target", alpha=ALPHA, temperature=TEMPERATURE),)
LABEL_FREE = (Part.of("soft_target", alpha=1.0, temperature=TEMPERATURE),)
# Quantization ranges need no more examples than this.
MAX_CALIBRATION = 1000
# Batches on which the seconds of an epoch are measured, and the share of the time that planned epochs may take.
TIMED_BATCHES, PLANNED_SHARE = 4, 0.9
# Share of the time for a quantization method that trains, after the fine-tuning.
QUANTIZATION_SHARE = 0.5
# Settings of a quantization method that post-training quantization has, too.
SHARED_SETTINGS = ("weight_scheme", "granularity", "group_size", "activation_scheme", "observer", "percentile")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdaptRequest:
    """Everything that determines an adaptation.

    Attributes:
        task: The learning problem.
        config: Config of the candidate.
        candidate: The candidate.
        recent: The recent data.
        teacher: The teacher; ``None`` if there is none. It is not changed.
        minutes: Time limit of the training in minutes; 0 only estimates statistics and ranges again.
        learning_rate: Peak learning rate; ``None`` for a share of the candidate's.
        seed: Seed of the parts of the recent data and of the batches.
        heads: Heads with the thresholds of the candidate; those of the task by default.
        teacher_heads: Heads with the thresholds of the teacher; those of the task by default.
    """

    task: Task
    config: CompressionConfig
    candidate: RebuiltCandidate
    recent: RecentData
    teacher: nn.Module | None = None
    minutes: float = 1.0
    learning_rate: float | None = None
    seed: int = 0
    heads: Mapping[str, int] | None = None
    teacher_heads: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.minutes < float("inf"):
            raise UsageError(f"minutes is {self.minutes}; give a time of at least 0")
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
            raise UsageError(f"learning_rate is {self.learning_rate}; give a number above 0")


@dataclass(frozen=True)
class Stage:
    """A candidate after one stage of an adaptation.

    Attributes:
        name: Name of the stage.
        candidate: The candidate.
        choice: Score on the examples that stages are compared on.
        held_out: Score on the held-out examples.
    """

    name: str
    candidate: RebuiltCandidate
    choice: float
    held_out: float


@dataclass(frozen=True)
class AdaptedCandidate:
    """The result of an adaptation.

    Attributes:
        stages: Every stage, in order.
        selected: The stage that is kept.
        pipeline: Task, teacher and parts of the recent data; ``test`` holds the held-out examples.
        metric: Name of the score: the task's first, or ``agreement`` with the teacher without labels.
        teacher: How the teacher was used, in words.
        epochs: Epochs of fine-tuning of the selected stage.
        seconds: Seconds of the whole adaptation.
    """

    stages: tuple[Stage, ...]
    selected: Stage
    pipeline: TrialPipeline
    metric: str
    teacher: str
    epochs: int
    seconds: float

    @property
    def is_changed(self) -> bool:
        """Whether a stage beyond the unchanged candidate was selected."""
        return self.selected.name != UNCHANGED

    def held_out_scores(self) -> dict[str, float]:
        """Return the held-out score of each stage by its name."""
        return {stage.name: stage.held_out for stage in self.stages}


def adapt_candidate(request: AdaptRequest) -> AdaptedCandidate:
    """Return a candidate adapted to recent data.

    Raises:
        CompressionError: The quantization method cannot compress the model on the recent data.
        TrialError: The training diverged.
        UsageError: The teacher cannot be run on the recent data.
    """
    started = time.perf_counter()
    parts = split_recent_data(request.recent, request.seed)
    float_model = copy_model(request.candidate.float_model)
    _reestimate_statistics(float_model, parts.train)
    session = _Session(request, parts, float_model)
    deadline = started + 60 * request.minutes
    post_training = _find_post_training(request)
    quantize = post_training or request.config.quantize
    pipeline = session.limit_time(deadline)
    stages = [
        session.measure_stage(UNCHANGED, request.candidate),
        session.measure_stage(REESTIMATED, session.compress(pipeline, quantize, float_model)),
    ]
    epochs = 0
    if session.has_fine_tuning and time.perf_counter() < deadline:
        seconds = 60 * request.minutes * (1 if post_training is None else 1 - QUANTIZATION_SHARE)
        tuned, epochs = _fine_tune(session.limit_time(started + seconds), request, session.training, float_model)
        stages.append(session.measure_stage(FINE_TUNED, session.compress(pipeline, quantize, tuned)))
        if post_training is not None:
            stages += session.train_quantization(pipeline, tuned)
    selected = session.select_stage(stages)
    seconds = time.perf_counter() - started
    logger.info(
        "adapted in %.1f s (%d epochs): %s; kept: %s",
        seconds,
        epochs,
        ", ".join(f"{stage.name} {session.metric} {stage.held_out:.4f}" for stage in stages),
        selected.name,
    )
    # Epochs of a stage that is not kept have no part in the result.
    is_trained = selected.name not in (UNCHANGED, REESTIMATED)
    epochs, description = (epochs, session.description) if is_trained else (0, "no weight was trained")
    return AdaptedCandidate(tuple(stages), selected, session.pipeline, session.metric, description, epochs, seconds)


class _TimeIsUpError(Exception):
    """Ends a training at its time limit."""


@dataclass(frozen=True)
class _TimedPipeline(TrialPipeline):
    """A pipeline whose training ends at a point in time, in seconds of :func:`time.perf_counter`."""

    deadline: float = float("inf")
    # Counted over all trainings of this pipeline, so that a caller sees how far a training came.
    steps: list[int] = field(default_factory=lambda: [0])

    def fine_tune(
        self,
        training: CompressionConfig,
        model: nn.Module,
        epochs: int,
        learning_rate: float,
        after_step: Callable[[], None] | None = None,
    ) -> None:
        """Train a model in place as :meth:`TrialPipeline.fine_tune` does, up to the time limit."""

        def check_time() -> None:
            self.steps[0] += 1
            if after_step is not None:
                after_step()
            if time.perf_counter() >= self.deadline:
                raise _TimeIsUpError

        try:
            super().fine_tune(training, model, epochs, learning_rate, check_time)
        except _TimeIsUpError:
            # The weights of the last step stay. Whether they are better than before is measured afterwards.
            logger.info("the training ended at its time limit after %d steps", self.steps[0])
            model.eval()


class _Session:
    """Teacher, pseudo-labels and scores of one adaptation.

    Args:
        request: The adaptation.
        parts: The parts of the recent data.
        float_model: The candidate's float model with re-estimated statistics.
    """

    def __init__(self, request: AdaptRequest, parts: RecentSplits, float_model: nn.Module) -> None:
        self._request = request
        self._is_labelled = request.recent.is_labelled
        self.metric = request.task.metrics[0] if self._is_labelled else "agreement"
        self._sign = 1 if OBJECTIVES.get(self.metric).direction == "maximize" else -1
        self._reference_logits: dict[int, Mapping[str, Tensor]] = {}
        self._heads = request.heads or request.task.heads
        teacher_heads = request.teacher_heads or request.task.heads
        self._reference_heads = self._heads if request.teacher is None else teacher_heads
        teacher = None if request.teacher is None else self._select_teacher(request.teacher, parts)
        # Without a teacher, predictions are compared with those of the unchanged candidate.
        reference = teacher or request.candidate.model
        if not self._is_labelled:
            parts = RecentSplits(*(self._label_split(reference, part) for part in _list_parts(parts)))
        self._parts = parts
        for part in (parts.choice, parts.held_out):
            self._reference_logits[id(part)] = self._build_predictor().predict(reference, part)
        terms, self.description = self._select_terms(teacher, float_model)
        self.has_fine_tuning = bool(terms)
        # Quantization methods that train need a term in any case.
        self.training = replace(request.config.training, distill=terms or LABEL_FREE, seed=request.seed)
        self.pipeline = self._build_pipeline(reference)

    def limit_time(self, deadline: float) -> _TimedPipeline:
        """Return the pipeline with a time limit."""
        pipeline = self.pipeline
        return _TimedPipeline(pipeline.task, pipeline.splits, pipeline.teacher, deadline=deadline)

    def measure_stage(self, name: str, candidate: RebuiltCandidate) -> Stage:
        """Return the stage of a candidate with its scores."""
        parts = self._parts.choice, self._parts.held_out
        scores = [self._score(candidate.model, part, self._heads) for part in parts]
        return Stage(name, candidate, *scores)

    def select_stage(self, stages: list[Stage]) -> Stage:
        """Return the best stage on the examples for the choice, by the agreement with the teacher without labels.

        Of equal stages the latest counts. With labels none is kept that is not better than the unchanged candidate.
        """
        unchanged, *later = stages
        best = max(reversed(later), key=lambda stage: self._sign * stage.choice)
        # Without labels and teacher, the unchanged candidate is what predictions are compared with.
        is_better = self._sign * best.choice > self._sign * unchanged.choice
        return best if is_better or not self._is_labelled else unchanged

    def compress(self, pipeline: TrialPipeline, part: Part | None, float_model: nn.Module) -> RebuiltCandidate:
        """Return the candidate of a float model, quantized on the recent data by a method; None for no quantization."""
        candidate = self._request.candidate
        model, state = pipeline.quantize(float_model, self.training, part)
        model = fold_batch_norm(float_model, self._request.task.example()) if state is None else model
        return RebuiltCandidate(float_model.eval(), model, candidate.prune, state, candidate.start)

    def train_quantization(self, pipeline: TrialPipeline, model: nn.Module) -> list[Stage]:
        """Return the stage of a model quantized by the candidate's own method; none if the method refuses the model."""
        try:
            candidate = self.compress(pipeline, self._request.config.quantize, model)
        except CompressionError as error:
            logger.info("the quantization was not trained: %s", error)
            return []
        return [self.measure_stage(QUANTIZATION_TRAINED, candidate)]

    def _build_predictor(self) -> TrialPipeline:
        """Return a pipeline for predictions and scores, which reads neither splits nor teacher."""
        empty = self._request.recent.examples
        splits = Splits(empty, empty, empty, empty, empty)
        return TrialPipeline(self._request.task, splits, Teacher(nn.Identity(), {}, Path()))

    def _score(self, model: nn.Module, part: Split, heads: Mapping[str, int]) -> float:
        """Return the score of a model at the thresholds of its heads."""
        logits = self._reference_logits.get(id(part), {})
        subject = self._build_predictor().build_subject(model, part, logits, [self.metric])
        subject = replace(subject, heads=heads, teacher_heads=self._reference_heads)
        return measure(subject, [self.metric])[self.metric]

    def _label_split(self, model: nn.Module, part: Split) -> Split:
        """Return a split with the predictions of the reference model as targets."""
        outputs, heads = self._build_predictor().predict(model, part), self._reference_heads
        return Split(part.inputs, {name: as_head(heads[name]).predict(values) for name, values in outputs.items()})

    def _select_teacher(self, teacher: nn.Module, parts: RecentSplits) -> nn.Module:
        """Return the teacher with its own or with re-estimated statistics: the better one, or the latter unlabelled."""
        _check_teacher(teacher, self._request.task, parts.choice)
        reestimated = copy_model(teacher).eval()
        _reestimate_statistics(reestimated, parts.train)
        if not self._is_labelled:
            return reestimated

        def score(model: nn.Module) -> float:
            return self._sign * self._score(model, parts.choice, self._reference_heads)

        return max((teacher, reestimated), key=score)

    def _select_terms(self, teacher: nn.Module | None, float_model: nn.Module) -> tuple[tuple[Part, ...], str]:
        """Return the distillation terms of the fine-tuning, empty for none, and their description."""
        if not self._is_labelled:
            if teacher is None:
                return (), ""
            return LABEL_FREE, "the teacher's outputs replace the labels"
        if teacher is None:
            return (Part("none"),), "no teacher: trained on the labels"
        models = ((teacher, self._reference_heads), (float_model, self._heads))
        scores = [self._sign * self._score(model, self._parts.choice, heads) for model, heads in models]
        if scores[0] <= scores[1]:
            # A teacher that is no better on the recent data teaches what has changed.
            return (Part("none"),), "the teacher is no better on the recent data: trained on the labels"
        return LABELLED, f"the teacher's outputs have the weight {ALPHA:g}, the labels {1 - ALPHA:g}"

    def _build_pipeline(self, reference: nn.Module) -> TrialPipeline:
        """Return the pipeline whose splits are the parts of the recent data."""
        parts, task = self._parts, self._request.task
        splits = Splits(
            train=parts.train,
            calibration=parts.train.take(slice(0, MAX_CALIBRATION)),
            search_val=parts.choice,
            select_val=parts.choice,
            test=parts.held_out,
        )
        return TrialPipeline(task, splits, Teacher(reference, compute_teacher_logits(reference, task, splits), Path()))


def _list_parts(parts: RecentSplits) -> tuple[Split, Split, Split]:
    return parts.train, parts.choice, parts.held_out


def _check_teacher(teacher: nn.Module, task: Task, part: Split) -> None:
    """Raise an error if a given teacher does not take the model's inputs or lacks a head."""
    sample = part.take(slice(0, 2))
    try:
        with torch.no_grad():
            output = teacher.eval()(*sample.inputs)
    except Exception as error:  # A user's module may raise anything.
        raise UsageError(f"the teacher fails on the recent data: {type(error).__name__}: {error}") from error
    heads = {next(iter(task.heads)): output} if isinstance(output, Tensor) else output
    for head, classes in task.heads.items():
        if head not in heads or tuple(heads[head].shape) != (2, classes):
            raise UsageError(f"the teacher does not return {classes} classes for '{head}'")


def _reestimate_statistics(model: nn.Module, split: Split) -> None:
    batches = islice(split.batches(BATCH_NORM_BATCH), BATCH_NORM_BATCHES)
    reestimate_batch_norm(model, (batch.inputs for batch in batches))


def _find_post_training(request: AdaptRequest) -> Part | None:
    """Return post-training quantization with the bits of a candidate whose own method trains; None otherwise.

    The built-in methods restore a model from the same form of state, so that the result is one of the candidate's
    method; a method of another form trains in every stage.
    """
    part, state = request.config.quantize, request.candidate.quantize
    if part is None or state is None or not state.bits or not {"folded", "layers", "restored"} <= set(state.history):
        return None
    settings = QUANTIZE.get(part.name).config.of(part.values).to_dict()
    if not settings.get("epochs"):
        return None
    # A progressive method may have stopped before its last stage: what counts are the bits of the layers.
    ((bits, _),) = Counter(state.bits.values()).most_common(1)
    shared = {name: settings[name] for name in SHARED_SETTINGS if name in settings}
    return Part.of("post_training", weight_bits=bits.weight, activation_bits=bits.activation, **shared)


def _fine_tune(
    pipeline: _TimedPipeline, request: AdaptRequest, training: CompressionConfig, float_model: nn.Module
) -> tuple[nn.Module, int]:
    """Return a fine-tuned copy of a float model, and the number of epochs that were begun."""
    config = fit_config(training.fit)
    rate = request.learning_rate or LEARNING_RATE_SHARE * config.learning_rate
    planned = _plan_epochs(pipeline, training, float_model, max(config.epochs, 1))
    tuned = copy_model(float_model)
    pipeline.fine_tune(training, tuned, planned, rate, _build_mask_step(request.candidate, tuned))
    # The running averages of training still include its first steps.
    _reestimate_statistics(tuned, pipeline.splits.train)
    steps = max(len(pipeline.splits.train) // min(config.batch_size, len(pipeline.splits.train)), 1)
    return tuned.eval(), -(-pipeline.steps[0] // steps)


def _plan_epochs(pipeline: _TimedPipeline, training: CompressionConfig, model: nn.Module, longest: int) -> int:
    """Return the epochs that fit into the time limit, at most those of the candidate's own training.

    The learning-rate schedule ends with the last epoch, so that their number has to be known before the first.
    """
    config = fit_config(training.fit)
    size = min(config.batch_size, len(pipeline.splits.train))
    sample = pipeline.splits.train.take(slice(0, TIMED_BATCHES * size))
    batches = max(len(sample) // size, 1)
    # Cached logits belong to the whole split; the first rows of each view are those of the sample.
    logits = {
        key: {head: values[: len(sample)] for head, values in heads.items()} if key.startswith("train/") else heads
        for key, heads in pipeline.teacher.logits.items()
    }
    splits, teacher = replace(pipeline.splits, train=sample), replace(pipeline.teacher, logits=logits)
    timed = TrialPipeline(pipeline.task, splits, teacher)
    started = time.perf_counter()
    timed.fine_tune(training, copy_model(model), 1, config.learning_rate)
    seconds = (time.perf_counter() - started) / batches * max(len(pipeline.splits.train) // size, 1)
    remaining = PLANNED_SHARE * (pipeline.deadline - time.perf_counter())
    return max(1, min(longest, int(remaining / max(seconds, 1e-6))))


def _build_mask_step(candidate: RebuiltCandidate, model: nn.Module) -> Callable[[], None] | None:
    """Return a function that sets removed weights back to zero; ``None`` if the pruning removed no single weights."""
    if candidate.prune is None or "masked" not in candidate.prune.history:
        return None
    return partial(replace(candidate.prune, masks=masks_from_zeros(model, candidate.prune)).apply_masks, model)
