"""Bits for each layer under a budget of bit operations or of weights."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from autocompress.core.method import Context, LayerBits, MethodState
from autocompress.core.registry import QUANTIZE
from autocompress.errors import CompressionError, KnobError
from autocompress.measure import Subject, layer_costs, measure
from autocompress.quantize.bit_sensitivity import enforce_monotone_losses
from autocompress.quantize.lsq import LSQ, LSQConfig
from autocompress.quantize.mixed_precision import (
    BIT_WIDTHS,
    SOLVERS,
    MixedPrecision,
    MixedPrecisionConfig,
    solve_exactly,
    solve_greedily,
)
from autocompress.quantize.post_training import PostTraining, PostTrainingConfig
from tests.quantize.nets import Plain, accuracy, digits
from tests.quantize.tuning import Digits, context, mean_and_error, train_model

METHOD = MixedPrecision()
BEST: dict[str, Any] = {"observer": "mse", "weight_observer": "mse", "bias_correction": True}
SIDES = ("weight_bits", "activation_bits")


@pytest.fixture(scope="module")
def data() -> Digits:
    return digits()


@pytest.fixture(scope="module")
def models(data: Digits) -> list[nn.Module]:
    return [train_model(Plain, data, seed) for seed in range(5)]


def bops(model: nn.Module, bits: Mapping[str, LayerBits], data: Digits) -> float:
    cost: float = measure(Subject(layers=layer_costs(model, (data[0][:1],)), bits=bits), ("bops",))["bops"]
    return cost


def test_it_is_registered_with_its_knobs() -> None:
    assert isinstance(QUANTIZE.get("mixed_precision"), MixedPrecision)
    assert METHOD.is_identity(MixedPrecisionConfig(budget_bits=32))
    assert not METHOD.is_identity(MixedPrecisionConfig())
    for bad in ({"budget_bits": 0.9}, {"solver": "guess"}, {"budget": "time"}, {"sensitivity": "feeling"}):
        with pytest.raises(KnobError, match=next(iter(bad))):
            MixedPrecisionConfig.of(bad)


@pytest.mark.slow
@pytest.mark.parametrize("average", [2.0, 3.3, 5.0, 8.0, 20.0])
@pytest.mark.parametrize("solver", ["exact", "greedy"])
def test_it_takes_no_more_bit_operations_than_uniform_bits(
    average: float, solver: str, models: list[nn.Module], data: Digits
) -> None:
    out, state = METHOD.apply(models[0], MixedPrecisionConfig(budget_bits=average, solver=solver), context(data))
    macs = bops(out, dict.fromkeys(state.bits, LayerBits(1, 1)), data)
    assert bops(out, state.bits, data) <= macs * average**2
    assert bops(out, state.bits, data) == pytest.approx(macs * state.report["assignment"]["spent_bits"] ** 2)
    if average in (2.0, 20.0):
        assert set(state.bits.values()) == {LayerBits(*[2 if average == 2 else 8] * 2)}


@pytest.mark.slow
@pytest.mark.parametrize("inputs", [8, 32])
@pytest.mark.parametrize("average", [2.0, 3.1, 6.0])
def test_a_budget_of_size_is_kept_and_leaves_inputs_alone(
    average: float, inputs: int, models: list[nn.Module], data: Digits
) -> None:
    config = MixedPrecisionConfig(budget="size", budget_bits=average, activation_bits=inputs)
    out, state = METHOD.apply(models[0], config, context(data))
    sizes = {name: out.get_parameter(f"{name}.weight").numel() for name in state.bits}
    spent = sum(sizes[name] * bits.weight for name, bits in state.bits.items())
    assert spent <= average * sum(sizes.values())
    assert state.report["assignment"]["spent_bits"] == pytest.approx(spent / sum(sizes.values()))
    assert {bits.activation for bits in state.bits.values()} == {inputs}
    assert len({bits.weight for bits in state.bits.values()}) > (average != 2)


class Small(nn.Module):
    """Three layers of different sizes: few enough to try all assignments."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 20), nn.Linear(20, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.tanh(self.second(torch.relu(self.first(x)))))


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, Context]:
    torch.manual_seed(0)
    values = torch.randn(64, 6)
    return Small().eval(), Context((values[:1],), ((values[:40],), (values[40:],)))


@pytest.mark.parametrize("average", [2.4, 3.0, 4.5, 7.0])
def test_the_exact_solver_finds_the_best_of_all_assignments(small: tuple[nn.Module, Context], average: float) -> None:
    model, given = small
    states = {
        solver: METHOD.apply(model, MixedPrecisionConfig(budget_bits=average, solver=solver), given)[1]
        for solver in ("exact", "greedy")
    }
    macs = [120, 180, 36]
    rows = states["exact"].report["sensitivity"]
    assert rows == states["greedy"].report["sensitivity"]
    tables = [
        tuple(enforce_monotone_losses({int(bits): rise for bits, rise in row[side].items()}) for side in SIDES)
        for row in rows
    ]
    options = [
        [(unit * w * a, weights[w] + inputs[a]) for w in BIT_WIDTHS for a in BIT_WIDTHS]
        for unit, (weights, inputs) in zip(macs, tables, strict=True)
    ]
    costs = [torch.tensor([cost for cost, _ in some], dtype=torch.float64) for some in options]
    losses = [torch.tensor([loss for _, loss in some], dtype=torch.float64) for some in options]
    cost = costs[0][:, None, None] + costs[1][:, None] + costs[2]
    loss = losses[0][:, None, None] + losses[1][:, None] + losses[2]
    best = float(loss[cost <= sum(macs) * average**2].min())
    expected_losses = {solver: state.report["assignment"]["expected_loss"] for solver, state in states.items()}
    assert expected_losses["exact"] == pytest.approx(best, rel=1e-9)
    assert expected_losses["greedy"] >= expected_losses["exact"] - 1e-12
    assert expected_losses["exact"] <= states["exact"].report["assignment"]["uniform_expected_loss"] + 1e-12


@pytest.mark.slow
def test_the_table_has_a_row_a_layer_and_the_assignment_is_what_was_done(models: list[nn.Module], data: Digits) -> None:
    _, state = METHOD.apply(models[0], MixedPrecisionConfig(budget_bits=3.5), context(data))
    rows = state.report["sensitivity"]
    assert [row["name"] for row in rows] == list(state.bits)
    for row, side in product(rows, SIDES):
        assert set(row[side]) == {str(bits) for bits in BIT_WIDTHS}
        assert row[side]["2"] > row[side]["8"] >= 0
    chosen = {name: [bits.weight, bits.activation] for name, bits in state.bits.items()}
    assert state.report["assignment"]["layers"] == chosen
    assert len({tuple(bits) for bits in chosen.values()}) > 1
    assert [(row["weight_bits"], row["activation_bits"]) for row in state.report["layers"]] == [
        tuple(bits) for bits in chosen.values()
    ]


def test_the_mix_is_rounded_as_post_training_rounds(models: list[nn.Module], data: Digits) -> None:
    config = PostTrainingConfig(weight_bits=2, activation_bits=2, **BEST)
    mixed, _ = METHOD.apply(models[0], MixedPrecisionConfig(budget_bits=2), context(data))
    uniform, _ = PostTraining().apply(models[0], config, context(data))
    with torch.no_grad():
        assert torch.equal(mixed(data[2]), uniform(data[2]))


@pytest.mark.parametrize("budget", ["bops", "size"])
def test_a_fresh_model_is_restored_bit_for_bit(models: list[nn.Module], data: Digits, budget: str) -> None:
    config = MixedPrecisionConfig(budget_bits=3.3, budget=budget)
    mixed, state = METHOD.apply(models[0], config, context(data))
    fresh = METHOD.restore(Plain(), config, MethodState(state.history, state.tensors))
    fresh.load_state_dict(mixed.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh(data[2]), mixed(data[2]))


@pytest.mark.parametrize("budget", ["bops", "size"])
def test_a_budget_below_the_smallest_assignment_says_what_is_needed(
    models: list[nn.Module], data: Digits, budget: str
) -> None:
    config = MixedPrecisionConfig(budget_bits=1.9, budget=budget)
    with pytest.raises(CompressionError, match=r"budget_bits = 1\.9 is below the smallest assignment, 2 bits"):
        METHOD.apply(models[0], config, context(data))


@pytest.mark.slow
def test_what_it_measures_with_must_be_there(models: list[nn.Module], data: Digits) -> None:
    for missing in ({"loss": None}, {"targets": ()}, {"loss": lambda *_: torch.tensor(torch.nan)}):
        given = replace(context(data), **missing)
        with pytest.raises(CompressionError, match="loss"):
            METHOD.apply(models[0], MixedPrecisionConfig(sensitivity="loss"), given)
        METHOD.apply(models[0], MixedPrecisionConfig(), given)
    with pytest.raises(CompressionError, match="calibration batches"):
        METHOD.apply(models[0], MixedPrecisionConfig(), replace(context(data), calibration=()))


@pytest.mark.slow
def test_at_equal_bit_operations_it_beats_uniform_bits(
    models: list[nn.Module], data: Digits, record_property: Callable[[str, object], None]
) -> None:
    gains = []
    for model in models:
        mixed, state = METHOD.apply(model, MixedPrecisionConfig(budget_bits=3), context(data))
        config = PostTrainingConfig(weight_bits=3, activation_bits=3, **BEST)
        uniform, other = PostTraining().apply(model, config, context(data))
        assert bops(mixed, state.bits, data) <= bops(uniform, other.bits, data)
        gains.append(accuracy(mixed, data[2], data[3]) - accuracy(uniform, data[2], data[3]))
    mean, error = mean_and_error(gains)
    record_property("gain", (mean, error))
    print(f"3 bits: {100 * mean:.1f} +- {100 * error:.1f} points over five seeds")
    assert mean > error


def test_the_budgets_of_a_model_share_its_sensitivities(
    models: list[nn.Module], data: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [MixedPrecisionConfig(budget_bits=bits) for bits in (2.5, 3.3)]
    alone = [METHOD.apply(models[0], config, context(data))[1] for config in configs]
    given = replace(context(data), shared={})
    shared = [METHOD.apply(models[0], configs[0], given)[1]]
    monkeypatch.setattr("autocompress.quantize.mixed_precision.measure_sensitivity", None)
    shared.append(METHOD.apply(models[0], configs[1], given)[1])
    assert [state.report for state in shared] == [state.report for state in alone]
    assert shared[0].bits != shared[1].bits
    # Inputs have other bits, so they are measured anew.
    with pytest.raises(TypeError):
        METHOD.apply(models[0], replace(configs[0], budget="size"), given)


TRAINED: dict[str, Any] = {"budget": "size", "budget_bits": 2.3, "epochs": 2, "learning_rate": 1e-2}


def test_a_trained_mix_has_the_chosen_bits_and_is_restored(models: list[nn.Module], data: Digits) -> None:
    config = MixedPrecisionConfig(**TRAINED)
    assert config.estimate_epochs() == 2
    assert MixedPrecisionConfig(**{**TRAINED, "budget_bits": 32}).estimate_epochs() == 0
    trained, state = METHOD.apply(models[0], config, context(data))
    _, other = METHOD.apply(models[0], replace(config, epochs=0), context(data))
    assert state.bits == other.bits
    assert len({bits.weight for bits in state.bits.values()}) > 1
    assert state.report["assignment"] == other.report["assignment"]
    assert state.report["trained"] == {"epochs": 2, "learning_rate": 1e-2}
    fresh = METHOD.restore(Plain(), config, MethodState(state.history, state.tensors))
    fresh.load_state_dict(trained.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh(data[2]), trained(data[2]))
    for name, bits in state.bits.items():
        weight = trained.get_parameter(f"{name}.weight").detach()
        assert max(len(row.unique()) for row in weight.flatten(1)) <= 2**bits.weight


def test_equal_bits_are_trained_as_learned_steps_train(models: list[nn.Module], data: Digits) -> None:
    mixed, _ = METHOD.apply(models[0], MixedPrecisionConfig(**{**TRAINED, "budget_bits": 2}), context(data))
    config = LSQConfig(weight_bits=2, activation_bits=8, epochs=2, learning_rate=1e-2)
    uniform, _ = LSQ().apply(models[0], config, context(data))
    with torch.no_grad():
        assert torch.equal(mixed(data[2]), uniform(data[2]))


def test_a_mix_is_trained_by_a_context_that_can(models: list[nn.Module], data: Digits) -> None:
    with pytest.raises(CompressionError, match="'fine_tune'"):
        METHOD.apply(models[0], MixedPrecisionConfig(**TRAINED), replace(context(data), fine_tune=None))


@pytest.mark.slow
def test_training_a_mix_gains(models: list[nn.Module], data: Digits) -> None:
    gains = []
    for model in models:
        config = MixedPrecisionConfig(**{**TRAINED, "epochs": 6})
        trained, _ = METHOD.apply(model, config, context(data))
        at_once, _ = METHOD.apply(model, replace(config, epochs=0), context(data))
        gains.append(accuracy(trained, data[2], data[3]) - accuracy(at_once, data[2], data[3]))
    mean, error = mean_and_error(gains)
    print(f"2.3 bits: {100 * mean:.1f} +- {100 * error:.1f} points over five seeds")
    assert mean > 2 * error


CHOICE = st.tuples(st.integers(0, 30), st.floats(-5, 5, allow_subnormal=False))
ROWS = st.lists(st.lists(CHOICE, min_size=1, max_size=4), min_size=1, max_size=5)


def total(rows: Any, chosen: Any) -> tuple[int, float]:
    picked = [row[at] for row, at in zip(rows, chosen, strict=True)]
    return sum(cost for cost, _ in picked), sum(loss for _, loss in picked)


@pytest.mark.slow
@settings(deadline=None, max_examples=80)
@given(ROWS, st.integers(0, 150))
def test_exact_is_what_trying_all_gives(rows: Any, budget: int) -> None:
    every = [total(rows, chosen) for chosen in product(*(range(len(row)) for row in rows))]
    fitting = [loss for cost, loss in every if cost <= budget]
    if not fitting:
        for solve in SOLVERS.values():
            with pytest.raises(CompressionError, match="more than the budget"):
                solve(rows, budget)
        return
    cost, loss = total(rows, solve_exactly(rows, budget))
    assert cost <= budget
    assert loss == pytest.approx(min(fitting), abs=1e-9)
    cost, greedy = total(rows, solve_greedily(rows, budget))
    assert cost <= budget
    assert greedy >= loss - 1e-9


def test_costs_beyond_float_precision_are_kept_apart() -> None:
    large = 2**60
    rows = [[(large, 1.0), (large + 1, 0.0)]]
    assert solve_exactly(rows, large) == [0]
    assert solve_exactly(rows, large + 1) == [1]


def test_a_deep_network_takes_no_time() -> None:
    rows = [
        [(macs * bits**2, (layer % 7 + 1) / 4**bits) for bits in range(2, 9)]
        for layer, macs in enumerate([147_456, 36_864, 73_728, 9_216, 18_432] * 10)
    ]
    budget = sum(row[2][0] for row in rows)
    cost, loss = total(rows, solve_exactly(rows, budget))
    assert cost <= budget
    assert loss <= total(rows, solve_greedily(rows, budget))[1]
    assert loss < sum(row[2][1] for row in rows)
