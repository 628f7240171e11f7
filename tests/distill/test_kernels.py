import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional as F

from autocompress.core.registry import DISTILL
from autocompress.distill.base import Activations, Batch, Needs
from autocompress.distill.kernels import SoftTarget, SoftTargetConfig, soft_target_kl
from autocompress.distill.logit_losses import standardize_logits


def hard(logits: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(logits["label"], targets["label"])


def test_soft_target_kl_by_hand() -> None:
    # Teacher (ln 3, 0) gives (3/4, 1/4) and student (0, 0) gives (1/2, 1/2) at T = 1:
    # KL = 3/4 ln(3/2) + 1/4 ln(1/2).
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert soft_target_kl(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-5)
    # At T = 2 the teacher's odds are sqrt(3) to 1, and the term counts T^2 = 4 times.
    p = math.sqrt(3) / (1 + math.sqrt(3))
    expected = 4 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
    assert soft_target_kl(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-5)


def test_soft_target_kl_averages_over_the_batch() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    rows = [soft_target_kl(student[i : i + 1], teacher[i : i + 1], 3.0) for i in range(5)]
    assert torch.allclose(soft_target_kl(student, teacher, 3.0), torch.stack(rows).mean(), atol=1e-6)


def test_soft_target_mixes_by_alpha_and_alpha_zero_is_none() -> None:
    torch.manual_seed(0)
    student = Activations({"label": torch.randn(6, 4)})
    teacher = Activations({"label": torch.randn(6, 4)})
    targets = {"label": torch.tensor([0, 1, 2, 3, 0, 1])}
    term, none = SoftTarget(), DISTILL.get("none")
    plain = none.loss(none.config(), Batch(student, teacher, targets, hard, nn.Identity()))
    for alpha in (0.0, 0.3, 1.0):
        mixed = term.loss(
            SoftTargetConfig(temperature=2.0, alpha=alpha), Batch(student, teacher, targets, hard, nn.Identity())
        )
        soft = soft_target_kl(student.logits["label"], teacher.logits["label"], 2.0)
        assert torch.allclose(mixed, (1 - alpha) * plain + alpha * soft, atol=1e-6)
    assert term.needs(SoftTargetConfig(alpha=0.0)) is Needs.NOTHING


@given(st.sampled_from([0.01, 0.1, 1.0, 30.0, 1000.0]), st.sampled_from([1.0, 1e2, 1e4]), st.integers(0, 5))
def test_extreme_logits_and_temperatures_give_finite_loss_and_gradient(
    temperature: float, size: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    student = (torch.randn(3, 5, generator=generator).sign() * size).requires_grad_()
    teacher = torch.randn(3, 5, generator=generator).sign() * size
    loss = soft_target_kl(student, teacher, temperature)
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_the_gradient_keeps_its_size_over_temperatures() -> None:
    # Hinton et al. 2015, section 2.1: without T^2 the gradient would shrink by it.
    torch.manual_seed(0)
    teacher = torch.randn(64, 10)
    sizes = []
    for temperature in (5.0, 10.0):
        student = torch.zeros(64, 10, requires_grad=True)
        soft_target_kl(student, teacher, temperature).backward()
        assert student.grad is not None
        sizes.append(float(student.grad.norm()))
    assert sizes[1] / sizes[0] == pytest.approx(1.0, abs=0.1)


def test_at_a_high_temperature_the_loss_compares_the_scales_of_logits() -> None:
    teacher = torch.tensor([[4.0, -1.0, -3.0], [-2.0, 5.0, -3.0]], dtype=torch.float64)
    # Hinton et al. 2015, section 2.1, for logits of mean 0: half of the mean squared difference over the classes.
    expected = (teacher / 2 - teacher).square().mean()
    assert soft_target_kl(teacher / 2, teacher, 1000.0).item() == pytest.approx(expected.item() / 2, rel=1e-2)
    same_shape = soft_target_kl(standardize_logits(teacher / 2), standardize_logits(teacher), 1000.0)
    assert same_shape.item() == pytest.approx(0.0, abs=1e-4)
