"""From a candidate's id in a run folder to a deployable, verified artifact."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Candidate, Cut, Job
from autocompress.core.task import Logits, Targets
from autocompress.errors import TrialError, UnknownNameError, UsageError, VerificationError
from autocompress.export.artifact import Deployable, deployed, write_artifact
from autocompress.export.bench_worker import Shape
from autocompress.export.verify import Metric, Verification, verify as verify_artifact
from autocompress.store.run_store import RunStore
from autocompress.trial.pipeline import RebuiltCandidate, Setup, TrialPipeline, load_pipeline, reproducible_torch
from autocompress.trial.runner import run_trial

REPRODUCED = 0.005


@dataclass(frozen=True)
class Exported:
    """What an export gave.

    Attributes:
        folder: The artifact.
        verification: What the exported files did on the test split, if that was asked.
    """

    folder: Path
    verification: Verification | None


def export_candidate(
    run: Path, identity: str, *, verify: bool = True, tolerance: float = 0.005, agreement: float = 0.99
) -> Exported:
    """Write ``picks/<id>`` in the run folder, and measure it again on the test split.

    A candidate whose weights were not kept is trained again from its record.

    Args:
        run: The run folder.
        identity: The candidate's id.
        verify: Whether to run the exported files.
        tolerance: The most that the exported file may lose of the task's first score, in that score's unit.
        agreement: Smallest share of equal predictions.

    Raises:
        UsageError: The run has no such candidate, or its training was not at its end.
        ArtifactError: It cannot be exported.
        VerificationError: The exported model does not behave as the searched one.
    """
    with reproducible_torch():
        found = _found(run, identity)
        folder = write_artifact(run / "picks" / identity, found.deployable, found.card)
        verification = _verified(folder, found.place, found.rebuilt, tolerance, agreement) if verify else None
        return Exported(folder, verification)


def candidate_as_deployed(run: Path, identity: str) -> tuple[bytes, list[Shape]]:
    """Return the ``model.onnx`` of a candidate and its inputs for one example; errors as in exporting it."""
    with reproducible_torch():
        return _as_deployed(_found(run, identity).deployable)


def teacher_as_deployed(run: Path) -> tuple[bytes, list[Shape]]:
    """Return the ``model.onnx`` of a run's teacher and its inputs for one example.

    Raises:
        ArtifactError: It cannot be exported.
    """
    with RunStore.read(run) as study:
        setup = Setup.from_json(study.run_info().setup)
    with reproducible_torch():
        place = load_pipeline(setup)
        config = CompressionConfig(setup.teacher.student, (Part("none"),), setup.teacher.fit, seed=setup.teacher.seed)
        models = RebuiltCandidate(place.teacher.model, place.teacher.model, None, None)
        return _as_deployed(_deployable(place, setup, config, models))


def _as_deployed(deployable: Deployable) -> tuple[bytes, list[Shape]]:
    shapes = [(list(each.shape), str(each.dtype).removeprefix("torch.")) for each in deployable.example]
    return deployed(deployable), shapes


@dataclass(frozen=True)
class _Found:
    """A candidate, rebuilt from its run.

    Attributes:
        place: The lab of its run.
        rebuilt: Its models.
        deployable: Both, ready to be written.
        card: What is said of it.
    """

    place: TrialPipeline
    rebuilt: RebuiltCandidate
    deployable: Deployable
    card: Mapping[str, Any]


def _found(run: Path, identity: str) -> _Found:
    with RunStore.read(run) as study:
        candidate = study.candidate(identity)
        info = study.run_info()
        path = study.checkpoint_path(candidate.checkpoint)
    if not candidate.complete:
        raise UsageError(
            f"'{identity}' was measured after {candidate.epochs} epochs of a training that was not at its end; "
            "choose one that is complete (column `complete` of candidates.csv)"
        )
    setup = Setup.from_json(info.setup)
    place = load_pipeline(setup)
    content = path.read_bytes() if path.is_file() else _trained_again(candidate, setup)
    rebuilt = place.rebuild(candidate.config, content)
    _compare_scores(place, rebuilt, candidate)
    deployable = _deployable(place, setup, candidate.config, rebuilt)
    return _Found(place, rebuilt, deployable, _card(candidate, place, info.name, info.command))


def _deployable(place: TrialPipeline, setup: Setup, config: CompressionConfig, models: RebuiltCandidate) -> Deployable:
    return Deployable(
        config,
        place.task.name,
        setup.task.values,
        place.task.labels,
        dict(place.task.heads),
        place.task.inputs,
        place.task.example(),
        models.float_model,
        models.model,
        models.prune,
        models.quantize,
        models.start,
    )


def _trained_again(candidate: Candidate, setup: Setup) -> bytes:
    cut = Cut(candidate.config.prune, candidate.config.quantize)
    result = run_trial(Job(candidate.trial, candidate.config.training, (cut,)), setup)
    (content,) = result.checkpoints.values()
    return content


def _metric(place: TrialPipeline, logits: Logits, targets: Targets) -> Metric:
    """Return the task's first score that can be measured on outputs alone, without a teacher and without attacks."""
    levels = getattr(place.task, "levels", {})
    for name in place.task.metrics:
        metric = Metric(name, levels)
        try:
            metric.by_head(logits, targets)
        except (TrialError, UnknownNameError):
            continue
        return metric
    return Metric()


def _compare_scores(place: TrialPipeline, rebuilt: RebuiltCandidate, candidate: Candidate) -> None:
    """Make sure that this is the model whose scores the store holds."""
    split = place.splits.select_val
    logits = place.predict(rebuilt.model, split)
    metric = _metric(place, logits, split.targets)
    found, stored = metric.overall(logits, split.targets), candidate.scores["select_val"][metric.name]
    # Either way: a model that scores better is another model too.
    if not abs(found - stored) <= REPRODUCED:
        raise VerificationError(
            f"{candidate.id} has {metric.name} {found:.4f} on select_val here and {stored:.4f} in the store; "
            "the processor or a library differs from the search's"
        )


def _verified(folder: Path, place: TrialPipeline, rebuilt: RebuiltCandidate, tolerance: float, agreement: float) -> Verification:
    split = place.splits.test
    logits = place.predict(rebuilt.model, split)
    metric = _metric(place, logits, split.targets)
    predictions = {head: values.argmax(-1) for head, values in logits.items()}
    scores = metric.by_head(logits, split.targets)
    return verify_artifact(folder, split, place.task.heads, scores, predictions, tolerance, agreement, metric)


def _card(candidate: Candidate, place: TrialPipeline, name: str, command: str) -> Mapping[str, Any]:
    about = (type(place.task).__doc__ or place.task.name).strip().splitlines()[0]
    before = place.task.preprocessing
    return {
        "title": f"{name} {candidate.id}",
        "summary": f"One candidate of the search: {command or name}. {about}",
        **({"preprocessing": before} if before else {}),
        "scores": {split: dict(values) for split, values in candidate.scores.items()},
        "costs": dict(candidate.costs),
    }
