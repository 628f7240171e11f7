"""The cluster that Ray's backend runs on: joined by its address, or started on this machine and ended with the search.

What Ray listens on. Ray 2.60 offers no loopback-only option on Linux: the control store, the raylet, the object
manager, the agents and each worker open TCP ports, most of them on every interface. A cluster that is started here
therefore always requires a token (``RAY_AUTH_MODE=token``), which is drawn anew for each search, is handed to Ray's
processes in their environment and is never written to disk; the dashboard and the usage statistics are off. Whoever
joins a cluster by its address brings that cluster's own token, as Ray documents it.
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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autocompress.backends.watchdog import guard_folder
from autocompress.errors import UsageError

#: Bytes of shared memory for results and paused trainings under way; more of them spill to the temporary folder.
OBJECT_STORE = 512 * 2**20
LEAST_OBJECT_STORE = 80 * 2**20
#: What Ray puts below its temporary folder, at the longest: a session's name and the name of a socket.
SOCKET_TAIL = len("/session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store.1")
#: Longest path of a socket on Linux, the closing zero byte left out.
SOCKET_PATH = 107
#: Seconds until an address counts as one that does not answer.
ANSWER = 5.0
#: Seconds in which every node must have told its versions.
SURVEY = 60.0
#: Seconds between two looks at which nodes there are.
LOOK = 5.0
SAME = ("autocompress", "torch")
RAY_NAMES = {"cpu": "CPU", "gpu": "GPU"}


def bundle_of(resources: Mapping[str, float]) -> dict[str, float]:
    """Return what one trial takes, in Ray's names.

    Example:
        >>> bundle_of({"cpu": 1, "gpu": 0.25})
        {'CPU': 1.0, 'GPU': 0.25}
    """
    return {RAY_NAMES.get(name, name): float(amount) for name, amount in resources.items()}


def fitting(offered: Mapping[str, float], bundle: Mapping[str, float]) -> int:
    """Return how many trials fit on a node.

    Example:
        >>> fitting({"CPU": 8.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 0.25})
        4
    """
    return min(math.floor(offered.get(name, 0.0) / amount + 1e-9) for name, amount in bundle.items())


@dataclass
class Cluster:
    """A cluster that this process is connected to.

    Attributes:
        bundle: What one trial takes, in Ray's names.
        folder: For temporary files.
    """

    bundle: dict[str, float]
    folder: Path
    _looked: float = -math.inf
    _room: int = 0

    def room(self) -> int:
        """Return how many trials fit on the nodes that live now."""
        if time.monotonic() - self._looked > LOOK:
            self._room = sum(fitting(node["Resources"], self.bundle) for node in _nodes())
            self._looked = time.monotonic()
        return self._room


@contextmanager
def joined(address: str, resources: Mapping[str, float]) -> Iterator[Cluster]:
    """Connect to a cluster that is there, and leave it as it was.

    Raises:
        UsageError: Nothing answers there, the versions differ, or no node has room for one trial.
    """
    _refuse_second_connection()
    _refuse_silent(address)
    try:
        ray.init(address=address, **_init_options())
    except Exception as error:  # Ray raises a dozen kinds, and each means that this address is of no use.
        ray.shutdown()
        raise UsageError(f"the Ray cluster at {address} cannot be joined: {_joining(error)}") from error
    try:
        with _hushed(), tempfile.TemporaryDirectory(prefix="autocompress-ray-") as folder:
            cluster = Cluster(bundle_of(resources), Path(folder))
            _refuse_small(cluster.bundle, f"of the cluster at {address}")
            _refuse_different(cluster.bundle)
            yield cluster
    finally:
        ray.shutdown()


@contextmanager
def started(folder: Path | None, resources: Mapping[str, float], cores: int) -> Iterator[Cluster]:
    """Start a cluster of this machine alone, and end it with all its processes.

    Args:
        folder: Where Ray's temporary folder goes, if the path is short enough for a socket.
        resources: What one trial takes.
        cores: How many processors may be used.

    Raises:
        UsageError: This machine has no room for one trial.
    """
    _refuse_second_connection()
    if fitting({"CPU": cores}, {"CPU": resources.get("cpu", 1.0) or 1.0}) < 1:
        raise UsageError(f"one trial takes cpu: {resources['cpu']:g}, this machine has {cores}; lower search.resources")
    place = _temporary(folder)
    guard = None
    try:
        with _token_required():
            try:
                ray.init(
                    address="local",
                    num_cpus=cores,
                    include_dashboard=False,
                    object_store_memory=_object_store(),
                    _temp_dir=str(place),
                    **_init_options(),
                )
                # Of a driver that is killed, Ray's agents stay for a minute, trying to report it to what is gone too.
                guard = guard_folder(place)
                cluster = Cluster(bundle_of(resources), place)
                _refuse_small(cluster.bundle, "this machine")
                with _hushed():
                    yield cluster
            finally:
                ray.shutdown()
    finally:
        if guard is not None:
            guard.kill()
            guard.wait()
        shutil.rmtree(place, ignore_errors=True)


def _init_options() -> dict[str, Any]:
    return {"log_to_driver": False, "logging_level": logging.ERROR}


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep what raylets say of dead workers and nodes, their logs included, out of the user's terminal."""
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


def _refuse_second_connection() -> None:
    if ray.is_initialized():
        raise UsageError("this process is connected to Ray already; call ray.shutdown() first, and pass --address")


def _refuse_silent(address: str) -> None:
    """Find out at once what Ray finds out after a minute."""
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
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER) as line:
            if os.environ.get("RAY_USE_TLS", "0") != "1":
                _greet(line)
    except (OSError, OverflowError) as reason:
        raise UsageError(
            f"no Ray cluster answers at {address} ({reason}); start one with `ray start --head`, or leave out --address"
        ) from None


def _greet(line: socket.socket) -> None:
    """Exchange the opening of HTTP/2, which Ray's control store speaks.

    Raises:
        OSError: The other side does not.
    """
    settings, empty = 4, b"\0" * 3
    line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + empty + bytes([settings]) + b"\0" * 5)
    answer = line.recv(9)
    if len(answer) < 4 or answer[3] != settings:
        raise OSError("what listens there is not Ray")


def _joining(error: BaseException) -> str:
    """Return what Ray's complaint means."""
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


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _refuse_small(bundle: Mapping[str, float], what: str) -> None:
    """See that one trial fits somewhere; else Ray would wait for ever.

    Raises:
        UsageError: It fits nowhere.
    """
    nodes = _nodes()
    if any(fitting(node["Resources"], bundle) for node in nodes):
        return
    needed = ", ".join(f"{name} {amount:g}" for name, amount in bundle.items())
    offers = sorted({", ".join(f"{name} {node['Resources'].get(name, 0):g}" for name in bundle) for node in nodes})
    who = f"no node {what} has that" if what.startswith("of") else f"{what} has less"
    raise UsageError(f"one trial takes {needed}, and {who} ({'; '.join(offers)}); lower search.resources")


def _refuse_different(bundle: Mapping[str, float]) -> None:
    """See that every node that may run a trial has what the driver has.

    Raises:
        UsageError: One lacks a package, or has another version.
    """
    here = {"python": platform.python_version(), "ray": ray.__version__, **{name: version(name) for name in SAME}}
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in _nodes() if fitting(node["Resources"], bundle)}
    for node, there in _surveyed([*addresses]).items():
        for name, ours in here.items():
            if not there[name]:
                raise UsageError(f"node {addresses[node]} has no {name}; install {name} {ours} there")
            if _release(there[name]) != _release(ours):
                raise UsageError(
                    f"node {addresses[node]} has {name} {there[name]}, this process {ours}; install the same everywhere"
                )


def _release(text: str) -> str:
    # A build for another processor or accelerator is the same release: 2.13.0+cpu, 2.13.0+cu130.
    return text.partition("+")[0]


def _surveyed(nodes: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return what each node that answers has installed.

    Raises:
        UsageError: None answers.
    """

    # Defined within, so that it travels by value: a node that lacks the package must be able to run it.
    def versions(names: Sequence[str]) -> dict[str, str]:
        import importlib.metadata
        import importlib.util
        import platform

        found = {"python": platform.python_version()}
        for name in names:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = ""
        return found

    ask = ray.remote(versions)
    asked = [
        ask.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(["ray", *SAME])
        for node in nodes
    ]
    ray.wait(asked, num_returns=len(asked), timeout=SURVEY)
    found, said = {}, "none answers"
    for node, answer in zip(nodes, asked, strict=True):
        # A node may have been lost a moment ago; nothing will be placed on it.
        try:
            found[node] = ray.get(answer, timeout=0)
        except ray.exceptions.RayError as error:
            said = str(error).strip().splitlines()[0]
    if not found:
        raise UsageError(f"no node of the cluster runs anything ({said}); see the logs of its raylets")
    return found


def _temporary(folder: Path | None) -> Path:
    """Return a new folder for Ray's sockets and logs, in the run folder where the path is short enough."""
    if folder is not None:
        place = folder.resolve() / "ray"
        if len(str(place)) + SOCKET_TAIL <= SOCKET_PATH:
            # What a killed driver left.
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            return place
    return Path(tempfile.mkdtemp(prefix="ray-"))


def _object_store() -> int:
    free = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else OBJECT_STORE
    return max(LEAST_OBJECT_STORE, min(OBJECT_STORE, free * 4 // 5))


@contextmanager
def _token_required() -> Iterator[None]:
    """Let the cluster that is started within accept only those that know a token drawn here."""
    ours = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # A path, if there is one, would win over the token.
        "RAY_AUTH_TOKEN_PATH": None,
        # Else an address in the environment would win over "local".
        "RAY_ADDRESS": None,
    }
    before = {name: os.environ.get(name) for name in ours}
    _set(ours)
    try:
        yield
    finally:
        _set(before)


def _set(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    # Ray reads both once and remembers them; the mode first, for it must never be on without a token.
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
