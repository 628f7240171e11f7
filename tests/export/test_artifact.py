import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import yaml
from safetensors.torch import load, save
from torch import nn

import autocompress
from autocompress.core.config import CompressionConfig, Part
from autocompress.core.method import Context
from autocompress.core.precisions import Precisions
from autocompress.core.registry import PRUNE, TASKS
from autocompress.core.run_info import TargetInfo
from autocompress.core.task import Split, logits_by_head
from autocompress.errors import ArtifactError
from autocompress.export import artifact
from autocompress.export.artifact import (
    Deployable,
    expand_artifact,
    load_artifact,
    read_architecture,
    write_artifact,
)
from autocompress.export.folder import read_files, write_files
from autocompress.quantize.folding import FoldedBatchNorm, fold_batch_norm
from autocompress.store.run_store import RunStore
from autocompress.targets.onnxruntime import OnnxRuntime
from autocompress.trial.pipeline import PruningStep
from tests.export.nets import NETS, deployable, skip_graphs, splits, train

CARD = {"title": "t1c2", "summary": "A test.", "scores": {"test": {"accuracy": 0.9}}}
BOTH = {"weight_bits": 4, "activation_bits": 8}


@pytest.fixture(scope="module")
def data() -> tuple[Split, Split]:
    return splits()


@pytest.fixture(scope="module")
def trained(data: tuple[Split, Split]) -> Mapping[str, nn.Module]:
    return {name: train(name, data[0], epochs=2) for name in NETS}


@pytest.fixture(scope="module")
def written(
    trained: Mapping[str, nn.Module], data: tuple[Split, Split], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Deployable, Path]:
    """A residual network of 4 and 8 bits and its folder; not to be changed."""
    made = deployable("residual", trained["residual"], data[0], **BOTH)
    return made, write_artifact(tmp_path_factory.mktemp("artifact") / "t1c2", made, CARD)


@pytest.fixture
def without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is told by the module alone; the graphs of these networks are compared in test_onnx."""
    skip_graphs(monkeypatch)


@pytest.fixture
def folder(written: tuple[Deployable, Path], tmp_path: Path) -> Path:
    """A copy of the folder, to be changed."""
    return Path(shutil.copytree(written[1], tmp_path / "copy"))


def same(first: nn.Module, second: nn.Module, split: Split, heads: Mapping[str, int]) -> None:
    with torch.inference_mode():
        ours, theirs = (logits_by_head(model(*split.inputs), heads) for model in (first, second))
    assert all(torch.equal(ours[head], theirs[head]) for head in heads)


class Planned(OnnxRuntime):
    """A runtime that loads a file of its own, whose memory is known."""

    def convert(self, model: bytes) -> dict[str, bytes]:
        return {"model.pte": model}

    def plan_memory(self, files: Mapping[str, bytes]) -> int:
        assert list(files) == ["model.pte"]
        return 1234


@pytest.mark.usefixtures("without_graphs")
def test_files_of_another_runtime_lie_beside_the_onnx_file_with_their_memory(
    trained: Mapping[str, nn.Module], data: tuple[Split, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact, "open_stored_target", lambda *_: Planned())
    target = TargetInfo("planned", precisions=Precisions(((32, 32),), (32,)))
    made = replace(deployable("residual", trained["residual"], data[0]), target=target)
    folder = write_artifact(tmp_path / "t1c2", made, CARD)
    card = (folder / "card.md").read_text()
    assert "## Working memory\n\n1,234 bytes for the tensors between layers (arena)" in card
    assert "| model.pte |" in card
    assert read_files(folder, ["model.pte"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("functional", {}),
        ("functional", {"weight_bits": 3, "activation_bits": 32, "weight_scheme": "asymmetric"}),
        ("separable", {"weight_bits": 32, "activation_bits": 5}),
        ("rows", {"weight_bits": 8, "activation_bits": 8, "granularity": "per_tensor"}),
        ("functional", {"weight_bits": 4, "activation_bits": 8, "quantizer": "power_of_two"}),
        ("functional", {"weight_bits": 3, "activation_bits": 32, "quantizer": "codebook", "bias_correction": True}),
        ("rows", {"weight_bits": 4, "activation_bits": 8, "granularity": "per_group", "group_size": 5}),
    ],
)
def test_the_module_comes_back_bit_for_bit(
    trained: Mapping[str, nn.Module],
    data: tuple[Split, Split],
    without_graphs: None,
    name: str,
    settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    made = deployable(name, trained[name], data[0], **settings)
    path = write_artifact(tmp_path / "a", made, CARD)
    loaded = load_artifact(path)
    assert not loaded.training
    same(loaded, made.model, data[1], made.heads)
    assert (path / "model_float.onnx").exists() == bool(settings)


@pytest.mark.slow
def test_a_residual_network_of_4_and_8_bits_comes_back_bit_for_bit(
    written: tuple[Deployable, Path], data: tuple[Split, Split]
) -> None:
    same(load_artifact(written[1]), written[0].model, data[1], written[0].heads)
    same(load_artifact(str(written[1])), written[0].model, data[1], written[0].heads)


@pytest.mark.slow
def test_a_pruned_and_quantized_network_comes_back_bit_for_bit(
    data: tuple[Split, Split], without_graphs: None, tmp_path: Path
) -> None:
    task = TASKS.get("digits")()
    student = Part.of("cnn", width=8, depth=1, stages=2, block="residual")
    torch.manual_seed(0)
    model = task.build(student).eval()
    prune = Part.of("structured", pruning_ratio=0.4, recovery_epochs=0)
    method = PRUNE.get("structured")
    inputs = (data[0].inputs[0][:16],)
    pruned, state = method.apply(model, method.config.of(prune.values), Context(task.example(), (inputs,)))
    quantized = deployable("residual", pruned, data[0], **BOTH)
    made = Deployable(
        config=CompressionConfig(student, (), Part.of("adamw"), prune, Part.of("post_training", **BOTH), 3),
        task_name="digits",
        task_options={},
        labels={},
        heads=task.heads,
        inputs=task.inputs,
        example=task.example(),
        float_model=pruned,
        model=quantized.model,
        prune_state=state,
        quantize_state=quantized.quantize_state,
    )
    path = write_artifact(tmp_path / "a", made, CARD)
    loaded = load_artifact(path)
    same(loaded, made.model, data[1], task.heads)
    assert loaded.get_parameter("stem.0.weight").shape[0] < 8
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.slow
def test_a_folded_float_model_comes_back_folded(
    trained: Mapping[str, nn.Module], data: tuple[Split, Split], without_graphs: None, tmp_path: Path
) -> None:
    made = deployable("functional", trained["functional"], data[0])
    folded = fold_batch_norm(made.float_model, made.example)
    made = replace(made, float_model=folded, model=folded)
    loaded = load_artifact(write_artifact(tmp_path / "a", made, CARD))
    assert isinstance(loaded.get_submodule("norm"), FoldedBatchNorm)
    same(loaded, folded, data[1], made.heads)


@pytest.mark.slow
def test_the_folder_holds_what_it_says(written: tuple[Deployable, Path]) -> None:
    made, path = written
    names = ["architecture.json", "card.md", "config.yaml", "manifest.json", "pipeline.py", "preprocess.json"]
    assert sorted(file.name for file in path.iterdir()) == sorted(
        [*names, "model.onnx", "model.safetensors", "model_float.onnx"]
    )
    assert CompressionConfig.from_json(yaml.safe_load((path / "config.yaml").read_text())) == made.config
    architecture = read_architecture(path)
    assert architecture.compression == made.config
    assert architecture.heads == {"label": 10}
    assert architecture.labels == {"label": [str(digit) for digit in range(10)]}
    manifest = json.loads((path / "manifest.json").read_text())["files"]
    for name, entry in manifest.items():
        content = (path / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    for name in ("model.onnx", "model_float.onnx"):
        onnx.checker.check_model(onnx.load(path / name), full_check=True)


@pytest.mark.slow
def test_fewer_bits_make_a_smaller_file(trained: Mapping[str, nn.Module], data: tuple[Split, Split]) -> None:
    def stored(**settings: Any) -> int:
        _, tensors = artifact._build_architecture(deployable("residual", trained["residual"], data[0], **settings))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    sizes = [stored(), *(stored(weight_bits=bits, activation_bits=8) for bits in (8, 4, 3, 2))]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    weights = sum(m.weight.numel() for m in trained["residual"].modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert sizes[1] - sizes[2] == pytest.approx(weights / 2, abs=16)
    assert sizes[1] - sizes[4] == pytest.approx(weights * 6 / 8, abs=16)


@pytest.mark.slow
def test_the_folder_can_be_moved(written: tuple[Deployable, Path], data: tuple[Split, Split], tmp_path: Path) -> None:
    elsewhere = tmp_path / "some where" / "else"
    shutil.copytree(written[1], elsewhere)
    same(load_artifact(elsewhere), written[0].model, data[1], written[0].heads)
    assert str(written[1].parent).encode() not in b"".join(path.read_bytes() for path in elsewhere.iterdir())


def test_a_flipped_byte_anywhere_is_refused(folder: Path) -> None:
    tries = 0
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for offset in {0, 7, len(content) // 3, len(content) // 2, len(content) - 2, len(content) - 1}:
            for flip in (0x01, 0x20, 0xFF):
                path.write_bytes(content[:offset] + bytes([content[offset] ^ flip]) + content[offset + 1 :])
                with pytest.raises(ArtifactError):
                    load_artifact(folder)
                tries += 1
        path.write_bytes(content)
    assert tries >= 100
    load_artifact(folder)


def test_a_missing_file_is_refused(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(ArtifactError, match=path.name):
            load_artifact(folder)
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match="is not an artifact"):
        load_artifact(folder / "absent")


def test_both_programs_of_the_card_run(written: tuple[Deployable, Path]) -> None:
    blocks = [block.split("```")[0] for block in (written[1] / "card.md").read_text().split("```python\n")[1:]]
    assert len(blocks) == 2
    # The first in a fresh interpreter; the second here, where the tests' own task is registered.
    run = subprocess.run([sys.executable, "-c", blocks[0]], cwd=written[1], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("label [")
    found: dict[str, Any] = {}
    exec(blocks[1].replace('load_artifact(".")', f"load_artifact({str(written[1])!r})"), found)
    assert found["output"].shape == (1, 10)


def signed(folder: Path, **changes: Callable[[bytes], bytes]) -> Path:
    """Change files of an artifact as someone who can also write the manifest would."""
    files = read_files(folder)
    for name, change in changes.items():
        file = name.replace("_json", ".json").replace("_safetensors", ".safetensors")
        files[file] = change(files[file])
    write_files(folder, files, lambda _: None)
    return folder


def edit(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(json.loads(content) | changes).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "no_such_task"}, "task 'no_such_task', which is not registered"),
        ({"surprise": 1}, "surprise"),
        ({"options": {"unknown": 1}}, "cannot be rebuilt"),
        ({"folded": [["stem", "absent"]]}, "no layer 'absent'"),
        ({"folded": [["stem", "head"]]}, "cannot be folded"),
        ({"quantize": {"history": {}, "bits": {}}}, "does not fit"),
        ({"quantize": {"history": {"folded": [], "layers": [7]}, "bits": {}}}, "does not fit"),
        ({"quantize": None}, "do not fit the module"),
        ({"prune": {"history": {}, "bits": {}}}, "the history of a method that its config does not name"),
        ({"packed": {}}, "does not fit the model"),
        ({"aliases": {"model/more": "model/head.bias"}}, "do not fit the module: more"),
        # It would take gigabytes.
        ({"inputs": [{"shape": [1, 1, 2**20, 2**20], "dtype": "float32"}]}, "do not belong together"),
    ],
)
def test_a_signed_architecture_that_lies_is_refused_with_a_reason(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        load_artifact(signed(folder, architecture_json=edit(**change)))


def repeat_folded(record: dict[str, Any]) -> None:
    record["folded"] *= 2


def repeat_history(record: dict[str, Any]) -> None:
    record["quantize"]["history"]["folded"] *= 2


def repeat_layers(record: dict[str, Any]) -> None:
    record["quantize"]["history"]["layers"] *= 2


def repeat_steps(record: dict[str, Any]) -> None:
    step = {"part": {"structured": {"pruning_ratio": 0.0}}, "state": {"history": {"layers": []}, "bits": {}}}
    record["start"] = [step] * 100


def pad_labels(record: dict[str, Any]) -> None:
    record["labels"] = {"label": ["x" * 2**20]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (repeat_folded, "twice"),
        (repeat_history, "twice"),
        (repeat_layers, "twice"),
        (repeat_steps, "start: List should have at most 64"),
        (pad_labels, "at most 1,048,576 are read of this artifact"),
    ],
)
def test_a_history_that_repeats_itself_or_fills_a_file_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    record = json.loads((folder / "architecture.json").read_bytes())
    change(record)
    with pytest.raises(ArtifactError, match=message):
        load_artifact(signed(folder, architecture_json=lambda content: json.dumps(record).encode()))


def test_a_config_that_names_what_is_not_there_is_refused(folder: Path) -> None:
    config = json.loads((folder / "architecture.json").read_bytes())["config"]
    for change in (
        {"student": {"absent": {}}},
        {"quantize": {"absent": {}}},
        {"quantize": {"post_training": {"x": 1}}},
    ):
        changed = signed(folder, architecture_json=edit(config=config | change))
        with pytest.raises(ArtifactError, match="cannot be rebuilt"):
            load_artifact(changed)


def test_a_family_that_would_take_gigabytes_is_refused_before_it_is_built(folder: Path) -> None:
    config = json.loads((folder / "architecture.json").read_bytes())["config"]
    heads = {f"head{number}": 2**24 for number in range(16)}
    changed = edit(config=config | {"student": {"cnn": {"width": 8}}}, heads=heads)
    with pytest.raises(ArtifactError, match="do not belong together"):
        load_artifact(signed(folder, architecture_json=changed))


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("name", ["model_safetensors", "architecture_json"])
def test_a_pickle_is_never_run(folder: Path, tmp_path: Path, name: str) -> None:
    fuse = tmp_path / "owned"
    payload = pickle.dumps(Bomb(fuse))
    pickle.loads(payload)
    assert fuse.exists()
    fuse.unlink()
    with pytest.raises(ArtifactError):
        load_artifact(signed(folder, **{name: lambda _: payload}))
    assert not fuse.exists()


def test_tensors_that_are_missing_wrong_or_more_are_refused(folder: Path) -> None:
    original = (folder / "model.safetensors").read_bytes()
    tensors = load(original)
    first = next(name for name in tensors if name.startswith("model/"))
    for changed in (
        {name: tensor for name, tensor in tensors.items() if name != first},
        tensors | {first: torch.zeros(3, 3, 3)},
        tensors | {"model/more": torch.zeros(1)},
        tensors | {"quantize/stem.weight_codes": torch.zeros(2, dtype=torch.uint8)},
        tensors | {"quantize/stem.weight_scale": torch.zeros(3)},
    ):
        content = save({name: tensor.contiguous() for name, tensor in changed.items()})
        with pytest.raises(ArtifactError):
            load_artifact(signed(folder, model_safetensors=lambda _, content=content: content))
    load_artifact(signed(folder, model_safetensors=lambda _: original))


@pytest.mark.slow
def test_a_module_that_would_not_come_back_is_never_written(
    trained: Mapping[str, nn.Module], data: tuple[Split, Split], without_graphs: None, tmp_path: Path
) -> None:
    made = deployable("functional", trained["functional"], data[0])
    other = replace(made, config=replace(made.config, student=Part.of("separable")))
    with pytest.raises(ArtifactError, match="do not fit the module"):
        write_artifact(tmp_path / "a", other, CARD)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_module_that_would_come_back_as_another_is_never_written(
    trained: Mapping[str, nn.Module],
    data: tuple[Split, Split],
    without_graphs: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.inner, self.factor = trained["functional"], factor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * self.factor

    made = deployable("functional", trained["functional"], data[0])
    scaled = replace(made, float_model=Scaled(2.0), model=Scaled(2.0))
    # Nothing in the state_dict tells the two apart: only the outputs do.
    monkeypatch.setattr(artifact, "load_artifact", lambda _: Scaled(3.0))
    with pytest.raises(ArtifactError, match="differs from the exported one: label"):
        write_artifact(tmp_path / "b", scaled, CARD)
    assert list(tmp_path.iterdir()) == []


def pruned_deployable(
    data: tuple[Split, Split], steps: Mapping[str, Mapping[str, Any]], **settings: Any
) -> tuple[Deployable, nn.Module]:
    """Return a residual network after pruning steps, the last one after the training, and the network before them.

    The model is quantized as ``settings`` say, or folded without any.
    """
    task = TASKS.get("digits")()
    student = Part.of("cnn", width=8, depth=3, stages=2, block="residual")
    torch.manual_seed(0)
    original = task.build(student).eval()
    inputs = data[0].take(slice(0, 64))
    context = Context(
        task.example(),
        (inputs.inputs,),
        ({"label": inputs.targets["label"]},),
        lambda output, targets: task.loss(logits_by_head(output, task.heads), targets),
    )
    model, applied = original, []
    for name, values in steps.items():
        method = PRUNE.get(name)
        model, state = method.apply(model, method.config.of(values), context)
        applied.append(PruningStep(Part.of(name, **values), state))
    quantized = deployable("residual", model, data[0], **settings)
    folded = fold_batch_norm(model, task.example())
    *start, last = applied
    made = Deployable(
        config=CompressionConfig(student, (), Part.of("adamw"), last.part, quantized.config.quantize, 3),
        task_name="digits",
        task_options={},
        labels={},
        heads=task.heads,
        inputs=task.inputs,
        example=task.example(),
        float_model=model,
        model=quantized.model if settings else folded,
        prune_state=last.state,
        quantize_state=quantized.quantize_state,
        start=tuple(start),
    )
    return made, original


CHANNELS = {"structured": {"pruning_ratio": 0.4, "recovery_epochs": 0}}
BLOCKS = {"depth": {"pruning_ratio": 0.4, "recovery_epochs": 0}}
MASKS = {"unstructured": {"pruning_ratio": 0.5, "recovery_epochs": 0}}


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def pruned(data: tuple[Split, Split], tmp_path_factory: pytest.TempPathFactory) -> tuple[Deployable, Path]:
    """A network with blocks and channels removed, and its folder; not to be changed."""
    made, _ = pruned_deployable(data, BLOCKS | CHANNELS)
    with pytest.MonkeyPatch.context() as patch:
        skip_graphs(patch)
        return made, write_artifact(tmp_path_factory.mktemp("pruned") / "a", made, CARD)


@pytest.fixture
def changed(pruned: tuple[Deployable, Path], tmp_path: Path) -> Path:
    """A copy of the folder, to be changed."""
    return Path(shutil.copytree(pruned[1], tmp_path / "copy"))


class TestExpandedArtifact:
    @pytest.mark.slow
    def test_blocks_and_channels_come_back_with_zeros(
        self, pruned: tuple[Deployable, Path], data: tuple[Split, Split]
    ) -> None:
        made, path = pruned
        original = TASKS.get("digits")().build(made.config.student)
        loaded, expanded = load_artifact(path), expand_artifact(path)
        assert any(isinstance(module, FoldedBatchNorm) for module in loaded.modules())
        assert shapes_of(expanded) == shapes_of(original)
        with torch.no_grad():
            torch.testing.assert_close(expanded(*data[1].inputs), loaded(*data[1].inputs), rtol=1e-4, atol=1e-4)
        channels = read_architecture(path).channels
        assert channels is not None
        remaining = channels["stem.0"].outputs
        assert len(remaining) == loaded.get_parameter("stem.0.weight").shape[0] < 8
        assert torch.equal(expanded.get_parameter("stem.0.weight")[remaining], loaded.get_parameter("stem.0.weight"))
        (block, *_) = made.start[0].state.history["dropped"]
        assert channels[f"{block}.body.0"].outputs == []

    @pytest.mark.slow
    def test_quantized_weights_are_dequantized(
        self, data: tuple[Split, Split], without_graphs: None, tmp_path: Path
    ) -> None:
        made, original = pruned_deployable(data, CHANNELS, weight_bits=4, activation_bits=32)
        path = write_artifact(tmp_path / "a", made, CARD)
        loaded, expanded = load_artifact(path), expand_artifact(path)
        assert shapes_of(expanded) == shapes_of(original)
        # The activations are not rounded, so the outputs are equal.
        with torch.no_grad():
            torch.testing.assert_close(expanded(*data[1].inputs), loaded(*data[1].inputs), rtol=1e-4, atol=1e-4)

    @pytest.mark.slow
    @pytest.mark.parametrize("steps", [MASKS, {"structured": {"pruning_ratio": 0.0}}], ids=["masks", "ratio 0"])
    def test_a_model_of_the_original_shapes_is_returned_as_it_is(
        self, data: tuple[Split, Split], without_graphs: None, steps: dict[str, dict[str, Any]], tmp_path: Path
    ) -> None:
        made, _ = pruned_deployable(data, steps, **BOTH)
        path = write_artifact(tmp_path / "a", made, CARD)
        assert read_architecture(path).channels == {}
        same(expand_artifact(path), load_artifact(path), data[1], made.heads)

    @pytest.mark.slow
    def test_an_artifact_without_pruning_is_returned_as_it_is(
        self, written: tuple[Deployable, Path], folder: Path, data: tuple[Split, Split]
    ) -> None:
        made, path = written
        assert read_architecture(path).channels == {}
        same(expand_artifact(path), load_artifact(path), data[1], made.heads)
        # Also if it is older than the channel map.
        same(expand_artifact(signed(folder, architecture_json=drop_channels)), made.model, data[1], made.heads)

    @pytest.mark.slow
    def test_an_artifact_without_a_channel_map_still_loads_and_says_how_to_get_one(
        self, changed: Path, pruned: tuple[Deployable, Path], data: tuple[Split, Split]
    ) -> None:
        signed(changed, architecture_json=drop_channels)
        assert read_architecture(changed).channels is None
        same(load_artifact(changed), pruned[0].model, data[1], pruned[0].heads)
        with pytest.raises(ArtifactError, match=r"no channel map.*autocompress export RUN --candidate ID"):
            expand_artifact(changed)

    @pytest.mark.slow
    def test_another_channel_map_and_another_example_are_refused(self, changed: Path) -> None:
        other = {"stem.0": {"inputs": [0], "outputs": [1]}}
        with pytest.raises(ArtifactError, match="the channel map of"):
            expand_artifact(signed(changed, architecture_json=edit(channels=other)))
        with pytest.raises(ArtifactError, match=r"architecture\.json: channels\.stem\.0\.outputs"):
            expand_artifact(signed(changed, architecture_json=edit(channels={"stem.0": {"inputs": [0]}})))

    @pytest.mark.slow
    def test_inputs_that_do_not_fit_are_refused(self, changed: Path) -> None:
        shape = {"shape": [1, 3, 8, 8], "vocabulary": 0, "missing": None, "dtype": "float32"}
        signed(changed, architecture_json=edit(inputs=[shape]))
        with pytest.raises(ArtifactError):
            expand_artifact(changed)

    @pytest.mark.slow
    def test_a_method_that_does_more_than_removing_is_exported_without_a_map(
        self, data: tuple[Split, Split], without_graphs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made, _ = pruned_deployable(data, CHANNELS)

        def refuse(*_: object) -> None:
            raise ValueError("positions are no numbers")

        monkeypatch.setattr(artifact, "OriginalPositions", refuse)
        path = write_artifact(tmp_path / "a", made, CARD)
        assert read_architecture(path).channels is None
        path = signed(path, architecture_json=edit(channels={"stem.0": {"inputs": [0], "outputs": [1]}}))
        with pytest.raises(ArtifactError, match="cannot be expanded: ValueError: positions are no numbers"):
            expand_artifact(path)


def drop_channels(content: bytes) -> bytes:
    return json.dumps({name: value for name, value in json.loads(content).items() if name != "channels"}).encode()


@pytest.mark.slow
def test_an_exported_candidate_of_a_run_is_expanded_and_fine_tuned(small_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    front = autocompress.load(run)
    with RunStore.read(run) as store:
        candidates = [store.read_candidate(name) for name in front.candidates["id"]]
    (candidate, *_) = [each for each in candidates if each.config.prune and each.config.quantize and each.complete]
    folder = front.export(candidate.id, verify=False)
    expanded, loaded = autocompress.expand_artifact(folder), load_artifact(folder)
    split = TASKS.get("digits")().splits(0).test
    assert shapes_of(expanded) == shapes_of(TASKS.get("digits")().build(candidate.config.student))
    with torch.no_grad():
        predictions, expected = (
            logits_by_head(model(*split.inputs), {"label": 10})["label"].argmax(1) for model in (expanded, loaded)
        )
    # The activations of the artifact are rounded to 8 bits.
    assert (predictions == expected).float().mean() > 0.9
    optimizer = torch.optim.SGD(expanded.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        losses.append(nn.functional.cross_entropy(expanded(*split.inputs), split.targets["label"]))
        losses[-1].backward()
        assert all(parameter.grad is not None for parameter in expanded.parameters())
        optimizer.step()
    assert losses[1] < losses[0]
