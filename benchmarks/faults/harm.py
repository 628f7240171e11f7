"""A search that can be harmed: driver, sampler, store, workers and files are the real ones."""

import os
import signal
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.core.run_info import ObjectiveSpec, RunInfo
from benchmarks.pretend import Pretend

SPEC = """\
task: digits
student: {cnn: {width: {low: 4, high: 64}, depth: [1, 2]}}
distill: {none: {}, soft_target: {temperature: {low: 1, high: 10}}}
quantize: {none: {}, post_training: {weight_bits: [4, 8]}}
"""
OBJECTIVES = [
    ObjectiveSpec("accuracy", "maximize", "", "score", (0.1, 1.0)),
    ObjectiveSpec("effective_flops", "minimize", "FLOPs", "cost", (1e7, 1e2)),
]
#: Where a driver is killed: a function, and whether before or after it has done its work.
POINTS = {
    "before a job is recorded": ("store.run_store", "RunStore.add_job", False),
    "after a job was recorded": ("store.run_store", "RunStore.add_job", True),
    "after a training was sent to its next rung": ("store.run_store", "RunStore.continue_job", True),
    "before a result is stored": ("store.run_store", "RunStore.finish", False),
    "after the files of a result, before its rows": ("store.run_store", "write_atomic", True),
    "among the rows of a result": ("store.run_store", "candidate_row", False),
    "after a result was stored, before the sampler knows": ("store.run_store", "RunStore.finish", True),
    "after the sampler was told": ("engine.sampler", "OptunaSampler.tell", True),
    "after a training was given up": ("store.run_store", "RunStore.stop", True),
}

TRAININGS = "SELECT number, state, config FROM ac_trials WHERE base IS NULL"


@dataclass(frozen=True)
class Figure:
    """What a row came to."""

    wanted: str
    found: str
    held: bool


def drive(folder: Path, trials: int, workers: int, pretend: Pretend, *overrides: str) -> bool:
    """Search, or go on with a search, in this process; return whether nothing but failures came of it."""
    from autocompress.backends.local import Local
    from autocompress.engine.driver import Driver
    from autocompress.engine.sampler.optuna import OptunaSampler
    from autocompress.engine.space import open_space
    from autocompress.engine.spec import parse_spec
    from autocompress.store.run_store import DATABASE, RunStore

    begun = time.monotonic()
    source = parse_spec(SPEC, "x", [f"search.trials={trials}", "search.seed=3", *overrides])
    search = source.spec.search
    study = RunStore.open(folder) if (folder / DATABASE).exists() else RunStore.create(folder, RunInfo(name="x"))
    names, directions = ["accuracy", "log10 cost"], ["maximize", "minimize"]
    proposer = OptunaSampler(study, "x", search.sampler, search.seed, directions, names)  # type: ignore[arg-type]
    driver = Driver(study, open_space(source), search, proposer, OBJECTIVES, {})
    first = driver.ask()
    if first is not None:
        # Where a search is over, Optuna's tables are written, which imports another library; no worker waits for that.
        with (folder / "stalls").open("a") as stalls:
            stalls.write(f"{time.monotonic() - begun}\n")
    waiting = [first]
    try:
        Local(workers).run(lambda: waiting.pop() if waiting else driver.ask(), pretend, driver.tell)
    finally:
        driver.close()
        study.close()
    return driver.has_only_failed_trials


@contextmanager
def driver_process(harm: Callable[[], None], *arguments: Any) -> Iterator[int]:
    """Run :func:`drive` in a process that is forked, so that none waits for torch to be imported."""
    import autocompress.engine.driver  # noqa: F401

    process = forked()
    if not process:
        code = 1
        try:
            harm()
            drive(*arguments)
            code = 0
        finally:
            os._exit(code)
    yield process
    with suppress(ChildProcessError):
        os.waitpid(process, 0)


def forked() -> int:
    """Fork this process; return 0 in the child, its process id in the parent."""
    with warnings.catch_warnings():
        # Of a process with threads: those of a test runner hold nothing that the child needs.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def nothing() -> None:
    """Do no harm."""


def killing(point: str, count: int) -> Callable[[], None]:
    """Return what makes a process kill itself at the ``count``-th passage of a named point."""

    def harm() -> None:
        import importlib

        place, name, after = POINTS[point]
        owner: Any = importlib.import_module(f"autocompress.{place}")
        *outer, name = name.split(".")
        for part in outer:
            owner = getattr(owner, part)
        real, passages = getattr(owner, name), 0

        def harmed(*arguments: Any, **named: Any) -> Any:
            nonlocal passages
            passages += 1
            if passages == count and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            found = real(*arguments, **named)
            if passages == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        setattr(owner, name, harmed)

    return harm


def rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """Return what the store holds."""
    if not (folder / "study.db").exists():
        return []
    connection = sqlite3.connect(folder / "study.db", timeout=30)
    try:
        return connection.execute(query).fetchall()
    except sqlite3.OperationalError:
        return []  # Killed before its tables were there.
    finally:
        connection.close()


CANDIDATES = "SELECT id, config, scores, costs, checkpoint FROM ac_candidates"
