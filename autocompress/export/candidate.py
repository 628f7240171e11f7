"""Export of one candidate of a run folder as a deployable, verified artifact."""

import logging
from dataclasses import dataclass
from pathlib import Path

from autocompress.analysis.certification import SUFFIXES, certify_loss, describe_test_loss, read_loss
from autocompress.analysis.pareto import primary_objectives
from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Candidate, CompressionRecipe, Job
from autocompress.core.run_info import RunInfo
from autocompress.core.task import Logits, Targets
from autocompress.errors import TrialError, UnknownNameError, UsageError, VerificationError
from autocompress.export.artifact import Deployable, export_graph, write_artifact
from autocompress.export.bench_worker import Shape
from autocompress.export.card import Card
from autocompress.export.verify import Metric, Verification, verify as verify_artifact
from autocompress.store.run_store import RunStore
from autocompress.trial.pipeline import RebuiltCandidate, Setup, TrialPipeline, load_pipeline, reproducible_torch
from autocompress.trial.runner import run_trial

# Largest difference between the score of a rebuilt candidate and the stored one: kernels of other processors round
# differently.
REPRODUCED = 0.005

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """Result of an export.

    Attributes:
        folder: Path of the artifact.
        verification: Comparison on the test split; None without verification.
    """

    folder: Path
    verification: Verification | None


def export_candidate(
    run: Path, identity: str, *, verify: bool = True, tolerance: float = 0.005, agreement: float = 0.99
) -> Exported:
    """Write ``picks/<id>`` in the run folder, and verify it on the test split.

    A candidate without a stored checkpoint is trained again from its config.

    Args:
        run: The run folder.
        identity: Id of the candidate.
        verify: Whether to run the exported files.
        tolerance: Largest loss of the exported file in the first score of the task, in the unit of that score.
        agreement: Smallest share of equal predictions.

    Raises:
        UsageError: The run has no such candidate, or its training is not complete.
        ArtifactError: It cannot be exported.
        VerificationError: The exported model does not behave as the searched one.
    """
    with reproducible_torch():
        candidate = _rebuild_candidate(run, identity)
        folder = write_artifact(run / "picks" / identity, candidate.deployable, candidate.card)
        verification = (
            _verify_export(folder, candidate.pipeline, candidate.models, tolerance, agreement) if verify else None
        )
        return Exported(folder, verification)


def export_candidate_graph(run: Path, identity: str) -> tuple[bytes, list[Shape]]:
    """Return the ``model.onnx`` of a candidate and its inputs for one example; raises as :func:`export_candidate`."""
    with reproducible_torch():
        return _graph_and_inputs(_rebuild_candidate(run, identity).deployable)


def export_teacher_graph(run: Path) -> tuple[bytes, list[Shape]]:
    """Return the ``model.onnx`` of a run's teacher and its inputs for one example.

    Raises:
        ArtifactError: It cannot be exported.
    """
    with RunStore.read(run) as store:
        setup = Setup.from_json(store.run_info().setup)
    with reproducible_torch():
        pipeline = load_pipeline(setup)
        config = CompressionConfig(setup.teacher.student, (Part("none"),), setup.teacher.fit, seed=setup.teacher.seed)
        # The teacher is neither pruned nor quantized: both models are the same.
        models = RebuiltCandidate(pipeline.teacher.model, pipeline.teacher.model, None, None)
        return _graph_and_inputs(_build_deployable(pipeline, setup, config, models))


def _graph_and_inputs(deployable: Deployable) -> tuple[bytes, list[Shape]]:
    shapes = [(list(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for tensor in deployable.example]
    return export_graph(deployable), shapes


@dataclass(frozen=True)
class _RebuiltRun:
    """A candidate, rebuilt from its run.

    Attributes:
        pipeline: Task, splits and teacher of the run.
        models: Float and quantized model of the candidate.
        deployable: Everything that the artifact holds.
        card: Sections of the card.
    """

    pipeline: TrialPipeline
    models: RebuiltCandidate
    deployable: Deployable
    card: Card


def _rebuild_candidate(run: Path, identity: str) -> _RebuiltRun:
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
    pipeline = load_pipeline(setup)
    if path.is_file():
        content = path.read_bytes()
    else:
        logger.info("%s: no checkpoint %s, trains again", identity, path.name)
        content = _retrain_checkpoint(candidate, setup)
    rebuilt = pipeline.rebuild(candidate.config, content)
    _compare_scores(pipeline, rebuilt, candidate)
    deployable = _build_deployable(pipeline, setup, candidate.config, rebuilt)
    card = {**_build_card(candidate, pipeline, info.name, info.command), **build_promise(candidate, info)}
    return _RebuiltRun(pipeline, rebuilt, deployable, card)


def _build_deployable(
    pipeline: TrialPipeline, setup: Setup, config: CompressionConfig, models: RebuiltCandidate
) -> Deployable:
    return Deployable(
        config,
        pipeline.task.name,
        setup.task.values,
        pipeline.task.labels,
        dict(pipeline.task.heads),
        pipeline.task.inputs,
        pipeline.task.example(),
        models.float_model,
        models.model,
        models.prune,
        models.quantize,
        models.start,
    )


def _retrain_checkpoint(candidate: Candidate, setup: Setup) -> bytes:
    cut = CompressionRecipe(candidate.config.prune, candidate.config.quantize)
    result = run_trial(Job(candidate.trial, candidate.config.training, (cut,)), setup)
    # One recipe leaves one checkpoint.
    (content,) = result.checkpoints.values()
    return content


def _select_metric(pipeline: TrialPipeline, logits: Logits, targets: Targets) -> Metric:
    """Return the task's first score that can be measured on outputs alone, without a teacher and without attacks."""
    levels = getattr(pipeline.task, "levels", {})
    for name in pipeline.task.metrics:
        metric = Metric(name, levels)
        try:
            metric.by_head(logits, targets)
        except (TrialError, UnknownNameError):
            # This score needs a teacher or an attack, or is not registered: the next one is tried.
            continue
        return metric
    return Metric()


def _compare_scores(pipeline: TrialPipeline, rebuilt: RebuiltCandidate, candidate: Candidate) -> None:
    """Check that the rebuilt model has the scores that the store holds."""
    split = pipeline.splits.select_val
    logits = pipeline.predict(rebuilt.model, split)
    metric = _select_metric(pipeline, logits, split.targets)
    score, stored = metric.overall(logits, split.targets), candidate.scores["select_val"][metric.name]
    # Also a better score means that this is another model. A NaN fails the comparison.
    if not abs(score - stored) <= REPRODUCED:
        raise VerificationError(
            f"{candidate.id} has {metric.name} {score:.4f} on select_val here and {stored:.4f} in the store; "
            "the processor or a library differs from those of the search"
        )


def _verify_export(
    folder: Path, pipeline: TrialPipeline, rebuilt: RebuiltCandidate, tolerance: float, agreement: float
) -> Verification:
    split = pipeline.splits.test
    logits = pipeline.predict(rebuilt.model, split)
    metric = _select_metric(pipeline, logits, split.targets)
    predictions = {head: values.argmax(-1) for head, values in logits.items()}
    scores = metric.by_head(logits, split.targets)
    return verify_artifact(folder, split, pipeline.task.heads, scores, predictions, tolerance, agreement, metric)


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


def _build_card(candidate: Candidate, pipeline: TrialPipeline, name: str, command: str) -> Card:
    description = (type(pipeline.task).__doc__ or pipeline.task.name).strip().splitlines()[0]
    preprocessing = pipeline.task.preprocessing
    return {
        "title": f"{name} {candidate.id}",
        "summary": f"One candidate of the search: {command or name}. {description}",
        **({"preprocessing": preprocessing} if preprocessing else {}),
        "scores": {split: dict(values) for split, values in candidate.scores.items()},
        "costs": dict(candidate.costs),
    }
