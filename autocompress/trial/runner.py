"""The recipe of one trial: build, distil, cut, measure.

One training feeds many candidates: its checkpoint is pruned to each ratio, each pruned model recovers under the
same distillation, and each is quantized to each pair of bit-widths.
"""

import signal
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.core.config import Part
from autocompress.core.plugins import WorkerPlugins
from autocompress.core.records import Base, Candidate, Cut, Job, Role, State, TrialResult
from autocompress.errors import AutocompressError, TrialError, UsageError
from autocompress.measure import Subject, layer_costs, measure, per_class
from autocompress.measure.cost import LayerCost
from autocompress.measure.resampling import pack_correct, resample_score
from autocompress.quantize import fold_batch_norm
from autocompress.training.device import require_device
from autocompress.trial.checkpoints import write_checkpoint
from autocompress.trial.pipeline import Setup, TrialPipeline, load_pipeline, load_task, reproducible_torch
from autocompress.trial.recipe import list_operations
from autocompress.trial.teacher import SerializedTeacher, teacher_name

VALIDATION = ("search_val", "select_val")
# What is trained again after the front is frozen may be shown the test split.
CONFIRMED = (*VALIDATION, "test")


@dataclass(frozen=True)
class TrialRunner:
    """What a backend calls in its workers: ``prepare`` once, then the runner itself for each job.

    Attributes:
        setup: What the trials of the run share.
        guests: What the run takes from outside.
        luggage: The teacher, for workers on machines that do not share this one's cache.
    """

    setup: Setup
    plugins: WorkerPlugins = field(default_factory=WorkerPlugins)
    serialized_teacher: SerializedTeacher | None = None

    def prepare(self) -> None:
        """Ready this process: Ctrl-C left to the driver, plugins, task and teacher loaded.

        Raises:
            UsageError: Trainings were to run on a graphics card and there is none; or the data differ.
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
        """Take the driver's teacher, which fits the driver's data alone.

        Raises:
            UsageError: The data on this machine differ from the driver's.
        """
        teacher.settle()
        here = teacher_name(*load_task(self.setup), self.setup.teacher)
        if here != teacher.name:
            raise UsageError(
                f"the data of the task '{self.setup.task.name}' differ from the driver's; the same files must lie at "
                "the same path on every node"
            )

    def __call__(self, job: Job) -> TrialResult:
        """Run one job; whatever goes wrong in it becomes a failed result with a reason."""
        started = time.perf_counter()
        try:
            with reproducible_torch():
                result = run_trial(job, self.setup)
        except AutocompressError as error:
            return TrialResult(job.number, State.FAILED, reason=str(error), seconds=time.perf_counter() - started)
        except Exception as error:  # A user's task may raise anything; the search goes on and the report says why.
            reason = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
            return TrialResult(job.number, State.FAILED, reason=reason, seconds=time.perf_counter() - started)
        return result


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an allocation was refused; torch has an exception of its own for graphics memory alone."""
    refused = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return refused or isinstance(error, MemoryError | torch.OutOfMemoryError)


def run_trial(job: Job, setup: Setup) -> TrialResult:
    """Train once, cut and measure every candidate of a job.

    A cut that fails leaves the other cuts standing; the reason is kept.

    Raises:
        TrialError: The training diverged, or nothing could be cut from it.
    """
    started = time.perf_counter()
    place = load_pipeline(setup)
    origin = _load_base(place, job, job.base) if job.base is not None else _train_student(place, job)
    candidates: list[Candidate] = []
    reasons: list[str] = []
    checkpoints: dict[str, bytes] = {}
    for index, (prune, cuts) in enumerate(_group_by_pruning(job.cuts)):
        try:
            pruned = origin.pruned(place, job, prune)
            name = pruned.checkpoint or f"t{job.number}p{index}"
            if origin.complete and not pruned.checkpoint:
                checkpoints[name] = write_checkpoint(pruned.model, pruned.history, origin.histories)
            folded = fold_batch_norm(pruned.model, place.task.example())
            source = QuantizationSource(
                folded,
                layer_costs(folded, place.task.example()),
                {**origin.report, **pruned.report},
                name if origin.complete else "",
                origin.epochs,
                origin.complete,
            )
        except AutocompressError as error:
            reasons.append(f"{prune.name if prune else 'uncut'}: {error}")
            continue
        for number, cut in cuts:
            identity = f"t{job.number}{'' if origin.complete else f'r{job.rung}'}c{number}"
            try:
                candidates.append(_measure_candidate(place, setup, job, identity, cut, source))
            except AutocompressError as error:
                reasons.append(f"{identity}: {error}")
    state = State.FAILED if not candidates else State.COMPLETE if origin.complete else State.PAUSED
    return TrialResult(
        job.number,
        state,
        tuple(sorted(candidates, key=lambda candidate: int(candidate.id.rpartition("c")[2]))),
        time.perf_counter() - started,
        "; ".join(dict.fromkeys(reasons)),
        tuple(origin.curve),
        checkpoints,
        origin.paused if state is State.PAUSED else b"",
    )


@dataclass(frozen=True)
class PrunedModel:
    """One pruned model, the source of its quantized candidates.

    Attributes:
        model: In single precision.
        history: Of its pruning.
        report: What pruning did, for the candidate's card.
        checkpoint: Name of its weights where they are stored already.
    """

    model: nn.Module
    history: Mapping[str, Any] | None = None
    report: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str = ""


@dataclass(frozen=True)
class TrainedSource:
    """What the cuts of one job are made from: a training, or a segment of one, or an earlier checkpoint.

    Attributes:
        model: In evaluation mode.
        curve: One row an epoch.
        epochs: Epochs of training so far.
        complete: Whether the training is at its end.
        paused: What it goes on from.
        histories: Of what was cut before the training.
        report: What those cuts did.
        known: The earlier checkpoint, and how it was pruned.
    """

    model: nn.Module
    curve: Sequence[Mapping[str, float]]
    epochs: int
    complete: bool = True
    paused: bytes = b""
    histories: tuple[Mapping[str, Any], ...] = ()
    report: Mapping[str, Any] = field(default_factory=dict)
    known: PrunedModel | None = None
    prune: Part | None = None

    def pruned(self, place: TrialPipeline, job: Job, part: Part | None) -> PrunedModel:
        """Return the model pruned by ``part``; the earlier checkpoint itself where it was pruned just so."""
        if self.known is not None and part == self.prune:
            return self.known
        if self.prune is not None:
            raise TrialError("a checkpoint that was pruned is not pruned once more")
        model, state = place.prune(self.model, job.training, part)
        return PrunedModel(model) if state is None else PrunedModel(model, state.history, {"prune": dict(state.report)})


def _train_student(place: TrialPipeline, job: Job) -> TrainedSource:
    trained = place.train(job.training, job.until, job.paused)
    begun = {step.part.name: dict(step.state.report) for step in trained.start}
    return TrainedSource(
        trained.model,
        trained.curve,
        len(trained.curve),
        not trained.paused,
        trained.paused,
        tuple(step.state.history for step in trained.start),
        {"start": begun} if begun else {},
    )


def _load_base(place: TrialPipeline, job: Job, base: Base) -> TrainedSource:
    rebuilt = place.rebuild(replace(job.training, prune=base.prune, quantize=None), base.content)
    return TrainedSource(
        rebuilt.float_model,
        (),
        base.epochs,
        histories=tuple(step.state.history for step in rebuilt.start),
        known=PrunedModel(rebuilt.float_model, checkpoint=base.checkpoint),
        prune=base.prune,
    )


def score_test_split(
    chosen: Mapping[str, tuple[Candidate, bytes]], setup: Setup
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Read the test split: return the scores of chosen candidates by id, and those of the teacher.

    Raises:
        ArtifactError: A checkpoint is damaged.
    """
    place = load_pipeline(setup)
    split = place.splits.test
    teacher = place.predict(place.teacher.model, split)
    found = {}
    for identity, (candidate, content) in chosen.items():
        rebuilt = place.rebuild(candidate.config, content)
        found[identity] = measure(place.build_subject(rebuilt.model, split, teacher, setup.scores), setup.scores)
    return found, measure(place.build_subject(place.teacher.model, split, teacher, setup.scores), setup.scores)


@lru_cache(maxsize=6)
def _teacher_logits(setup: Setup, split: str) -> Mapping[str, Tensor]:
    place = load_pipeline(setup)
    known = place.teacher.logits.get(split)
    # The teacher's cache holds nothing of the test split.
    return place.predict(place.teacher.model, getattr(place.splits, split)) if known is None else known


def teacher_record(setup: Setup) -> dict[str, dict[str, Any]]:
    """Return the teacher's scores on the validation splits, and its costs."""
    place = load_pipeline(setup)
    layers = layer_costs(fold_batch_norm(place.teacher.model, place.task.example()), place.task.example())
    scores = {}
    for name in VALIDATION:
        split, logits = getattr(place.splits, name), place.teacher.logits[name]
        scores[name] = measure(place.build_subject(place.teacher.model, split, logits, setup.scores), setup.scores)
    return {"scores": scores, "costs": measure(Subject(layers=layers), setup.costs)}


def cpu_capability() -> str:
    """Return the instruction set that torch uses here, such as ``AVX512``: results may differ between them."""
    return torch.backends.cpu.get_cpu_capability()


def _group_by_pruning(cuts: tuple[Cut, ...]) -> list[tuple[Part | None, list[tuple[int, Cut]]]]:
    """Group cuts that share a pruned model, each with its index in the job."""
    groups: dict[Part | None, list[tuple[int, Cut]]] = {}
    for number, cut in enumerate(cuts):
        groups.setdefault(cut.prune, []).append((number, cut))
    return list(groups.items())


@dataclass(frozen=True)
class QuantizationSource:
    """A float model that candidates are quantized from.

    Attributes:
        model: Its batch norms folded.
        layers: What each layer costs.
        report: What was done to it so far.
        checkpoint: Name of its weights; empty if they are not kept.
        epochs: Epochs of training so far.
        complete: Whether its training is at its end.
        shared: What its quantizations find out once for all of them.
    """

    model: nn.Module
    layers: Mapping[str, LayerCost]
    report: Mapping[str, object]
    checkpoint: str
    epochs: int
    complete: bool
    shared: dict[Hashable, Any] = field(default_factory=dict)


def _measure_candidate(
    place: TrialPipeline, setup: Setup, job: Job, identity: str, cut: Cut, source: QuantizationSource
) -> Candidate:
    model, state = place.quantize(source.model, job.training, cut.quantize, source.shared)
    bits = {} if state is None else state.bits
    details: dict[str, object] = dict(source.report)
    if state is not None:
        details.update(state.report)
    config = replace(job.training, prune=cut.prune, quantize=cut.quantize)
    details["order"] = list(list_operations(config))
    scores: dict[str, dict[str, float]] = {}
    resampled: dict[str, list[float]] = {}
    for split_name in CONFIRMED if job.role is Role.CONFIRM else VALIDATION:
        split = getattr(place.splits, split_name)
        subject = place.build_subject(model, split, _teacher_logits(setup, split_name), setup.scores)
        scores[split_name] = measure(subject, setup.scores)
        if job.resampled and split_name != "search_val":
            resampled[split_name] = resample_score(subject, job.resampled)
        if split_name == "select_val":
            details["per_class"] = {
                head: per_class(values, split.targets[head]) for head, values in subject.logits.items()
            }
            details |= pack_correct(subject)
    if resampled:
        details["replicates"] = resampled
    return Candidate(
        identity,
        job.number,
        config,
        source.epochs,
        scores,
        measure(Subject(layers=source.layers, bits=bits), setup.costs),
        details,
        source.checkpoint,
        source.complete,
    )
