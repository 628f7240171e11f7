from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from autocompress.errors import ArtifactError, VerificationError
from autocompress.export.artifact import Deployable, write_artifact
from autocompress.export.verify import verify
from autocompress.task import Split, as_heads
from tests.export.nets import deployable, splits, train

Promise = tuple[dict[str, float], dict[str, Tensor]]


@pytest.fixture(scope="module")
def data() -> tuple[Split, Split]:
    return splits()


@pytest.fixture(scope="module")
def written(data: tuple[Split, Split], tmp_path_factory: pytest.TempPathFactory) -> tuple[Deployable, Path]:
    """A network with two heads, of 8 bits, and its folder; not to be changed."""
    made = deployable("rows", train("rows", data[0]), data[0], weight_bits=8, activation_bits=8)
    return made, write_artifact(tmp_path_factory.mktemp("verify") / "t1c2", made, {})


@pytest.fixture(scope="module")
def promise(written: tuple[Deployable, Path], data: tuple[Split, Split]) -> Promise:
    with torch.inference_mode():
        logits = as_heads(written[0].model(*data[1].inputs), written[0].heads)
    predictions = {head: values.argmax(1) for head, values in logits.items()}
    scores = {head: float((found == data[1].targets[head]).double().mean()) for head, found in predictions.items()}
    return scores, predictions


def test_a_faithful_export_passes_with_its_figures(
    written: tuple[Deployable, Path], data: tuple[Split, Split], promise: Promise
) -> None:
    made, folder = written
    found = verify(folder, data[1], made.heads, *promise)
    assert found.examples == len(data[1])
    assert found.expected == promise[0]
    for head in made.heads:
        assert found.accuracy[head] == pytest.approx(promise[0][head], abs=0.005)
        assert found.agreement[head] >= 0.99
        assert found.module_agreement[head] == 1.0
    assert promise[0]["label"] > 0.8
    first, second = str(found).splitlines()
    assert first.startswith(f"label: accuracy {found.accuracy['label']:.4f} (searched {promise[0]['label']:.4f})")
    assert second.startswith("even: ")


def test_a_score_that_was_not_kept_is_refused_with_the_figures(
    written: tuple[Deployable, Path], data: tuple[Split, Split], promise: Promise
) -> None:
    made, folder = written
    for head in made.heads:
        better = promise[0] | {head: promise[0][head] + 0.006}
        with pytest.raises(VerificationError, match=rf"{head}: accuracy 0\.\d+ \(searched {better[head]:.4f}\)"):
            verify(folder, data[1], made.heads, better, promise[1])
        verify(folder, data[1], made.heads, better, promise[1], tolerance=0.02)


def test_predictions_that_differ_are_refused_with_the_figures(
    written: tuple[Deployable, Path], data: tuple[Split, Split], promise: Promise
) -> None:
    made, folder = written
    others = {head: found.clone() for head, found in promise[1].items()}
    others["even"][: len(data[1]) // 50] ^= 1
    with pytest.raises(VerificationError, match=r"same prediction on 98\.\d+% \(onnx\) and 98\.\d+% \(module\)"):
        verify(folder, data[1], made.heads, promise[0], others)
    verify(folder, data[1], made.heads, promise[0], others, agreement=0.95)


def test_another_model_in_the_folder_is_noticed(data: tuple[Split, Split], promise: Promise, tmp_path: Path) -> None:
    made = deployable("rows", train("rows", data[0], epochs=1), data[0])
    folder = write_artifact(tmp_path / "other", replace(made, labels={}), {})
    with pytest.raises(VerificationError, match="does not behave as the searched model"):
        verify(folder, data[1], made.heads, *promise)


def test_an_empty_split_verifies_nothing(written: tuple[Deployable, Path], data: tuple[Split, Split]) -> None:
    with pytest.raises(VerificationError, match="empty"):
        verify(written[1], data[1].take(slice(0, 0)), written[0].heads, {}, {})


def test_a_folder_that_is_no_artifact_is_refused(data: tuple[Split, Split], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no artifact"):
        verify(tmp_path, data[1], {"label": 10}, {"label": 1.0}, {"label": data[1].targets["label"]})
