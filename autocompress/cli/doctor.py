"""Checks of this machine before a search: versions, libraries, cores, memory, folders."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from autocompress.backends.local import usable_cores
from autocompress.core.atomic import cache_folder
from autocompress.core.commands import python_command
from autocompress.core.formatting import format_count
from autocompress.core.free_memory import free_memory

# Bytes free: below the first two a search may run out on the way, below the last it cannot start.
LOW_MEMORY = 2e9
LOW_DISK = 1e9
FULL_DISK = 5e7
RAY_SECONDS = 90
MAIN_PACKAGES = ("autocompress", "torch", "onnxruntime", "optuna", "ray")
# In a process of its own, with a small object store: the check must neither join nor leave behind a cluster.
_RAY_SCRIPT = (
    "import ray; ray.init('local', num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level='ERROR',"
    " object_store_memory=80_000_000); print(ray.get(ray.remote(lambda: 41 + 1).remote())); ray.shutdown()"
)


@dataclass(frozen=True)
class Check:
    """One result of a check.

    Attributes:
        name: Name of what was checked: ``torch``, ``memory``.
        state: ``ok``, ``warning`` (a search works, with a caveat) or ``broken``.
        finding: Version, amount or error message.
        fix: Remedy; empty if the state is ``ok``.
    """

    name: str
    state: str
    finding: str
    fix: str = ""


def check_machine(runs: Path, *, starts_ray: bool = False) -> Iterator[Check]:
    """Check everything that a search needs; yield each result as soon as it is known.

    Args:
        runs: Folder of the runs; it need not exist.
        starts_ray: Whether a local Ray cluster is started, which takes up to a minute.
    """
    yield Check("python", "ok", f"{sys.version.split()[0]} at {sys.executable}")
    yield from check_packages()
    yield _run_check("torch", try_torch, "pip install --force-reinstall 'torch>=2.11'")
    yield _run_check("onnxruntime", try_onnxruntime, "pip install --force-reinstall onnxruntime onnx")
    yield check_cores()
    yield check_memory()
    yield check_folder("cache", cache_folder(), "set AUTOCOMPRESS_CACHE to a folder that can be written")
    yield check_folder("runs", runs, "choose another one with --runs FOLDER")
    if starts_ray:
        yield _run_check("ray", try_ray, "pip install --force-reinstall 'ray[tune]', or --backend local")


def check_packages() -> Iterator[Check]:
    """Yield the versions of the dependencies, and a broken check for each that is missing or too old."""
    from packaging.requirements import Requirement

    versions, faults = {"autocompress": version("autocompress")}, []
    for text in requires("autocompress") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            faults.append((f"{requirement.name} is missing", str(requirement)))
            continue
        if requirement.specifier.contains(installed, prereleases=True):
            versions[requirement.name] = installed
        else:
            fault = f"{requirement.name} {installed} does not satisfy {requirement.specifier}"
            faults.append((fault, str(requirement)))
    main = [f"{name} {versions.pop(name)}" for name in MAIN_PACKAGES if name in versions]
    others = "1 other is" if len(versions) == 1 else f"{len(versions)} others are"
    yield Check("packages", "ok", f"{', '.join(main)}; {others} new enough")
    for fault, requirement_text in faults:
        yield Check("packages", "broken", fault, f"pip install '{requirement_text}'")


def try_torch() -> str:
    """Train one step of a small network; return the instruction set, the number of threads and the GPU."""
    import torch

    layer = torch.nn.Conv2d(1, 2, 3)
    layer(torch.ones(1, 1, 5, 5)).sum().backward()
    if layer.weight.grad is None or not bool(layer.weight.grad.isfinite().all()):
        raise RuntimeError("a gradient is not finite")
    card = f"{torch.cuda.get_device_name()} (search.device=cuda)" if torch.cuda.is_available() else "no graphics card"
    return f"trains; {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, {card}"


def try_onnxruntime() -> str:
    """Run an int8 matrix product; return the providers, and whether the product is exact on this processor."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper

    kinds = {"a": TensorProto.UINT8, "b": TensorProto.INT8, "c": TensorProto.INT32}
    a, b, c = (helper.make_tensor_value_info(name, kind, [None, None]) for name, kind in kinds.items())
    graph = helper.make_graph([helper.make_node("MatMulInteger", ["a", "b"], ["c"])], "product", [a, b], [c])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = {"a": np.full((1, 4), 255, np.uint8), "b": np.full((4, 1), 127, np.int8)}
    (output,) = session.run(None, values)
    # Without VNNI, x86 adds pairs of products in 16 bits and saturates: two pairs give 2 x 32,767.
    product, exact, saturated = int(output.item()), 4 * 255 * 127, 2 * (2**15 - 1)
    if product not in (exact, saturated):
        raise RuntimeError(f"4 times 255 times 127 came to {product}")
    accuracy = "are exact" if product == exact else "overflow (no VNNI; exports avoid it)"
    return f"runs a graph; {', '.join(session.get_providers())}; int8 products {accuracy}"


def try_ray() -> str:
    """Run a task on a local Ray cluster in a process of its own; return that it succeeded."""
    # Without the variable, Ray clears CUDA_VISIBLE_DEVICES of tasks without a GPU, and warns about it.
    environment = {**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    command = [*python_command(), "-c", _RAY_SCRIPT]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RAY_SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"it did not start within {RAY_SECONDS} s") from None
    if done.stdout.strip().splitlines()[-1:] != ["42"]:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it did not run a task"])[-1])
    return "a local cluster ran a task"


def check_cores() -> Check:
    """Return how many cores a search may use."""
    usable, total = usable_cores(), os.cpu_count() or 1
    return Check("cores", "ok", f"{usable} usable of {total}; a search starts one worker per usable core")


def check_memory() -> Check:
    """Return how much memory is free, within the limit of the system and of the container."""
    free = free_memory()
    if free is None:
        return Check("memory", "ok", "unknown on this system")
    state = "ok" if free >= LOW_MEMORY else "warning"
    fix = "" if state == "ok" else "use fewer --workers: each holds the data, the teacher and a student"
    return Check("memory", state, f"{format_count(free, 'B')} free", fix)


def check_folder(name: str, path: Path, fix: str) -> Check:
    """Return whether a folder can hold files and SQLite databases, and its free space.

    Args:
        name: Name of the check.
        path: Folder; if it does not exist, its nearest existing parent is checked.
        fix: Remedy if the folder cannot be written.
    """
    folder = path.expanduser().absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        # A database in WAL mode, as the store writes it: some network file systems take files but no such database.
        with (
            tempfile.TemporaryDirectory(dir=existing, prefix=".autocompress-") as scratch,
            closing(sqlite3.connect(Path(scratch) / "trial.db")) as store,
        ):
            store.execute("PRAGMA journal_mode=WAL")
            store.execute("CREATE TABLE works (yes INTEGER)")
            store.commit()
    except (OSError, sqlite3.Error) as fault:
        return Check(name, "broken", f"{folder} cannot be written ({fault})", fix)
    free = shutil.disk_usage(existing).free
    finding = f"{folder}, {format_count(free, 'B')} free"
    if free < FULL_DISK:
        return Check(name, "broken", finding, f"free some space, or {fix}")
    state = "ok" if free >= LOW_DISK else "warning"
    return Check(name, state, finding, "" if state == "ok" else "free some space")


def _run_check(name: str, check: Callable[[], str], fix: str) -> Check:
    try:
        return Check(name, "ok", check())
    except Exception as fault:  # A broken library may raise anything, and finding that is the purpose.
        return Check(name, "broken", f"{type(fault).__name__}: {fault}", fix)
