"""Backends on this machine: a pool of worker processes, and the same in this process for debugging."""

import multiprocessing
import os
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, TimeoutError, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from pebble import ProcessExpired, ProcessPool

from autocompress.backends.base import Ask, Evaluate, Tell
from autocompress.records import Job, State, TrialResult
from autocompress.registry import BACKENDS

# Seconds between two looks at whether the driver lives.
ORPHANED = 1.0

# Loaded by the pool's initializer, once per worker, so that a job carries only itself.
_evaluate: Evaluate | None = None


def usable_cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@BACKENDS.register("serial")
class Serial:
    """Runs each job in this process: breakpoints work, and nothing runs side by side."""

    name = "serial"
    elsewhere = False

    def __init__(self, workers: int = 1, timeout: float | None = None) -> None:
        self.workers = 1

    def opened(self, folder: Path | None = None) -> AbstractContextManager[None]:
        """Ready nothing."""
        return nullcontext()

    def run(self, ask: Ask, evaluate: Evaluate, tell: Tell) -> None:
        """Ask, evaluate and tell, one job after the other."""
        evaluate.prepare()
        while (job := ask()) is not None:
            tell(job, evaluate(job))


@BACKENDS.register("local")
class Local:
    """A pool of worker processes on this machine, each with one torch thread.

    A worker that dies or exceeds the time limit fails its job alone, and is replaced.

    Args:
        workers: Number of processes; 0 takes one per core.
        timeout: Seconds that one job may take; ``None`` for no limit.
    """

    name = "local"
    elsewhere = False

    def __init__(self, workers: int = 0, timeout: float | None = None) -> None:
        self.workers = workers or usable_cores()
        self.timeout = timeout

    def opened(self, folder: Path | None = None) -> AbstractContextManager[None]:
        """Ready nothing: the pool is made for each run."""
        return nullcontext()

    def run(self, ask: Ask, evaluate: Evaluate, tell: Tell) -> None:
        """Keep every worker busy until ``ask`` returns ``None``."""
        pool = ProcessPool(
            self.workers, initializer=_prepare, initargs=(evaluate,), context=multiprocessing.get_context("spawn")
        )
        running: dict[Future[TrialResult], Job] = {}
        try:
            while True:
                while len(running) < self.workers and (job := ask()) is not None:
                    running[pool.schedule(_run, args=(job,), timeout=self.timeout)] = job
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    job = running.pop(future)
                    tell(job, self._outcome(job, future))
            pool.close()
        except BaseException:
            pool.stop()
            raise
        finally:
            pool.join()

    def _outcome(self, job: Job, future: "Future[TrialResult]") -> TrialResult:
        try:
            return future.result()
        except TimeoutError:
            return TrialResult(job.number, State.FAILED, reason=f"timed out after {self.timeout:g} s")
        except ProcessExpired as death:
            return TrialResult(job.number, State.FAILED, reason=f"its worker died (exit code {death.exitcode})")
        except BrokenProcessPool:
            reason = 'its workers did not start; a script must call search under `if __name__ == "__main__":`'
            return TrialResult(job.number, State.FAILED, reason=reason)
        except Exception as error:  # Whatever a worker raises is that trial's fault, told as such.
            return TrialResult(job.number, State.FAILED, reason=f"{type(error).__name__}: {error}")


def _prepare(evaluate: Evaluate) -> None:
    global _evaluate
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    evaluate.prepare()
    _evaluate = evaluate


def _leave_with(parent: int) -> None:
    """End this process when the driver is gone: nobody is left to tell, and a training may take an hour."""
    while os.getppid() == parent:
        time.sleep(ORPHANED)
    os._exit(1)


def _run(job: Job) -> TrialResult:
    if _evaluate is None:
        raise RuntimeError("the worker was not prepared")
    return _evaluate(job)
