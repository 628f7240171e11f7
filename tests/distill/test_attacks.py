import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autocompress.config import Part
from autocompress.distill.attacks import attacked_logits, fgsm, pgd
from autocompress.distill.fit import fit, predict
from autocompress.errors import TrialError
from autocompress.tasks.images import Digits

TASK = Digits()
SPLITS = TASK.splits(0)


class Teacher:
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def view(self, index: int) -> dict[str, torch.Tensor]:
        return predict(self.model, TASK, TASK.view(SPLITS.train, index))


def trained(part: Part, *, width: int = 8, epochs: int = 12, teacher: Teacher | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = TASK.build(Part.of("cnn", width=width, depth=1))
    fit(model, TASK, SPLITS.train, Part.of("adamw", epochs=epochs, learning_rate=1e-2), terms=[part], teacher=teacher)
    return model


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return trained(Part("none"), width=16)


def share_right(logits: dict[str, torch.Tensor]) -> float:
    return float((logits["label"].argmax(1) == SPLITS.search_val.targets["label"]).float().mean())


def test_attacks_stay_in_the_ball_and_raise_the_loss_pgd_more_than_fgsm(model: nn.Module) -> None:
    batch = SPLITS.search_val
    before = copy.deepcopy(model.state_dict())

    def loss(output: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(output, batch.targets["label"])

    one = fgsm(model, batch.inputs, loss, 0.3)
    many = pgd(model, batch.inputs, loss, 0.3, steps=10, step_size=0.075)
    with torch.no_grad():
        clean, fast, slow = (float(loss(model(*x))) for x in (batch.inputs, one, many))
    assert clean < fast < slow
    for moved in (one, many):
        assert float((moved[0] - batch.inputs[0]).abs().max()) <= 0.3 + 1e-6
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_model_keeps_its_mode(model: nn.Module) -> None:
    model.train()
    fgsm(model, SPLITS.search_val.take(slice(0, 8)).inputs, lambda output: output.sum(), 0.1)
    assert all(module.training for module in model.modules())
    model.eval()


def test_whole_numbers_cannot_be_attacked() -> None:
    with pytest.raises(TrialError, match="real numbers"):
        fgsm(nn.Embedding(3, 2), (torch.tensor([1, 2]),), lambda output: output.sum(), 0.1)


def test_robust_distillation_withstands_pgd_far_better_than_plain(model: nn.Module) -> None:
    teacher = Teacher(model)
    accuracy = {}
    for part in (Part.of("soft_target", alpha=0.9), Part.of("robust", epsilon=0.4, steps=3)):
        student = trained(part, width=12, epochs=15, teacher=teacher)
        attacked = attacked_logits(student, TASK, SPLITS.search_val, epsilon=0.4, steps=10)
        accuracy[part.name] = share_right(attacked), share_right(predict(student, TASK, SPLITS.search_val))
    assert accuracy["robust"][0] > accuracy["soft_target"][0] + 0.15, accuracy
    assert accuracy["robust"][1] > 0.8, accuracy


def test_one_step_is_fgsm(model: nn.Module) -> None:
    found = attacked_logits(model, TASK, SPLITS.search_val, epsilon=0.2, steps=1)["label"]
    moved = fgsm(
        model, SPLITS.search_val.inputs, lambda output: TASK.loss({"label": output}, SPLITS.search_val.targets), 0.2
    )
    with torch.no_grad():
        assert torch.allclose(model(*moved), found, atol=1e-4)
