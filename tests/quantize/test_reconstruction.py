import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import CompressionError
from autocompress.quantize.reconstruction import (
    LAST_BETA,
    STRETCH,
    Moments,
    RoundingObjective,
    WeightSteps,
    anneal_beta,
    learn_rounding,
    rectify_sigmoid,
    unfold_patches,
)

LAYERS: dict[str, Any] = {
    "linear": (lambda: nn.Linear(6, 4), (9, 6)),
    "linear_of_rows": (lambda: nn.Linear(6, 4, bias=False), (3, 5, 6)),
    "conv": (lambda: nn.Conv2d(3, 4, 3, padding=1), (2, 3, 7, 6)),
    "strided_dilated": (lambda: nn.Conv2d(2, 4, (3, 2), stride=2, dilation=(1, 2), padding=(2, 1)), (2, 2, 9, 8)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding="same"), (2, 4, 6, 6)),
    "circular": (lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), (2, 2, 6, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 5, stride=2, padding=2, groups=2), (3, 4, 12)),
}


def flatten_positions(layer: nn.Module, output: Tensor) -> Tensor:
    return (output if isinstance(layer, nn.Linear) else output.movedim(1, -1)).flatten(0, -2)


def build_layer(name: str) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    return build(), torch.randn(shape)


@pytest.mark.parametrize("name", sorted(LAYERS))
@torch.no_grad()
def test_moments_give_the_error_that_the_changed_layer_makes(name: str) -> None:
    layer, inputs = build_layer(name)
    # The inputs that the rounded layers before give are not those that the wanted outputs came from.
    targets = flatten_positions(layer, layer(inputs + 0.1 * torch.randn_like(inputs)))
    moments = Moments.from_batch(layer, inputs, targets)
    change = 0.1 * torch.randn_like(layer.weight)
    layer.weight += change
    expected = (flatten_positions(layer, layer(inputs)) - targets).square().mean(0)
    layer.weight -= change
    torch.testing.assert_close(moments.output_error(change.flatten(1)), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", sorted(LAYERS))
@torch.no_grad()
def test_patches_times_the_weight_are_the_output(name: str) -> None:
    layer, inputs = build_layer(name)
    groups = getattr(layer, "groups", 1)
    x = unfold_patches(layer, inputs).view(-1, groups, layer.weight[0].numel()).movedim(1, 0)
    y = (x @ layer.weight.reshape(groups, -1, x.shape[-1]).mT).movedim(0, 1).flatten(1)
    y = y if layer.bias is None else y + layer.bias
    torch.testing.assert_close(y, flatten_positions(layer, layer(inputs)), rtol=1e-4, atol=1e-5)


def build_problem(
    outputs: int, inputs: int, low: float = -4.0, high: float = 3.0, seed: int = 0
) -> tuple[WeightSteps, Moments]:
    torch.manual_seed(seed)
    layer = nn.Linear(inputs, outputs)
    # Inputs that go together are what makes rounding to the nearest a bad choice.
    x = torch.randn(200, 1) + 0.3 * torch.randn(200, inputs)
    moments = Moments.from_batch(layer, x, layer(x).detach())
    weight = layer.weight.detach()
    full = torch.ones_like(weight)
    return WeightSteps(weight, full * weight.abs().max() / high, full * low, full * high), moments


@pytest.mark.parametrize("beta", [None, 20.0, 7.0, 2.0])
def test_the_gradient_is_the_one_that_torch_derives(beta: float | None) -> None:
    steps, moments = build_problem(3, 5)
    floor = (steps.weight / steps.scale).floor()
    build_layer = RoundingObjective(steps, floor, moments, torch.tensor(0.37))
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).mul(3).requires_grad_()
    (expected,) = torch.autograd.grad(build_layer.loss(logits, beta), logits)
    torch.testing.assert_close(build_layer.gradient(logits.detach(), beta), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@torch.no_grad()
def test_the_rounding_is_nearly_the_best_of_all() -> None:
    totals = torch.zeros(3)
    for seed in range(6):
        steps, moments = build_problem(4, 8, seed=seed)
        rounding = learn_rounding(steps, moments, 300)
        floor = (steps.weight / steps.scale).floor()
        best = torch.full((4,), torch.inf)
        for up in itertools.product([0.0, 1.0], repeat=8):
            every = (floor + torch.tensor(up)).clamp(steps.low, steps.high)
            best = torch.minimum(best, moments.output_error(steps.weight_change(every)))
        assert rounding.error == pytest.approx(
            float(moments.output_error(steps.weight_change(rounding.steps)).mean()), rel=1e-3
        )
        assert float(best.mean()) * (1 - 1e-3) <= rounding.error
        totals += torch.tensor([float(best.mean()), rounding.error, rounding.nearest])
    assert totals[1] < 1.1 * totals[0]
    assert totals[1] < 0.5 * totals[2]


@torch.no_grad()
def test_longer_learning_leaves_less_error() -> None:
    steps, moments = build_problem(16, 40)
    errors = [learn_rounding(steps, moments, iterations).error for iterations in (1, 20, 300)]
    assert errors[2] < errors[1] < errors[0]


@torch.no_grad()
def test_every_weight_is_rounded_up_or_down_and_keeps_to_its_ends() -> None:
    steps, moments = build_problem(16, 40, low=-2.0, high=1.0)
    rounding = learn_rounding(steps, moments, 100)
    exact = (steps.weight / steps.scale).clamp(steps.low, steps.high)
    assert bool(((rounding.steps - exact).abs() < 1).all())
    assert torch.equal(rounding.steps, rounding.steps.round())
    changed = (rounding.steps != steps.nearest).float().mean()
    assert 0 < rounding.flipped == pytest.approx(float(changed))


@torch.no_grad()
def test_what_was_pruned_stays_pruned() -> None:
    steps, moments = build_problem(16, 40)
    gone = torch.rand(16, 40, generator=torch.Generator().manual_seed(0)) < 0.5
    steps = replace(steps, weight=steps.weight.masked_fill(gone, 0.0))
    assert not learn_rounding(steps, moments, 100).steps[gone].any()


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e6])
@torch.no_grad()
def test_weights_and_inputs_of_any_size_are_never_worse_than_the_nearest(size: float) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3), torch.randn(50, 5) * size
    layer.weight *= size
    full = torch.ones(3, 5)
    steps = WeightSteps(
        layer.weight.detach(), full * max(float(layer.weight.abs().max()), 1e-30) / 3, full * -4, full * 3
    )
    rounding = learn_rounding(steps, Moments.from_batch(layer, x, layer(x)), 20)
    assert bool(rounding.steps.isfinite().all())
    assert rounding.error <= rounding.nearest


@torch.no_grad()
def test_squares_that_overflow_are_refused() -> None:
    layer, x = nn.Linear(5, 3), torch.full((2, 5), 1e15)
    layer.weight.fill_(1e15)
    with pytest.raises(CompressionError, match="too large for 32 bits"):
        Moments.from_batch(layer, x, layer(x))


def test_beta_falls_after_the_warm_up() -> None:
    shares = [anneal_beta(step / 100) for step in range(101)]
    assert shares[:20] == [None] * 20
    betas = [beta for beta in shares if beta is not None]
    assert betas == sorted(betas, reverse=True)
    assert betas[-1] == pytest.approx(LAST_BETA)


def test_the_rectified_sigmoid_reaches_its_ends() -> None:
    assert rectify_sigmoid(torch.tensor([-9.0, 0.0, 9.0])).tolist() == pytest.approx([0.0, 0.5, 1.0])
    values = torch.linspace(-2, 2, 9)
    expected = F.hardtanh(torch.sigmoid(values) * (1 + 2 * STRETCH) - STRETCH, 0.0, 1.0)
    torch.testing.assert_close(rectify_sigmoid(values), expected)
