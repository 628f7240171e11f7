"""Verification: the exported files are run on a split and must behave as the model that was searched."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import VerificationError
from autocompress.export.artifact import load_artifact
from autocompress.export.folder import read_files
from autocompress.export.onnx import session
from autocompress.task import Split, as_heads

BATCH = 256


@dataclass(frozen=True)
class Verification:
    """What an exported model did on a split.

    Attributes:
        examples: Size of the split.
        accuracy: Head to the accuracy of model.onnx under onnxruntime.
        expected: Head to the accuracy that was promised.
        agreement: Head to the share of examples on which model.onnx predicts what was promised.
        module_agreement: Head to the share on which the reloaded torch module does.
    """

    examples: int
    accuracy: Mapping[str, float]
    expected: Mapping[str, float]
    agreement: Mapping[str, float]
    module_agreement: Mapping[str, float]

    def __str__(self) -> str:
        return "\n".join(
            f"{head}: accuracy {accuracy:.4f} (searched {self.expected[head]:.4f}), same prediction on "
            f"{self.agreement[head]:.2%} (onnx) and {self.module_agreement[head]:.2%} (module) "
            f"of {self.examples} examples"
            for head, accuracy in self.accuracy.items()
        )


def verify(
    folder: Path | str,
    split: Split,
    heads: Mapping[str, int],
    expected_scores: Mapping[str, float],
    expected_predictions: Mapping[str, Tensor],
    tolerance: float = 0.005,
    agreement: float = 0.99,
) -> Verification:
    """Run model.onnx under onnxruntime and the reloaded module on a split, and compare both with what was promised.

    Args:
        folder: The artifact.
        split: The examples.
        heads: Head name to number of classes.
        expected_scores: Head to the searched model's accuracy on the split.
        expected_predictions: Head to the searched model's predicted classes, ``{head: [N]}``.
        tolerance: Largest difference of the accuracy, as a fraction.
        agreement: Smallest share of equal predictions.

    Raises:
        ArtifactError: A file was changed or cannot be loaded.
        VerificationError: The exported model behaves otherwise; the message holds the figures.
    """
    if len(split) == 0:
        raise VerificationError("the split is empty: there is nothing to verify on")
    files = read_files(Path(folder))
    predictions = {"onnx": _run_onnx(files["model.onnx"], split, heads), "module": _run_module(folder, split, heads)}
    shares = {
        name: {head: _share(found[head], expected_predictions[head]) for head in heads}
        for name, found in predictions.items()
    }
    accuracy = {head: _share(predictions["onnx"][head], split.targets[head]) for head in heads}
    found = Verification(len(split), accuracy, dict(expected_scores), shares["onnx"], shares["module"])
    # The slack is for the rounding of a difference that is exactly the tolerance.
    failed = any(abs(accuracy[head] - expected_scores[head]) > tolerance + 1e-9 for head in heads)
    if failed or any(share < agreement for by_head in shares.values() for share in by_head.values()):
        limits = f"allowed are a difference of {tolerance:g} and {agreement:.0%}"
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
    return {head: torch.from_numpy(np.concatenate(values)).argmax(-1) for head, values in logits.items()}


def _run_module(folder: Path | str, split: Split, heads: Mapping[str, int]) -> dict[str, Tensor]:
    model = load_artifact(folder)
    with torch.inference_mode():
        logits = [as_heads(model(*batch.inputs), heads) for batch in split.batches(BATCH)]
    return {head: torch.cat([batch[head] for batch in logits]).argmax(-1) for head in heads}


def _share(found: Tensor, expected: Tensor) -> float:
    return float((found == expected).double().mean())
