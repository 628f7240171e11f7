"""Verification: the exported files are run on a split and must behave as the model that was searched."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autocompress.core.task import Logits, Split, Targets, logits_by_head
from autocompress.errors import VerificationError
from autocompress.export.artifact import load_artifact
from autocompress.export.folder import read_files
from autocompress.export.runtime import session
from autocompress.measure import Subject, measure
from autocompress.measure.heads import AT, get_objective

BATCH = 256


@dataclass(frozen=True)
class Metric:
    """The score that an export is held to.

    Attributes:
        name: An objective that outputs and targets suffice for.
        levels: Head to the value of each class, for the heads whose classes are numbers.

    Example:
        >>> Metric().by_head({"label": torch.tensor([[2.0, 1.0]])}, {"label": torch.tensor([0])})
        {'label': 1.0}
    """

    name: str = "accuracy"
    levels: Mapping[str, Tensor] = field(default_factory=dict)

    def overall(self, logits: Logits, targets: Targets) -> float:
        """Return the score of all heads together."""
        return measure(self._subject(logits, targets), [self.name])[self.name]

    def by_head(self, logits: Logits, targets: Targets) -> dict[str, float]:
        """Return the score of each head."""
        found = measure(self._subject(logits, targets), [f"{self.name}{AT}{head}" for head in logits])
        return {head: found[f"{self.name}{AT}{head}"] for head in logits}

    def worse(self, found: float, expected: float) -> float:
        """Return by how much a score is worse than another: above 0 a loss, whichever direction is better."""
        return expected - found if get_objective(self.name).direction == "maximize" else found - expected

    def _subject(self, logits: Logits, targets: Targets) -> Subject:
        return Subject(logits, targets, levels=self.levels)


@dataclass(frozen=True)
class Verification:
    """What an exported model did on a split.

    Attributes:
        examples: Size of the split.
        metric: Name of the score.
        scores: Head to the score of model.onnx under onnxruntime.
        expected: Head to the score that was promised.
        agreement: Head to the share of examples on which model.onnx predicts what was promised.
        module_agreement: Head to the share on which the reloaded torch module does.
    """

    examples: int
    metric: str
    scores: Mapping[str, float]
    expected: Mapping[str, float]
    agreement: Mapping[str, float]
    module_agreement: Mapping[str, float]

    def __str__(self) -> str:
        return "\n".join(
            f"{head}: {self.metric} {score:.4f} (searched {self.expected[head]:.4f}), same prediction on "
            f"{self.agreement[head]:.2%} (onnx) and {self.module_agreement[head]:.2%} (module) "
            f"of {self.examples} examples"
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
    """Run model.onnx under onnxruntime and the reloaded module on a split, and compare both with what was promised.

    A score that is better than promised is no fault by itself; predictions that differ are, in both.

    Args:
        folder: The artifact.
        split: The examples.
        heads: Head name to number of classes.
        expected_scores: Head to the searched model's score on the split.
        expected_predictions: Head to the searched model's predicted classes, ``{head: [N]}``.
        tolerance: The most that the score may lose, in its own unit: a fraction for an accuracy.
        agreement: Smallest share of equal predictions.
        metric: What is scored; the accuracy by default.

    Raises:
        ArtifactError: A file was changed or cannot be loaded.
        VerificationError: The exported model behaves otherwise; the message holds the figures.
    """
    if len(split) == 0:
        raise VerificationError("the split is empty: there is nothing to verify on")
    metric = metric or Metric()
    files = read_files(Path(folder))
    outputs = {"onnx": _run_onnx(files["model.onnx"], split, heads), "module": _run_module(folder, split, heads)}
    shares = {
        name: {head: _share(found[head].argmax(-1), expected_predictions[head]) for head in heads}
        for name, found in outputs.items()
    }
    scores = metric.by_head(outputs["onnx"], split.targets)
    found = Verification(len(split), metric.name, scores, dict(expected_scores), shares["onnx"], shares["module"])
    # The slack is for the rounding of a difference that is exactly the tolerance; a score that is no number is a loss.
    kept = all(metric.worse(scores[head], expected_scores[head]) <= tolerance + 1e-9 for head in heads)
    if not kept or any(share < agreement for by_head in shares.values() for share in by_head.values()):
        limits = f"allowed are a loss of {tolerance:g} in {metric.name} and {agreement:.0%}"
        raise VerificationError(
            f"{folder} does not behave as the searched model: {found}; {limits}".replace("\n", "; ")
        )
    return found


def _run_onnx(model: bytes, split: Split, heads: Mapping[str, int]) -> dict[str, Tensor]:
    running = session(model)
    names = [entry.name for entry in running.get_inputs()]
    logits: dict[str, list[np.ndarray]] = {head: [] for head in heads}
    for batch in split.batches(BATCH):
        inputs = {name: tensor.numpy() for name, tensor in zip(names, batch.inputs, strict=True)}
        for head, values in zip(heads, running.run(list(heads), inputs), strict=True):
            logits[head].append(values)
    return {head: torch.from_numpy(np.concatenate(values)) for head, values in logits.items()}


def _run_module(folder: Path | str, split: Split, heads: Mapping[str, int]) -> dict[str, Tensor]:
    model = load_artifact(folder)
    with torch.inference_mode():
        logits = [logits_by_head(model(*batch.inputs), heads) for batch in split.batches(BATCH)]
    return {head: torch.cat([batch[head] for batch in logits]) for head in heads}


def _share(found: Tensor, expected: Tensor) -> float:
    return float((found == expected).double().mean())
