"""Several models in one folder: each equals its own artifact, in fewer bytes, and a program switches between them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import autocompress
from autocompress.core.config import CompressionConfig, Part
from autocompress.core.task import Splits
from autocompress.errors import ArtifactError, UnknownNameError, UsageError
from autocompress.export import artifact
from autocompress.export.artifact import Deployable, export_graph, load_artifact, write_artifact
from autocompress.export.switchable import join_artifacts, load_switchable
from autocompress.quantize import fold_batch_norm
from autocompress.tasks.images import Digits
from autocompress.trial.pipeline import TrialPipeline, reproducible_torch
from autocompress.trial.supernet import subnetwork_pruning
from autocompress.trial.teacher import Teacher

pytestmark = pytest.mark.slow

CONFIG = CompressionConfig(
    Part.of("cnn", width=12, depth=1, stages=2), (Part("none"),), Part.of("adamw", epochs=1, sandwich=0.5)
)
INPUTS = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
#: Name to the share of channels that is left out, and the bits of the weights.
VARIANTS = {"full": (0.0, 32), "wide-8": (0.0, 8), "wide-4": (0.0, 4), "narrow-8": (0.5, 8)}


def interface(task: Digits) -> tuple[Any, ...]:
    return task.heads, task.inputs, task.example()


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Artifacts of one supernet: two widths and three bit-widths."""
    task, folder = Digits(), tmp_path_factory.mktemp("artifacts")
    splits = Splits(*(split.take(slice(0, 256)) for _, split in task.splits(0).items()))
    pipeline = TrialPipeline(task, splits, Teacher(task.build(CONFIG.student), {}, Path()))
    untrained = task.build(CONFIG.student).eval()
    graph = export_graph(Deployable(CONFIG, "digits", {}, {}, *interface(task), untrained, untrained, None, None))
    with reproducible_torch(), pytest.MonkeyPatch.context() as patch:
        # The graphs are not read here, and their export would take most of the time.
        patch.setattr(artifact, "_export_graphs", lambda deployable: {"model.onnx": graph})
        model = pipeline.train(CONFIG).model
        for name, (ratio, bits) in VARIANTS.items():
            prune = subnetwork_pruning(ratio) if ratio else None
            quantize = Part.of("post_training", weight_bits=bits, activation_bits=8) if bits < 32 else None
            pruned, prune_state = pipeline.prune(model, CONFIG, prune)
            quantized, state = pipeline.quantize(pruned, CONFIG, quantize)
            if state is None:
                quantized = fold_batch_norm(pruned, task.example())
            config = replace(CONFIG, prune=prune, quantize=quantize)
            deployable = Deployable(config, "digits", {}, {}, *interface(task), pruned, quantized, prune_state, state)
            write_artifact(folder / name, deployable, {})
    return {name: folder / name for name in VARIANTS}


def test_every_model_equals_its_artifact(artifacts: dict[str, Path], tmp_path: Path) -> None:
    joined = autocompress.join_artifacts(list(artifacts.values()), tmp_path / "joined")
    switchable = autocompress.load_switchable(joined.folder)
    assert switchable.names == tuple(VARIANTS)
    assert switchable.active == "full"
    with torch.inference_mode():
        for name, folder in artifacts.items():
            own = load_artifact(folder)
            assert torch.equal(switchable.switch(name)(INPUTS), own(INPUTS))
            expected, state = own.state_dict(), switchable.get_model(name).state_dict()
            assert all(torch.equal(tensor, state[key]) for key, tensor in expected.items())
            assert len(expected) == len(state)
    outputs = {name: switchable.switch(name)(INPUTS) for name in VARIANTS}
    assert not torch.equal(outputs["wide-8"], outputs["narrow-8"])
    assert not torch.equal(outputs["wide-8"], outputs["wide-4"])
    with pytest.raises(UnknownNameError, match="did you mean 'wide-8'"):
        switchable.switch("wide8")


def test_joined_models_take_fewer_bytes(artifacts: dict[str, Path], tmp_path: Path) -> None:
    for names in (["wide-8", "wide-4"], ["wide-8", "narrow-8"], list(VARIANTS)):
        joined = join_artifacts([artifacts[name] for name in names], tmp_path / "joined")
        separate = joined.separate_tensor_bytes
        assert max(separate.values()) < joined.tensor_bytes < sum(separate.values())
        sizes = [path.stat().st_size for path in joined.folder.iterdir() if path.name != "manifest.json"]
        assert joined.file_bytes == sum(sizes)
        assert f"{joined.tensor_bytes:,} bytes instead of {sum(separate.values()):,}" in str(joined)


def test_what_cannot_be_joined_is_refused(artifacts: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "joined"
    with pytest.raises(UsageError, match="at least two"):
        join_artifacts([artifacts["full"]], out)
    with pytest.raises(UsageError, match="distinct names"):
        join_artifacts([artifacts["full"], artifacts["full"]], out)
    with pytest.raises(ArtifactError, match="is not an artifact"):
        join_artifacts([artifacts["full"], tmp_path], out)
    assert not out.exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text").write_text("mine")
    with pytest.raises(ArtifactError, match="exists and is not an artifact"):
        join_artifacts([artifacts["full"], artifacts["wide-8"]], tmp_path / "notes")


def test_damage_is_detected(artifacts: dict[str, Path], tmp_path: Path) -> None:
    folder = join_artifacts([artifacts["wide-8"], artifacts["wide-4"]], tmp_path / "joined").folder
    with pytest.raises(ArtifactError, match=r"does not list switchable\.json"):
        load_switchable(artifacts["full"])
    with pytest.raises(ArtifactError, match=r"does not list model\.onnx"):
        load_artifact(folder)
    path = folder / "switchable.json"
    content = json.loads(path.read_text())
    content["models"].pop("wide-4")
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="export it again"):
        load_switchable(folder)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match="bytes instead of"):
        load_switchable(folder)


def test_models_that_take_far_more_memory_than_their_file_are_refused(
    artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = join_artifacts([artifacts["wide-8"], artifacts["wide-4"]], tmp_path / "joined").folder
    for name, value in (("LARGEST_MODEL", 0), ("LARGEST_SHRINKAGE", 1)):
        monkeypatch.setattr(f"autocompress.export.switchable.{name}", value)
    with pytest.raises(ArtifactError, match="describes models of"):
        load_switchable(folder)
    monkeypatch.setattr("autocompress.export.architecture.SMALL_FILE", 0)
    monkeypatch.setattr("autocompress.export.architecture.LARGEST_RATIO", 0)
    with pytest.raises(ArtifactError, match=r"switchable\.json has .* bytes; at most 0 are read"):
        load_switchable(folder)
