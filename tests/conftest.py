"""Fixtures that several tests share: one settled torch, a private cache, a finished small search."""

import hashlib
import io
import os
import shutil
import sqlite3
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import hypothesis
import onnx
import pytest
import threadpoolctl
import torch
from filelock import FileLock
from hypothesis import HealthCheck

# A worker of the test runner is one of several, and each takes one thread.
torch.set_num_threads(1)
threadpoolctl.threadpool_limits(1)

# How long an example takes to draw says something of the machine's load and nothing of the code.
hypothesis.settings.register_profile(
    "shared machine", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis.settings.load_profile("shared machine")


# Tests that use one of these fixtures start a Ray cluster or a browser.
MARKS_OF_FIXTURES = {"ray_cluster": "ray", "browser": "browser"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need Ray or a browser, and let ``-m "not slow"`` leave them out."""
    for item in items:
        for fixture, mark in MARKS_OF_FIXTURES.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(mark)
        if any(item.get_closest_marker(mark) for mark in MARKS_OF_FIXTURES.values()):
            item.add_marker("slow")


@pytest.fixture(autouse=True, scope="session")
def private_cache() -> None:
    # Shared by the runner's workers, so that one of them trains the teacher and the others wait for it.
    user = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    os.environ["AUTOCOMPRESS_CACHE"] = str(Path(tempfile.gettempdir()) / f"autocompress-tests-{user}")


@pytest.fixture(autouse=True)
def closed_databases(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the databases that a test leaves open at its end, because Python 3.13 warns where they are collected."""
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def connect_and_note(*arguments: Any, **keywords: Any) -> sqlite3.Connection:
        opened.append(connect(*arguments, **keywords))
        return opened[-1]

    # SQLAlchemy takes the function from another module than this package.
    for name in ("sqlite3.connect", "sqlite3.dbapi2.connect"):
        monkeypatch.setattr(name, connect_and_note)
    yield
    for connection in opened:
        # One of another thread can only be closed there.
        with suppress(sqlite3.ProgrammingError):
            connection.close()


@pytest.fixture
def open_connections(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Identities of the SQLite connections that were opened in the test and not closed yet."""
    opened = set[int]()

    class Connection(sqlite3.Connection):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            opened.add(id(self))

        def close(self) -> None:
            super().close()
            opened.discard(id(self))

    connect = partial(sqlite3.connect, factory=Connection)
    for name in ("sqlite3.connect", "sqlite3.dbapi2.connect"):
        monkeypatch.setattr(name, connect)
    return opened


class ContentPickler(cloudpickle.Pickler):
    """Pickles tensors and modules by what they hold: torch's own forms have addresses in them, or are refused."""

    def reducer_override(self, obj: object) -> Any:
        """Return how a tensor or a module is written; other objects stay with cloudpickle."""
        if isinstance(obj, torch.Tensor):
            values = obj.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            return tuple, ((str(obj.dtype), tuple(obj.shape), values),)
        if isinstance(obj, torch.nn.Module):
            return tuple, ((type(obj).__module__, type(obj).__qualname__, vars(obj)),)
        if isinstance(obj, weakref.ref):  # of a recurrent layer to its parameters
            return tuple, ()
        return super().reducer_override(obj)


@pytest.fixture(autouse=True, scope="session")
def graphs_traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Many tests export candidates of the small run: each graph is traced once, which takes a second, then read.

    The tests of the export itself use networks of their own, which are traced each time.
    """
    from autocompress.export import onnx as exporter

    trace = exporter._trace_graph
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "graphs"
    folder.mkdir(exist_ok=True)

    def trace_once(model: torch.nn.Module, *arguments: Any) -> onnx.ModelProto:
        if not type(model).__module__.startswith("autocompress."):
            return trace(model, *arguments)
        content = io.BytesIO()
        ContentPickler(content).dump((model, *arguments))
        path = folder / hashlib.sha256(content.getvalue()).hexdigest()
        if not path.exists():
            (folder / f"{path.name}-{os.getpid()}").write_bytes(trace(model, *arguments).SerializeToString())
            (folder / f"{path.name}-{os.getpid()}").replace(path)
        return onnx.load(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "_trace_graph", trace_once)
        yield


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """A Ray cluster of one node, shared by all tests of one runner's worker."""
    from tests.backends.nodes import head

    with head() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search of a few seconds on real data, with its page written; not to be changed."""
    import autocompress

    own = tmp_path_factory.mktemp("runs")
    # One of the runner's workers searches, and each has a copy.
    shared = tmp_path_factory.getbasetemp().parent / "shared" if "PYTEST_XDIST_WORKER" in os.environ else own / "first"
    shared.mkdir(exist_ok=True)
    with FileLock(shared / "lock"):
        if not (shared / "done").exists():
            autocompress.search(
                "digits", runs=shared, name="small", overrides=SMALL_SEARCH, command="autocompress search digits"
            )
            (shared / "done").touch()
    return shutil.copytree(shared / "small", own / "small")


# Everything that the shipped space names, at a size that takes seconds.
SMALL_SEARCH = [
    "search.trials=3",
    # With trials that pause at rungs, which the shipped space has none of.
    "search.promotion=pareto_rank",
    # Bits without a kernel, so that candidates are marked as simulated.
    "target=none",
    "search.backend=serial",
    "teacher.student={cnn: {width: 12, depth: 1}}",
    "teacher.fit={adamw: {epochs: 16, learning_rate: 1e-2}}",
    "distill={soft_target: {temperature: {low: 2, high: 6}, alpha: {low: 0.5, high: 1.0}}}",
    "fit.adamw.epochs=8",
    "prune.structured.pruning_ratio=[0.25]",
    "prune.structured.recovery_epochs=2",
    "quantize.post_training.weight_bits=[8, 4]",
    "quantize.post_training.activation_bits=[8]",
]
