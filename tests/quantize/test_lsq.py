"""The gradients of a learned step size, against torch and the paper's own definition; and what it gains."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from autocompress.quantize.lsq import LSQ, LearnedStep, LSQConfig, LSQInputQuantizer, LSQWeightQuantizer
from autocompress.quantize.post_training import PostTraining, PostTrainingConfig
from autocompress.quantize.quantizers import Grid
from autocompress.quantize.ste import gradient_scale, lsq_quantize
from tests.quantize.nets import Plain, accuracy, digits
from tests.quantize.tuning import Digits, context, mean_and_error, train_model


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


def test_the_gradient_scale_is_the_papers() -> None:
    assert gradient_scale(100, 7) == pytest.approx((100 * 7) ** -0.5)
    module = LSQWeightQuantizer(torch.full((2, 1), 0.5), count=9, bits=3)
    assert module.factor.flatten().tolist() == pytest.approx([(9 * 3) ** -0.5] * 2)


def test_a_step_stays_positive_and_begins_where_it_should() -> None:
    step = LearnedStep(torch.tensor([0.3, 1e-20]))
    assert torch.equal(step(), step.start)
    with torch.no_grad():
        step.drift.fill_(-20.0)
    assert bool((step() > 0).all())


def test_an_input_keeps_its_code_of_zero() -> None:
    module = LSQInputQuantizer(Grid(torch.tensor(0.5), torch.tensor(3, dtype=torch.int32), 0, 15))
    with torch.no_grad():
        module.step.drift.fill_(0.7)
    grid = module.grid
    assert int(grid.zero_point) == 3
    assert module(torch.zeros(1, 4)).tolist() == [[0.0] * 4]
    assert module(torch.full((1, 1), -100.0)).item() == pytest.approx(-3 * float(grid.scale))
    assert module(torch.full((1, 1), 100.0, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_steps_are_learned() -> None:
    module = LSQInputQuantizer(Grid(torch.tensor(0.5), torch.tensor(0, dtype=torch.int32), 0, 3))
    values = torch.rand(64, 10, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    errors = []
    for _ in range(80):
        error = (module(values) - values).square().mean()
        errors.append(error.item())
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    # Values from 0 to 1 on 4 codes: a step of about a third, whose squared error is its square over twelve.
    assert errors[-1] < 0.7 * errors[0]
    assert float(module.grid.scale) == pytest.approx(0.3, abs=0.05)


@pytest.fixture(scope="module")
def data() -> Digits:
    return digits()


@pytest.fixture(scope="module")
def models(data: Digits) -> list[torch.nn.Module]:
    return [train_model(Plain, data, seed) for seed in range(5)]


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "points"), [(2, 10), (3, 0.5)])
def test_it_beats_the_best_of_post_training_over_five_seeds(
    bits: int, points: int, data: Digits, models: list[torch.nn.Module], record_property: Callable[[str, object], None]
) -> None:
    post = PostTrainingConfig(weight_bits=bits, activation_bits=bits, observer="mse", weight_observer="mse")
    aware = LSQConfig(weight_bits=bits, activation_bits=bits, epochs=3, learning_rate=5e-3)
    gains = []
    for model in models:
        rounded, _ = PostTraining().apply(model, post, context(data))
        trained_model, _ = LSQ().apply(model, aware, context(data))
        gains.append(accuracy(trained_model, data[2], data[3]) - accuracy(rounded, data[2], data[3]))
    record_property("gain", mean_and_error(gains))
    mean, error = mean_and_error(gains)
    print(f"{bits} bits: {100 * mean:.1f} +- {100 * error:.1f} points over five seeds")
    assert 100 * mean > points
