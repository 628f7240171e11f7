"""What every distillation term must do: a finite scalar with a gradient, and training by it moves the student."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.core.config import Part
from autocompress.core.registry import DISTILL
from autocompress.distill.base import Activations, Batch, Needs
from autocompress.tasks.images import Digits
from autocompress.training.fit import FitRequest, fit, predict

TASK = Digits()
SPLITS = TASK.splits(0)
TARGETS = {"label": torch.tensor([0, 1, 2, 3])}


@dataclass
class AnyTeacher:
    """An untrained network: what it says is arbitrary, so following it shows."""

    model: nn.Module

    def view(self, index: int) -> Mapping[str, Tensor]:
        return {head: 5 * logits for head, logits in predict(self.model, TASK, TASK.view(SPLITS.train, index)).items()}


@pytest.fixture(scope="module")
def teacher() -> AnyTeacher:
    torch.manual_seed(3)
    return AnyTeacher(TASK.build(Part.of("cnn", width=12, depth=1, block="residual")).eval())


def hard(logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    return F.cross_entropy(logits["label"], targets["label"])


def terms(name: str) -> list[Part]:
    return [Part(name)] if DISTILL.get(name).kind == "logit" else [Part("none"), Part(name)]


def trained(name: str, teacher: AnyTeacher) -> nn.Module:
    torch.manual_seed(0)
    model = TASK.build(Part.of("cnn", width=4, depth=1))
    fit(model, FitRequest(TASK, SPLITS.train, Part.of("adamw", epochs=1), terms=terms(name), teacher=teacher))
    return model


@pytest.mark.parametrize("name", DISTILL.names())
class TestTerm:
    def test_the_config_reads_back_and_its_defaults_are_in_range(self, name: str) -> None:
        term = DISTILL.get(name)
        assert term.name == name
        assert term.kind in ("logit", "feature")
        config = term.config()
        assert term.config.of(config.to_dict()) == config

    def test_a_term_on_logits_is_a_finite_scalar_with_a_gradient(self, name: str) -> None:
        term = DISTILL.get(name)
        if term.kind != "logit":
            pytest.skip("it reads layers")
        torch.manual_seed(0)
        for size in (1.0, 1e4):
            student = (size * torch.randn(4, 10)).requires_grad_()
            there = Activations({"label": size * torch.randn(4, 10)})
            loss = term.loss(term.config(), Batch(Activations({"label": student}), there, TARGETS, hard, nn.Identity()))
            assert loss.shape == ()
            assert torch.isfinite(loss)
            loss.backward()
            assert student.grad is not None
            assert torch.isfinite(student.grad).all()
            assert student.grad.abs().sum() > 0

    @pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3, 3), (4, 5, 6)], ids=["vector", "image", "tokens"])
    def test_a_term_on_layers_is_a_finite_scalar_with_a_gradient(self, name: str, shape: tuple[int, ...]) -> None:
        term = DISTILL.get(name)
        if term.kind == "logit" or (name == "attention" and len(shape) == 2):
            pytest.skip("it reads logits, or positions that are not there")
        torch.manual_seed(0)
        for size in (0.0, 1e-6, 1.0, 1e4):
            student = (size * torch.randn(shape)).requires_grad_()
            tokens = frozenset("a" if len(shape) == 3 else "")
            here = Activations({}, {"a": student}, tokens)
            there = Activations({}, {"a": size * torch.randn(shape)}, tokens)
            adapter = term.build_adapter(term.config(), here, there)
            loss = term.loss(term.config(), Batch(here, there, TARGETS, hard, adapter))
            assert loss.shape == ()
            assert torch.isfinite(loss)
            loss.backward()
            assert student.grad is not None
            assert torch.isfinite(student.grad).all()
            assert size != 1.0 or student.grad.abs().sum() > 0

    @pytest.mark.slow
    def test_it_is_no_no_op_against_the_plain_loss(self, name: str, teacher: AnyTeacher) -> None:
        if name == "none":
            pytest.skip("it is the plain loss")
        one, plain = (predict(trained(which, teacher), TASK, SPLITS.search_val)["label"] for which in (name, "none"))
        assert not torch.allclose(one, plain)

    @pytest.mark.slow
    def test_the_same_seed_gives_the_same_weights(self, name: str, teacher: AnyTeacher) -> None:
        one, two = trained(name, teacher), trained(name, teacher)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))

    @pytest.mark.slow
    def test_neither_hooks_nor_changes_are_left_behind(self, name: str, teacher: AnyTeacher) -> None:
        before = copy.deepcopy(teacher.model.state_dict())
        model = trained(name, teacher)
        for network in (model, teacher.model):
            assert not any(module._forward_hooks for module in network.modules())
        assert all(torch.equal(value, before[key]) for key, value in teacher.model.state_dict().items())
        assert not teacher.model.training
        assert {tuple(p.shape) for p in model.parameters()} == {
            tuple(p.shape) for p in TASK.build(Part.of("cnn", width=4, depth=1)).parameters()
        }

    def test_a_teacher_that_is_read_must_be_there(self, name: str) -> None:
        term = DISTILL.get(name)
        if term.needs(term.config()) is Needs.NOTHING:
            pytest.skip("it reads no teacher")
        from autocompress.errors import TrialError

        with pytest.raises(TrialError, match="reads a teacher"):
            fit(TASK.build(Part.of("cnn", width=4)), FitRequest(TASK, SPLITS.train, Part("adamw"), terms=terms(name)))
