"""The server of a live page: on loopback, for who knows its address, rendering only what has changed."""

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from autocompress.errors import UsageError
from autocompress.report.live import MAX_CLIENTS, LiveServer, Page


@dataclass
class Source:
    version: str = "1"
    rendered: list[str] = field(default_factory=list)

    def render(self) -> str:
        self.rendered.append(self.version)
        return f"<p>\ud800 page {self.version}"


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def server(source: Source) -> Iterator[LiveServer]:
    with LiveServer(source.render, lambda: source.version) as result:
        thread = threading.Thread(target=result.serve_forever, args=(0.01,))
        thread.start()
        yield result
        result.shutdown()
        thread.join()


def ask(server: LiveServer, path: str, host: str | None = None, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    connection.request(method, path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    result = answer.status, answer.read().decode()
    connection.close()
    return result


def test_it_listens_on_loopback_alone(server: LiveServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_port}/{server.token}/"
    assert len(server.token) >= 16


def test_a_page_is_rendered_once_for_each_version(server: LiveServer, source: Source) -> None:
    root = f"/{server.token}/"
    assert ask(server, root) == ask(server, root) == (200, "<p>\\ud800 page 1")
    assert ask(server, f"{root}version") == (200, "1")
    source.version = "ended: 2"
    assert ask(server, f"{root}version") == (200, "ended: 2")
    assert source.rendered == ["1"]
    assert ask(server, root)[1].endswith("page ended: 2")
    assert source.rendered == ["1", "ended: 2"]


def test_nobody_else_is_answered(server: LiveServer, source: Source) -> None:
    root = f"/{server.token}/"
    assert ask(server, "/")[0] == 404
    assert ask(server, f"{root}../study.db")[0] == 404
    assert ask(server, "/wrong-token-of-16/")[0] == 404
    assert ask(server, root, host="evil.example")[0] == 404
    assert ask(server, root, host=f"localhost:{server.server_port}")[0] == 200
    assert ask(server, root, method="POST")[0] == 501
    assert source.rendered == ["1"]


def connect(server: LiveServer) -> socket.socket:
    return socket.create_connection(server.server_address[:2], timeout=10)


def test_clients_that_say_nothing_take_no_more_than_their_places(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Page, "timeout", 0.3)
    silent = [connect(server) for _ in range(MAX_CLIENTS)]
    # All places are taken: the next one is closed at once, without an answer.
    with connect(server) as further:
        assert further.recv(1) == b""
    # The silent ones are closed after the time-out, and the page is answered again.
    assert [client.recv(1) for client in silent] == [b""] * MAX_CLIENTS
    assert ask_again(server) == 200
    for client in silent:
        client.close()


def test_a_client_that_sends_a_byte_now_and_then_is_closed_too(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autocompress.report.live.CONNECTION_SECONDS", 0.2)
    with connect(server) as slow:
        slow.sendall(b"GET /")
        assert slow.recv(1) == b""
    assert ask_again(server) == 200


def ask_again(server: LiveServer) -> int:
    """Ask until a thread that ends has released its place."""
    for _ in range(100):
        with suppress(http.client.HTTPException, OSError):
            return ask(server, f"/{server.token}/")[0]
        time.sleep(0.02)
    return 0


def test_a_port_in_use_is_one_line(server: LiveServer) -> None:
    with pytest.raises(UsageError, match=f"port {server.server_port} is in use; choose another --port"):
        LiveServer(str, str, server.server_port)
