"""The page of a run that goes on: a server on loopback that renders it anew when results have come in.

The page is rendered only while somebody looks, in a process of its own that only reads the store: a search spends
nothing on it. Writing the file again at each rung would take a second of a training's core every time, and a file
that reloads itself has no way to know whether there is anything new.
"""

import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOST = "127.0.0.1"
#: What the page is told as the version when it need not ask any more.
ENDED = "ended"


class LiveServer(ThreadingHTTPServer):
    """Serves one page, and the version of what it shows, under a path that nobody else on the machine can guess.

    Args:
        render: Returns the page.
        version: Returns a text that changes when the page would; starts with ``ENDED`` when it will not any more.
        port: 0 takes a free one.
    """

    daemon_threads = True

    def __init__(self, render: Callable[[], str], version: Callable[[], str], port: int = 0) -> None:
        super().__init__((HOST, port), Page)
        self.token = secrets.token_urlsafe(12)
        self._render, self._version = render, version
        self._lock = threading.Lock()
        self._kept: tuple[str, bytes] = ("", b"")

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    @property
    def hosts(self) -> tuple[str, ...]:
        """What a browser on this machine calls this server; a name that was bent to it is none of them."""
        return (f"{HOST}:{self.server_port}", f"localhost:{self.server_port}")

    def version(self) -> str:
        """Return the version of what is stored now."""
        with self._lock:
            return self._version()

    def page(self) -> bytes:
        """Return the page, rendered anew if anything has changed."""
        with self._lock:
            version = self._version()
            if version != self._kept[0]:
                self._kept = (version, self._render().encode("utf-8", "backslashreplace"))
            return self._kept[1]


class Page(BaseHTTPRequestHandler):
    """Answers GET of the page and of its version; everything else is not found."""

    server: LiveServer
    server_version = "autocompress"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer."""
        root = f"/{self.server.token}/"
        found: dict[str, tuple[Callable[[], bytes], str]] = {
            root: (self.server.page, "text/html; charset=utf-8"),
            f"{root}version": (lambda: self.server.version().encode(), "text/plain; charset=utf-8"),
        }
        if self.path not in found or self.headers.get("Host") not in self.server.hosts:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        make, kind = found[self.path]
        content = make()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        # A browser that has gone on meanwhile needs no answer.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the terminal is the user's."""
