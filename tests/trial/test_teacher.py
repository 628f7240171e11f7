import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from autocompress.core.config import Part
from autocompress.tasks.images import Digits
from autocompress.training.fit import predict
from autocompress.trial.teacher import TeacherRecipe, load_teacher, teacher_name

TASK = Digits()
SPLITS = TASK.splits(0)
RECIPE = TeacherRecipe(Part.of("cnn", width=6, depth=1), Part.of("adamw", epochs=2))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the teacher; not to be changed."""
    folder = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOCOMPRESS_CACHE", str(folder))
        assert load_teacher(TASK, SPLITS, RECIPE).trained
    return folder


@pytest.mark.slow
def test_a_teacher_is_trained_once_and_then_read() -> None:
    epochs: list[float] = []
    first = load_teacher(TASK, SPLITS, RECIPE, epochs.append)
    second = load_teacher(TASK, SPLITS, RECIPE, epochs.append)
    assert (first.trained, second.trained) == (True, False)
    assert epochs == sorted(epochs)
    assert (epochs[0], epochs[-1]) == (0.0, 2.0)
    # Within each of the two epochs, too.
    assert {int(done) for done in epochs if done % 1} == {0, 1}
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert set(first.logits) == set(second.logits)


@pytest.mark.slow
def test_cached_logits_are_the_models_own_on_every_view_and_the_test_split_is_not_among_them() -> None:
    teacher = load_teacher(TASK, SPLITS, RECIPE)
    assert set(teacher.logits) == {f"train/{view}" for view in range(16)} | {"calibration", "search_val", "select_val"}
    for view in (0, 3, 15):
        live = predict(teacher.model, TASK, TASK.view(SPLITS.train, view))
        assert torch.allclose(teacher.view(view)["label"], live["label"], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(
            (name, damage)
            for name in ("weights.safetensors", "logits.safetensors")
            for damage in ("flip", "cut", "remove")
        ),
        ("teacher.json", "cut"),
    ],
)
def test_a_damaged_cache_is_noticed_and_trained_again(stored: Path, tmp_path: Path, name: str, damage: str) -> None:
    shutil.copytree(stored, tmp_path, dirs_exist_ok=True)
    teacher = load_teacher(TASK, SPLITS, RECIPE)
    assert not teacher.trained
    path = teacher.folder / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    again = load_teacher(TASK, SPLITS, RECIPE)
    assert again.trained
    assert "damaged" in again.notice
    assert not load_teacher(TASK, SPLITS, RECIPE).trained


def renew_checksums(folder: Path) -> None:
    record = json.loads((folder / "teacher.json").read_text())
    for name in record["sha256"]:
        record["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "teacher.json").write_text(json.dumps(record))


def change_tensors(folder: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Change the tensors of a file as someone who can also write the record would."""
    tensors = load_file(folder / name)
    save_file({key: change(tensor).contiguous() for key, tensor in tensors.items()}, folder / name)
    renew_checksums(folder)


def replace_by_folder(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name / "inside").mkdir(parents=True)


def replace_by_link(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")


def change_record(folder: Path, **entries: object) -> None:
    record = json.loads((folder / "teacher.json").read_text())
    (folder / "teacher.json").write_text(json.dumps({**record, **entries}))


TAMPERING: dict[str, Callable[[Path], object]] = {
    "other weights": lambda folder: change_tensors(folder, "weights.safetensors", lambda t: t + 1),
    "weights that are not finite": lambda folder: change_tensors(folder, "weights.safetensors", lambda t: t / 0),
    "logits of another teacher": lambda folder: change_tensors(folder, "logits.safetensors", lambda t: t.flip(-1)),
    "logits of another length": lambda folder: change_tensors(folder, "logits.safetensors", lambda t: t[1:]),
    "a folder for the weights": lambda folder: replace_by_folder(folder, "weights.safetensors"),
    "a folder for the record": lambda folder: replace_by_folder(folder, "teacher.json"),
    "a link for the logits": lambda folder: replace_by_link(folder, "logits.safetensors"),
    "a folder for the lock": lambda folder: replace_by_folder(folder, ".lock"),
    "the record of another teacher": lambda folder: change_record(folder, name="digits-000000000000"),
    "a curve of another form": lambda folder: change_record(folder, curve=[{"epoch": "first"}]),
    "a record that names other files": lambda folder: change_record(folder, sha256={"../../passwd": "0"}),
}


class PlainDigits(Digits):
    """Digits without augmented views, whose logits take most of the time of a test."""

    views = 1


@pytest.mark.parametrize("kind", TAMPERING)
def test_whatever_is_odd_in_an_entry_is_trained_again(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Training takes a second, and this test is about what comes before and after it.
    monkeypatch.setattr("autocompress.trial.teacher.fit", lambda model, request: SimpleNamespace(curve=[]))
    task = PlainDigits()
    assert load_teacher(task, SPLITS, RECIPE).trained
    (folder,) = (tmp_path / "teachers").iterdir()
    TAMPERING[kind](folder)
    again = load_teacher(task, SPLITS, RECIPE)
    # The lock is no part of what was trained.
    assert again.trained == ("damaged" in again.notice) == (kind != "a folder for the lock")
    assert not load_teacher(task, SPLITS, RECIPE).trained


@pytest.mark.slow
def test_a_teacher_that_travels_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = load_teacher(TASK, SPLITS, RECIPE)
    serialized = pickle.loads(pickle.dumps(teacher.serialize()))
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "elsewhere"))
    for _ in range(2):
        serialized.install()
        actual = load_teacher(TASK, SPLITS, RECIPE)
        assert not actual.trained
        assert actual.folder.is_relative_to(tmp_path / "elsewhere")
        assert actual.folder.name == serialized.name == teacher_name(TASK, SPLITS, RECIPE)
        assert all(
            torch.equal(value, actual.model.state_dict()[name]) for name, value in teacher.model.state_dict().items()
        )


def test_each_part_of_the_recipe_counts_in_the_fingerprint() -> None:
    prints = {
        recipe.fingerprint(TASK, splits)
        for recipe in (
            RECIPE,
            TeacherRecipe(Part.of("cnn", width=8, depth=1), RECIPE.fit),
            TeacherRecipe(RECIPE.student, Part.of("adamw", epochs=3)),
            TeacherRecipe(RECIPE.student, RECIPE.fit, seed=1),
        )
        for splits in (SPLITS, TASK.splits(1))
    }
    assert len(prints) == 8


@pytest.mark.slow
def test_views_are_run_in_the_precision_of_the_fit_and_what_is_scored_is_not() -> None:
    part = Part.of("adamw", epochs=2, precision="bfloat16")
    teacher = load_teacher(TASK, SPLITS, TeacherRecipe(RECIPE.student, part))
    live = predict(teacher.model, TASK, TASK.view(SPLITS.train, 3))["label"]
    cached = teacher.view(3)["label"]
    assert cached.dtype == torch.float32
    assert not torch.equal(cached, live)
    assert torch.allclose(cached, live, atol=0.2)
    scored = predict(teacher.model, TASK, SPLITS.select_val)["label"]
    assert torch.allclose(teacher.logits["select_val"]["label"], scored, atol=1e-5)
    assert all(parameter.is_contiguous() for parameter in teacher.model.parameters())
