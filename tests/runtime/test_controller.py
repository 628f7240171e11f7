import math

import numpy as np
import pytest

from autocompress.errors import UsageError
from autocompress.runtime.controller import ControllerSettings, LatencyController, predict_latency
from benchmarks.controller import SIMULATED_SCORES, draw_arrivals, simulate, summarize

BUDGET = 15.0


def simulate_queue(rate: float, run_ms: float, deviation_ms: float, quantile: float) -> float:
    """Return the quantile of the latency of a single-server queue with gamma service times, by Lindley's recursion."""
    generator = np.random.default_rng(0)
    count = 40_000
    gaps = generator.exponential(1000 / rate, count)
    shape = (run_ms / deviation_ms) ** 2
    runs = generator.gamma(shape, run_ms / shape, count)
    wait, latencies = 0.0, np.empty(count)
    for at in range(count):
        latencies[at] = wait + runs[at]
        wait = max(0.0, wait + runs[at] - gaps[at])
    return float(np.quantile(latencies, quantile))


@pytest.mark.parametrize(("rate", "deviation_ms"), [(100, 1.0), (250, 1.0), (250, 2.0)])
def test_the_predicted_percentile_is_that_of_a_simulated_queue(rate: float, deviation_ms: float) -> None:
    predicted = predict_latency(rate, 2.0, deviation_ms, 1, 0.95)
    assert predicted == pytest.approx(simulate_queue(rate, 2.0, deviation_ms, 0.95), rel=0.25)


def test_a_queue_that_grows_without_end_has_no_percentile_and_an_empty_one_has_no_wait() -> None:
    assert predict_latency(500, 2.0, 0.0, 1, 0.95) == math.inf
    assert predict_latency(500, 2.0, 0.0, 2, 0.95) < math.inf
    assert predict_latency(0, 2.0, 0.0, 1, 0.95) == predict_latency(10, 2.0, 0.0, 1, 0.95) == 2.0


def test_the_level_falls_under_load_and_rises_again_after_it() -> None:
    arrivals = draw_arrivals(30, 15, seed=0)
    answers, switches = simulate(arrivals, "controller", seed=0)
    outcome = summarize(answers, len(arrivals), 0, SIMULATED_SCORES, BUDGET, switches)
    assert len(answers) == len(arrivals)
    assert outcome.good >= 0.99
    levels = {
        third: [one.level for one in answers if third * 5 + 1.5 <= one.arrived < third * 5 + 5] for third in range(3)
    }
    means = [float(np.mean(levels[third])) for third in range(3)]
    assert means[0] > means[1] + 0.5
    assert means[2] > means[1] + 0.5
    # Without hysteresis, the level would change with every burst of arrivals.
    assert 2 <= switches <= 6


def test_a_machine_that_becomes_slower_lowers_the_level() -> None:
    arrivals = draw_arrivals(20, 9, seed=1)
    answers, _ = simulate(arrivals, "controller", seed=1, slowdown=lambda now: 8.0 if now >= 3 else 1.0)
    assert {one.level for one in answers if one.arrived < 3} == {2}
    assert max(one.level for one in answers if one.arrived > 5) < 2


def test_the_guard_sends_a_burst_to_a_cheaper_model_without_changing_the_level() -> None:
    controller = LatencyController([1.0, 5.0], ControllerSettings(BUDGET))
    controller.record_arrival(0.0)
    assert controller.choose_level(0.0, waited_ms=0.0, queued=0) == 1
    # Three requests of 5 ms exceed 0.8 of the budget; so does a request that has waited.
    assert controller.choose_level(0.001, waited_ms=0.0, queued=2) == 0
    assert controller.choose_level(0.002, waited_ms=10.0, queued=0) == 0
    assert controller.choose_level(0.003, waited_ms=0.0, queued=0, examples=4) == 0
    assert (controller.level, controller.switches) == (1, 0)


def test_measured_latencies_above_the_budget_lower_the_level_whatever_the_formula_says() -> None:
    controller = LatencyController([1.0, 2.0], ControllerSettings(BUDGET))
    for at in range(30):
        controller.record_arrival(at / 30)
        controller.record_answer(at / 30, 1, run_ms=2.0, latency_ms=40.0)
    controller.choose_level(1.0, 0.0, 0)
    assert controller.level == 0


def test_a_few_runs_of_ten_times_their_length_change_no_level() -> None:
    controller = LatencyController([1.0, 2.0], ControllerSettings(BUDGET))
    for at in range(60):
        now = at / 60
        controller.record_arrival(now)
        controller.choose_level(now, 0.0, 0)
        # Every twelfth run, the machine does something else.
        controller.record_answer(now, 1, run_ms=20.0 if at % 12 == 11 else 2.0, latency_ms=2.0)
    assert (controller.level, controller.switches) == (1, 0)
    assert controller.predict(1, 1.0) == pytest.approx(predict_latency(60, 2.0, 0.0, 1, 0.95))


def test_a_level_above_the_budget_is_not_the_first_one() -> None:
    assert LatencyController([1.0, 11.9, 12.1], ControllerSettings(BUDGET)).level == 1


def test_a_budget_that_no_model_fits_is_refused() -> None:
    with pytest.raises(UsageError, match=r"cheapest model takes 20 ms.*budget of 15 ms"):
        LatencyController([20.0, 30.0], ControllerSettings(BUDGET))


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan, math.inf])
def test_a_budget_is_a_positive_number(budget: float) -> None:
    with pytest.raises(UsageError, match="budget"):
        ControllerSettings(budget)


@pytest.mark.parametrize("wrong", [{"quantile": 1.0}, {"margin": 0.0}, {"hold_seconds": -1.0}, {"window_seconds": 0.0}])
def test_settings_outside_their_ranges_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        ControllerSettings(BUDGET, **wrong)
