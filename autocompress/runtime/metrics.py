"""Metrics of a service in the format of Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from autocompress.runtime.drift import DriftEvent, DriftWatch
from autocompress.runtime.service import AnsweredRequest, ModelService

# Seconds: from a tenth of a millisecond, which small models take, to ten seconds.
BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class ServiceMetrics:
    """Counters of one service, and its present state when the metrics are asked for.

    Each object has a registry of its own, so that several services of one process do not mix.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "autocompress_requests", "Requests by the level that answered.", ["level"], registry=registry
        )
        self._refusals = Counter(
            "autocompress_refused_requests", "Refused requests by HTTP status.", ["status"], registry=registry
        )
        self._examples = Counter("autocompress_examples", "Predicted examples.", registry=registry)
        self._escalated = Counter(
            "autocompress_escalated_examples",
            "Examples that the larger model of a cascade answered.",
            registry=registry,
        )
        self._latency = Histogram(
            "autocompress_latency_seconds",
            "Time from the arrival of a request to its answer.",
            buckets=BUCKETS,
            registry=registry,
        )
        self._drifts = Counter(
            "autocompress_drift_events", "Drift events by statistic.", ["statistic"], registry=registry
        )
        self._level = Gauge("autocompress_level", "1 for the level of normal requests.", ["level"], registry=registry)
        # Read from the service when they are asked for, so they are no counters here.
        self._switches = Gauge("autocompress_level_switches", "Changes of the level.", registry=registry)
        self._queue = Gauge("autocompress_queued_examples", "Examples that wait.", registry=registry)
        self._indices = Gauge(
            "autocompress_stability_index", "Population stability index.", ["statistic"], registry=registry
        )

    def observe(self, answered: AnsweredRequest) -> None:
        """Count an answered request."""
        answer = answered.answer
        self._requests.labels(answer.level).inc()
        self._examples.inc(len(answer.predictions))
        self._escalated.inc(answer.escalated)
        self._latency.observe(answer.latency_ms / 1000)

    def record_refusal(self, status: int) -> None:
        """Count a request that was refused with an HTTP status."""
        self._refusals.labels(str(status)).inc()

    def record_drift(self, event: DriftEvent) -> None:
        """Count a drift event."""
        self._drifts.labels(event.statistic).inc()

    def render(self, service: ModelService, watch: DriftWatch | None = None) -> bytes:
        """Return all metrics as text, with the present state of the service and the indices of its watch."""
        current = service.level.name
        for level in service.levels:
            self._level.labels(level.name).set(level.name == current)
        self._switches.set(service.switches)
        self._queue.set(service.queued)
        # Statistics of a model that was replaced are gone.
        self._indices.clear()
        for statistic, value in (watch.indices() if watch is not None else {}).items():
            self._indices.labels(statistic).set(value)
        text: bytes = generate_latest(self._registry)
        return text
