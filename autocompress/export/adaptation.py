"""Adaptation of an exported or searched model to recent data: a new, verified version beside the old one.

The versions of ``picks/t12c7`` are ``picks/t12c7-v2``, ``picks/t12c7-v3`` and so on; none is ever changed.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from autocompress.core.atomic import compute_file_sha256, require_writable
from autocompress.core.config import Part
from autocompress.core.heads import as_head
from autocompress.core.knobs import Leaf
from autocompress.core.registry import TASKS
from autocompress.core.task import Split, Splits, Task
from autocompress.core.untrusted import join_inside
from autocompress.errors import AutocompressError, NoCandidateError, UsageError
from autocompress.export.architecture import Adaptation, Architecture
from autocompress.export.artifact import Deployable, read_architecture, read_candidate, write_artifact
from autocompress.export.candidate import rebuild_candidate, select_metric
from autocompress.export.card import Card, input_names
from autocompress.export.folder import MANIFEST, read_files
from autocompress.export.origin import read_origin
from autocompress.export.preprocess_file import PREPROCESS, TOKENIZER, read_preprocessing
from autocompress.export.verify import Verification, verify
from autocompress.measure import measure
from autocompress.measure.thresholds import set_head_thresholds
from autocompress.store.run_store import DATABASE, RunStore
from autocompress.tasks.base import Supervised
from autocompress.trial.adapt import UNCHANGED, AdaptedCandidate, AdaptRequest, adapt_candidate
from autocompress.trial.pipeline import (
    BATCH_NORM_BATCH,
    BATCH_NORM_BATCHES,
    RebuiltCandidate,
    Setup,
    TrialPipeline,
    load_pipeline,
    load_task,
    reproducible_torch,
)
from autocompress.trial.recent_data import RecentData, read_recent_data

VERSION = re.compile(r"-v(\d+)$")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdaptOptions:
    """Settings of an adaptation.

    Attributes:
        minutes: Time limit of the training in minutes; 0 only estimates statistics and ranges again.
        is_ordered: Whether the recent examples are in the order of time, so that the latest ones are held out.
        teacher: The teacher, instead of that of the run.
        learning_rate: Peak learning rate; ``None`` for a share of the candidate's.
        seed: Seed of the parts of the recent data and of the batches.
    """

    minutes: float = 1.0
    is_ordered: bool = False
    teacher: nn.Module | None = None
    learning_rate: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class AdaptedArtifact:
    """The new version of an artifact.

    Attributes:
        folder: Path of the new version.
        record: Parent, data, scores before and after, and seconds, as ``architecture.json`` holds them.
        verification: Comparison of the exported files with the adapted model on the recent examples.
    """

    folder: Path
    record: Adaptation
    verification: Verification

    def __str__(self) -> str:
        record = self.record
        kind = "labelled" if record.is_labelled else "unlabelled"
        lines = [
            f"{record.method} on {record.examples:,} {kind} examples in {record.seconds:.1f} s "
            f"({record.epochs} epochs); {record.teacher}",
            f"recent data, held out: {_describe_scores(record.metric, record.scores)}",
        ]
        if record.earlier:
            lines.append(f"test split of the run: {_describe_scores('', record.earlier)}")
        return "\n".join([*lines, f"verified on the recent data: {self.verification}"])


def _describe_scores(metric: str, scores: Mapping[str, float]) -> str:
    return f"{metric} ".lstrip() + ", ".join(f"{stage} {score:.4f}" for stage, score in scores.items())


def adapt_run(run: Path, identity: str, data: object, options: AdaptOptions) -> AdaptedArtifact:
    """Adapt a candidate of a run, and write the next version of ``picks/<id>``; ``picks/<id>`` is written if missing.

    Args:
        run: The run folder.
        identity: Id of the candidate.
        data: Recent data, see :func:`autocompress.trial.recent_data.read_recent_data`.
        options: Settings of the adaptation.

    Raises:
        UsageError: The recent data does not fit the model, or the run has no such candidate.
        NoCandidateError: No stage is better on the recent data than the unchanged candidate; nothing is written.
        VerificationError: The exported model does not behave as the adapted one; nothing is written.
        StorageError: The folder cannot be written.
    """
    with RunStore.read(run) as store:
        store.read_candidate(identity)
        setup = Setup.from_json(store.run_info().setup)
    require_writable(run)
    # The data is checked before the teacher is loaded, which may have to be trained.
    task, _ = load_task(setup)
    recent = _read_data(data, task, options)
    with reproducible_torch():
        rebuilt = rebuild_candidate(run, identity)
        folder = join_inside(run, "picks", identity)
        if not (folder / MANIFEST).is_file():
            write_artifact(folder, rebuilt.deployable, rebuilt.card)
        pipeline = rebuilt.pipeline
        source = _Source(
            folder,
            rebuilt.deployable,
            rebuilt.models,
            pipeline.task,
            pipeline.teacher.module,
            set_head_thresholds(pipeline.task.heads, pipeline.teacher_thresholds),
            pipeline.splits.test,
            rebuilt.card,
        )
        return _write_version(source, recent, options)


def adapt_artifact(folder: Path, data: object, options: AdaptOptions) -> AdaptedArtifact:
    """Adapt an exported model, and write the next version beside its folder.

    In a folder ``picks`` of a run, task and teacher come from the run. Elsewhere there is no teacher unless one is
    given. An artifact holds no batch-norm statistics: they are measured on the task's training data. Where that is not
    here, or for a version that was adapted before, they are measured on the recent data, so that estimating them again
    changes nothing.

    Args:
        folder: The artifact.
        data: Recent data, see :func:`autocompress.trial.recent_data.read_recent_data`.
        options: Settings of the adaptation.

    Raises:
        ArtifactError: The folder is no artifact, or its float model cannot be rebuilt here.
        UsageError: The recent data does not fit the model.
        NoCandidateError: No stage is better on the recent data than the unchanged model; nothing is written.
        VerificationError: The exported model does not behave as the adapted one; nothing is written.
        StorageError: The folder cannot be written.
    """
    folder = Path(folder).absolute()
    run = find_run_of_artifact(folder)
    if run is not None and _has_candidate(run, folder.name):
        return adapt_run(run, folder.name, data, options)
    architecture = read_architecture(folder)
    require_writable(folder.parent)
    recent = _read_data(data, ExportedTask(architecture), options)
    with reproducible_torch():
        return _write_version(_open_artifact(folder, run, architecture, recent), recent, options)


def find_run_of_artifact(folder: Path) -> Path | None:
    """Return the run whose folder ``picks`` holds an artifact; None for an artifact elsewhere."""
    run = folder.parent.parent
    return run if folder.parent.name == "picks" and (run / DATABASE).is_file() else None


def name_next_version(folder: Path) -> Path:
    """Return the path of the version after all that stand beside an artifact.

    Example:
        >>> name_next_version(Path("picks/t12c7-v2")).name
        't12c7-v3'
    """
    match = VERSION.search(folder.name)
    stem = folder.name[: match.start()] if match else folder.name
    versions = [int(match[1]) if match else 1]
    for path in folder.parent.glob(f"{stem}-v*"):
        other = VERSION.search(path.name)
        if other and path.name[: other.start()] == stem:
            versions.append(int(other[1]))
    return folder.parent / f"{stem}-v{max(versions) + 1}"


class ExportedTask(Supervised):
    """The task of an artifact whose data is not here: inputs, heads and labels, and the cross-entropy.

    Args:
        architecture: Architecture of the artifact.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.name, self.heads = architecture.task, architecture.heads
        self.inputs, self.labels = architecture.specs, architecture.labels or {}

    def splits(self, seed: int) -> Splits:
        """Raise an error, because the data is not here.

        Raises:
            UsageError: Always.
        """
        raise UsageError(f"the data of the task '{self.name}' is not here")

    def teacher(self) -> tuple[Part, Part]:
        """Raise an error, because an artifact does not name its teacher.

        Raises:
            UsageError: Always.
        """
        raise UsageError("an artifact does not name its teacher")


@dataclass(frozen=True)
class _Source:
    """A model that is to be adapted.

    Attributes:
        folder: Path of its artifact.
        deployable: Everything that the artifact holds.
        candidate: Its float and quantized models.
        task: The learning problem.
        teacher: The teacher; None if there is none.
        teacher_heads: Heads with the thresholds of the teacher.
        earlier: Test split of the run; None if it is not known.
        card: Sections of its card.
    """

    folder: Path
    deployable: Deployable
    candidate: RebuiltCandidate
    task: Task
    teacher: nn.Module | None
    teacher_heads: Mapping[str, int]
    earlier: Split | None
    card: Card


def _read_data(data: object, task: Task, options: AdaptOptions) -> RecentData:
    names = input_names(len(task.inputs))
    return read_recent_data(data, task.inputs, task.heads, names, is_ordered=options.is_ordered)


def _has_candidate(run: Path, identity: str) -> bool:
    with RunStore.read(run) as store:
        try:
            store.read_candidate(identity)
        except UsageError:
            return False
    return True


def _open_artifact(folder: Path, run: Path | None, architecture: Architecture, recent: RecentData) -> _Source:
    """Return an artifact as it is, with task and teacher of its run if it has one."""
    task: Task = ExportedTask(architecture)
    teacher, train, earlier = None, None, None
    teacher_heads: Mapping[str, int] = {}
    if run is not None:
        with RunStore.read(run) as store:
            pipeline = load_pipeline(Setup.from_json(store.run_info().setup))
        task, teacher = pipeline.task, pipeline.teacher.module
        teacher_heads = set_head_thresholds(task.heads, pipeline.teacher_thresholds)
        train, earlier = pipeline.splits.train, pipeline.splits.test
    else:
        task, train = _load_task(architecture)
    # A version that was adapted before does not fit the training data: its statistics belong to data that is not
    # stored. With the recent data in their place its outputs stay, and only the fine-tuning changes them.
    reference = recent.examples if train is None or architecture.adapted is not None else train
    _, candidate = read_candidate(folder, _iterate_batches(reference))
    files = read_files(folder)
    content = files.get(PREPROCESS)
    deployable = Deployable(
        architecture.compression,
        architecture.task,
        architecture.options,
        architecture.labels or {},
        architecture.heads,
        architecture.specs,
        architecture.example(),
        candidate.float_model,
        candidate.model,
        candidate.prune,
        candidate.quantize,
        candidate.start,
        # Artifacts of earlier versions have none.
        read_preprocessing(content, files.get(TOKENIZER, b"")) if content else (),
        origin=read_origin(content) if content else {},
    )
    return _Source(folder, deployable, candidate, task, teacher, teacher_heads, earlier, {})


def _load_task(architecture: Architecture) -> tuple[Task, Split | None]:
    """Return the task of an artifact and its training split; without the data, what the artifact says of the task."""
    try:
        # JSON values; the constructor of the task checks them.
        task: Task = TASKS.get(architecture.task)(**cast("dict[str, Leaf]", architecture.options))
        if (dict(task.heads), tuple(task.inputs)) == (architecture.heads, architecture.specs):
            # Statistics of the training data differ little between seeds of the splits.
            return task, task.splits(0).train
        reason = "it has other inputs or heads here"
    except (AutocompressError, OSError) as error:
        reason = str(error)
    logger.warning("the training data of the task '%s' is not used: %s", architecture.task, reason)
    return ExportedTask(architecture), None


def _iterate_batches(split: Split) -> Iterator[tuple[Tensor, ...]]:
    return (batch.inputs for batch in islice(split.batches(BATCH_NORM_BATCH), BATCH_NORM_BATCHES))


def _write_version(source: _Source, recent: RecentData, options: AdaptOptions) -> AdaptedArtifact:
    """Adapt a model and write its next version, unless no stage is better than the unchanged model."""
    request = AdaptRequest(
        source.task,
        source.deployable.config,
        source.candidate,
        recent,
        options.teacher or source.teacher,
        options.minutes,
        options.learning_rate,
        options.seed,
        heads=source.deployable.heads,
        # A teacher that the user gives has no thresholds.
        teacher_heads=None if options.teacher is not None else source.teacher_heads,
    )
    adapted = adapt_candidate(request)
    if not adapted.is_changed:
        scores = ", ".join(f"{stage.name} {stage.choice:.4f}" for stage in adapted.stages)
        raise NoCandidateError(
            f"no stage of the adaptation is better than {source.folder.name} on the recent data "
            f"({adapted.metric}: {scores}); nothing was written. More data or --minutes may help"
        )
    record = _build_record(source, recent, adapted)
    models = adapted.selected.candidate
    deployable = replace(
        source.deployable,
        float_model=models.float_model,
        model=models.model,
        quantize_state=models.quantize,
        adapted=record,
    )
    verifications: list[Verification] = []
    folder = write_artifact(
        name_next_version(source.folder),
        deployable,
        _build_card(source, record),
        # Before the folder gets its name, so that a version which fails is never there.
        lambda written: verifications.append(_verify_version(written, adapted, recent, deployable.heads)),
    )
    return AdaptedArtifact(folder, record, verifications[0])


def _build_record(source: _Source, recent: RecentData, adapted: AdaptedCandidate) -> Adaptation:
    return Adaptation(
        parent=source.folder.name,
        parent_sha256=compute_file_sha256(source.folder / MANIFEST),
        data=recent.fingerprint,
        examples=len(recent.examples),
        is_labelled=recent.is_labelled,
        method=adapted.selected.name,
        teacher=adapted.teacher,
        epochs=adapted.epochs,
        seconds=adapted.seconds,
        metric=adapted.metric,
        scores=adapted.held_out_scores(),
        earlier=_score_earlier(source, adapted),
    )


def _score_earlier(source: _Source, adapted: AdaptedCandidate) -> dict[str, float]:
    """Return the scores on the test split of the run before and after, which show what the adaptation forgot."""
    if source.earlier is None:
        return {}
    metric = source.task.metrics[0]
    models = {UNCHANGED: source.candidate.model, adapted.selected.name: adapted.selected.candidate.model}
    scores = {}
    for name, model in models.items():
        subject = adapted.pipeline.build_subject(model, source.earlier, {}, [metric])
        scores[name] = measure(replace(subject, heads=source.deployable.heads), [metric])[metric]
    return scores


def _verify_version(
    folder: Path, adapted: AdaptedCandidate, recent: RecentData, heads: Mapping[str, int]
) -> Verification:
    """Compare the exported files with the adapted model on all recent examples: equality needs no held-out ones."""
    pipeline: TrialPipeline = adapted.pipeline
    logits = pipeline.predict(adapted.selected.candidate.model, recent.examples)
    predictions = {name: as_head(heads[name]).predict(values) for name, values in logits.items()}
    split = recent.examples if recent.is_labelled else Split(recent.examples.inputs, predictions)
    metric = select_metric(pipeline, logits, split.targets, heads)
    scores = metric.by_head(logits, split.targets)
    return verify(folder, split, heads, scores, predictions, metric=metric)


def _build_card(source: _Source, record: Adaptation) -> Card:
    facts: dict[str, object] = {
        "parent": record.parent,
        "method": record.method,
        "recent examples": record.examples,
        "labels": "yes" if record.is_labelled else "no",
        "teacher": record.teacher,
        "epochs": record.epochs,
        "seconds": record.seconds,
        "data fingerprint": record.data,
    }
    columns = {"recent data, held out": record.scores, "test split of the run": record.earlier}
    preprocessing = source.card.get("preprocessing", source.task.preprocessing)
    return {
        "title": f"{source.card.get('title', record.parent)}, adapted",
        "summary": f"{record.parent}, adapted to recent data.",
        **({"preprocessing": preprocessing} if preprocessing else {}),
        f"{record.metric} by stage": {name: scores for name, scores in columns.items() if scores},
        "adaptation": facts,
    }
