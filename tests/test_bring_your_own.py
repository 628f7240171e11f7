"""A user's own network, its weights and its class folders, as they are: searched, cut, exported and reloaded."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

import autocompress
from autocompress.core.registry import TASKS
from autocompress.models.from_teacher import FromTeacherConfig
from autocompress.store.run_store import RunStore

SHARED = Path(os.environ.get("AUTOCOMPRESS_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
OWN = SHARED.parent / "byo" / "resnet_cifar.py"
WEIGHTS = SHARED / "resnet20_cifar10.safetensors"
IMAGES = SHARED / "cifar10_jpeg.zip"
PLUGIN = """
import autocompress
from resnet_cifar import resnet20

data = autocompress.Images("{images}", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), views=2)
autocompress.bring_model(resnet20, data, weights="{weights}")
"""
SPEC = """
task: module
search: {{trials: 1, workers: 1, backend: serial, timing_seconds: 0}}
student:
  from_teacher: {{pruning_ratio: 0.25, allocation: adaptive, depth_ratio: 0.12}}
distill: soft_target
fit:
  adamw: {{epochs: 1, learning_rate: 1e-3, batch_size: 64}}
quantize:
  none:
  post_training: {{weight_bits: 8, activation_bits: 8}}
"""
needs_data = pytest.mark.skipif(
    not (OWN.is_file() and WEIGHTS.is_file() and IMAGES.is_file()), reason="the user's model and data are not here"
)


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(TASKS, "_objects", {name: TASKS.get(name) for name in TASKS})


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """Return a plugin beside the user's file, on a few of the images."""
    with zipfile.ZipFile(IMAGES) as archive:
        for name in archive.namelist():
            number = Path(name).stem
            if name.endswith(".jpg") and number.isdigit() and int(number) % 500 < 2:
                archive.extract(name, tmp_path)
    folder = tmp_path / "cifar10"
    if not folder.is_dir():
        pytest.skip("the images have other names than these tests expect")
    shutil.copy(OWN, tmp_path)
    path = tmp_path / "my_task.py"
    path.write_text(PLUGIN.format(images=folder, weights=WEIGHTS))
    return path


@pytest.mark.exhaustive
@pytest.mark.slow
@needs_data
def test_a_resnet_that_knows_nothing_of_autocompress(plugin: Path, tmp_path: Path) -> None:
    autocompress.load_plugin(plugin)
    (tmp_path / "spec.yaml").write_text(SPEC.format())
    front = autocompress.search(tmp_path / "spec.yaml", name="own", runs=tmp_path / "runs")
    teacher = front.meta["teacher"]
    assert teacher["costs"]["flops"] == pytest.approx(81.6e6, rel=0.01)
    assert teacher["scores"]["select_val"]["accuracy"] > 0.7
    cut = front.candidates.set_index("id").loc["t0c0"]
    assert 0.3 < cut["flops"] / teacher["costs"]["flops"] < 0.6
    with RunStore.read(front.folder) as study:
        details = study.read_candidate("t0c0").details
    assert set(details["start"]) == {"depth", "adaptive"}
    assert details["order"][:3] == ["cut the teacher (depth)", "cut the teacher (adaptive)", "train 1 epochs"]
    folder = front.export("t0c1", verify=True)
    loaded = autocompress.load_artifact(folder)
    assert loaded(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert sum(p.numel() for p in loaded.parameters()) < 0.8 * teacher["costs"]["parameters"]


def test_the_cuts_of_a_student_are_those_that_it_names() -> None:
    config = FromTeacherConfig(pruning_ratio=0.5, allocation="adaptive", criterion="taylor")
    (part,) = config.list_pruning_steps()
    assert part.name == "adaptive"
    assert part.values["pruning_ratio"] == 0.75
