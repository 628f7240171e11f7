"""The gradients of a learned step size, against torch and the paper's own definition; and what it gains."""

from collections.abc import Callable

import pytest
import torch

from autocompress.quantize.lsq import LSQ, LearnedStep, LSQConfig, LSQInputQuantizer, LSQWeightQuantizer
from autocompress.quantize.post_training import PostTraining, PostTrainingConfig
from autocompress.quantize.quantizers import Grid
from autocompress.quantize.ste import gradient_scale
from tests.quantize.nets import Plain, accuracy, digits
from tests.quantize.tuning import Digits, context, mean_and_error, train_model


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
