import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.special import rel_entr
from scipy.stats import chi2

from autocompress.errors import UsageError
from autocompress.runtime.drift import (
    DriftEvent,
    DriftSettings,
    DriftWatch,
    StabilityMonitor,
    compute_stability_index,
    compute_statistics,
)
from autocompress.runtime.service import ModelService
from tests.runtime.artifacts import make_levels

SETTINGS = DriftSettings(reference=200, window=100, interval=50)


def test_the_index_is_that_of_a_worked_example() -> None:
    # Shares of ten score bands in development and in production; the terms were summed by hand.
    expected = [0.05, 0.10, 0.15, 0.20, 0.20, 0.15, 0.10, 0.05]
    actual = [0.08, 0.12, 0.16, 0.18, 0.17, 0.13, 0.10, 0.06]
    # 0.014100 + 0.003646 + 0.000645 + 0.002107 + 0.004876 + 0.002862 + 0 + 0.001823
    assert compute_stability_index(expected, actual) == pytest.approx(0.030060, abs=2e-6)


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)), min_size=2, max_size=12))
def test_the_index_is_the_divergence_in_both_directions(pairs: list[tuple[float, float]]) -> None:
    expected, actual = (np.array(values) / sum(values) for values in zip(*pairs, strict=True))
    divergence = rel_entr(expected, actual).sum() + rel_entr(actual, expected).sum()
    assert compute_stability_index(expected * 100, actual) == pytest.approx(divergence, abs=1e-12)


@pytest.mark.parametrize("actual", [[1.0, 0.0], [0.5, 0.3, 0.2]])
def test_other_bins_or_an_empty_one_are_refused(actual: list[float]) -> None:
    with pytest.raises(UsageError, match="same bins"):
        compute_stability_index([0.5, 0.5], actual)


def feed(monitor: StabilityMonitor, values: np.ndarray) -> int:
    return sum(monitor.record(float(value)) for value in values)


def test_values_of_the_same_distribution_send_no_event_and_others_send_one() -> None:
    generator = np.random.default_rng(0)
    monitor = StabilityMonitor(SETTINGS)
    assert feed(monitor, generator.normal(size=2000)) == 0
    assert monitor.index < monitor.limit
    assert feed(monitor, generator.normal(1.0, size=1000)) == 1
    assert monitor.index > monitor.limit
    # Armed again only after the values were normal for a whole window.
    assert feed(monitor, generator.normal(size=1000)) == 0
    assert feed(monitor, generator.normal(-1.0, size=1000)) == 1


def test_chance_alone_sends_no_event_however_small_the_window() -> None:
    generator = np.random.default_rng(1)
    events = 0
    for _ in range(20):
        monitor = StabilityMonitor(DriftSettings(reference=60, window=30, interval=30))
        # The quantile of the formula is that of the distribution itself.
        assert monitor.limit == pytest.approx(chi2.ppf(0.9999, 9) * (1 / 60 + 1 / 30), rel=0.02)
        events += feed(monitor, generator.exponential(size=660))
    assert events <= 1


def test_the_limit_of_large_windows_is_the_threshold() -> None:
    assert StabilityMonitor(DriftSettings()).limit == 0.25


def test_a_constant_that_changes_is_a_drift() -> None:
    for changed in (0.0, 2.0):
        monitor = StabilityMonitor(SETTINGS)
        assert feed(monitor, np.ones(400)) == 0
        assert feed(monitor, np.full(100, changed)) == 1


@pytest.mark.parametrize(
    "wrong", [{"reference": 19}, {"window": 5}, {"bins": 1}, {"interval": 0}, {"rearm": 1.5}, {"threshold": 0.0}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="drift watch"):
        DriftSettings(**wrong)  # type: ignore[arg-type]


def test_statistics_describe_numbers_texts_and_ids() -> None:
    values = {
        "image": (None, np.array([[1.0, 3.0]], np.float32)),
        "price": (None, np.array([4.0], np.float32)),
        "text": (None, np.array([5, 2, 0, 0])),
        "user": (None, np.asarray(17)),
    }
    assert compute_statistics(values) == {
        "mean of image": 2.0,
        "deviation of image": 1.0,
        "mean of price": 4.0,
        "length of text": 2.0,
        "row of user": 17.0,
    }


def test_a_service_reports_drifting_inputs_and_confidence_by_callback_and_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[DriftEvent] = []

    def collect(event: DriftEvent) -> None:
        events.append(event)
        raise RuntimeError("the callback failed")

    watch = DriftWatch(SETTINGS, collect)
    generator = np.random.default_rng(0)
    with (
        caplog.at_level(logging.WARNING),
        ModelService(make_levels(tmp_path, (0.8,)), observers=[watch.observe]) as service,
    ):
        for shift in (0.0, 3.0):
            rows = generator.normal(shift, size=(400, 4))
            # Only the first class grows, so that the confidence does, too.
            rows[:, 1:] -= shift
            for start in range(0, 400, 100):
                service.submit(list(rows[start : start + 100])).result(10)
    drifted = {event.statistic for event in events}
    assert {"deviation of features", "confidence of m0"} <= drifted
    (event,) = (event for event in events if event.statistic == "confidence of m0")
    assert event.recent_mean > event.reference_mean
    assert event.index > event.threshold
    assert watch.indices()["confidence of m0"] > event.threshold
    assert "confidence of m0 has drifted: stability index" in caplog.text
    watch.reset()
    assert watch.indices() == {}
