"""Whether this machine can search: versions, libraries that work, cores, memory, folders that can be written."""

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
from autocompress.core.formatting import human

SCANT_MEMORY = 2e9
SCANT_SPACE = 1e9
NO_SPACE = 5e7
RAY_SECONDS = 90
_RAY = (
    "import ray; ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level='ERROR',"
    " object_store_memory=80_000_000); print(ray.get(ray.remote(lambda: 41 + 1).remote())); ray.shutdown()"
)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What.
        state: ``ok``, ``scant`` (it works, with a caveat) or ``broken``.
        found: What was found.
        fix: What to do about it; empty if it is ok.
    """

    name: str
    state: str
    found: str
    fix: str = ""


def checkup(runs: Path) -> Iterator[Check]:
    """Look at everything that a search needs, and yield what is found as it is found.

    Args:
        runs: The folder that holds runs, or will.
    """
    # It takes seconds to start: the rest is looked at meanwhile.
    ray = subprocess.Popen(
        [sys.executable, "-c", _RAY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"},
    )
    try:
        yield Check("python", "ok", f"{sys.version.split()[0]} at {sys.executable}")
        yield from packages()
        yield _tried("torch", torch_works, "pip install --force-reinstall 'torch>=2.11'")
        yield _tried("onnxruntime", onnxruntime_works, "pip install --force-reinstall onnxruntime onnx")
        yield cores()
        yield memory()
        yield folder("cache", cache_folder(), "set AUTOCOMPRESS_CACHE to a folder that can be written")
        yield folder("runs", runs, "choose another one with --runs FOLDER")
        yield _tried("ray", lambda: ray_works(ray), "pip install --force-reinstall 'ray[tune]', or --backend local")
    finally:
        if ray.poll() is None:
            ray.kill()
        ray.communicate()


def packages() -> Iterator[Check]:
    """Yield the versions of what autocompress depends on; what is missing or too old is broken."""
    from packaging.requirements import Requirement

    found, faults = [f"autocompress {version('autocompress')}"], []
    for text in requires("autocompress") or []:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            there = version(wanted.name)
        except PackageNotFoundError:
            faults.append((f"{wanted.name} is missing", str(wanted)))
            continue
        if wanted.specifier.contains(there, prereleases=True):
            found.append(f"{wanted.name} {there}")
        else:
            faults.append((f"{wanted.name} {there} does not satisfy {wanted.specifier}", str(wanted)))
    yield Check("packages", "ok", ", ".join(found))
    for fault, wanted_text in faults:
        yield Check("packages", "broken", fault, f"pip install '{wanted_text}'")


def torch_works() -> str:
    """Train one step of a small network; return what computes it, and which graphics card there is."""
    import torch

    layer = torch.nn.Conv2d(1, 2, 3)
    layer(torch.ones(1, 1, 5, 5)).sum().backward()
    if layer.weight.grad is None or not bool(layer.weight.grad.isfinite().all()):
        raise RuntimeError("a gradient is not finite")
    card = f"{torch.cuda.get_device_name()} (search.device=cuda)" if torch.cuda.is_available() else "no graphics card"
    return f"trains; {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, {card}"


def onnxruntime_works() -> str:
    """Multiply integers; return what does it, and whether int8 products are exact on this processor."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper

    kinds = {"a": TensorProto.UINT8, "b": TensorProto.INT8, "c": TensorProto.INT32}
    a, b, c = (helper.make_tensor_value_info(name, kind, [None, None]) for name, kind in kinds.items())
    graph = helper.make_graph([helper.make_node("MatMulInteger", ["a", "b"], ["c"])], "product", [a, b], [c])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = {"a": np.full((1, 4), 255, np.uint8), "b": np.full((4, 1), 127, np.int8)}
    (found,) = session.run(None, values)
    product, exact, saturated = int(found.item()), 4 * 255 * 127, 2 * (2**15 - 1)
    if product not in (exact, saturated):
        raise RuntimeError(f"4 times 255 times 127 came to {product}")
    told = "are exact" if product == exact else "overflow (no VNNI; exports avoid it)"
    return f"runs a graph; {', '.join(session.get_providers())}; int8 products {told}"


def ray_works(process: "subprocess.Popen[str]") -> str:
    """Return that a local cluster ran a task; it was started before."""
    try:
        out, err = process.communicate(timeout=RAY_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise RuntimeError(f"it did not start within {RAY_SECONDS} s") from None
    if out.strip().splitlines()[-1:] != ["42"]:
        raise RuntimeError((err.strip().splitlines() or ["it did not run a task"])[-1])
    return "a local cluster ran a task"


def cores() -> Check:
    """Return how many processors a search may use."""
    usable, whole = usable_cores(), os.cpu_count() or 1
    return Check("cores", "ok", f"{usable} usable of {whole}; a search takes one worker for each")


def memory() -> Check:
    """Return how much memory is free, by the system and by the limit of the container."""
    free = _memory_free()
    if free is None:
        return Check("memory", "ok", "unknown on this system")
    state = "ok" if free >= SCANT_MEMORY else "scant"
    fix = "" if state == "ok" else "use fewer --workers: each holds the data, the teacher and a student"
    return Check("memory", state, f"{human(free, 'B')} free", fix)


def folder(name: str, path: Path, fix: str) -> Check:
    """Return whether a folder takes files and databases, and how much space is left there."""
    place = path.expanduser().absolute()
    there = next(each for each in (place, *place.parents) if each.exists())
    try:
        with (
            tempfile.TemporaryDirectory(dir=there, prefix=".autocompress-") as aside,
            closing(sqlite3.connect(Path(aside) / "trial.db")) as store,
        ):
            store.execute("PRAGMA journal_mode=WAL")
            store.execute("CREATE TABLE works (yes INTEGER)")
            store.commit()
    except (OSError, sqlite3.Error) as fault:
        return Check(name, "broken", f"{place} cannot be written ({fault})", fix)
    free = shutil.disk_usage(there).free
    told = f"{place}, {human(free, 'B')} free"
    if free < NO_SPACE:
        return Check(name, "broken", told, f"free some space, or {fix}")
    return Check(name, "ok" if free >= SCANT_SPACE else "scant", told, "" if free >= SCANT_SPACE else "free some space")


def _tried(name: str, works: Callable[[], str], fix: str) -> Check:
    try:
        return Check(name, "ok", works())
    except Exception as fault:  # A broken library may fail in any way; that is what is looked for.
        return Check(name, "broken", f"{type(fault).__name__}: {fault}", fix)


def _memory_free() -> float | None:
    free = []
    try:
        with open("/proc/meminfo") as lines:
            free += [float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
        free += [float(limit) - float(used)] if limit != "max" else []
    except (OSError, ValueError):
        pass
    return min(free) if free else None
