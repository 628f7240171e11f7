"""A search with mock trials into which faults are injected; driver, sampler, store, workers and files are real."""

import os
import signal
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from autocompress.core.records import TrialResult
from autocompress.core.run_info import ObjectiveSpec, RunInfo
from benchmarks.mock_trials import MockEvaluator, mock_result

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
#: Points at which a driver is killed: module, function, and whether after (True) or before its call (False).
CREATION = "while the store is created"
POINTS = {
    CREATION: ("store.run_store", "open_database", True),
    "before a job is recorded": ("store.run_store", "RunStore.add_job", False),
    "after a job was recorded": ("store.run_store", "RunStore.add_job", True),
    "after a trial was sent to its next rung": ("store.run_store", "RunStore.continue_job", True),
    "before a result is stored": ("store.run_store", "RunStore.record_result", False),
    "after the files of a result, before its rows": ("store.run_store", "write_atomic", True),
    "among the rows of a result": ("store.run_store", "candidate_row", False),
    "after a result was stored, before the sampler knows": ("store.run_store", "RunStore.record_result", True),
    "after the sampler was told": ("engine.sampler.optuna", "OptunaSampler.tell", True),
    "after a trial was stopped early": ("store.run_store", "RunStore.stop_trials", True),
}

TRIALS_QUERY = "SELECT number, state, config FROM ac_trials WHERE base IS NULL"


@dataclass(frozen=True)
class FaultResult:
    """Result of one row.

    Attributes:
        expected: Requirement of the row.
        measured: Measured result.
        passed: Whether the result meets the requirement.
    """

    expected: str
    measured: str
    passed: bool


def drive(folder: Path, trials: int, workers: int, evaluator: MockEvaluator, *overrides: str) -> bool:
    """Start or resume a search in this process, and return whether all of its trials failed."""
    from autocompress.backends.local import Local
    from autocompress.engine.driver import Driver
    from autocompress.engine.sampler.optuna import OptunaSampler
    from autocompress.engine.space import open_space
    from autocompress.engine.spec import parse_spec
    from autocompress.store.run_store import DATABASE, RunStore

    started, waited = time.monotonic(), read_processor_wait()
    source = parse_spec(SPEC, "x", [f"search.trials={trials}", "search.seed=3", *overrides])
    search = source.spec.search
    store = RunStore.open(folder) if (folder / DATABASE).exists() else RunStore.create(folder, RunInfo(name="x"))
    names, directions = ["accuracy", "log10 cost"], ["maximize", "minimize"]
    proposer = OptunaSampler(store, "x", search.sampler, search.seed, directions, names)  # type: ignore[arg-type]
    driver = Driver(store, open_space(source), search, proposer, OBJECTIVES, {})
    first = driver.ask()
    if first is not None:
        # At the end of a search Optuna's tables are written, which imports another library; that is no restart delay.
        with (folder / "stalls").open("a") as stalls:
            stalls.write(f"{time.monotonic() - started} {read_processor_wait() - waited}\n")
    waiting = [first]
    try:
        Local(workers).run(lambda: waiting.pop() if waiting else driver.ask(), evaluator, driver.tell)
    finally:
        driver.close()
        store.close()
    return driver.has_only_failed_trials


def read_processor_wait() -> float:
    """Return the seconds that this thread was ready to run while other threads had the processors; 0 if unknown."""
    with suppress(OSError, IndexError):
        # Nanoseconds on a processor, nanoseconds in its queue, and time slices.
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def search_in_process(folder: Path, trials: int) -> Iterator[TrialResult]:
    """Search with mock trials and random proposals, without workers; yield each result once it is stored."""
    from autocompress.engine.driver import Driver
    from autocompress.engine.sampler.optuna import OptunaSampler
    from autocompress.engine.space import open_space
    from autocompress.engine.spec import parse_spec
    from autocompress.store.run_store import RunStore

    source = parse_spec(SPEC, "x", [f"search.trials={trials}", "search.sampler=random"])
    store = RunStore.create(folder, RunInfo(name="x"))
    sampler = OptunaSampler(store, "x", "random", 0, ["maximize", "minimize"], ["accuracy", "cost"])
    driver = Driver(store, open_space(source), source.spec.search, sampler, OBJECTIVES, {})
    while (job := driver.ask()) is not None:
        result = mock_result(job)
        driver.tell(job, result)
        yield result
    store.close()


@contextmanager
def driver_process(inject: Callable[[], None], *arguments: Any) -> Iterator[int]:
    """Run :func:`drive` in a forked process, which does not have to import torch and optuna again."""
    import_driver()
    process = fork_process()
    if not process:
        code = 1
        try:
            use_light_workers()
            inject()
            drive(*arguments)
            code = 0
        finally:
            os._exit(code)
    yield process
    with suppress(ChildProcessError):
        os.waitpid(process, 0)


def import_driver() -> None:
    """Import what a search with mock trials needs, so that forked processes do not have to."""
    for name in ("engine.driver", "engine.sampler.optuna", "engine.space", "store.run_store", "backends.local"):
        import_module(f"autocompress.{name}")


def fork_process() -> int:
    """Fork this process; return 0 in the child, its process id in the parent."""
    with warnings.catch_warnings():
        # The warning concerns processes with threads; those of a test runner hold no lock that the child needs.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def use_light_workers() -> None:
    """Let the workers of this process import what mock trials need, which takes a tenth of the time of torch."""
    from autocompress.backends import workers

    workers.PRELOAD = "benchmarks.mock_trials"


def inject_nothing() -> None:
    """Inject no fault."""


def list_lasting_processes(file: str, text: str, seconds: float = 10) -> list[str]:
    """Return the processes that still have a text in a file of theirs in /proc after some seconds.

    Each is described by its state, its parent, its processor time in ticks, and its command.
    """
    end = time.monotonic() + seconds
    while (commands := _list_processes(file, text.encode())) and time.monotonic() < end:
        time.sleep(0.2)
    return commands


def _list_processes(file: str, text: bytes) -> list[str]:
    commands = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            # This process itself may have the text in its command line.
            if folder.name.isdigit() and int(folder.name) != os.getpid() and text in (folder / file).read_bytes():
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                commands.append(f"{fields[0]}, parent {fields[1]}, {fields[11]} + {fields[12]} ticks: {command}")
    return commands


def build_kill(point: str, count: int) -> Callable[[], None]:
    """Return a function that makes its process kill itself at the ``count``-th call of a named point."""

    def inject() -> None:
        module, name, after = POINTS[point]
        owner: Any = import_module(f"autocompress.{module}")
        *outer, name = name.split(".")
        for part in outer:
            owner = getattr(owner, part)
        original, passages = getattr(owner, name), 0

        def kill_at_passage(*arguments: Any, **keywords: Any) -> Any:
            nonlocal passages
            passages += 1
            if passages == count and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*arguments, **keywords)
            if passages == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, kill_at_passage)

    return inject


def query_store(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query on the store of a run, none where the store does not exist."""
    if not (folder / "study.db").exists():
        return []
    connection = sqlite3.connect(folder / "study.db", timeout=30)
    try:
        return connection.execute(query).fetchall()
    except sqlite3.OperationalError:
        return []  # The driver was killed before it created the tables.
    finally:
        connection.close()


# Trials with a result, with another number of candidates than recipes: at the end, or at the rung where they pause.
PARTIAL_QUERY = """
SELECT number FROM ac_trials t WHERE state IN ('complete', 'paused') AND json_array_length(cuts) !=
    (SELECT count(*) FROM ac_candidates c WHERE c.trial = t.number AND c.complete = (t.state = 'complete')
        AND (c.complete OR c.epochs = t.until))
"""
CANDIDATES_QUERY = "SELECT id, config, scores, costs, checkpoint FROM ac_candidates"
