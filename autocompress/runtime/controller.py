"""Choice of the model for each request, so that the 95th percentile of the latency stays within a budget.

The controller is arithmetic on times that its caller passes: it starts no thread and reads no clock, so that a service
and a simulation run the same rules.

Two rules act at different speeds. The *level* is the model for normal requests. It falls as soon as the queueing
formula or the measured percentile exceeds the budget, and rises by one after the formula has predicted for a while that
the next model leaves a margin. The *guard* sends single requests of a burst to cheaper models, without changing the
level.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from autocompress.errors import UsageError

# The level is considered so many times in a window: a percentile of a window takes longer than small models.
ADJUSTMENTS = 50
# Fewer latencies have no 95th percentile.
FEWEST_LATENCIES = 20
# Answers from which the present speed of the machine is known.
RECENT_RUNS = 20
# Standard deviation of a normal distribution divided by its median absolute deviation.
DEVIATION_OF_NORMAL = 1.4826
# Largest share of the busy time at which a queue is predicted at all; above it, its length has no stable mean.
LARGEST_LOAD = 0.98


@dataclass(frozen=True)
class ControllerSettings:
    """Settings of the controller.

    Attributes:
        budget_ms: Latency budget in milliseconds, from the arrival of a request to its answer.
        quantile: Quantile of the latencies that shall stay within the budget.
        margin: Share of the budget that the predicted quantile may take when the level rises, and that a single
            request may be expected to take.
        hold_seconds: Seconds for which a higher level must have been possible before the level rises.
        window_seconds: Seconds over which arrivals are counted and latencies measured.
    """

    budget_ms: float
    quantile: float = 0.95
    margin: float = 0.8
    hold_seconds: float = 1.0
    window_seconds: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.budget_ms) and self.budget_ms > 0):
            raise UsageError(f"the latency budget must be a positive number of milliseconds, not {self.budget_ms:g}")
        if not (0 < self.quantile < 1 and 0 < self.margin <= 1 and self.hold_seconds >= 0 and self.window_seconds > 0):
            raise UsageError("quantile and margin lie between 0 and 1, hold_seconds and window_seconds are positive")


def predict_latency(rate: float, run_ms: float, deviation_ms: float, workers: int, quantile: float) -> float:
    """Return a quantile of the latency of a queue in milliseconds; infinite if the queue grows without end.

    The mean wait of the requests that wait is that of an M/G/1 queue (Pollaczek 1930, Khinchine 1932), the wait is
    exponential, and several workers count as one that is faster.

    Args:
        rate: Arrivals per second.
        run_ms: Mean milliseconds of one arrival in a worker.
        deviation_ms: Their standard deviation.
        workers: Number of workers.
        quantile: Quantile, such as 0.95.

    Example:
        >>> round(predict_latency(rate=100, run_ms=2.0, deviation_ms=0.0, workers=1, quantile=0.95), 2)
        3.73
    """
    load = rate * run_ms / 1000 / workers
    if load >= LARGEST_LOAD:
        return math.inf
    variation = (deviation_ms / run_ms) ** 2 if run_ms > 0 else 0.0
    mean_wait = run_ms / workers * (1 + variation) / (2 * (1 - load))
    # Of the arrivals, the share `load` waits.
    wait = mean_wait * max(0.0, math.log(load / (1 - quantile))) if load > 0 else 0.0
    return run_ms + wait


class LatencyController:
    """Chooses the level of each request.

    Not thread-safe by itself: the caller holds a lock.

    Args:
        run_ms: Milliseconds of one example at each level, the cheapest first.
        settings: Budget and settings.
        workers: Number of workers that answer requests.

    Attributes:
        level: Position of the level for normal requests.
        switches: Number of times that the level changed.

    Raises:
        UsageError: Not even the cheapest level fits the budget.
    """

    def __init__(self, run_ms: Sequence[float], settings: ControllerSettings, workers: int = 1) -> None:
        if run_ms[0] > settings.budget_ms:
            raise UsageError(
                f"the cheapest model takes {run_ms[0]:.3g} ms an example on this machine, above the budget of "
                f"{settings.budget_ms:g} ms; raise the budget, or export a cheaper candidate"
            )
        # A clock of low resolution may measure 0.
        self._run_ms, self._settings, self._workers = [max(own, 1e-6) for own in run_ms], settings, workers
        # Measured divided by expected time: the machine may be slower than when the models were timed.
        self._ratios: deque[float] = deque([1.0], maxlen=RECENT_RUNS)
        self._arrivals: deque[tuple[float, int]] = deque()
        self._latencies: deque[tuple[float, float]] = deque()
        self._started: float | None = None
        self._raisable_since: float | None = None
        self._last_fall = self._last_adjustment = -math.inf
        self.switches = 0
        # Without arrivals, every level within the margin is possible.
        limit = settings.margin * settings.budget_ms
        self.level = max(at for at, own in enumerate(self._run_ms) if at == 0 or own <= limit)

    def record_arrival(self, now: float, examples: int = 1) -> None:
        """Count a request, also one that is refused."""
        if self._started is None:
            self._started = now
        self._arrivals.append((now, examples))

    def record_answer(self, now: float, level: int, run_ms: float, latency_ms: float, examples: int = 1) -> None:
        """Learn from an answer.

        Args:
            now: Time in seconds.
            level: Level that answered.
            run_ms: Milliseconds in the worker.
            latency_ms: Milliseconds since the arrival.
            examples: Number of examples of the request.
        """
        self._ratios.append(run_ms / (self._run_ms[level] * examples))
        self._latencies.append((now, latency_ms))

    def choose_level(self, now: float, waited_ms: float, queued: int, examples: int = 1) -> int:
        """Return the level for the request at the head of the queue.

        Args:
            now: Time in seconds.
            waited_ms: Milliseconds since its arrival.
            queued: Number of examples of the requests behind it.
            examples: Number of its own examples.
        """
        if now - self._last_adjustment >= self._settings.window_seconds / ADJUSTMENTS:
            self._last_adjustment = now
            self._forget(now)
            self._adjust_level(now)
        limit = self._settings.margin * self._settings.budget_ms
        for level in range(self.level, 0, -1):
            own = self._expect_ms(level)
            # The request itself, and the last one of the queue if all before it take this level.
            if waited_ms + examples * own <= limit and (queued / self._workers + examples) * own <= limit:
                return level
        return 0

    def predict(self, level: int, now: float) -> float:
        """Return the predicted quantile of the latency at a level and the present rate of arrivals."""
        own = self._expect_ms(level)
        deviation = self._measure_deviation() * self._run_ms[level]
        return predict_latency(self._measure_rate(now), own, deviation, self._workers, self._settings.quantile)

    def _expect_ms(self, level: int) -> float:
        return self._run_ms[level] * median(self._ratios)

    def _measure_deviation(self) -> float:
        """Return the standard deviation of the ratios of measured and expected times, from their absolute deviations.

        Medians, because a run of ten times its usual length, while the machine does something else, says nothing about
        the next one.
        """
        centre = median(self._ratios)
        return DEVIATION_OF_NORMAL * median(abs(ratio - centre) for ratio in self._ratios)

    def _measure_rate(self, now: float) -> float:
        """Return the arrivals per second: over the window, or over its last quarter if that has more."""
        window, started = self._settings.window_seconds, self._started
        if started is None:
            return 0.0
        rates = []
        for span in (window, window / 4):
            count = 0
            for time, examples in reversed(self._arrivals):
                if time < now - span:
                    break
                count += examples
            # At the start there is less than a window of arrivals, and too little to divide by.
            rates.append(count / max(min(span, now - started), window / 4))
        # The short span sees a rise early. Its count varies, so it has to be clearly above.
        return rates[1] if rates[1] > 1.5 * rates[0] else rates[0]

    def _measure_quantile(self) -> float:
        """Return the quantile of the measured latencies of the window; 0 for too few."""
        if len(self._latencies) < FEWEST_LATENCIES:
            return 0.0
        ordered = sorted(latency for _, latency in self._latencies)
        return ordered[min(len(ordered) - 1, int(self._settings.quantile * len(ordered)))]

    def _forget(self, now: float) -> None:
        oldest = now - self._settings.window_seconds
        for entries in (self._arrivals, self._latencies):
            while entries and entries[0][0] < oldest:
                entries.popleft()

    def _adjust_level(self, now: float) -> None:
        settings = self._settings
        budget, limit = settings.budget_ms, settings.margin * settings.budget_ms
        is_slow = self._measure_quantile() > budget
        # After a fall, the window still holds the latencies from before it.
        is_settled = now - self._last_fall > settings.window_seconds
        if self.level > 0 and (self.predict(self.level, now) > budget or (is_slow and is_settled)):
            self._fall(now, limit)
        elif self.level + 1 < len(self._run_ms) and not is_slow and self.predict(self.level + 1, now) <= limit:
            if self._raisable_since is None:
                self._raisable_since = now
            elif now - self._raisable_since >= settings.hold_seconds:
                self.level += 1
                self.switches += 1
                self._raisable_since = None
        else:
            self._raisable_since = None

    def _fall(self, now: float, limit: float) -> None:
        """Take the largest lower level that leaves the margin; at least one step."""
        lower = [level for level in range(self.level) if self.predict(level, now) <= limit]
        self.level = max(lower, default=0)
        self.switches += 1
        self._last_fall, self._raisable_since = now, None
