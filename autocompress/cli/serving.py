"""The service of the command `serve`: its models, its controller, its metrics and its HTTP server."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.cli.progress import CountDisplay
from autocompress.cli.terminal import print_text, progress_console
from autocompress.errors import UsageError

if TYPE_CHECKING:
    from autocompress.analysis.cascade import CascadeSearch
    from autocompress.runtime.models import Level

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeRequest:
    """Arguments of the command.

    Attributes:
        sources: A run, or exported folders of one run.
        runs: Folder of all runs.
        budget_ms: Latency budget in milliseconds; None for no controller.
        candidates: Ids of the candidates of the run.
        has_cascade: Whether the cascade of the run is served.
        host: Address to listen on.
        port: Port.
        workers: Threads that run models.
        threads: Threads of onnxruntime in each model.
        queue: Examples that may wait.
        max_body: Largest body of a request in bytes.
        allow_adapt: Whether requests may adapt the models.
        plugins: Plugin files that the task needs.
        key: Public key that must have signed the exported folders; None for no check of signatures.
    """

    sources: tuple[str, ...]
    runs: Path
    budget_ms: float | None
    candidates: tuple[str, ...]
    has_cascade: bool
    host: str
    port: int
    workers: int
    threads: int
    queue: int
    max_body: int
    allow_adapt: bool
    plugins: tuple[Path, ...]
    key: Path | None = None


def run_service(request: ServeRequest) -> None:
    """Serve until the process is interrupted or terminated.

    Raises:
        UsageError: The extra is not installed, an argument does not fit, or the folders come from different runs.
        ArtifactError: A folder is no artifact.
    """
    try:
        from autocompress.runtime.http_service import HttpServer, HttpSettings
        from autocompress.runtime.metrics import ServiceMetrics
    except ImportError as error:
        raise UsageError(f"serve needs {error.name}: pip install 'autocompress[serve]'") from error
    from autocompress.runtime.controller import ControllerSettings
    from autocompress.runtime.drift import DriftWatch
    from autocompress.runtime.readaptation import RecentInputs, adapt_service
    from autocompress.runtime.service import ModelService, ServiceSettings, exempt_loaded_objects

    control = None if request.budget_ms is None else ControllerSettings(request.budget_ms)
    levels = _load_levels(request)
    metrics, recent = ServiceMetrics(), RecentInputs()
    watch = DriftWatch(on_event=metrics.record_drift)
    observers = [metrics.observe, watch.observe, *([recent.observe] if request.allow_adapt else [])]
    service = ModelService(levels, control, ServiceSettings(request.workers, request.queue), observers)
    adapt = partial(adapt_service, service, recent, watch, request.plugins) if request.allow_adapt else None
    settings = HttpSettings(request.host, request.port, largest_body=request.max_body, watch=watch, adapt=adapt)
    # The workers of the service would keep the process alive after an error.
    try:
        server = HttpServer(service, metrics, settings)
    except UsageError:
        service.close()
        raise
    for level in service.levels:
        score = "" if level.score is None else f", score {abs(level.score):.4f} on select_val"
        print_text(f"{level.name}: {level.run_ms:.3f} ms an example on this machine{score}")
    exempt_loaded_objects()
    print_text(f"serving {service.level.name} at {server.address}; stop with Ctrl-C", flush=True)
    server.run()


def _load_levels(request: ServeRequest) -> "tuple[Level, ...]":
    from autocompress.runtime.models import build_levels, load_models

    folders, search = _find_folders(request)
    levels = build_levels(load_models(folders, request.threads, request.key), search)
    if request.budget_ms is not None:
        return levels
    # Without a budget nothing switches: the cascade answers everything, or the best model.
    return (next((level for level in levels if level.larger is not None), levels[-1]),)


def _find_folders(request: ServeRequest) -> "tuple[list[Path], CascadeSearch | None]":
    """Return the exported folders, which are written first for a run, and the cascade to serve."""
    paths = [Path(source) for source in request.sources]
    if all((path / "manifest.json").is_file() for path in paths):
        if request.candidates or request.has_cascade:
            raise UsageError("--candidate and --cascade belong to a run; exported folders are served as they are")
        return paths, None
    if request.key is not None:
        raise UsageError("--key belongs to exported folders; a run is exported here and not signed")
    if len(paths) > 1:
        missing = next(str(path) for path in paths if not (path / "manifest.json").is_file())
        raise UsageError(f"'{missing}' is no exported folder; give one run, or exported folders of one run")
    return _export_run(request)


def _export_run(request: ServeRequest) -> "tuple[list[Path], CascadeSearch | None]":
    from autocompress import api
    from autocompress.analysis.cascade import CascadeSearch

    front = api.load(request.sources[0], request.runs)
    search = CascadeSearch.read(front.folder) if request.has_cascade else None
    if request.has_cascade and (search is None or search.recommended is None):
        raise UsageError(f"{front.folder} has no cascade that gains anything; run autocompress cascade first")
    candidates = list(request.candidates)
    if search is not None and search.recommended is not None:
        # The export has to write both, also if they are none of the levels by default.
        pair = [search.recommended.small, search.recommended.large]
        candidates = list(dict.fromkeys([*candidates, *pair]))
    elif not candidates and request.budget_ms is None:
        candidates = [front.pick().id]
    with CountDisplay(progress_console(), "exporting candidates", "exported {} candidates") as display:
        return front.export_levels(candidates, on_progress=display.update), search
