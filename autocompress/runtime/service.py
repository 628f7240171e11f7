"""Answers to requests by worker threads: a bounded queue, a level for each request, and no request lost on a switch.

A switch only changes which of the loaded models the next request takes. A request that runs keeps its model, and the
queue belongs to no model. A model that is replaced by a newer version is dropped when its last request is answered.
"""

import gc
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from autocompress.errors import OverloadError, UsageError
from autocompress.export.pipeline import Values
from autocompress.runtime.controller import ControllerSettings, LatencyController
from autocompress.runtime.models import Level, Outputs, ServedModel, time_models

logger = logging.getLogger(__name__)


def exempt_loaded_objects() -> None:
    """Exempt all objects of this process from garbage collection; call it when the models are loaded.

    A full collection visits every object and stops all threads: in a process that has imported torch, that takes longer
    than several requests. Objects that later become unreachable and are part of a cycle are not freed.
    """
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class Answer:
    """The answer to one request.

    Attributes:
        predictions: Prediction of each example, as ``pipeline.py`` returns it.
        level: Name of the level that answered.
        escalated: Number of examples that the larger model of a cascade answered.
        latency_ms: Milliseconds from the call of :meth:`ModelService.submit` to the answer.
    """

    predictions: list[dict[str, object]]
    level: str
    escalated: int
    latency_ms: float


@dataclass(frozen=True)
class AnsweredRequest:
    """A request with its answer, as observers see it.

    Attributes:
        level: Level that answered.
        values: Raw value and tensor of each input, for each example.
        outputs: Outputs of the model by head, for each example.
        answer: The answer.
    """

    level: Level
    values: Sequence[Values]
    outputs: Sequence[Outputs]
    answer: Answer


Observer = Callable[[AnsweredRequest], None]


@dataclass(frozen=True)
class ServiceSettings:
    """Settings of a service.

    Attributes:
        workers: Number of threads that run models.
        queue_examples: Largest number of examples that wait; further requests are refused.
    """

    workers: int = 1
    queue_examples: int = 1024

    def __post_init__(self) -> None:
        if self.workers < 1 or self.queue_examples < 1:
            raise UsageError("a service needs at least one worker and a queue of at least one example")


@dataclass(frozen=True)
class _Request:
    """A request in the queue: encoded examples, and the time of its arrival in seconds."""

    values: list[Values]
    arrived: float
    future: "Future[Answer]"


class ModelService:
    """Several models of one run that answer requests under a latency budget; safe for use from several threads.

    Args:
        levels: Levels that may answer a request, the fastest first.
        control: Latency budget and settings of the controller; None answers every request with the last level.
        settings: Workers and queue.
        observers: Callbacks with each answered request, such as of metrics; an exception of one is logged.

    Raises:
        UsageError: There is no level, or not even the fastest one fits the budget.

    Example:
        >>> models = load_models(["reports/digits/picks/t1c1", "reports/digits/picks/t2c5"])  # doctest: +SKIP
        >>> with ModelService(build_levels(models), ControllerSettings(budget_ms=5)) as service:  # doctest: +SKIP
        ...     service.predict("digit.png").predictions[0]["label"]["class"]
        '3'
    """

    def __init__(
        self,
        levels: Sequence[Level],
        control: ControllerSettings | None = None,
        settings: ServiceSettings | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        if not levels:
            raise UsageError("a service needs at least one model")
        self.settings = settings or ServiceSettings()
        self._levels, self._control, self._observers = tuple(levels), control, tuple(observers)
        self._controller = self._build_controller()
        self._queue: deque[_Request] = deque()
        self._queued = 0
        self._is_closed = False
        # One condition guards queue, levels and controller: each is held for microseconds.
        self._changed = threading.Condition()
        self._workers = [
            threading.Thread(target=self._work, name=f"autocompress-worker-{number}", daemon=True)
            for number in range(self.settings.workers)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels, the fastest first."""
        return self._levels

    @property
    def level(self) -> Level:
        """The level of normal requests."""
        with self._changed:
            return self._levels[-1 if self._controller is None else self._controller.level]

    @property
    def switches(self) -> int:
        """Number of times that the level changed."""
        with self._changed:
            return 0 if self._controller is None else self._controller.switches

    @property
    def queued(self) -> int:
        """Number of examples that wait."""
        return self._queued

    @property
    def is_closed(self) -> bool:
        """Whether the service takes no further requests."""
        return self._is_closed

    def submit(self, examples: Sequence[object]) -> "Future[Answer]":
        """Queue a request of one or more raw examples, and return its future answer.

        Raises:
            PipelineError: An example is of the wrong kind or size; nothing was queued.
            OverloadError: The queue is full, or the service is closed.
        """
        arrived = time.monotonic()
        if not examples:
            raise UsageError("the request has no example")
        # All models of a run encode in the same way, so a bad input is refused before it waits.
        values = self._levels[0].model.pipeline.encode(examples)
        request = _Request(values, arrived, Future())
        with self._changed:
            if self._is_closed:
                raise OverloadError("the service is shutting down")
            if self._controller is not None:
                self._controller.record_arrival(arrived, len(values))
            if self._queued + len(values) > self.settings.queue_examples:
                raise OverloadError(
                    f"{self._queued} examples wait, and the queue takes {self.settings.queue_examples}; try again later"
                )
            # Requests are queued whole, so that their examples are answered by one level.
            self._queue.append(request)
            self._queued += len(values)
            self._changed.notify()
        return request.future

    def predict(self, example: object, timeout: float | None = None) -> Answer:
        """Return the answer for one raw example; raises as :meth:`submit`."""
        return self.submit([example]).result(timeout)

    def replace_model(self, name: str, model: ServedModel) -> None:
        """Put a newer version in the place of a model; requests that run keep the old one.

        Raises:
            UsageError: There is no such model, or the new one has other inputs or outputs.
        """
        current = self._levels[0].model.pipeline.record
        if any(model.pipeline.record[part] != current[part] for part in ("inputs", "outputs")):
            raise UsageError(f"'{model.name}' has other inputs or outputs than '{name}'")
        # Before the lock, because timing takes milliseconds.
        (timed,) = time_models([model])

        def substitute(old: ServedModel) -> ServedModel:
            return timed if old.name == name else old

        with self._changed:
            names = {entry.name for level in self._levels for entry in (level.model, level.larger) if entry}
            if name not in names:
                raise UsageError(f"there is no model '{name}' in this service")
            # The tuple is replaced as a whole: a worker has the old levels or the new ones.
            self._levels = tuple(
                replace(level, model=substitute(level.model), larger=level.larger and substitute(level.larger))
                for level in self._levels
            )
        logger.info("%s answers in the place of %s", model.name, name)

    def close(self, timeout: float | None = None) -> bool:
        """Take no further requests, answer those that wait, and return whether all were answered in time.

        Args:
            timeout: Seconds to wait for the answers; None waits for all. Later requests get an :class:`OverloadError`.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        deadline = None if timeout is None else time.monotonic() + timeout
        for worker in self._workers:
            worker.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        with self._changed:
            # Only what no worker has taken is left.
            remaining, self._queue = list(self._queue), deque()
            self._queued = 0
        for request in remaining:
            request.future.set_exception(OverloadError("the service was stopped before this request was answered"))
        return not remaining

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _build_controller(self) -> LatencyController | None:
        if self._control is None:
            return None
        return LatencyController([level.run_ms for level in self._levels], self._control, self.settings.workers)

    def _work(self) -> None:
        """Answer requests until the service is closed and none waits."""
        while (task := self._take_request()) is not None:
            request, position, level = task
            # A caller may have cancelled its request.
            if not request.future.set_running_or_notify_cancel():
                continue
            try:
                answer = self._answer(request, position, level)
            except Exception as error:  # The caller gets whatever the runtime raised, and the worker goes on.
                logger.exception("%s failed on a request", level.name)
                request.future.set_exception(error)
            else:
                request.future.set_result(answer)

    def _take_request(self) -> tuple[_Request, int, Level] | None:
        with self._changed:
            while not self._queue:
                if self._is_closed:
                    return None
                self._changed.wait()
            # First come, first served: the guard of the controller counts on it.
            request = self._queue.popleft()
            self._queued -= len(request.values)
            position = len(self._levels) - 1
            if self._controller is not None:
                now = time.monotonic()
                waited = 1000 * (now - request.arrived)
                position = self._controller.choose_level(now, waited, self._queued, len(request.values))
            return request, position, self._levels[position]

    def _answer(self, request: _Request, position: int, level: Level) -> Answer:
        started = time.monotonic()
        outputs, is_escalated = level.run(request.values)
        predictions = [
            level.decode(values, example, is_escalated=escalated)
            for values, example, escalated in zip(request.values, outputs, is_escalated, strict=True)
        ]
        now = time.monotonic()
        answer = Answer(predictions, level.name, sum(is_escalated), 1000 * (now - request.arrived))
        if self._controller is not None:
            with self._changed:
                self._controller.record_answer(
                    now, position, 1000 * (now - started), answer.latency_ms, len(request.values)
                )
        # After the time was taken: observers are no part of the latency.
        self._report(AnsweredRequest(level, request.values, outputs, answer))
        return answer

    def _report(self, answered: AnsweredRequest) -> None:
        """Call the observers; an error of one costs no answer."""
        for observe in self._observers:
            try:
                observe(answered)
            except Exception:
                logger.exception("an observer failed on an answer")
