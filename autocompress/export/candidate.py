"""Export of one candidate of a run folder as a deployable, verified artifact."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autocompress.analysis.certification import SUFFIXES, certify_loss, describe_test_loss, read_loss
from autocompress.analysis.pareto import primary_objectives
from autocompress.core.atomic import require_writable
from autocompress.core.config import CompressionConfig, Part
from autocompress.core.duplicates import remove_duplicates
from autocompress.core.heads import as_head
from autocompress.core.preprocessing import RawExample, describe_preprocessing
from autocompress.core.records import Candidate
from autocompress.core.run_info import RunInfo, TargetInfo
from autocompress.core.task import Logits, Split, Targets
from autocompress.core.untrusted import join_inside, read_regular_file
from autocompress.errors import ArtifactError, TrialError, UnknownNameError, UsageError, VerificationError
from autocompress.export.artifact import Deployable, export_chosen_graph, write_artifact
from autocompress.export.bench_worker import Shape
from autocompress.export.card import Card, input_names
from autocompress.export.graph_choice import CHOICE_SECONDS
from autocompress.export.origin import describe_origin
from autocompress.export.verify import Metric, Verification, verify as verify_artifact, verify_pipeline
from autocompress.measure.heads import AT, describe_decisions
from autocompress.measure.objectives import Subject
from autocompress.measure.thresholds import (
    choose_thresholds,
    describe_threshold,
    read_thresholds,
    set_head_thresholds,
    set_thresholds,
)
from autocompress.store.run_store import RunStore
from autocompress.trial.pipeline import (
    RebuiltCandidate,
    Setup,
    TrialPipeline,
    load_pipeline,
    load_task,
    reproducible_torch,
)
from autocompress.trial.runner import retrain_checkpoint

# Largest difference between the score of a rebuilt candidate and the stored one: kernels of other processors round
# differently.
REPRODUCED = 0.005
# Examples that are predicted at once when graphs are compared with the model.
COMPARED_BATCH = 256

logger = logging.getLogger(__name__)

# Longer tables would hide the rest of the card.
CLASSES_SHOWN = 100


@dataclass(frozen=True)
class Exported:
    """Result of an export.

    Attributes:
        folder: Path of the artifact.
        verification: Comparison on the test split; None without verification.
        thresholds: A sentence on the threshold of each head that has one other than 0.5.
    """

    folder: Path
    verification: Verification | None
    thresholds: tuple[str, ...] = ()


def export_candidate(
    run: Path,
    identity: str,
    *,
    verify: bool = True,
    tolerance: float = 0.005,
    agreement: float = 0.99,
    thresholds: Sequence[str] = (),
    integer: bool = False,
) -> Exported:
    """Write ``picks/<id>`` in the run folder, and verify it on the test split.

    A candidate without a stored checkpoint is trained again from its config.

    Args:
        run: The run folder.
        identity: Id of the candidate.
        verify: Whether to run the exported files.
        tolerance: Largest loss of the exported file in the first score of the task, in the unit of that score.
        agreement: Smallest share of equal predictions.
        thresholds: Thresholds of heads of two classes: ``auto`` or a number, or ``HEAD=auto`` and ``HEAD=0.3``; a head
            that is not named has the threshold of the run.
        integer: Whether every layer that can run on integer kernels does, also where floating point is faster here.

    Raises:
        UsageError: The run has no such candidate, its training is not complete, or a threshold cannot be used.
        ArtifactError: It cannot be exported.
        VerificationError: The exported model does not behave as the searched one.
    """
    require_writable(run)
    with reproducible_torch():
        requested = _read_thresholds(run, thresholds) if thresholds else {}
        candidate = rebuild_candidate(run, identity)
        sentences: tuple[str, ...] = ()
        if requested or candidate.thresholds:
            candidate, sentences = apply_thresholds(candidate, requested)

        def write(exact: bool) -> Exported:
            deployable = replace(candidate.deployable, exact=exact)
            folder = write_artifact(join_inside(run, "picks", identity), deployable, candidate.card)
            verification = _verify_export(folder, candidate, tolerance, agreement) if verify else None
            return Exported(folder, verification, sentences)

        try:
            return write(exact=integer)
        except VerificationError as error:
            # Layers in floating point round less than the searched model. Where that changes too much, none is used.
            if integer or not candidate.deployable.target.precisions.restricts:
                raise
            logger.info("%s: exports integer layers only: %s", identity, error)
            return write(exact=True)


@dataclass(frozen=True)
class TimedGraphs:
    """The graphs of one model that are timed.

    Attributes:
        content: Content of ``model.onnx``.
        float_content: Content of the graph of the same weights without integer layers; ``content`` itself for a model
            in floating point.
        inputs: Shape and data type of each input of one example.
    """

    content: bytes
    float_content: bytes
    inputs: Sequence[Shape]


def export_candidate_graphs(run: Path, identity: str, seconds: float = CHOICE_SECONDS) -> TimedGraphs:
    """Return the graphs of a candidate; raises as :func:`export_candidate`.

    Args:
        run: The run folder.
        identity: Id of the candidate.
        seconds: Seconds to time the graphs among which a target chooses.
    """
    with reproducible_torch():
        return _export_graphs(rebuild_candidate(run, identity).deployable, seconds)


def export_teacher_graphs(run: Path) -> TimedGraphs:
    """Return the graphs of a run's teacher.

    Raises:
        ArtifactError: It cannot be exported.
    """
    with RunStore.read(run) as store:
        setup = Setup.from_json(store.run_info().setup)
    with reproducible_torch():
        pipeline = load_pipeline(setup)
        teacher = pipeline.teacher.module
        if teacher is None:
            raise ArtifactError("the teacher is no torch module, so it has no graph")
        config = CompressionConfig(setup.teacher.student, (Part("none"),), setup.teacher.fit, seed=setup.teacher.seed)
        # The teacher is neither pruned nor quantized: both models are the same.
        models = RebuiltCandidate(teacher, teacher, None, None)
        return _export_graphs(_build_deployable(pipeline, setup, config, models, TargetInfo()), CHOICE_SECONDS)


def _export_graphs(deployable: Deployable, seconds: float) -> TimedGraphs:
    shapes = [(list(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for tensor in deployable.example]
    chosen = export_chosen_graph(deployable, seconds)
    return TimedGraphs(chosen.content, chosen.float_content, shapes)


@dataclass(frozen=True)
class RebuiltRun:
    """A candidate, rebuilt from its run.

    Attributes:
        pipeline: Task, splits and teacher of the run.
        models: Float and quantized model of the candidate.
        deployable: Everything that the artifact holds.
        card: Sections of the card.
        seed: Seed of the splits.
        primary: Name of the score that the search selected by.
        thresholds: Threshold of each head in the search; heads without an entry have 0.5.
    """

    pipeline: TrialPipeline
    models: RebuiltCandidate
    deployable: Deployable
    card: Card
    seed: int
    primary: str = ""
    thresholds: Mapping[str, float] = field(default_factory=dict)


def rebuild_candidate(run: Path, identity: str) -> RebuiltRun:
    """Return a candidate of a run with everything that its artifact holds; it is trained again without a checkpoint.

    Raises:
        UsageError: The run has no such candidate, or its training is not complete.
        VerificationError: The rebuilt model does not have its stored score.
    """
    with RunStore.read(run) as store:
        candidate = store.read_candidate(identity)
        info = store.run_info()
        path = store.checkpoint_path(candidate.checkpoint)
    if not candidate.complete:
        raise UsageError(
            f"'{identity}' was measured after {candidate.epochs} epochs of an incomplete training; "
            "choose a complete candidate (column `complete` of candidates.csv)"
        )
    setup = Setup.from_json(info.setup)
    _compare_splits(run, setup, info)
    pipeline = load_pipeline(setup)
    if path.is_file():
        content = read_regular_file(path)
    else:
        logger.info("%s: no checkpoint %s, trains again", identity, path.name)
        content = retrain_checkpoint(candidate, setup)
    rebuilt = pipeline.rebuild(candidate.config, content)
    _compare_scores(pipeline, rebuilt, candidate)
    deployable = _build_deployable(pipeline, setup, candidate.config, rebuilt, info.target)
    heads = set_head_thresholds(pipeline.task.heads, candidate.thresholds)
    deployable = replace(deployable, origin=describe_origin(candidate, info), heads=heads)
    card = _build_card(candidate, pipeline, deployable, info.name, info.command)
    card = {**card, **build_promise(candidate, info)}
    primary = setup.primary or pipeline.task.metrics[0]
    return RebuiltRun(pipeline, rebuilt, deployable, card, setup.split_seed, primary, candidate.thresholds)


def _read_thresholds(run: Path, texts: Sequence[str]) -> dict[str, float | None]:
    """Return the requested thresholds, checked before anything is rebuilt."""
    with RunStore.read(run) as store:
        setup = Setup.from_json(store.run_info().setup)
    task, _ = load_task(setup)
    return read_thresholds(texts, task.heads, setup.primary or task.metrics[0])


def apply_thresholds(run: RebuiltRun, requested: Mapping[str, float | None]) -> tuple[RebuiltRun, tuple[str, ...]]:
    """Return the candidate with thresholds of its heads, and a sentence on each with its scores.

    A threshold is chosen as in the search, on ``search_val``; the other splits tell what it gains on new examples. A
    head that is not requested keeps the threshold that it has in the search.

    Args:
        run: The candidate.
        requested: Head to its threshold; ``None`` for the one with the best primary score.
    """
    task, splits = run.pipeline.task, run.pipeline.splits
    subjects = {
        name: Subject(run.pipeline.predict(run.models.model, part), part.targets, heads=task.heads, labels=task.labels)
        for name, part in (("search_val", splits.search_val), ("select_val", splits.select_val), ("test", splits.test))
    }
    thresholds = {**run.thresholds, **choose_thresholds(requested, subjects["search_val"], run.primary)}
    origin = {**run.pipeline.thresholds, **requested}
    # The score of one head, also where the search selected by a mean over heads.
    score, _, _ = run.primary.partition(AT)
    sentences = [
        describe_threshold(subjects, name, score, value, is_chosen=origin[name] is None)
        for name, value in thresholds.items()
    ]
    decisions = describe_decisions(set_thresholds(subjects["select_val"], thresholds))
    card = {**run.card, "thresholds": sentences, **_describe_classes(decisions, task.labels)}
    deployable = replace(run.deployable, heads=set_head_thresholds(task.heads, thresholds))
    return replace(run, deployable=deployable, card=card), tuple(sentences)


def _compare_splits(run: Path, setup: Setup, info: RunInfo) -> None:
    """Check that the splits have the sizes of the search: another version may choose others, and data may change."""
    # Runs of early versions stored no sizes.
    if not info.splits:
        return
    splits = load_task(setup)[1]
    for name, size in info.splits.items():
        present = len(getattr(splits, name))
        if present != size:
            raise VerificationError(
                f"{run} was searched with {size:,} examples of {name}, and here there are {present:,}: the data or the "
                "version of autocompress has changed; search again, or use those of the search"
            )


def _build_deployable(
    pipeline: TrialPipeline, setup: Setup, config: CompressionConfig, models: RebuiltCandidate, target: TargetInfo
) -> Deployable:
    # Without a target there is one graph, and nothing to compare.
    compared = (pipeline.splits.calibration, pipeline.splits.select_val) if target.precisions.restricts else ()
    return replace(
        Deployable.from_task(pipeline.task, setup.split_seed, config, models),
        task_options=setup.task.values,
        target=target,
        batches=tuple(batch.inputs for split in compared for batch in split.batches(COMPARED_BATCH)),
    )


def select_metric(
    pipeline: TrialPipeline, logits: Logits, targets: Targets, heads: Mapping[str, int] | None = None
) -> Metric:
    """Return the task's first score that can be measured on outputs alone, without a teacher and without attacks.

    Args:
        pipeline: The task of the run.
        logits: Outputs of a model by head.
        targets: Targets by head.
        heads: Heads with the thresholds of the model; by default those of the task.
    """
    for name in pipeline.task.metrics:
        metric = Metric(name, heads or pipeline.task.heads, pipeline.task.labels)
        try:
            metric.overall(logits, targets)
        except (TrialError, UnknownNameError):
            # This score needs a teacher or an attack, or is not registered: the next one is tried.
            continue
        return metric
    return Metric()


def _compare_scores(pipeline: TrialPipeline, rebuilt: RebuiltCandidate, candidate: Candidate) -> None:
    """Check that the rebuilt model has the scores that the store holds."""
    split = pipeline.splits.select_val
    logits = pipeline.predict(rebuilt.model, split)
    metric = select_metric(
        pipeline, logits, split.targets, set_head_thresholds(pipeline.task.heads, candidate.thresholds)
    )
    score, stored = metric.overall(logits, split.targets), candidate.scores["select_val"][metric.name]
    # Also a better score means that this is another model. A NaN fails the comparison.
    if not abs(score - stored) <= REPRODUCED:
        raise VerificationError(
            f"{candidate.id} has {metric.name} {score:.4f} on select_val here and {stored:.4f} in the store; "
            "the processor, a library or the version of autocompress differs from those of the search"
        )


def _verify_export(folder: Path, run: RebuiltRun, tolerance: float, agreement: float) -> Verification:
    """Run the graph, the module and the raw-input pipeline of an artifact on the test split."""
    pipeline, split = run.pipeline, run.pipeline.splits.test
    logits = pipeline.predict(run.models.model, split)
    heads = run.deployable.heads
    metric = select_metric(pipeline, logits, split.targets, heads)
    predictions = {head: as_head(heads[head]).predict(values) for head, values in logits.items()}
    scores = metric.by_head(logits, split.targets)
    verification = verify_artifact(folder, split, heads, scores, predictions, tolerance, agreement, metric)
    examples = _list_examples(run, split)
    if not len(examples):
        logger.warning(
            "%s: the task '%s' has no list_test_examples, so pipeline.py was not run", folder, pipeline.task.name
        )
        return verification
    shares = verify_pipeline(folder, examples, heads, predictions, agreement)
    return replace(verification, pipeline_agreement=shares)


def _list_examples(run: RebuiltRun, split: Split) -> Sequence[RawExample]:
    """Return the raw examples of the test split; the tensors themselves if the task specifies no preprocessing."""
    if run.deployable.preprocessing:
        task = run.pipeline.task
        examples = task.list_test_examples(run.seed)
        # The task lists all of them, and the split has no duplicates.
        if not examples or len(examples) == len(split):
            return examples
        rows = remove_duplicates(task.splits(run.seed), compares_inputs=task.has_distinct_inputs).rows
        return [examples[row] for row in rows["test"]] if "test" in rows else examples
    arrays = [tensor.numpy() for tensor in split.inputs]
    if len(arrays) == 1:
        return list(arrays[0])
    return [dict(zip(input_names(len(arrays)), values, strict=True)) for values in zip(*arrays, strict=True)]


def build_promise(candidate: Candidate, info: RunInfo) -> Card:
    """Return the section of the card with the certified loss and the loss on test; empty without stored examples."""
    if not info.objectives:
        return {}
    cost, score = primary_objectives(info.objectives)
    columns = {f"{score.name}{SUFFIXES[split]}": values.get(score.name) for split, values in candidate.scores.items()}
    row = {**columns, cost.name: candidate.costs.get(cost.name), "details": candidate.details}
    loss, confidence = read_loss(row, info), info.confidence
    sentences = []
    if loss is not None and confidence is not None:
        # Only the recommended candidate was selected for the promised loss.
        promised = info.max_drop if candidate.id == info.recommended else None
        sentences.append(certify_loss(loss, promised, confidence).describe(score))
    if tested := describe_test_loss(row, info):
        sentences.append(f"Against the teacher, it {tested}.")
    return {"promise": sentences} if sentences else {}


def _build_card(candidate: Candidate, pipeline: TrialPipeline, deployable: Deployable, name: str, command: str) -> Card:
    description = (type(pipeline.task).__doc__ or pipeline.task.name).strip().splitlines()[0]
    preprocessing = describe_preprocessing(deployable.preprocessing) or pipeline.task.preprocessing
    return {
        "title": f"{name} {candidate.id}",
        "summary": f"One candidate of the search: {command or name}. {description}",
        **({"preprocessing": preprocessing} if preprocessing else {}),
        "scores": {split: dict(values) for split, values in candidate.scores.items()},
        "costs": dict(candidate.costs),
        **_describe_classes(candidate.details, pipeline.task.labels),
    }


def _describe_classes(details: Mapping[str, Any], labels: Mapping[str, Sequence[str]]) -> Card:
    """Return the sections of the card with the per-class metrics and confusion matrices, by class names.

    Args:
        details: Details of a candidate, or what :func:`describe_decisions` returns.
        labels: Names of the classes of each head.
    """
    sections: dict[str, object] = {}
    for head, rows in (details.get("per_class") or {}).items():
        names = labels.get(head) or [str(number) for number in range(len(rows))]
        sections[f"Per class of {head}, on select_val"] = {
            names[int(row["label"])]: {key: value for key, value in row.items() if key != "label"}
            for row in rows[:CLASSES_SHOWN]
        }
        table = (details.get("confusion") or {}).get(head)
        if table:
            sections[f"Confusion matrix of {head}: true classes as rows"] = {
                names[number]: dict(zip(names, row, strict=False)) for number, row in enumerate(table)
            }
    return sections
