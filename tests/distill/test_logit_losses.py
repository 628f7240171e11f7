import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from autocompress.distill.kernels import soft_target_kl
from autocompress.distill.logit_losses import correlation_distance, correlation_loss, dkd_loss, standardize_logits


def logs(*odds: float) -> torch.Tensor:
    """Logits whose softmax has these odds."""
    return torch.tensor([[math.log(value) for value in odds]])


def test_standardized_rows_have_mean_0_and_deviation_1_and_forget_shift_and_scale() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 9)
    z = standardize_logits(logits)
    assert torch.allclose(z.mean(1), torch.zeros(6), atol=1e-6)
    assert torch.allclose(z.std(1, correction=0), torch.ones(6), atol=1e-5)
    assert torch.allclose(standardize_logits(3 * logits + 7), z, atol=1e-5)
    assert torch.isfinite(standardize_logits(torch.ones(2, 4))).all()


def test_decoupled_by_hand() -> None:
    # Odds 2:1:1, target class 0. Teacher: p = (1/2, 1/4, 1/4); student odds 1:2:1: q = (1/4, 1/2, 1/4).
    # Target class: KL((1/2, 1/2) || (1/4, 3/4)). Others among themselves: KL((1/2, 1/2) || (2/3, 1/3)).
    teacher, student, target = logs(2, 1, 1), logs(1, 2, 1), torch.tensor([0])
    tckd = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    nckd = 0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3))
    assert dkd_loss(student, teacher, target, 1.0, 1.0, 0.0).item() == pytest.approx(tckd, rel=1e-5)
    assert dkd_loss(student, teacher, target, 1.0, 0.0, 1.0).item() == pytest.approx(nckd, rel=1e-5)


def test_decoupled_adds_up_to_plain_distillation() -> None:
    # Equation 4 of the paper: KD = TCKD + (1 - p_t) NCKD, row by row.
    torch.manual_seed(1)
    for temperature in (1.0, 4.0):
        for row in range(5):
            student, teacher = torch.randn(1, 6), torch.randn(1, 6)
            target = torch.tensor([row])
            share = 1 - torch.softmax(teacher / temperature, 1)[0, row].item()
            both = dkd_loss(student, teacher, target, temperature, 1.0, share)
            assert both.item() == pytest.approx(soft_target_kl(student, teacher, temperature).item(), rel=1e-4)


def test_correlation_is_numpys() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(4, 7)), rng.normal(size=(4, 7))
    expected = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(left, right, strict=True)])
    assert correlation_distance(torch.tensor(left), torch.tensor(right)).item() == pytest.approx(expected, rel=1e-6)


def test_dist_relates_classes_of_an_example_and_examples_of_a_class() -> None:
    torch.manual_seed(2)
    student, teacher = torch.randn(8, 5, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)
    ours, theirs = (torch.softmax(z / 2.0, 1).numpy() for z in (student, teacher))
    inter = 1 - np.mean([np.corrcoef(ours[i], theirs[i])[0, 1] for i in range(8)])
    intra = 1 - np.mean([np.corrcoef(ours[:, j], theirs[:, j])[0, 1] for j in range(5)])
    assert correlation_loss(student, teacher, 2.0, 1.0, 0.0).item() == pytest.approx(4 * inter, rel=1e-5)
    assert correlation_loss(student, teacher, 2.0, 0.0, 1.0).item() == pytest.approx(4 * intra, rel=1e-5)
    assert correlation_loss(teacher, teacher, 2.0, 1.0, 1.0).item() == pytest.approx(0.0, abs=1e-6)


@settings(deadline=None)
@given(st.sampled_from([0.01, 1.0, 1000.0]), st.sampled_from([0.0, 1.0, 1e4]), st.integers(0, 3))
def test_extreme_logits_and_temperatures_give_finite_losses_and_gradients(
    temperature: float, size: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(4, 5, generator=generator).sign() * size
    targets = torch.tensor([0, 1, 2, 3])
    for loss in (
        lambda z: dkd_loss(z, teacher, targets, temperature, 1.0, 8.0),
        lambda z: correlation_loss(z, teacher, temperature, 1.0, 1.0),
        lambda z: soft_target_kl(standardize_logits(z), standardize_logits(teacher), temperature),
    ):
        student = (torch.randn(4, 5, generator=generator).sign() * size).requires_grad_()
        value = loss(student)
        value.backward()
        assert torch.isfinite(value)
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()
