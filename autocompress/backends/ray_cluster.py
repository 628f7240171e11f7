"""The cluster of the Ray backend: joined by its address, or started on this machine and stopped with the search.

Ports. Ray 2.60 has no loopback-only option on Linux: the control store, the raylet, the object manager, the agents and
each worker open TCP ports, most of them on every interface. A cluster that is started here therefore always requires a
token (``RAY_AUTH_MODE=token``). It is drawn for each search, passed to Ray's processes in their environment and never
written to disk; the dashboard and the usage statistics are off. To join a cluster by its address, set that cluster's
own token, as Ray documents it.
"""

import logging
import math
import os
import platform
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autocompress.backends.watchdog import guard_folder
from autocompress.errors import UsageError, WorkersError

logger = logging.getLogger(__name__)

#: Bytes of shared memory for results and paused trials in transit; more of them spill to the temporary folder.
OBJECT_STORE = 512 * 2**20
LEAST_OBJECT_STORE = 80 * 2**20
#: Longest path that Ray adds to its temporary folder: the name of a session and the name of a socket.
SOCKET_TAIL = len("/session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store.1")
#: Longest path of a socket on Linux, without the terminating zero byte.
SOCKET_PATH = 107
#: Seconds in which an address must answer.
CONNECT_TIMEOUT = 5.0
#: Seconds in which every node must return its versions.
VERSIONS_TIMEOUT = 60.0
#: Seconds between two reads of the list of nodes.
NODES_INTERVAL = 5.0
SAME = ("autocompress", "torch")
RAY_NAMES = {"cpu": "CPU", "gpu": "GPU"}


def to_ray_resources(resources: Mapping[str, float]) -> dict[str, float]:
    """Return the resources of one trial, in Ray's names.

    Example:
        >>> to_ray_resources({"cpu": 1, "gpu": 0.25})
        {'CPU': 1.0, 'GPU': 0.25}
    """
    return {RAY_NAMES.get(name, name): float(amount) for name, amount in resources.items()}


def count_fitting_trials(offered: Mapping[str, float], bundle: Mapping[str, float]) -> int:
    """Return the number of trials that fit on a node.

    Example:
        >>> count_fitting_trials({"CPU": 8.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 0.25})
        4
    """
    return min(math.floor(offered.get(name, 0.0) / amount + 1e-9) for name, amount in bundle.items())


@dataclass
class Cluster:
    """A cluster that this process is connected to.

    Attributes:
        bundle: Resources of one trial, in Ray's names.
        folder: Folder for temporary files.
    """

    bundle: dict[str, float]
    folder: Path
    _last_read: float = -math.inf
    _slots: int = 0

    def count_slots(self) -> int:
        """Return the number of trials that fit on the nodes that are alive now."""
        slots_before = self._slots
        if time.monotonic() - self._last_read > NODES_INTERVAL:
            self._slots = sum(count_fitting_trials(node["Resources"], self.bundle) for node in _list_live_nodes())
            self._last_read = time.monotonic()
            if self._slots != slots_before:
                logger.info("the cluster has room for %d trials (before: %d)", self._slots, slots_before)
        return self._slots


@contextmanager
def join_cluster(address: str, resources: Mapping[str, float]) -> Iterator[Cluster]:
    """Connect to a running cluster, and disconnect at the end.

    Args:
        address: ``HOST:PORT`` or ``auto``.
        resources: Resources of one trial.

    Raises:
        UsageError: No cluster answers, the versions differ, or no node has the resources of one trial.
    """
    _check_not_connected()
    _check_address(address)
    try:
        ray.init(address=address, **_init_options())
    except Exception as error:  # Ray raises a dozen types; each means that the address cannot be used.
        ray.shutdown()
        raise UsageError(f"the Ray cluster at {address} cannot be joined: {_explain_join_error(error)}") from error
    try:
        with _suppress_raylet_output(), tempfile.TemporaryDirectory(prefix="autocompress-ray-") as folder:
            cluster = Cluster(to_ray_resources(resources), Path(folder))
            _check_capacity(cluster.bundle, f"of the cluster at {address}")
            _check_versions(cluster.bundle)
            logger.info("joined the Ray cluster at %s", address)
            logger.warning(describe_listeners(_list_live_nodes(), has_token=os.environ.get("RAY_AUTH_MODE") == "token"))
            yield cluster
    finally:
        ray.shutdown()
        logger.info("left the Ray cluster at %s", address)


@contextmanager
def start_cluster(folder: Path | None, resources: Mapping[str, float], cores: int) -> Iterator[Cluster]:
    """Start a cluster of this machine alone, and stop it with all its processes.

    Args:
        folder: Parent of Ray's temporary folder, if the path is short enough for a socket.
        resources: Resources of one trial.
        cores: Number of processors to use.

    Raises:
        UsageError: This machine does not have the resources of one trial.
        WorkersError: Ray's processes do not start.
    """
    _check_not_connected()
    if count_fitting_trials({"CPU": cores}, {"CPU": resources.get("cpu", 1.0) or 1.0}) < 1:
        raise UsageError(f"one trial takes cpu: {resources['cpu']:g}, this machine has {cores}; lower search.resources")
    temporary = _create_temporary_folder(folder)
    guard = None
    try:
        with _require_token():
            try:
                try:
                    ray.init(
                        address="local",
                        num_cpus=cores,
                        include_dashboard=False,
                        object_store_memory=_choose_object_store_size(),
                        _temp_dir=str(temporary),
                        **_init_options(),
                    )
                except Exception as error:  # Ray raises a dozen types, Exception itself where a process is late.
                    raise WorkersError(f"Ray does not start: {str(error).strip().splitlines()[0]}") from error
                # Ray's agents outlive a killed driver by a minute, in which they try to report to a stopped cluster.
                guard = guard_folder(temporary)
                cluster = Cluster(to_ray_resources(resources), temporary)
                _check_capacity(cluster.bundle, "this machine")
                logger.info("started a Ray cluster with %d processors on this machine", cores)
                logger.warning(describe_listeners(_list_live_nodes(), has_token=True))
                with _suppress_raylet_output():
                    yield cluster
            finally:
                ray.shutdown()
    finally:
        if guard is not None:
            guard.kill()
            guard.wait()
        shutil.rmtree(temporary, ignore_errors=True)
        logger.info("stopped the Ray cluster of this machine")


def describe_listeners(nodes: Sequence[Mapping[str, Any]], *, has_token: bool) -> str:
    """Return a line about the addresses on which Ray's processes accept connections, and who may use them.

    Args:
        nodes: Live nodes, as ``ray.nodes()`` describes them.
        has_token: Whether the cluster requires its token.

    Example:
        >>> node = {"NodeManagerAddress": "10.0.0.5", "NodeManagerPort": 4001, "ObjectManagerPort": 4002}
        >>> describe_listeners([node], has_token=True)
        'Ray listens on 10.0.0.5 (ports 4001, 4002 and others); clients need its token'
    """
    hosts = [
        f"{node['NodeManagerAddress']} (ports {node['NodeManagerPort']}, {node['ObjectManagerPort']} and others)"
        for node in nodes
    ]
    access = "clients need its token" if has_token else "every client that reaches it is accepted: no token is set"
    return f"Ray listens on {', '.join(hosts)}; {access}"


def _init_options() -> dict[str, Any]:
    return {"log_to_driver": False, "logging_level": logging.ERROR}


@contextmanager
def _suppress_raylet_output() -> Iterator[None]:
    """Keep the output of raylets about dead workers and nodes, and the logs of those, out of the terminal."""
    module = ray._private.worker
    printing = getattr(module, "print_to_stdstream", None)
    if printing is None:
        yield
        return
    module.print_to_stdstream = lambda *args, **keywords: None
    try:
        yield
    finally:
        module.print_to_stdstream = printing


def _check_not_connected() -> None:
    if ray.is_initialized():
        raise UsageError("this process is connected to Ray already; call ray.shutdown() first, and pass --address")


def _check_address(address: str) -> None:
    """Refuse an address without a cluster at once; Ray itself takes a minute.

    Raises:
        UsageError: The address is malformed, or no cluster answers.
    """
    if address == "auto":
        return
    if "://" in address:
        raise UsageError(
            f"{address}: Ray's client protocol is not supported; run on a node of the cluster, with HOST:PORT or auto"
        )
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise UsageError(f"the address '{address}' is not HOST:PORT or auto")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "1":
                _check_protocol(connection)
    except (OSError, OverflowError) as reason:
        raise UsageError(
            f"no Ray cluster answers at {address} ({reason}); start one with `ray start --head`, or leave out --address"
        ) from None


def _check_protocol(connection: socket.socket) -> None:
    """Exchange the preface of HTTP/2, the protocol of Ray's control store.

    Raises:
        OSError: The server does not answer with HTTP/2.
    """
    settings, empty = 4, b"\0" * 3
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + empty + bytes([settings]) + b"\0" * 5)
    answer = connection.recv(9)
    if len(answer) < 4 or answer[3] != settings:
        raise OSError("the server there is not Ray")


def _explain_join_error(error: BaseException) -> str:
    """Return the meaning of Ray's error, for the user."""
    texts = [str(error)]
    while (error := error.__cause__ or error.__context__) is not None:  # type: ignore[assignment]
        texts.append(str(error))
    text = "\n".join(texts)
    if "ersion mismatch" in text:
        return " ".join(line.strip() for line in texts[-1].splitlines() if line.strip())
    if "uthenticat" in text or "oken" in text:
        return "it requires its token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
    if "Raylet addresses" in text or "raylet" in text.lower():
        return f"this machine is not one of its nodes; run `ray start --address=...` here first ({texts[0].strip()})"
    return texts[0].strip().splitlines()[0] if texts[0].strip() else type(error).__name__


def _list_live_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _check_capacity(bundle: Mapping[str, float], owner: str) -> None:
    """Check that one trial fits on a node; otherwise Ray would wait forever.

    Args:
        bundle: Resources of one trial, in Ray's names.
        owner: The machine or cluster, for the message.

    Raises:
        UsageError: It fits on no node.
    """
    nodes = _list_live_nodes()
    if any(count_fitting_trials(node["Resources"], bundle) for node in nodes):
        return
    needed = ", ".join(f"{name} {amount:g}" for name, amount in bundle.items())
    offers = sorted({", ".join(f"{name} {node['Resources'].get(name, 0):g}" for name in bundle) for node in nodes})
    problem = f"no node {owner} has that" if owner.startswith("of") else f"{owner} has less"
    raise UsageError(f"one trial takes {needed}, and {problem} ({'; '.join(offers)}); lower search.resources")


def read_versions() -> dict[str, str]:
    """Return the versions in this process that every node of a cluster must share; empty for a missing package."""
    versions = {"python": platform.python_version(), "ray": ray.__version__}
    for name in SAME:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = ""
    return versions


def describe_difference(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Return what a node has to install; empty if its versions are those of the driver.

    Args:
        there: Versions of the node; empty where a package is missing.
        here: Versions of the driver.

    Example:
        >>> describe_difference({"torch": "2.12.1+cpu"}, {"torch": "2.13.0"})
        'has torch 2.12.1+cpu, the driver 2.13.0; install the same everywhere'
    """
    for name, ours in here.items():
        if not there[name]:
            return f"has no {name}; install {name} {ours} there"
        if _strip_build(there[name]) != _strip_build(ours):
            return f"has {name} {there[name]}, the driver {ours}; install the same everywhere"
    return ""


def _check_versions(bundle: Mapping[str, float]) -> None:
    """Check that every node that can run a trial has the driver's packages.

    Raises:
        UsageError: A node lacks a package, or has another version.
    """
    here = read_versions()
    addresses = {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in _list_live_nodes()
        if count_fitting_trials(node["Resources"], bundle)
    }
    for node, there in _read_node_versions([*addresses]).items():
        if difference := describe_difference(there, here):
            raise UsageError(f"node {addresses[node]} {difference}")


def _strip_build(text: str) -> str:
    # A build for another processor or accelerator is the same release: 2.13.0+cpu, 2.13.0+cu130.
    return text.partition("+")[0]


def _read_node_versions(nodes: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the package versions of each node that answers.

    Raises:
        UsageError: No node answers.
    """

    # A nested function is sent by value: a node without this package can run it.
    def read_there(names: Sequence[str]) -> dict[str, str]:
        import importlib.metadata
        import importlib.util
        import platform

        installed = {"python": platform.python_version()}
        for name in names:
            try:
                installed[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                installed[name] = ""
        return installed

    remote_versions = ray.remote(read_there)
    answers = [
        remote_versions.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(["ray", *SAME])
        for node in nodes
    ]
    ray.wait(answers, num_returns=len(answers), timeout=VERSIONS_TIMEOUT)
    versions, reason = {}, "none answers"
    for node, answer in zip(nodes, answers, strict=True):
        # A node may have been lost a moment ago; Ray places no worker on it.
        try:
            versions[node] = ray.get(answer, timeout=0)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
    if not versions:
        raise UsageError(f"no node of the cluster runs anything ({reason}); see the logs of its raylets")
    return versions


def _create_temporary_folder(folder: Path | None) -> Path:
    """Return a new folder for Ray's sockets and logs, in the run folder where the path is short enough."""
    if folder is not None:
        temporary = folder.resolve() / "ray"
        if len(str(temporary)) + SOCKET_TAIL <= SOCKET_PATH:
            # A killed driver may have left its folder.
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            return temporary
    return Path(tempfile.mkdtemp(prefix="ray-"))


def _choose_object_store_size() -> int:
    free = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else OBJECT_STORE
    return max(LEAST_OBJECT_STORE, min(OBJECT_STORE, free * 4 // 5))


@contextmanager
def _require_token() -> Iterator[None]:
    """Let a cluster that is started in this context require a new random token."""
    variables = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # A path to a token would take precedence over the token.
        "RAY_AUTH_TOKEN_PATH": None,
        # An address in the environment would take precedence over "local".
        "RAY_ADDRESS": None,
    }
    before = {name: os.environ.get(name) for name in variables}
    _set_environment(variables)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    # Ray caches mode and token; the mode is reset first, as it must never be on without a token.
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
