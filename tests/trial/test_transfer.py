import copy
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from autocompress.core.config import Part
from autocompress.core.task import InputSpec, Split
from autocompress.errors import TrialError
from autocompress.tasks.augment import random_affine
from autocompress.tasks.images import Digits
from autocompress.tasks.recommender import Ranking
from autocompress.training.fit import FitRequest, fit, predict
from autocompress.trial.transfer import (
    SourceTask,
    Transfer,
    check_transfer,
    check_unlabelled,
    copy_weights,
    read_weights,
    remove_labels,
)

TASK = Digits()
SPLITS = TASK.splits(0)
PART = Part.of("cnn", width=12, depth=1)


def half(split: Split, upper: bool) -> Split:
    """Digits 0 to 4, or 5 to 9 as classes 0 to 4."""
    rows = split.targets["label"] >= 5 if upper else split.targets["label"] < 5
    part = split.take(rows)
    return Split(part.inputs, {"label": part.targets["label"] - 5 * upper})


class Five(Digits):
    heads: Mapping[str, int] = MappingProxyType({"label": 5})


class Renamed(Digits):
    name = "renamed"
    heads: Mapping[str, int] = MappingProxyType({"digit": 10})


class Coloured(Digits):
    name = "coloured"
    inputs = (InputSpec((3, 8, 8)),)


class Two(Digits):
    heads: Mapping[str, int] = MappingProxyType({"a": 2, "b": 3})


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def transfer(head: str = "keep", *, heads: Mapping[str, int] | None = None, labels: bool = True) -> Transfer:
    return Transfer("", "0" * 64, head, labels, heads=heads or {})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    torch.manual_seed(0)
    model = Five().build(PART)
    fit(model, FitRequest(Five(), half(SPLITS.train, False), Part.of("adamw", epochs=15, learning_rate=1e-2)))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
def test_a_new_head_learns_new_classes(backbone: nn.Module, frozen: bool) -> None:
    task, train = Five(), half(SPLITS.train, True)
    model = task.build(PART)
    initial = model.state_dict()["heads.label.weight"].clone()
    copy_weights(model, backbone.state_dict(), task, transfer("new"))
    assert torch.equal(model.state_dict()["heads.label.weight"], initial)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rate = 0.1 if frozen else 1e-2
    part = Part.of("adamw", epochs=15, learning_rate=rate, backbone="frozen" if frozen else "tuned")
    fit(model, FitRequest(task, train, part, seed=1))
    split = half(SPLITS.search_val, True)
    right = predict(model, task, split)["label"].argmax(1) == split.targets["label"]
    assert float(right.float().mean()) > (0.7 if frozen else 0.85)
    same = [
        torch.equal(value, before[name])
        for name, value in model.state_dict().items()
        if not name.startswith("heads") and not name.endswith("num_batches_tracked")
    ]
    assert all(same) if frozen else not all(same)


def test_a_kept_head_has_the_weights_of_the_source_also_under_another_name() -> None:
    source, task = TASK.build(PART), Renamed()
    model = task.build(PART)
    copy_weights(model, source.state_dict(), task, transfer(heads={"label": 10}))
    inputs = SPLITS.search_val.inputs
    with torch.no_grad():
        assert torch.equal(model.eval()(*inputs), source.eval()(*inputs))


def test_a_source_that_does_not_fit_is_named() -> None:
    shapes, frozen = shapes_of(TASK.build(PART)), False
    five = Five().build(PART)
    with pytest.raises(TrialError, match=r"label \(10 classes\) instead of label \(5 classes\); set .*head: new"):
        check_transfer(five, shapes, Five(), transfer(heads={"label": 10}), frozen=frozen)
    with pytest.raises(TrialError, match="10 outputs instead of label"):
        check_transfer(five, shapes, Five(), transfer(), frozen=frozen)
    check_transfer(five, shapes, Five(), transfer("new"), frozen=frozen)
    coloured = Coloured().build(PART)
    with pytest.raises(TrialError, match=r"has the shape \[12, 1, 3, 3\] instead of \[12, 3, 3, 3\]"):
        check_transfer(coloured, shapes, Coloured(), transfer("new"), frozen=frozen)
    deeper = TASK.build(Part.of("cnn", width=12, depth=2))
    with pytest.raises(TrialError, match="is missing instead of"):
        check_transfer(deeper, shapes, TASK, transfer(), frozen=frozen)
    bare = nn.Sequential(nn.Conv2d(1, 1, 1))
    with pytest.raises(TrialError, match="no linear layer to replace"):
        check_transfer(bare, shapes_of(bare), TASK, transfer("new"), frozen=frozen)


def test_new_heads_of_several_tasks_take_the_shared_layers() -> None:
    source, task = TASK.build(PART), Two()
    model = task.build(PART)
    copy_weights(model, source.state_dict(), task, transfer("new", heads={"label": 10}))
    assert torch.equal(model.state_dict()["stem.0.weight"], source.state_dict()["stem.0.weight"])
    with pytest.raises(TrialError, match=r"label \(10 classes\) instead of a \(2 classes\), b \(3 classes\)"):
        check_transfer(model, shapes_of(source), task, transfer(heads={"label": 10}), frozen=False)


def test_a_frozen_backbone_cannot_train_a_head_of_two_layers() -> None:
    part = Part.of("cnn", width=12, depth=1, head_hidden=8)
    model, shapes = Five().build(part), shapes_of(TASK.build(part))
    check_transfer(model, shapes, Five(), transfer("new"), frozen=False)
    with pytest.raises(TrialError, match="backbone: tuned"):
        check_transfer(model, shapes, Five(), transfer("new"), frozen=True)


def test_weights_are_read_once_more_only_if_they_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(2)}, path)
    weights, digest = read_weights(path)
    assert torch.equal(weights["a"], torch.ones(2))
    assert len(digest) == 64
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(TrialError, match="has changed"):
        read_weights(path, digest)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(TrialError, match="cannot be read"):
        read_weights(path)
    with pytest.raises(TrialError, match="cannot be read"):
        read_weights(tmp_path / "missing.safetensors")


def test_a_transfer_is_stored_and_read_back() -> None:
    task = SourceTask(Part.of("images", size=8), PART, Part.of("adamw", epochs=2))
    for one in (transfer("new"), Transfer("", "digits-1", task=task, heads={"label": 10})):
        assert Transfer.from_json(one.to_json()) == one
    assert transfer("new").identity() != transfer("keep").identity() != transfer("keep", labels=False).identity()


def test_without_labels_the_predictions_are_the_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = {
        key: {"label": torch.randn(len(split), 10, generator=generator)}
        for key, split in (("train/0", SPLITS.train), ("calibration", SPLITS.calibration))
    }
    unlabelled = remove_labels(
        SPLITS, logits, {head: values.shape[1] for head, values in logits["calibration"].items()}
    )
    assert torch.equal(unlabelled.train.targets["label"], logits["train/0"]["label"].argmax(1))
    assert torch.equal(unlabelled.calibration.targets["label"], logits["calibration"]["label"].argmax(1))
    assert unlabelled.search_val is SPLITS.search_val
    assert unlabelled.test is SPLITS.test


def test_views_that_are_made_from_labels_need_them() -> None:
    check_unlabelled(TASK, SPLITS)
    ranking = Ranking()
    with pytest.raises(TrialError, match="made from its labels"):
        check_unlabelled(ranking, ranking.splits(0))
    once = Ranking(views=1)
    check_unlabelled(once, once.splits(0))


def test_a_frozen_backbone_is_a_knob_of_the_fit(backbone: nn.Module) -> None:
    model = copy.deepcopy(backbone)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    part = Part.of("adamw", epochs=2, backbone="frozen")
    fit(
        model,
        FitRequest(Five(), half(SPLITS.train, True), part, terms=[Part("none"), Part("hint")], teacher=Still(backbone)),
    )
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"heads.label.weight", "heads.label.bias"}
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(TrialError, match="could be its head"):
        fit(nn.Conv2d(1, 5, 8), FitRequest(Five(), half(SPLITS.train, True), part))


class Still:
    """A teacher that only runs live."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def view(self, index: int) -> dict[str, torch.Tensor]:
        raise AssertionError("layers are read from the live teacher")


def elsewhere() -> Split:
    """Other images than the teacher's, warped, and no labels at all."""
    pool = torch.cat([SPLITS.test.inputs[0], SPLITS.select_val.inputs[0], SPLITS.calibration.inputs[0]])
    return Split((random_affine(pool, seed=99, degrees=15),), {})


class Away:
    """A teacher of digits that is asked about other data than it has learned from."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = TASK.build(Part.of("cnn", width=12, depth=1))
        fit(self.model, FitRequest(TASK, SPLITS.train, Part.of("adamw", epochs=12, learning_rate=1e-2)))
        self.view = cache(lambda index: predict(self.model, TASK, TASK.view(elsewhere(), index)))


@pytest.fixture(scope="module")
def away() -> Away:
    return Away()


@pytest.mark.slow
@pytest.mark.parametrize(
    "term",
    [
        Part.of("soft_target", alpha=1.0),
        Part.of("logit_standardized", alpha=1.0),
        Part.of("dkd", hard_weight=0.0, temperature=2.0),
        Part.of("dist", hard_weight=0.0),
    ],
    ids=lambda term: term.name,
)
def test_distillation_needs_no_labels_and_not_the_teachers_data(away: Away, term: Part) -> None:
    torch.manual_seed(1)
    student = TASK.build(Part.of("cnn", width=8, depth=1, stages=2))
    fit(
        student,
        FitRequest(TASK, elsewhere(), Part.of("adamw", epochs=20, learning_rate=1e-2), terms=[term], teacher=away),
    )
    predicted = predict(student, TASK, SPLITS.search_val)["label"].argmax(1)
    assert float((predicted == SPLITS.search_val.targets["label"]).float().mean()) > 0.75
