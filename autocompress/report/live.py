"""The live page of a running search: a server on the loopback interface that renders it after new results.

The server runs in a process of its own, only reads the store, and renders the page only on request, so it does not slow
the search down. Writing the file again at each rung would take a second of a core each time, and a page on disk cannot
find out whether there are new results.
"""

import errno
import logging
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from autocompress.errors import UsageError

_LOGGER = logging.getLogger(__name__)

HOST = "127.0.0.1"
#: Prefix of the version of a run that has ended: the page then stops polling.
ENDED = "ended"
# A page asks every few seconds and each answer closes its connection; further connections are closed unanswered.
MAX_CLIENTS = 16
# Seconds to wait for the next bytes of a client, and seconds after which its connection ends whatever it sends.
IDLE_SECONDS, CONNECTION_SECONDS = 10.0, 60.0


class LiveServer(ThreadingHTTPServer):
    """Serves one page and its version under a random path, so that other users of the machine cannot read it.

    Args:
        render: Callback that returns the page.
        version: Callback that returns a text that changes with the content of the page; it starts with ``ENDED`` once
            the run has ended.
        port: Port on the loopback interface; 0 takes a free one.

    Raises:
        UsageError: The port is in use, or is reserved for the administrator.
    """

    daemon_threads = True

    def __init__(self, render: Callable[[], str], version: Callable[[], str], port: int = 0) -> None:
        try:
            super().__init__((HOST, port), Page)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            reason = "is in use" if error.errno == errno.EADDRINUSE else "is reserved for the administrator"
            raise UsageError(f"port {port} {reason}; choose another --port, or 0 for a free one") from None
        # Any process of the machine can connect to the loopback interface: the random path keeps the page private.
        self.token = secrets.token_urlsafe(12)
        self._render, self._version = render, version
        self._lock = threading.Lock()
        self._cached: tuple[str, bytes] = ("", b"")
        self._places = threading.BoundedSemaphore(MAX_CLIENTS)

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        """Answer a client in a thread of its own, unless there are too many."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        """Answer a client within a time limit."""
        # The time-out of the socket begins anew with every byte, so a client could stay for hours.
        end = threading.Timer(CONNECTION_SECONDS, self.shutdown_request, [request])
        end.daemon = True
        end.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            end.cancel()
            self._places.release()

    def handle_error(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        """Log an error: at debug level that of a client, which closed its connection or waited too long."""
        error = sys.exception()
        if isinstance(error, OSError):
            _LOGGER.debug("%s: %r", client_address, error)
        else:
            _LOGGER.warning("the page cannot be shown: %r", error)

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    @property
    def hosts(self) -> tuple[str, ...]:
        """Accepted values of the Host header; any other name was redirected here (DNS rebinding)."""
        return (f"{HOST}:{self.server_port}", f"localhost:{self.server_port}")

    def version(self) -> str:
        """Return the current version of the run."""
        with self._lock:
            return self._version()

    def page(self) -> bytes:
        """Return the page; render it again if the version has changed."""
        # One rendering at a time: two browsers would otherwise render the same page twice.
        with self._lock:
            version = self._version()
            if version != self._cached[0]:
                # The page says which version it is: its first poll may already see a later one.
                stamp = f'<meta name="version" content="{escape(version)}">'
                page = self._render().replace("<head>", f"<head>{stamp}", 1)
                self._cached = (version, page.encode("utf-8", "backslashreplace"))
            return self._cached[1]


class Page(BaseHTTPRequestHandler):
    """Answers GET requests for the page and its version; any other request gets status 404."""

    server: LiveServer
    timeout = IDLE_SECONDS
    server_version = "autocompress"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer a GET request."""
        root = f"/{self.server.token}/"
        routes: dict[str, tuple[Callable[[], bytes], str]] = {
            root: (self.server.page, "text/html; charset=utf-8"),
            f"{root}version": (lambda: self.server.version().encode(), "text/plain; charset=utf-8"),
        }
        if self.path not in routes or self.headers.get("Host") not in self.server.hosts:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        make, kind = routes[self.path]
        content = make()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        # The browser may have closed the connection in the meantime, or does not read.
        with suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Log requests at debug level instead of printing them."""
        _LOGGER.debug(format, *args)
