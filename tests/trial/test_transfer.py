from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

import pytest
import torch
from torch import nn

from autocompress.core.config import Part
from autocompress.core.task import Split
from autocompress.errors import TrialError
from autocompress.tasks.augment import random_affine
from autocompress.tasks.images import Digits
from autocompress.training.fit import FitRequest, fit, predict
from autocompress.trial.transfer import replace_head, transfer_model

TASK = Digits()
SPLITS = TASK.splits(0)


def half(split: Split, upper: bool) -> Split:
    """Digits 0 to 4, or 5 to 9 as classes 0 to 4."""
    rows = split.targets["label"] >= 5 if upper else split.targets["label"] < 5
    part = split.take(rows)
    return Split(part.inputs, {"label": part.targets["label"] - 5 * upper})


class Five(Digits):
    heads: Mapping[str, int] = MappingProxyType({"label": 5})


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    torch.manual_seed(0)
    model = Five().build(Part.of("cnn", width=12, depth=1))
    fit(model, FitRequest(Five(), half(SPLITS.train, False), Part.of("adamw", epochs=15, learning_rate=1e-2)))
    return model


def accuracy(model: nn.Module, split: Split) -> float:
    return float((predict(model, Five(), split)["label"].argmax(1) == split.targets["label"]).float().mean())


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
def test_a_new_head_learns_new_classes(backbone: nn.Module, frozen: bool) -> None:
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    part = Part.of("adamw", epochs=15, learning_rate=0.1 if frozen else 1e-2)
    model, curve = transfer_model(backbone, FitRequest(Five(), half(SPLITS.train, True), part, seed=1), frozen=frozen)
    assert len(curve) == 15
    assert accuracy(model, half(SPLITS.search_val, True)) > (0.7 if frozen else 0.85)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    same = [
        torch.equal(value, before[name])
        for name, value in model.state_dict().items()
        if not name.startswith("heads") and not name.endswith("num_batches_tracked")
    ]
    assert all(same) if frozen else not all(same)


@pytest.mark.slow
def test_a_new_head_repeats_by_its_seed(backbone: nn.Module) -> None:
    train, part = half(SPLITS.train, True), Part.of("adamw", epochs=1)
    requests = [FitRequest(Five(), train, part, seed=seed) for seed in (1, 1, 2)]
    one, again, other = (transfer_model(backbone, request, frozen=True)[0] for request in requests)
    assert torch.equal(one.heads["label"].weight, again.heads["label"].weight)  # type: ignore[index, union-attr]
    assert not torch.equal(one.heads["label"].weight, other.heads["label"].weight)  # type: ignore[index, union-attr]


def test_a_frozen_backbone_is_a_knob_of_the_fit(backbone: nn.Module) -> None:
    model = replace_head(backbone, 5, frozen=False)
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


def test_a_model_without_a_linear_layer_has_no_head() -> None:
    with pytest.raises(TrialError, match="no linear layer"):
        replace_head(nn.Sequential(nn.Conv2d(1, 1, 1)), 3, frozen=True)


def test_several_heads_are_not_one() -> None:
    class Two(Five):
        heads: Mapping[str, int] = MappingProxyType({"a": 2, "b": 3})

    model = Two().build(Part.of("cnn", width=4))
    with pytest.raises(TrialError, match=r"several heads, \['heads.a', 'heads.b'\]"):
        replace_head(model, 3, frozen=True)
    with pytest.raises(TrialError, match=r"one new head, but task 'digits' has \['a', 'b'\]"):
        transfer_model(model, FitRequest(Two(), SPLITS.train, Part("adamw")), frozen=True)
