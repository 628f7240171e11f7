"""Differentiable rounding: values and gradients, against torch and the definition of the paper."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from autocompress.quantize.ste import gradient_scale, lsq_quantize, ste_quantize


def by_definition(values: Tensor, step: Tensor, factor: Tensor, low: int, high: int) -> Tensor:
    """Return LSQ as its appendix writes it: autograd does the rest."""
    scaled = step * factor + (step - step * factor).detach()
    inside = (values / scaled).clamp(low, high)
    return (inside + (inside.round() - inside).detach()) * scaled


def sample(seed: int, bits: int, *, rows: int) -> tuple[Tensor, Tensor, Tensor, int, int]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, 40, generator=generator)
    step = torch.rand(rows, 1, generator=generator) * 0.5 + 0.1
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    away = ((values / step - (low - 0.5)).abs() > 1e-3) & ((values / step - (high + 0.5)).abs() > 1e-3)
    return values * away, step, torch.full_like(step, gradient_scale(40, max(high, 1))), low, high


def gradients(
    run: Callable[[Tensor, Tensor], Tensor], values: Tensor, step: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    values, step = values.clone().requires_grad_(), step.clone().requires_grad_()
    weights = torch.linspace(-1, 2, values.numel()).view_as(values)
    out = run(values, step)
    (out * weights).sum().backward()
    return out.detach(), values.grad, step.grad


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.integers(2, 8))
def test_gradients_are_those_of_the_definition(seed: int, bits: int) -> None:
    values, step, factor, low, high = sample(seed, bits, rows=3)
    ours = gradients(lambda v, s: lsq_quantize(v, s, factor, low, high), values, step)
    reference = gradients(lambda v, s: by_definition(v, s, factor, low, high), values, step)
    for actual, expected in zip(ours, reference, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.integers(2, 8))
def test_torchs_operator_per_channel_has_the_same_step_gradient(seed: int, bits: int) -> None:
    values, step, factor, low, high = sample(seed, bits, rows=3)

    def torchs(v: Tensor, s: Tensor) -> Tensor:
        actual: Tensor = torch._fake_quantize_learnable_per_channel_affine(
            v, s.flatten(), torch.zeros(3), 0, low, high, float(factor[0])
        )
        return actual

    # torch counts a value as inside by its code, LSQ by the value itself: they part up to half a step beyond the ends.
    steps = values / step
    values = torch.where((steps > high) & (steps < high + 0.6) | (steps < low) & (steps > low - 0.6), 0.0, values)
    ours = gradients(lambda v, s: lsq_quantize(v, s, factor, low, high), values, step)
    theirs = gradients(torchs, values, step)
    for actual, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.integers(2, 8))
def test_one_step_for_all_is_one_row(seed: int, bits: int) -> None:
    values, step, factor, low, high = sample(seed, bits, rows=1)
    row = gradients(lambda v, s: lsq_quantize(v, s, factor, low, high), values, step)
    whole = gradients(lambda v, s: lsq_quantize(v, s, factor.view(()), low, high), values.view(4, 10), step.view(()))
    for actual, expected in zip(whole, row, strict=True):
        assert actual is not None
        assert expected is not None
        torch.testing.assert_close(actual.flatten(), expected.flatten(), rtol=1e-4, atol=1e-4)


def test_values_are_rounded_to_the_grid_and_clamped_to_its_ends() -> None:
    values = torch.tensor([-9.0, -0.3, 0.2, 0.6, 1.6, 9.0])
    expected = [-1.0, -0.5, 0.0, 0.5, 1.5, 1.5]
    assert ste_quantize(values, torch.tensor(0.5), -2, 3).tolist() == expected
    assert lsq_quantize(values, torch.tensor(0.5), torch.tensor(1.0), -2, 3).tolist() == expected


def test_the_straight_through_gradient_reaches_half_a_step_beyond_the_grid() -> None:
    # In steps of 0.5, the grid ends at -2 and 3; the gradient ends at -2.5 and 3.5.
    values = torch.tensor([-1.3, -1.2, 0.1, 1.7, 1.8], requires_grad=True)
    (ste_quantize(values, torch.tensor(0.5), -2, 3) * torch.arange(1.0, 6.0)).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 0.0]


def test_the_gradient_of_the_straight_through_estimator_leaves_the_scale_alone() -> None:
    scale = torch.tensor([[0.5], [0.25]], requires_grad=True)
    values = torch.tensor([[0.6, 0.1], [0.6, 0.1]], requires_grad=True)
    rounded = ste_quantize(values, scale, -4, 3)
    assert rounded.tolist() == [[0.5, 0.0], [0.5, 0.0]]
    rounded.sum().backward()
    assert scale.grad is None


def test_the_factor_scales_the_gradient_of_the_step_alone() -> None:
    def step_gradient(factor: float) -> tuple[list[float], float]:
        values, step = torch.tensor([0.25, 9.0], requires_grad=True), torch.tensor(1.0, requires_grad=True)
        lsq_quantize(values, step, torch.tensor(factor), 0, 3).sum().backward()
        assert values.grad is not None
        assert step.grad is not None
        return values.grad.tolist(), step.grad.item()

    # Inside: round(0.25) - 0.25. Outside: the largest code, 3.
    assert step_gradient(1.0) == ([1.0, 0.0], 2.75)
    assert step_gradient(0.1) == ([1.0, 0.0], pytest.approx(0.275))


@pytest.mark.parametrize(("count", "high", "scale"), [(100, 1, 0.1), (25, 4, 0.1), (1, 1, 1.0)])
def test_the_gradient_scale_falls_with_the_values_and_the_codes(count: int, high: int, scale: float) -> None:
    assert gradient_scale(count, high) == pytest.approx(scale)
