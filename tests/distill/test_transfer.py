from collections.abc import Mapping
from types import MappingProxyType

import pytest
import torch
from torch import nn

from autocompress.config import Part
from autocompress.distill.fit import fit, predict
from autocompress.distill.transfer import with_new_head
from autocompress.errors import TrialError
from autocompress.task import Split
from autocompress.tasks.augment import random_affine
from autocompress.tasks.images import Digits

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
    fit(model, Five(), half(SPLITS.train, False), Part.of("adamw", epochs=15, learning_rate=1e-2))
    return model


def accuracy(model: nn.Module, split: Split) -> float:
    return float((predict(model, Five(), split)["label"].argmax(1) == split.targets["label"]).float().mean())


@pytest.mark.parametrize("frozen", [True, False])
def test_a_new_head_learns_new_classes(backbone: nn.Module, frozen: bool) -> None:
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    torch.manual_seed(1)
    model = with_new_head(backbone, 5, frozen=frozen)
    fit(model, Five(), half(SPLITS.train, True), Part.of("adamw", epochs=20, learning_rate=0.1 if frozen else 1e-2))
    assert accuracy(model, half(SPLITS.search_val, True)) > (0.7 if frozen else 0.85)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    same = [
        torch.equal(value, before[name])
        for name, value in model.state_dict().items()
        if not name.startswith("heads") and not name.endswith("num_batches_tracked")
    ]
    assert all(same) if frozen else not all(same)


def test_distillation_needs_no_labels_and_not_the_teachers_data() -> None:
    torch.manual_seed(0)
    teacher_model = TASK.build(Part.of("cnn", width=16, depth=1))
    fit(teacher_model, TASK, SPLITS.train, Part.of("adamw", epochs=15, learning_rate=1e-2))
    # Other images than the teacher's, warped, and with labels that say nothing.
    pool = torch.cat([SPLITS.test.inputs[0], SPLITS.select_val.inputs[0], SPLITS.calibration.inputs[0]])
    other = Split((random_affine(pool, seed=99, degrees=15),), {"label": torch.zeros(len(pool), dtype=torch.long)})

    class Teacher:
        model = teacher_model

        def view(self, index: int) -> dict[str, torch.Tensor]:
            return predict(teacher_model, TASK, TASK.view(other, index))

    torch.manual_seed(1)
    student = TASK.build(Part.of("cnn", width=10, depth=1))
    fit(
        student,
        TASK,
        other,
        Part.of("adamw", epochs=30, learning_rate=1e-2),
        terms=[Part.of("soft_target", alpha=1.0)],
        teacher=Teacher(),
    )
    predicted = predict(student, TASK, SPLITS.search_val)["label"].argmax(1)
    assert float((predicted == SPLITS.search_val.targets["label"]).float().mean()) > 0.75


def test_a_model_without_a_linear_layer_has_no_head() -> None:
    with pytest.raises(TrialError, match="no linear layer"):
        with_new_head(nn.Sequential(nn.Conv2d(1, 1, 1)), 3, frozen=True)
