"""A Ray cluster: resources, addresses, capacity, versions of its nodes, and a cluster of this machine alone."""

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from autocompress.backends import ray_cluster as module
from autocompress.backends.ray import Ray
from autocompress.backends.ray_cluster import Cluster, count_fitting_trials, to_ray_resources
from autocompress.errors import UsageError
from tests.backends.test_local import until

# A node or a worker takes seconds to start, and many times that on a machine that is busy.
pytestmark = pytest.mark.timeout(300)


def test_resources_have_the_names_of_ray_and_other_names_stay() -> None:
    assert to_ray_resources({"cpu": 2, "gpu": 0.25, "tpu": 1}) == {"CPU": 2.0, "GPU": 0.25, "tpu": 1.0}
    assert to_ray_resources({}) == {}


@pytest.mark.parametrize(
    ("offered", "bundle", "count"),
    [
        ({"CPU": 8.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 0.25}, 4),
        ({"CPU": 3.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 0.25}, 3),
        ({"CPU": 8.0}, {"CPU": 1.0, "GPU": 0.25}, 0),
        ({"CPU": 1.0}, {"CPU": 1.5}, 0),
        # In floating point 0.3 / 0.1 is less than 3.
        ({"CPU": 0.3}, {"CPU": 0.1}, 3),
    ],
)
def test_a_node_fits_as_many_trials_as_its_scarcest_resource_allows(
    offered: dict[str, float], bundle: dict[str, float], count: int
) -> None:
    assert count_fitting_trials(offered, bundle) == count


def test_slots_are_those_of_live_nodes_and_are_read_once_per_interval(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": True, "Resources": {"CPU": 3.0}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
    ]
    now = [100.0]
    monkeypatch.setattr(module.ray, "nodes", lambda: list(nodes))
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    cluster = Cluster({"CPU": 2.0}, tmp_path)
    assert cluster.count_slots() == 3
    del nodes[0]
    assert cluster.count_slots() == 3
    now[0] += module.NODES_INTERVAL + 1
    assert cluster.count_slots() == 1


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"),
        ("ray://127.0.0.1:1", "client protocol is not supported"),
        ("somewhere", "is not HOST:PORT or auto"),
    ],
)
def test_an_address_of_no_use_is_refused(address: str, said: str) -> None:
    with pytest.raises(UsageError, match=said), Ray(address=address).open():
        pass


@pytest.mark.slow
def test_what_answers_but_is_not_ray_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UsageError, match=f"no Ray cluster answers at {address}"), Ray(address=address).open():
            pass


def test_too_much_for_every_node_is_refused(ray_cluster: Any) -> None:
    backend = Ray(address=ray_cluster.address, resources={"cpu": 3, "gpu": 1})
    with (
        pytest.raises(UsageError, match=r"takes CPU 3, GPU 1, and no node .* has that \(CPU 2, GPU 0\)"),
        backend.open(),
    ):
        pass


def test_too_much_for_this_machine_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="takes cpu: 4096, this machine has"),
        Ray(resources={"cpu": 4096}).open(tmp_path),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "said"), [("torch", r"has torch \S+, the driver 0.1;"), ("no-such-package", "has no no-such-package")]
)
def test_a_node_with_other_packages_is_refused(
    ray_cluster: Any, monkeypatch: pytest.MonkeyPatch, package: str, said: str
) -> None:
    monkeypatch.setattr(module, "SAME", (package,))
    monkeypatch.setattr(module, "version", lambda name: "0.1")
    with pytest.raises(UsageError, match=said), Ray(address=ray_cluster.address).open():
        pass


DRIVER = """\
import signal
import sys
from pathlib import Path
from autocompress.backends.ray import Ray
from tests.backends.test_local import jobs
from tests.fakes import FakeTrials

if __name__ == "__main__":
    # Where the tests run in the background of a shell, they inherit that Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    queue, folder = jobs(1), Path(sys.argv[1])
    backend = Ray(workers=1)
    with backend.open(folder):
        import ray

        (folder / "address").write_text(ray.get_runtime_context().gcs_address)
        trials = FakeTrials(folder / "log", hanging=(0,))
        backend.run(lambda: queue.pop(0) if queue else None, trials, lambda job, result: None)
"""


STRANGER = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print(ray.nodes())"


@pytest.fixture
def short(tmp_path: Path) -> Iterator[Path]:
    """A folder with a path short enough for the sockets in it."""
    folder = Path(f"/tmp/ac-{secrets.token_hex(3)}")
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-r", str(folder)], check=True)


@pytest.mark.ray
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_cluster_of_our_own_wants_a_token_and_leaves_nothing_behind(stop: signal.Signals, short: Path) -> None:
    root = Path(__file__).parents[2]
    marked = {**os.environ, "PYTHONPATH": str(root), "AC_MARK": short.name}
    script = short / "driver.py"
    script.write_text(DRIVER)
    with subprocess.Popen(
        [sys.executable, str(script), str(short)], cwd=root, env=marked, stderr=subprocess.PIPE, text=True
    ) as driver:
        until(lambda: (short / "log").exists() and "0" in (short / "log").read_text().split("\n"), 120)
        assert (short / "ray").is_dir()
        if stop is signal.SIGINT:
            others = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
            stranger = subprocess.run(
                [sys.executable, "-c", STRANGER, (short / "address").read_text()],
                env=others,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert stranger.returncode != 0
            assert "nvalid" in stranger.stderr
            assert "NodeID" not in stranger.stdout
        assert len(with_mark(short.name)) > 3
        driver.send_signal(stop)
        _, said = driver.communicate(timeout=120)
    with suppress(AssertionError):
        until(lambda: not with_mark(short.name), 120)
    assert not with_mark(short.name)
    assert not (short / "ray").exists()
    if stop is signal.SIGINT:
        assert said.strip().endswith("KeyboardInterrupt")
        assert re.search(r"Ray listens on \S+ \(ports \d+, \d+ and others\); clients need its token", said)


def with_mark(mark: str) -> list[bytes]:
    """Return the processes that descend from one with the mark in its environment, by what they were called with."""
    processes = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdigit() and f"AC_MARK={mark}".encode() in (folder / "environ").read_bytes():
                processes.append((folder / "cmdline").read_bytes())
    return processes
