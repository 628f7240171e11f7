"""What every distillation term must do: a finite scalar with a gradient, and training it moves the student."""

import pytest
import torch
from autocompress.config import Part
from autocompress.distill.base import Activations
from autocompress.distill.fit import fit, predict
from autocompress.registry import DISTILL
from autocompress.tasks.images import Digits
from torch.nn import functional as F

TARGETS = {"label": torch.tensor([0, 1, 2, 3])}


def hard(logits: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(logits["label"], targets["label"])


@pytest.mark.parametrize("name", DISTILL.names())
class TestTerm:
    def test_the_config_reads_back_and_its_defaults_are_in_range(self, name: str) -> None:
        term = DISTILL.get(name)
        assert term.name == name
        assert term.kind in ("logit", "feature")
        config = term.config()
        assert term.config.of(config.to_dict()) == config

    def test_the_loss_is_a_finite_scalar_with_a_gradient(self, name: str) -> None:
        term = DISTILL.get(name)
        torch.manual_seed(0)
        student = torch.randn(4, 10, requires_grad=True)
        loss = term.loss(
            term.config(), Activations({"label": student}), Activations({"label": torch.randn(4, 10)}), TARGETS, hard
        )
        assert loss.shape == ()
        loss.backward()
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()
        assert student.grad.abs().sum() > 0

    def test_it_is_no_no_op_against_the_plain_loss(self, name: str) -> None:
        if name == "none":
            pytest.skip("it is the plain loss")
        task = Digits()
        splits = task.splits(0)
        teacher = {"label": torch.randn(len(splits.train), 10, generator=torch.Generator().manual_seed(1))}
        results = []
        for terms in ([Part("none")], [Part(name)]):
            torch.manual_seed(0)
            model = task.build(Part.of("cnn", width=4, depth=1))
            fit(model, task, splits.train, Part.of("adamw", epochs=1), terms=terms, teacher_logits=lambda view: teacher)
            results.append(predict(model, task, splits.search_val)["label"])
        assert not torch.allclose(*results)
