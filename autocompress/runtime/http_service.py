"""A small HTTP service of exported models: predictions, health and metrics.

Needs the extra ``serve``. It listens on the loopback interface unless told otherwise, and has no authentication: put a
proxy in front of it before others may reach it.
"""

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from autocompress.errors import AutocompressError, OverloadError, UsageError
from autocompress.export.pipeline import PipelineError
from autocompress.runtime.drift import DriftWatch
from autocompress.runtime.metrics import ServiceMetrics
from autocompress.runtime.raw_requests import RequestError, read_examples
from autocompress.runtime.service import Answer, ModelService

# Seconds in which a client may try again after the queue was full.
RETRY_SECONDS = 1
# Connections at a time; each may hold one body in memory.
CONNECTIONS = 256
# Seconds for the headers of a request and between two requests, at most twice that; and seconds for a body. A client
# that sends a byte from time to time would hold its connection for ever.
IDLE_SECONDS, BODY_SECONDS = 10.0, 60.0
# Seconds for answers to requests that run when the service is stopped.
SHUTDOWN_SECONDS = 10

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HttpSettings:
    """Settings of the HTTP service.

    Attributes:
        host: Address to listen on.
        port: Port; 0 takes a free one.
        largest_body: Largest body of a request in bytes.
        largest_request: Largest number of examples in a request.
        watch: Watch of the service, whose stability indices are among the metrics; None without one.
        adapt: Function that adapts the models to recent data and returns their new names; None refuses such requests.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    largest_body: int = 10_000_000
    largest_request: int = 256
    watch: DriftWatch | None = None
    adapt: Callable[[], Mapping[str, str]] | None = None

    def __post_init__(self) -> None:
        if self.largest_body < 1 or self.largest_request < 1 or not 0 <= self.port < 2**16:
            raise UsageError("the limits of the service must be positive, and the port lie between 0 and 65535")


def build_app(service: ModelService, metrics: ServiceMetrics, settings: HttpSettings) -> Starlette:
    """Return the ASGI application of a service.

    Args:
        service: The models.
        metrics: Metrics that the service reports to.
        settings: Limits of requests.
    """
    return _Endpoints(service, metrics, settings).build()


class _Endpoints:
    """The endpoints of one service."""

    def __init__(self, service: ModelService, metrics: ServiceMetrics, settings: HttpSettings) -> None:
        self._service, self._metrics, self._settings = service, metrics, settings
        self._adapting = threading.Lock()

    def build(self) -> Starlette:
        """Return the application."""
        routes = [
            Route("/", self._describe, methods=["GET"]),
            Route("/health", self._check_health, methods=["GET"]),
            Route("/metrics", self._render_metrics, methods=["GET"]),
            Route("/predict", self._predict, methods=["POST"]),
            Route("/adapt", self._adapt, methods=["POST"]),
        ]
        return Starlette(routes=routes)

    async def _describe(self, request: Request) -> Response:
        record = self._service.levels[0].model.pipeline.record
        # Lists of ids and characters may have millions of entries.
        inputs = [
            {name: value for name, value in entry.items() if name not in ("ids", "alphabet", "mean", "std")}
            for entry in record["inputs"]
        ]
        levels = [
            {"name": level.name, "milliseconds": level.run_ms, "score": level.score} for level in self._service.levels
        ]
        return JSONResponse({"task": record["task"], "inputs": inputs, "outputs": record["outputs"], "levels": levels})

    async def _check_health(self, request: Request) -> Response:
        is_closed = self._service.is_closed
        content = {
            "status": "stopping" if is_closed else "ok",
            "level": self._service.level.name,
            "queued": self._service.queued,
        }
        return JSONResponse(content, 503 if is_closed else 200)

    async def _render_metrics(self, request: Request) -> Response:
        return Response(
            self._metrics.render(self._service, self._settings.watch),
            media_type="text/plain; version=0.0.4; charset=utf-8",
        )

    async def _predict(self, request: Request) -> Response:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await self._read_body(request)
            media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            inputs = self._service.levels[0].model.pipeline.record["inputs"]
            # Decoding of images and JSON takes milliseconds, in which the loop answers others.
            future, is_single = await asyncio.to_thread(self._submit, body, media_type, inputs)
            answer = await asyncio.wrap_future(future)
        except ClientDisconnect:
            # No client reads this response.
            return Response(status_code=400)
        except Exception as error:
            return self._refuse(error)
        predictions: object = answer.predictions[0] if is_single else answer.predictions
        content = {
            "prediction" if is_single else "predictions": predictions,
            "level": answer.level,
            "latency_ms": round(answer.latency_ms, 3),
        }
        return JSONResponse(content)

    def _submit(
        self, body: bytes, media_type: str, inputs: Sequence[Mapping[str, object]]
    ) -> tuple["Future[Answer]", bool]:
        """Return the future answer to a body, and whether it has a single example."""
        examples, is_single = read_examples(body, media_type, inputs, self._settings.largest_request)
        return self._service.submit(examples), is_single

    async def _adapt(self, request: Request) -> Response:
        if self._settings.adapt is None:
            return self._refuse(RequestError(403, "adaptation is switched off; start the service with --allow-adapt"))
        # A browser names the page that sends a request; no page of another site may start an adaptation.
        origin = request.headers.get("origin")
        if origin is not None and not _is_own_page(origin, request.headers.get("host", "")):
            return self._refuse(RequestError(403, "adaptations are not started by pages of other sites"))
        # Two adaptations would write the same version.
        if not self._adapting.acquire(blocking=False):
            return self._refuse(RequestError(409, "an adaptation is running; wait for it to end"))
        try:
            return JSONResponse({"replaced": dict(await asyncio.to_thread(self._settings.adapt))})
        except Exception as error:
            return self._refuse(error)
        finally:
            self._adapting.release()

    async def _read_body(self, request: Request) -> bytes:
        """Return the body; a larger one than allowed is not read to its end.

        Raises:
            RequestError: The body is too large.
        """
        largest = self._settings.largest_body
        parts, size = [], 0
        async for part in request.stream():
            parts.append(part)
            size += len(part)
            if size > largest:
                raise RequestError(413, f"the body is larger than {largest:,} bytes")
        return b"".join(parts)

    def _refuse(self, error: Exception) -> Response:
        """Return the response to an error; only what the client can mend is described."""
        headers = {}
        if isinstance(error, TimeoutError):
            status, error = 408, RequestError(408, f"the body did not arrive in {BODY_SECONDS:g} seconds")
            headers["Connection"] = "close"
        elif isinstance(error, RequestError):
            status = error.status
        elif isinstance(error, PipelineError | UsageError):
            status = 422
        elif isinstance(error, OverloadError):
            status, headers = 503, {"Retry-After": str(RETRY_SECONDS)}
        elif isinstance(error, AutocompressError):
            status = 500
        else:
            logger.error("a request failed", exc_info=error)
            self._metrics.record_refusal(500)
            return JSONResponse({"error": "the model failed on this request; see the log of the service"}, 500)
        self._metrics.record_refusal(status)
        return JSONResponse({"error": str(error)}, status, headers=headers)


def _is_own_page(origin: str, host: str) -> bool:
    """Return whether a page was loaded from this service: from the same host, given by its address or as localhost.

    Any other name may have been pointed at this machine after its page was loaded (DNS rebinding).
    """
    if origin.partition("://")[2] != host:
        return False
    with suppress(ValueError):
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ip_address(name).version)
    return False


class _Connection(H11Protocol):
    """A connection that ends when its client sends no whole request for some seconds; uvicorn waits without limit."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch the connection."""
        super().connection_made(transport)
        self.loop.call_later(IDLE_SECONDS, self._end_if_idle, None)

    def _end_if_idle(self, before: object) -> None:
        """End the connection if no request began since the last look and none is being answered."""
        if self.transport.is_closing():
            return
        # `cycle` is the latest request.
        if before is self.cycle and (self.cycle is None or self.cycle.response_complete):
            self.transport.abort()
        else:
            self.loop.call_later(IDLE_SECONDS, self._end_if_idle, self.cycle)


class _Server(uvicorn.Server):
    """A server that ends quietly on a signal; uvicorn would raise it again, and skip what comes after."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop the server on a signal, and restore the handlers afterwards."""
        # Python handles signals in the main thread only.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        handlers = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


class HttpServer:
    """An HTTP service that listens from its creation on; :meth:`run` answers.

    Args:
        service: The models.
        metrics: Metrics that the service reports to.
        settings: Address and limits.

    Attributes:
        address: Address of the service, such as ``http://127.0.0.1:8000``.

    Raises:
        UsageError: The address cannot be used.
    """

    def __init__(self, service: ModelService, metrics: ServiceMetrics, settings: HttpSettings) -> None:
        self._service = service
        is_ipv6 = ":" in settings.host
        try:
            self._socket = socket.create_server(
                (settings.host, settings.port), family=socket.AF_INET6 if is_ipv6 else socket.AF_INET
            )
        except OSError as error:
            raise UsageError(
                f"cannot listen on {settings.host}:{settings.port} ({error.strerror}); choose another --host or --port"
            ) from error
        port = self._socket.getsockname()[1]
        self.address = f"http://{f'[{settings.host}]' if is_ipv6 else settings.host}:{port}"
        config = uvicorn.Config(
            build_app(service, metrics, settings),
            http=_Connection,
            # autocompress configures the logs.
            log_config=None,
            access_log=False,
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        self._server = _Server(config)

    def run(self) -> None:
        """Answer requests until SIGINT, SIGTERM or :meth:`stop`; requests that run are answered first."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._service.close(SHUTDOWN_SECONDS)

    def stop(self) -> None:
        """End :meth:`run`, from another thread."""
        self._server.should_exit = True
