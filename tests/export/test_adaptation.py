"""Adaptation of exported and searched models: versions, their record, and nothing written where something fails."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import autocompress
from autocompress.core.task import Split
from autocompress.errors import ArtifactError, NoCandidateError, UsageError, VerificationError
from autocompress.export import adaptation as module
from autocompress.export.adaptation import find_run_of_artifact, name_next_version
from autocompress.export.artifact import load_artifact, read_architecture, read_candidate
from autocompress.tasks.images import Digits
from autocompress.trial.recent_data import read_recent_data

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recent() -> Split:
    """Digits whose pixels have another scale and offset."""
    test = Digits().splits(0).test
    return Split((3 * test.inputs[0] + 5,), test.targets)


@pytest.fixture(scope="module")
def adapted(small_run: Path, tmp_path_factory: pytest.TempPathFactory, recent: Split) -> autocompress.AdaptedArtifact:
    """The recommended candidate of a run, adapted with labels; its folder is not to be changed."""
    run = tmp_path_factory.mktemp("adapted") / "small"
    shutil.copytree(small_run, run)
    return autocompress.adapt(run, recent, minutes=0.05)


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def score(model: nn.Module, split: Split) -> float:
    with torch.inference_mode():
        logits: Tensor = model(*split.inputs)
    return float((logits.argmax(1) == split.targets["label"]).double().mean())


def test_the_next_version_follows_all_that_exist(tmp_path: Path) -> None:
    for name in ("t1c2", "t1c2-v4", "t1c22-v9", "t1c2-vx"):
        (tmp_path / name).mkdir()
    assert name_next_version(tmp_path / "t1c2").name == "t1c2-v5"
    assert name_next_version(tmp_path / "t1c2-v4").name == "t1c2-v5"
    assert name_next_version(tmp_path / "t1c22").name == "t1c22-v10"
    assert name_next_version(tmp_path / "other").name == "other-v2"


def test_a_new_version_stands_beside_the_old_one(adapted: autocompress.AdaptedArtifact, recent: Split) -> None:
    folder, record = adapted.folder, adapted.record
    old = folder.parent / record.parent
    # Other tests of this process export candidates of the same run.
    assert {old.name, folder.name} <= set(list_names(folder.parent))
    assert folder.name == f"{old.name}-v2"
    assert find_run_of_artifact(folder) == folder.parent.parent
    # The record tells where the version comes from and what it is worth.
    assert read_architecture(folder).adapted == record
    assert read_architecture(old).adapted is None
    assert record.data == read_recent_data(recent, Digits.inputs, Digits.heads, ["input"]).fingerprint
    assert (record.examples, record.is_labelled, record.metric) == (len(recent), True, "accuracy")
    assert record.scores[record.method] > record.scores["unchanged"] + 0.2
    assert set(record.earlier) == {"unchanged", record.method}
    assert record.seconds > 0
    assert adapted.verification.examples == len(recent)
    assert score(load_artifact(folder), recent) > score(load_artifact(old), recent) + 0.2
    card = (folder / "card.md").read_text()
    assert f"| parent | {old.name} |" in card
    assert "| recent data, held out |" in card
    assert json.loads((folder / "architecture.json").read_text())["adapted"]["parent"] == old.name


def test_a_version_is_adapted_again_and_without_labels(
    adapted: autocompress.AdaptedArtifact, recent: Split, tmp_path: Path
) -> None:
    run = tmp_path / "small"
    shutil.copytree(adapted.folder.parent.parent, run)
    second = run / "picks" / adapted.folder.name
    third = autocompress.adapt(second, (recent.inputs[0], None), minutes=0.02)
    assert third.folder.name == second.name.replace("-v2", "-v3")
    assert (third.record.parent, third.record.is_labelled, third.record.metric) == (second.name, False, "agreement")
    assert score(load_artifact(third.folder), recent) > 0.5
    assert "unlabelled examples" in str(third)


def test_an_artifact_without_its_run_needs_its_task_only_for_statistics(
    adapted: autocompress.AdaptedArtifact, recent: Split, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(adapted.folder.parent / adapted.record.parent, folder)
    # Batch normalizations come back, and the function stays what it was without rounded activations.
    splits = Digits().splits(0)
    batches = [batch.inputs for batch in splits.train.batches(256)]
    candidate = read_candidate(folder, batches)[1]
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in candidate.float_model.modules())
    with torch.inference_mode():
        outputs = [model(*splits.test.inputs) for model in (candidate.float_model, candidate.model)]
    assert (outputs[0].argmax(1) == outputs[1].argmax(1)).double().mean() > 0.95
    version = autocompress.adapt(folder, recent, minutes=0)
    assert version.folder == tmp_path / "model-v2"
    assert version.record.scores["re-estimated"] > version.record.scores["unchanged"] + 0.2
    assert version.record.earlier == {}


def test_where_something_fails_nothing_is_written(
    adapted: autocompress.AdaptedArtifact, recent: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(adapted.folder.parent / adapted.record.parent, folder)
    faults = [
        ((recent.inputs[0][:, :, :7], recent.targets), UsageError, r"has examples of shape \[1, 7, 8\]"),
        ((recent.inputs[0], recent.targets["label"] * 0), UsageError, "the single class 0"),
    ]
    for data, error, message in faults:
        with pytest.raises(error, match=message):
            autocompress.adapt(folder, data)
    images = Digits().splits(0).test.inputs
    with torch.inference_mode():
        predictions = load_artifact(folder)(*images).argmax(1)
    # What the model predicts already cannot be predicted better.
    with pytest.raises(NoCandidateError, match="nothing was written"):
        autocompress.adapt(folder, (images[0], predictions), minutes=0)

    def fail(*arguments: object, **settings: object) -> None:
        raise VerificationError("does not behave as the searched model")

    monkeypatch.setattr(module, "verify", fail)
    with pytest.raises(VerificationError):
        autocompress.adapt(folder, recent, minutes=0)
    assert list_names(tmp_path) == ["model"]
    with pytest.raises(UsageError, match="a candidate belongs to a run"):
        autocompress.adapt(folder, recent, candidate="t0c0")


def test_a_module_whose_task_is_not_here_is_refused(
    adapted: autocompress.AdaptedArtifact, recent: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(adapted.folder.parent / adapted.record.parent, folder)

    def refuse(*arguments: object) -> None:
        raise ArtifactError("the module belongs to the task 'digits', which is not registered")

    monkeypatch.setattr(module, "read_candidate", refuse)
    monkeypatch.setattr(module, "_load_task", lambda architecture: (module.ExportedTask(architecture), None))
    with pytest.raises(ArtifactError, match="is not registered"):
        autocompress.adapt(folder, recent)
    assert list_names(tmp_path) == ["model"]


def test_without_the_data_of_its_task_an_artifact_is_adapted_as_it_is(
    adapted: autocompress.AdaptedArtifact, recent: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(adapted.folder.parent / adapted.record.parent, folder)

    def lose_data(self: Digits, seed: int) -> None:
        raise UsageError("the data is not here")

    monkeypatch.setattr(Digits, "splits", lose_data)
    version = autocompress.adapt(folder, recent, minutes=0.05)
    # The statistics from before are not known, so weights have to be trained to gain anything.
    assert version.record.method == "fine-tuned"
    assert version.record.teacher == "no teacher: trained on the labels"
    assert version.record.scores["fine-tuned"] > version.record.scores["unchanged"]
