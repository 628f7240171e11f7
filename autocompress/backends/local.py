"""Backends on this machine: worker processes, and the same in this process for debugging."""

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autocompress.backends.base import (
    NO_LIMITS,
    Ask,
    Backend,
    Evaluate,
    IdleWork,
    Tell,
    TrialLimits,
    skip_idle_work,
)
from autocompress.backends.workers import WorkerPool
from autocompress.core.registry import BACKENDS, WorkerPlugins
from autocompress.errors import UsageError


def usable_cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@BACKENDS.register("serial")
class Serial(Backend):
    """Runs each job in this process: breakpoints work, jobs run one after the other, and limits are not enforced."""

    name = "serial"

    def __init__(self, workers: int = 1, limits: TrialLimits = NO_LIMITS) -> None:
        self.workers = 1

    def collect_plugins(self, task: str) -> WorkerPlugins:
        """Return nothing: this process has the plugins and the task, whose objects need not be picklable."""
        return WorkerPlugins()

    def run(self, ask: Ask, evaluate: Evaluate, tell: Tell, idle_work: IdleWork = skip_idle_work) -> None:
        """Ask, evaluate and tell, one job after the other."""
        evaluate.prepare()
        while (job := ask()) is not None:
            tell(job, evaluate(job))


@BACKENDS.register("local")
class Local(Backend):
    """Worker processes on this machine, each with one torch thread.

    A job that exceeds a limit fails alone. A job whose worker dies runs once more, and fails if that worker dies too.

    Args:
        workers: Number of processes; 0 takes one per core.
        limits: Time and memory of one job.

    Raises:
        UsageError: Memory is limited on a system that cannot enforce it.
    """

    name = "local"

    def __init__(self, workers: int = 0, limits: TrialLimits = NO_LIMITS) -> None:
        if limits.memory is not None and sys.platform != "linux":
            raise UsageError("search.memory needs Linux: this system cannot enforce it; leave it out")
        self.workers = workers or usable_cores()
        self.limits = limits
        self._pool: WorkerPool | None = None

    def prewarm(self) -> None:
        """Start the workers, if they are not started: they import torch while data and teacher are loaded."""
        if self._pool is None:
            self._pool = WorkerPool(self.workers, self.limits)
            self._pool.start_workers()
            # Python waits for its child processes when it ends, and the workers wait for their driver to end.
            atexit.register(self._pool.kill_workers)

    def shutdown(self) -> None:
        """Kill the workers."""
        if self._pool is not None:
            self._pool.kill_workers()
            atexit.unregister(self._pool.kill_workers)
            self._pool = None

    @contextmanager
    def open(self, folder: Path | None = None) -> Iterator[None]:
        """Start the workers, and end them."""
        self.prewarm()
        try:
            yield
        finally:
            self.shutdown()

    def prepare(self, evaluate: Evaluate) -> None:
        """Let the workers load what ``evaluate`` needs, if they are started."""
        if self._pool is not None:
            self._pool.set_evaluate(evaluate)

    def run(self, ask: Ask, evaluate: Evaluate, tell: Tell, idle_work: IdleWork = skip_idle_work) -> None:
        """Keep every worker busy until ``ask`` returns ``None``."""
        pool = self._pool or WorkerPool(self.workers, self.limits)
        pool.set_evaluate(evaluate)
        # With a worker on every core, idle work of the driver would slow down a training.
        while_waiting = idle_work if self.workers < usable_cores() else skip_idle_work
        try:
            while True:
                while pool.job_count < self.workers and (job := ask()) is not None:
                    pool.submit_job(job)
                if not pool.job_count:
                    break
                for job, result in pool.wait_for_results(while_waiting):
                    tell(job, result)
            pool.close()
        except BaseException:
            pool.kill_workers()
            raise
