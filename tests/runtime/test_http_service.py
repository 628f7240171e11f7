"""The service over real connections on the loopback interface."""

import http.client
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")

from autocompress.errors import UsageError
from autocompress.runtime import http_service
from autocompress.runtime.controller import ControllerSettings
from autocompress.runtime.drift import DriftSettings, DriftWatch
from autocompress.runtime.http_service import HttpServer, HttpSettings
from autocompress.runtime.metrics import ServiceMetrics
from autocompress.runtime.service import ModelService, ServiceSettings
from tests.runtime.artifacts import make_levels
from tests.runtime.test_service import add_gate, wait_until

ROW = [1.0, 0.0, 0.0, 0.0]


class Client:
    """Requests to a service, each over a new connection."""

    def __init__(self, service: ModelService, settings: HttpSettings, metrics: ServiceMetrics) -> None:
        self.service, self.server = service, HttpServer(service, metrics, settings)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()

    def request(
        self, method: str, path: str, body: bytes | object = None, media_type: str = "application/json"
    ) -> tuple[int, Mapping[str, str], Any]:
        connection = http.client.HTTPConnection(self.server.address.removeprefix("http://"), timeout=20)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, content, {"content-type": media_type})
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, dict(response.headers), json.loads(text) if is_json else text

    def predict(self, body: object) -> tuple[int, Mapping[str, str], Any]:
        return self.request("POST", "/predict", body)


Start = Callable[..., Client]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    clients: list[Client] = []
    gate = threading.Event()

    def start_service(queue: int = 8, waits: bool = False, **settings: Any) -> Client:
        levels = make_levels(tmp_path / str(len(clients)))
        metrics = ServiceMetrics()
        watch = DriftWatch(DriftSettings(reference=40, window=40, interval=1, bins=5), metrics.record_drift)
        service = ModelService(
            [add_gate(level, gate) for level in levels] if waits else levels,
            ControllerSettings(10_000.0),
            ServiceSettings(queue_examples=queue),
            [metrics.observe, watch.observe],
        )
        clients.append(Client(service, HttpSettings(port=0, watch=watch, **settings), metrics))
        return clients[-1]

    start_service.gate = gate  # type: ignore[attr-defined]
    yield start_service
    gate.set()
    for client in clients:
        client.server.stop()
        client.thread.join(20)
        assert not client.thread.is_alive()


def test_predictions_of_one_and_of_several_examples(start: Start) -> None:
    client = start()
    status, _, answer = client.predict({"input": ROW})
    assert status == 200
    # Without load the best level answers; it adds one to the class of the input.
    assert (answer["prediction"]["label"]["class"], answer["level"]) == ("y", "m1")
    status, _, answer = client.predict({"inputs": [ROW, {"a": 0, "b": 1, "c": 0, "d": 0}]})
    assert [prediction["label"]["class"] for prediction in answer["predictions"]] == ["y", "z"]
    assert answer["latency_ms"] > 0


def test_the_service_describes_itself_and_its_health(start: Start) -> None:
    client = start()
    status, _, description = client.request("GET", "/")
    assert (status, description["task"]) == (200, "rows")
    assert [level["name"] for level in description["levels"]] == ["m0", "m1"]
    assert client.request("GET", "/health")[::2] == (200, {"status": "ok", "level": "m1", "queued": 0})
    client.service.close()
    status, _, health = client.request("GET", "/health")
    assert (status, health["status"]) == (503, "stopping")
    status, headers, answer = client.predict({"input": ROW})
    assert (status, headers["retry-after"]) == (503, "1")
    assert "shutting down" in answer["error"]


def test_wrong_input_is_an_error_of_the_client(start: Start) -> None:
    client = start(largest_body=1000, largest_request=3)
    cases: list[tuple[object, int, str]] = [
        ({"input": [1.0]}, 422, "example 0, features: it has the shape [1]"),
        ({"input": {"a": 1}}, 422, "lacks 'b'"),
        ({"input": "/etc/passwd"}, 422, "it is a text"),
        ({"inputs": [ROW] * 4}, 400, "1 to 3 examples"),
        (b"{", 400, "no JSON"),
        (b" " * 2000, 413, "larger than 1,000 bytes"),
    ]
    for body, status, message in cases:
        refused, _, answer = client.predict(body)
        assert (refused, message in answer["error"]) == (status, True), answer
    assert client.predict({"input": ROW})[0] == 200
    metrics = client.request("GET", "/metrics")[2]
    for status, count in ((422, 3), (400, 2), (413, 1)):
        assert f'autocompress_refused_requests_total{{status="{status}"}} {count}.0' in metrics
    assert client.request("POST", "/predict", b"x", "text/plain")[0] == 415
    assert client.request("GET", "/predict")[0] == 405
    assert client.request("GET", "/model.onnx")[0] == 404


def test_a_full_queue_is_status_503_and_what_waits_is_answered_before_the_end(start: Start) -> None:
    client = start(queue=1, waits=True)
    answers: list[int] = []
    callers = [threading.Thread(target=lambda: answers.append(client.predict({"input": ROW})[0])) for _ in range(2)]
    callers[0].start()
    # The worker has taken the first request, and the second one waits.
    wait_until(lambda: client.service._controller is not None and client.service._controller._started is not None)
    wait_until(lambda: client.service.queued == 0)
    callers[1].start()
    wait_until(lambda: client.service.queued == 1)
    status, headers, answer = client.predict({"input": ROW})
    assert (status, headers["retry-after"]) == (503, "1")
    assert "1 examples wait" in answer["error"]
    client.server.stop()
    start.gate.set()  # type: ignore[attr-defined]
    for caller in callers:
        caller.join(20)
    assert answers == [200, 200]


def test_metrics_have_latency_level_queue_and_drift(start: Start) -> None:
    client = start(queue=100)
    for value in (0.1, 9.0):
        for at in range(5):
            client.predict({"inputs": [[value, at * 0.01, 0.0, 0.0]] * 8})
    status, headers, text = client.request("GET", "/metrics")
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/plain")
    for line in (
        'autocompress_requests_total{level="m1"} 10.0',
        "autocompress_examples_total 80.0",
        "autocompress_latency_seconds_count 10.0",
        'autocompress_level{level="m1"} 1.0',
        'autocompress_level{level="m0"} 0.0',
        "autocompress_queued_examples 0.0",
        'autocompress_drift_events_total{statistic="mean of features"} 1.0',
    ):
        assert line in text.splitlines()
    assert 'autocompress_stability_index{statistic="confidence of m1"}' in text


def test_an_adaptation_needs_permission_and_one_runs_at_a_time(start: Start) -> None:
    assert start().request("POST", "/adapt")[::2] == (
        403,
        {"error": "adaptation is switched off; start the service with --allow-adapt"},
    )
    running, end = threading.Event(), threading.Event()

    def adapt() -> dict[str, str]:
        running.set()
        assert end.wait(20)
        return {"m0": "m0-v2"}

    client = start(adapt=adapt)
    answers: list[Any] = []
    first = threading.Thread(target=lambda: answers.append(client.request("POST", "/adapt")[::2]))
    first.start()
    assert running.wait(20)
    assert client.request("POST", "/adapt")[0] == 409
    # The service answers meanwhile.
    assert client.predict({"input": ROW})[0] == 200
    end.set()
    first.join(20)
    assert answers == [(200, {"replaced": {"m0": "m0-v2"}})]


def test_no_page_of_another_site_starts_an_adaptation(start: Start) -> None:
    client = start(adapt=lambda: {"a": "b"})
    host = client.server.address.removeprefix("http://")
    local = f"localhost:{host.rpartition(':')[2]}"
    # The last one is a name that was pointed at this machine after its page was loaded.
    for origin, name, status in (
        ("https://elsewhere.example", host, 403),
        ("null", host, 403),
        (client.server.address, host, 200),
        (f"http://{local}", local, 200),
        ("http://elsewhere.example:8000", "elsewhere.example:8000", 403),
        ("http://[", "[", 403),
    ):
        connection = http.client.HTTPConnection(host, timeout=20)
        connection.request("POST", "/adapt", headers={"origin": origin, "host": name})
        assert connection.getresponse().status == status
        connection.close()


def read_to_end(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(4096):
        parts.append(part)
    return b"".join(parts)


def test_a_client_that_sends_no_whole_request_loses_its_connection(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_service, "IDLE_SECONDS", 0.2)
    monkeypatch.setattr(http_service, "BODY_SECONDS", 0.3)
    client = start()
    host, port = client.server.address.removeprefix("http://").split(":")
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n"
    health = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    for sent, received in (
        (b"", b""),
        (b"GET /health HTTP/1.1\r\nx", b""),
        (health + b"GET /health", b"HTTP/1.1 200"),
        (head + b"{", b"HTTP/1.1 408"),
    ):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(sent)
            assert read_to_end(connection)[:12] == received
    assert client.predict({"input": ROW})[0] == 200


def test_what_goes_wrong_inside_is_logged_and_not_shown(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    def adapt() -> dict[str, str]:
        raise RuntimeError("secret path")

    client = start(adapt=adapt)
    with caplog.at_level(logging.ERROR):
        status, _, answer = client.request("POST", "/adapt")
    assert status == 500
    assert "secret" not in answer["error"]
    assert "secret path" in caplog.text


def test_an_address_in_use_is_an_error_before_anything_is_answered(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, ModelService(make_levels(tmp_path, (0.8,))) as service:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"cannot listen on 127.0.0.1:{port} .*choose another"):
            HttpServer(service, ServiceMetrics(), HttpSettings(port=port))


def test_limits_are_positive() -> None:
    with pytest.raises(UsageError, match="positive"):
        HttpSettings(largest_body=0)
