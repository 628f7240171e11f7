"""Watch of inputs and confidence at run time: an event when recent values are distributed unlike earlier ones.

The distance is the population stability index of binned values. Its usual reading: below 0.1 stable, from 0.1 to 0.25 a
moderate change, above 0.25 a major one (Siddiqi 2006, Credit Risk Scorecards).
"""

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autocompress.analysis.cascade import CONFIDENT_KINDS
from autocompress.errors import UsageError
from autocompress.export.pipeline import Values
from autocompress.runtime.models import confidence_of, list_kinds
from autocompress.runtime.service import AnsweredRequest

# Quantile of the normal distribution for a probability of 0.0001: comparisons are repeated for days.
CHANCE_DEVIATIONS = 3.719
# Added to each bin: an empty one would make the index infinite.
SMOOTHING = 0.5

logger = logging.getLogger(__name__)


def compute_stability_index(expected: ArrayLike, actual: ArrayLike) -> float:
    """Return the population stability index of two distributions over the same bins.

    It is the sum of ``(a - e) ln(a / e)`` over the bins (Siddiqi 2006), which is the Kullback-Leibler divergence in
    both directions (Jeffreys 1946).

    Args:
        expected: Shares or counts of the reference, ``[B]``, all above 0.
        actual: Shares or counts of recent values, ``[B]``, all above 0.

    Example:
        >>> round(compute_stability_index([0.5, 0.5], [0.6, 0.4]), 6)
        0.040547
    """
    reference, recent = np.asarray(expected, np.float64), np.asarray(actual, np.float64)
    if reference.shape != recent.shape or not ((reference > 0).all() and (recent > 0).all()):
        raise UsageError("a stability index needs two distributions over the same bins, without an empty bin")
    reference, recent = reference / reference.sum(), recent / recent.sum()
    return float(((recent - reference) * np.log(recent / reference)).sum())


@dataclass(frozen=True)
class DriftSettings:
    """Settings of a watch.

    Attributes:
        reference: Number of first examples that stand for normal ones.
        window: Number of recent examples that are compared with them.
        interval: Number of examples between two comparisons.
        bins: Number of bins, quantiles of the reference.
        threshold: Stability index above which an event is sent, at the least.
        rearm: Share of the threshold below which the next event of the same statistic becomes possible.
    """

    reference: int = 500
    window: int = 500
    interval: int = 100
    bins: int = 10
    threshold: float = 0.25
    rearm: float = 0.5

    def __post_init__(self) -> None:
        if min(self.reference, self.window) < 2 * self.bins or self.bins < 2 or self.interval < 1:
            raise UsageError("a drift watch needs at least two bins, and two examples for each bin")
        if not (0 <= self.rearm <= 1 and self.threshold > 0):
            raise UsageError("a drift watch needs a positive threshold, and a share of it that arms it again")


@dataclass(frozen=True)
class DriftEvent:
    """Recent values of a statistic are distributed unlike those of the reference.

    Attributes:
        statistic: Name of the statistic, such as ``confidence of t12c7`` or ``mean of input``.
        index: Population stability index.
        threshold: The index above which events are sent.
        reference_mean: Mean of the reference.
        recent_mean: Mean of the recent values.
    """

    statistic: str
    index: float
    threshold: float
    reference_mean: float
    recent_mean: float

    def __str__(self) -> str:
        return (
            f"{self.statistic} has drifted: stability index {self.index:.2f} (above {self.threshold:g}), "
            f"mean {self.reference_mean:.4g} before and {self.recent_mean:.4g} now"
        )


class StabilityMonitor:
    """The stability index of one statistic against its first values.

    Args:
        settings: Settings of the watch.
    """

    def __init__(self, settings: DriftSettings) -> None:
        self._settings = settings
        self._first: list[float] = []
        self._edges: NDArray[np.float64] | None = None
        self._reference = np.zeros(0)
        self._recent: deque[float] = deque(maxlen=settings.window)
        self._since_comparison = 0
        self._is_armed = True
        self.index = 0.0

    def record(self, value: float) -> bool:
        """Add a value, and return whether the index has just risen above the threshold."""
        if self._edges is None:
            self._first.append(value)
            if len(self._first) == self._settings.reference:
                self._edges = _divide_values(self._first, self._settings.bins)
                self._reference = self._count(self._first)
            return False
        self._recent.append(value)
        self._since_comparison += 1
        if len(self._recent) < self._settings.window or self._since_comparison < self._settings.interval:
            return False
        self._since_comparison = 0
        self.index = compute_stability_index(self._reference, self._count(self._recent))
        has_risen = self._is_armed and self.index > self.limit
        # One event for a drift, not one for each comparison while it lasts.
        self._is_armed = not has_risen and (self._is_armed or self.index < self._settings.rearm * self.limit)
        return has_risen

    @property
    def limit(self) -> float:
        """Index above which an event is sent: the threshold, or what chance reaches in so few values if that is more.

        Of two samples of one distribution, the index is about ``(1 / N + 1 / M)`` times a chi-square variable with a
        degree of freedom less than bins (Yurdakul and Naranjo 2020).
        """
        settings, freedom = self._settings, self._settings.bins - 1
        # Quantile of the chi-square distribution by the cube of a normal one (Wilson and Hilferty 1931).
        width = 2 / (9 * freedom)
        quantile = freedom * (1 - width + CHANCE_DEVIATIONS * math.sqrt(width)) ** 3
        return max(settings.threshold, quantile * (1 / settings.reference + 1 / settings.window))

    def means(self) -> tuple[float, float]:
        """Return the mean of the reference and of the recent values."""
        return float(np.mean(self._first)), float(np.mean(self._recent))

    def _count(self, values: Sequence[float] | deque[float]) -> NDArray[np.float64]:
        assert self._edges is not None
        counts = np.bincount(np.searchsorted(self._edges, values, side="right"), minlength=len(self._edges) + 1)
        return np.asarray(counts + SMOOTHING, np.float64)


def _divide_values(values: Sequence[float], bins: int) -> NDArray[np.float64]:
    """Return the inner edges of bins with equal shares of the values; a value with several shares has its own bin."""
    quantiles = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])
    # A value on an edge counts as above it. The next number closes the bin of a value that fills several.
    repeated = quantiles[1:][np.diff(quantiles) == 0]
    return np.unique(np.concatenate([quantiles, np.nextafter(repeated, np.inf)]))


class DriftWatch:
    """Watches the confidence of each level and statistics of each input; safe for use from several threads.

    Watched of an input are mean and standard deviation of its numbers, the number of tokens of a text, and the row of
    an id. The first examples are the reference: begin with normal ones, or record a sample of them before.

    Args:
        settings: Settings of the watch.
        on_event: Callback with each event, which is also logged; an exception of it is logged.
    """

    def __init__(
        self, settings: DriftSettings | None = None, on_event: Callable[[DriftEvent], None] = lambda event: None
    ) -> None:
        self._settings, self._on_event = settings or DriftSettings(), on_event
        self._monitors: dict[str, StabilityMonitor] = {}
        self._lock = threading.Lock()

    def observe(self, answered: AnsweredRequest) -> None:
        """Add the examples of an answered request."""
        model = answered.level.model
        kinds = list_kinds(model.pipeline)
        has_confidence = all(kind in CONFIDENT_KINDS for kind in kinds.values())
        for values, outputs in zip(answered.values, answered.outputs, strict=True):
            self.record(answered.level.name, values, confidence_of(outputs, kinds) if has_confidence else None)

    def record(self, level: str, values: Values, confidence: float | None) -> None:
        """Add one encoded example and the confidence of its prediction."""
        statistics = compute_statistics(values)
        if confidence is not None:
            # Models differ in their confidence, so each has its own reference.
            statistics[f"confidence of {level}"] = confidence
        events = []
        with self._lock:
            for name, value in statistics.items():
                monitor = self._monitors.setdefault(name, StabilityMonitor(self._settings))
                if monitor.record(value):
                    events.append(DriftEvent(name, monitor.index, monitor.limit, *monitor.means()))
        # Outside the lock: a callback may ask the watch.
        for event in events:
            logger.warning("%s", event)
            try:
                self._on_event(event)
            except Exception:
                logger.exception("a callback failed on a drift event")

    def indices(self) -> dict[str, float]:
        """Return the last stability index of each statistic."""
        with self._lock:
            return {name: monitor.index for name, monitor in self._monitors.items()}

    def reset(self) -> None:
        """Forget everything: the next examples are the new reference."""
        with self._lock:
            self._monitors.clear()


def compute_statistics(values: Values) -> dict[str, float]:
    """Return the watched statistics of one encoded example by name."""
    statistics = {}
    for name, (_, tensor) in values.items():
        if tensor.dtype.kind == "f":
            statistics[f"mean of {name}"] = float(tensor.mean())
            if tensor.size > 1:
                statistics[f"deviation of {name}"] = float(tensor.std())
        elif tensor.ndim == 0:
            statistics[f"row of {name}"] = float(tensor)
        else:
            # 0 is padding.
            statistics[f"length of {name}"] = float(np.count_nonzero(tensor))
    return statistics
