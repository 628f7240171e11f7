"""Verification: the exported files are run on a split and compared with the searched model."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autocompress.core.heads import Head, as_head
from autocompress.core.preprocessing import RawExample
from autocompress.core.task import Logits, Split, Targets, logits_by_head
from autocompress.errors import ArtifactError, VerificationError
from autocompress.export.artifact import load_artifact
from autocompress.export.folder import read_files
from autocompress.export.pipeline import PipelineError, load
from autocompress.export.preprocess_file import PIPELINE, read_pipeline
from autocompress.measure import Subject, measure
from autocompress.measure.heads import AT, get_objective
from autocompress.targets.onnx_session import create_session

BATCH = 256

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """The score that is compared between the searched and the exported model.

    Attributes:
        name: Name of an objective that needs only outputs and targets.
        heads: Heads of the task.
        labels: Names of the classes of each head.

    Example:
        >>> Metric().by_head({"label": torch.tensor([[2.0, 1.0]])}, {"label": torch.tensor([0])})
        {'label': 1.0}
    """

    name: str = "accuracy"
    heads: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def overall(self, logits: Logits, targets: Targets) -> float:
        """Return the score of all heads together."""
        return measure(self._subject(logits, targets), [self.name])[self.name]

    def by_head(self, logits: Logits, targets: Targets) -> dict[str, float]:
        """Return the score of each head; heads of a kind that the score does not apply to are left out."""
        subject, score = self._subject(logits, targets), get_objective(self.name)
        heads = [head for head in logits if score.applies_to(subject.head(head))]
        scores = measure(subject, [f"{self.name}{AT}{head}" for head in heads])
        return {head: scores[f"{self.name}{AT}{head}"] for head in heads}

    def loss_against(self, score: float, expected: float) -> float:
        """Return the loss of a score against the expected one; positive if it is worse, in either direction."""
        return expected - score if get_objective(self.name).direction == "maximize" else score - expected

    def _subject(self, logits: Logits, targets: Targets) -> Subject:
        return Subject(logits, targets, heads=self.heads, labels=self.labels)


@dataclass(frozen=True)
class Verification:
    """Scores and predictions of an exported model on a split, compared with the searched model.

    Attributes:
        examples: Size of the split.
        metric: Name of the score.
        scores: Head to the score of model.onnx under onnxruntime.
        expected: Head to the score of the searched model.
        agreement: Head to the share of examples where model.onnx predicts the class of the searched model.
        module_agreement: The same share for the reloaded torch module.
        pipeline_agreement: The same share for pipeline.py on raw examples; empty if the task lists none.
    """

    examples: int
    metric: str
    scores: Mapping[str, float]
    expected: Mapping[str, float]
    agreement: Mapping[str, float]
    module_agreement: Mapping[str, float]
    pipeline_agreement: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return "\n".join(
            f"{head}: {self.metric} {score:.4f} (searched {self.expected[head]:.4f}), same prediction on "
            f"{self.agreement[head]:.2%} (onnx), {self.module_agreement[head]:.2%} (module)"
            + (f", {self.pipeline_agreement[head]:.2%} (raw input)" if self.pipeline_agreement else "")
            + f" of {self.examples} examples"
            for head, score in self.scores.items()
        )


def verify(
    folder: Path | str,
    split: Split,
    heads: Mapping[str, int],
    expected_scores: Mapping[str, float],
    expected_predictions: Mapping[str, Tensor],
    tolerance: float = 0.005,
    agreement: float = 0.99,
    metric: Metric | None = None,
) -> Verification:
    """Run model.onnx under onnxruntime and the reloaded module on a split, and compare both with the searched model.

    A better score alone is no failure; predictions that differ are, in either of the two.

    Args:
        folder: The artifact.
        split: The examples.
        heads: Head name to number of classes.
        expected_scores: Head to the searched model's score on the split.
        expected_predictions: Head to the searched model's predicted classes, in the form of its targets.
        tolerance: The most that the score may lose, in its own unit: a fraction for an accuracy.
        agreement: Smallest share of equal predictions.
        metric: Score to compare; the accuracy by default.

    Raises:
        ArtifactError: A file was changed or cannot be loaded.
        VerificationError: The exported model behaves differently; the message holds the figures.
    """
    if len(split) == 0:
        raise VerificationError("the split is empty: verification needs examples")
    metric = metric or Metric()
    files = read_files(Path(folder))
    outputs = {"onnx": _run_onnx(files["model.onnx"], split, heads), "module": _run_module(folder, split, heads)}
    shares = {
        name: {head: _agreement(as_head(heads[head]), logits[head], expected_predictions[head]) for head in heads}
        for name, logits in outputs.items()
    }
    scores = metric.by_head(outputs["onnx"], split.targets)
    verification = Verification(
        len(split), metric.name, scores, dict(expected_scores), shares["onnx"], shares["module"]
    )
    # 1e-9 absorbs the rounding of a difference of exactly the tolerance. A NaN score fails the comparison.
    is_close = all(metric.loss_against(scores[head], expected_scores[head]) <= tolerance + 1e-9 for head in scores)
    if not is_close or any(share < agreement for by_head in shares.values() for share in by_head.values()):
        limits = f"allowed are a loss of {tolerance:g} in {metric.name} and {agreement:.0%}"
        raise VerificationError(
            f"{folder} does not behave as the searched model: {verification}; {limits}".replace("\n", "; ")
        )
    logger.info("%s: verified on %d examples: %s", folder, len(split), str(verification).replace("\n", "; "))
    return verification


def verify_pipeline(
    folder: Path | str,
    examples: Sequence[RawExample],
    heads: Mapping[str, int],
    expected_predictions: Mapping[str, Tensor],
    agreement: float = 0.99,
) -> dict[str, float]:
    """Run pipeline.py of an artifact on raw examples, and return the share of equal predictions of each head.

    Args:
        folder: The artifact.
        examples: Raw examples of a split, in its order.
        heads: Heads of the task.
        expected_predictions: Head to the searched model's predicted classes, ``{head: [N]}``.
        agreement: Smallest share of equal predictions.

    Raises:
        ArtifactError: A file was changed, or pipeline.py is that of another version.
        VerificationError: An example cannot be used, or the predictions differ; the message holds the shares.
    """
    # pipeline.py is code: it is not run from the folder, but compared with the module of this version.
    if read_files(Path(folder)).get(PIPELINE) != read_pipeline():
        raise ArtifactError(f"{folder}: {PIPELINE} is not that of this version; export the candidate again")
    # Every head has a prediction for each example.
    count = len(next(iter(expected_predictions.values())))
    if len(examples) != count:
        raise VerificationError(f"the task lists {len(examples)} raw test examples, but its test split has {count}")
    try:
        outputs = load(folder).compute_outputs(examples)
    except PipelineError as error:
        raise VerificationError(f"{folder}: {PIPELINE} refuses a raw test example of the task: {error}") from error
    shares = {
        head: _agreement(as_head(heads[head]), torch.from_numpy(values), expected_predictions[head])
        for head, values in outputs.items()
    }
    if any(share < agreement for share in shares.values()):
        figures = ", ".join(f"{head} {share:.2%}" for head, share in shares.items())
        raise VerificationError(
            f"{folder}: from raw input, {PIPELINE} predicts what the searched model predicts for {figures} of "
            f"{len(examples)} examples; at least {agreement:.0%} are needed. Compare the task's specify_preprocessing "
            "and list_test_examples with its splits"
        )
    return shares


def _run_onnx(model: bytes, split: Split, heads: Mapping[str, int]) -> dict[str, Tensor]:
    runtime = create_session(model)
    names = [entry.name for entry in runtime.get_inputs()]
    logits: dict[str, list[np.ndarray]] = {head: [] for head in heads}
    for batch in split.batches(BATCH):
        inputs = {name: tensor.numpy() for name, tensor in zip(names, batch.inputs, strict=True)}
        for head, values in zip(heads, runtime.run(list(heads), inputs), strict=True):
            logits[head].append(values)
    return {head: torch.from_numpy(np.concatenate(values)) for head, values in logits.items()}


def _run_module(folder: Path | str, split: Split, heads: Mapping[str, int]) -> dict[str, Tensor]:
    model = load_artifact(folder)
    with torch.inference_mode():
        logits = [logits_by_head(model(*batch.inputs), heads) for batch in split.batches(BATCH)]
    return {head: torch.cat([batch[head] for batch in logits]) for head in heads}


def _agreement(head: Head, outputs: Tensor, expected: Tensor) -> float:
    return head.compare_predictions(head.predict(outputs), expected)
