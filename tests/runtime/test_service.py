import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.errors import OverloadError, UsageError
from autocompress.export.pipeline import PipelineError, Values
from autocompress.runtime.controller import ControllerSettings, LatencyController
from autocompress.runtime.models import Level, Outputs, ServedModel
from autocompress.runtime.service import AnsweredRequest, ModelService, ServiceSettings
from tests.runtime.artifacts import make_levels

CLASSES = "xyz"


def make_row(position: int) -> list[float]:
    return [float(at == position) for at in range(4)]


class WaitingModel(ServedModel):
    """A model that waits for a gate before it answers."""

    gate: threading.Event

    def run(self, batch: Sequence[Values]) -> list[Outputs]:
        assert self.gate.wait(20)
        return super().run(batch)


@pytest.fixture
def gate() -> threading.Event:
    return threading.Event()


def add_gate(level: Level, gate: threading.Event) -> Level:
    model = WaitingModel(**{name: getattr(level.model, name) for name in level.model.__dataclass_fields__})
    object.__setattr__(model, "gate", gate)
    return replace(level, model=model)


def test_requests_of_many_threads_get_their_own_answers_while_levels_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = make_levels(tmp_path)
    turns = itertools.count()
    # Every third request switches, more often than any load would.
    monkeypatch.setattr(LatencyController, "choose_level", lambda *arguments: next(turns) // 3 % 2)
    answered: list[tuple[int, str, str]] = []

    def ask(service: ModelService, caller: int) -> None:
        for at in range(20):
            position = (caller + at) % 3
            answer = service.predict(make_row(position), timeout=30)
            answered.append((position, answer.level, str(answer.predictions[0]["label"]["class"])))  # type: ignore[index]

    with ModelService(levels, ControllerSettings(50.0), ServiceSettings(workers=2)) as service:
        callers = [threading.Thread(target=ask, args=(service, caller)) for caller in range(16)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert len(answered) == 320
    # Model k adds k to the class of the input: an answer of another request or model would differ.
    for position, level, label in answered:
        assert label == CLASSES[(position + int(level[1:])) % 3]
    counts = Counter(level for _, level, _ in answered)
    assert min(counts["m0"], counts["m1"]) > 100


def test_a_full_queue_refuses_and_what_waits_is_answered(tmp_path: Path, gate: threading.Event) -> None:
    (level,) = make_levels(tmp_path, (0.8,))
    with ModelService([add_gate(level, gate)], settings=ServiceSettings(queue_examples=2)) as service:
        first = service.submit([make_row(0)])
        wait_until(lambda: first.running())
        second = service.submit([make_row(1), make_row(2)])
        with pytest.raises(OverloadError, match=r"2 examples wait.*takes 2; try again"):
            service.submit([make_row(0)])
        assert service.queued == 2
        gate.set()
        assert len(second.result(10).predictions) == 2
        assert first.result(10).level == "m0"
        assert service.predict(make_row(0), 10).predictions[0]["label"]["class"] == "x"  # type: ignore[index]


def test_closing_answers_what_waits_and_refuses_the_rest(tmp_path: Path, gate: threading.Event) -> None:
    (level,) = make_levels(tmp_path, (0.8,))
    service = ModelService([add_gate(level, gate)])
    waiting = [service.submit([make_row(0)]) for _ in range(5)]
    closing = threading.Thread(target=service.close)
    closing.start()
    wait_until(lambda: service.is_closed)
    with pytest.raises(OverloadError, match="shutting down"):
        service.submit([make_row(0)])
    gate.set()
    closing.join(10)
    assert [future.result(0).level for future in waiting] == ["m0"] * 5


def test_a_close_with_a_time_limit_tells_the_requests_that_were_not_answered(
    tmp_path: Path, gate: threading.Event
) -> None:
    (level,) = make_levels(tmp_path, (0.8,))
    service = ModelService([add_gate(level, gate)])
    running = service.submit([make_row(0)])
    wait_until(lambda: running.running())
    waiting = service.submit([make_row(0)])
    assert not service.close(timeout=0.01)
    with pytest.raises(OverloadError, match="stopped before"):
        waiting.result(0)
    gate.set()
    assert running.result(10).level == "m0"


def test_a_bad_example_is_refused_before_it_waits(tmp_path: Path) -> None:
    with ModelService(make_levels(tmp_path, (0.8,))) as service:
        with pytest.raises(PipelineError, match="example 1, features"):
            service.submit([make_row(0), [1.0]])
        with pytest.raises(UsageError, match="no example"):
            service.submit([])
        assert service.queued == 0


def test_an_error_of_a_model_reaches_its_caller_and_the_worker_goes_on(tmp_path: Path) -> None:
    (level,) = make_levels(tmp_path, (0.8,))

    def fail(batch: Sequence[Values]) -> list[Outputs]:
        raise RuntimeError("out of memory")

    model = replace(level.model)
    object.__setattr__(model, "run", fail)
    with ModelService([replace(level, model=model)]) as service:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="out of memory"):
                service.predict(make_row(0), 10)


def test_an_error_of_an_observer_costs_no_answer(tmp_path: Path) -> None:
    seen: list[str] = []

    def fail(answered: AnsweredRequest) -> None:
        raise RuntimeError("disk full")

    observers = (fail, lambda answered: seen.append(answered.answer.level))
    with ModelService(make_levels(tmp_path, (0.8,)), observers=observers) as service:
        service.predict(make_row(0), 10)
        service.predict(make_row(0), 10)
    assert seen == ["m0", "m0"]


def test_a_model_is_replaced_while_requests_run(tmp_path: Path, gate: threading.Event) -> None:
    old, new = make_levels(tmp_path)
    with ModelService([add_gate(old, gate)]) as service:
        running = service.submit([make_row(0)])
        wait_until(lambda: running.running())
        waiting = service.submit([make_row(0)])
        service.replace_model("m0", new.model)
        gate.set()
        classes = [future.result(10).predictions[0]["label"]["class"] for future in (running, waiting)]  # type: ignore[index]
        assert classes == ["x", "y"]
        with pytest.raises(UsageError, match="no model 'm0'"):
            service.replace_model("m0", new.model)


def test_a_cascade_sends_the_examples_of_low_confidence_to_the_larger_model(tmp_path: Path) -> None:
    small, large = make_levels(tmp_path)
    cascade = Level("m0+m1", small.model, large.model, threshold=0.5, share=0.5)
    with ModelService([cascade]) as service:
        # Logits 5, 0, 0 have the probability 0.99; 0.1, 0, 0 have 0.36.
        answer = service.submit([[5.0, 0, 0, 0], [0.1, 0, 0, 0]]).result(10)
    assert [prediction["label"]["class"] for prediction in answer.predictions] == ["x", "y"]  # type: ignore[index]
    assert (answer.level, answer.escalated) == ("m0+m1", 1)


def test_a_service_needs_a_model_and_a_worker() -> None:
    with pytest.raises(UsageError, match="at least one model"):
        ModelService([])
    with pytest.raises(UsageError, match="at least one worker"):
        ServiceSettings(workers=0)


def wait_until(is_true: Callable[[], bool]) -> None:
    for _ in range(2000):
        if is_true():
            return
        time.sleep(0.005)
    raise AssertionError("it did not happen")
