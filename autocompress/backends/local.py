"""Backends on this machine: worker processes, and the same in this process for debugging."""

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from autocompress.backends.base import NO_LIMITS, Ahead, Ask, Evaluate, Tell, TrialLimits, nothing_ahead
from autocompress.backends.workers import Crew
from autocompress.core.registry import BACKENDS
from autocompress.errors import UsageError


def usable_cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@BACKENDS.register("serial")
class Serial:
    """Runs each job in this process: breakpoints work, nothing runs side by side, and no limit is kept."""

    name = "serial"
    elsewhere = False
    libraries: tuple[str, ...] = ()

    def __init__(self, workers: int = 1, limits: TrialLimits = NO_LIMITS) -> None:
        self.workers = 1

    def warm(self) -> None:
        """Start nothing."""

    def cool(self) -> None:
        """End nothing."""

    def opened(self, folder: Path | None = None) -> AbstractContextManager[None]:
        """Ready nothing."""
        return nullcontext()

    def ready(self, evaluate: Evaluate) -> None:
        """Ready nothing: there is one process, and its caller needs it."""

    def run(self, ask: Ask, evaluate: Evaluate, tell: Tell, ahead: Ahead = nothing_ahead) -> None:
        """Ask, evaluate and tell, one job after the other."""
        evaluate.prepare()
        while (job := ask()) is not None:
            tell(job, evaluate(job))


@BACKENDS.register("local")
class Local:
    """Worker processes on this machine, each with one torch thread.

    A job that exceeds a limit fails alone. One whose worker dies is run once more, and fails if that dies too.

    Args:
        workers: Number of processes; 0 takes one per core.
        limits: What one job may take.

    Raises:
        UsageError: Memory is limited on a system that does not keep such a limit.
    """

    name = "local"
    elsewhere = False
    libraries: tuple[str, ...] = ()

    def __init__(self, workers: int = 0, limits: TrialLimits = NO_LIMITS) -> None:
        if limits.memory is not None and sys.platform != "linux":
            raise UsageError("search.memory needs Linux: this system keeps no such limit; leave it out")
        self.workers = workers or usable_cores()
        self.limits = limits
        self._crew: Crew | None = None

    def warm(self) -> None:
        """Start the workers, if they were not: they import torch while data and teacher are loaded."""
        if self._crew is None:
            self._crew = Crew(self.workers, self.limits)
            self._crew.warm()
            # Python waits for its children as it ends, and they would wait for it.
            atexit.register(self._crew.kill)

    def cool(self) -> None:
        """End the workers."""
        if self._crew is not None:
            self._crew.kill()
            atexit.unregister(self._crew.kill)
            self._crew = None

    @contextmanager
    def opened(self, folder: Path | None = None) -> Iterator[None]:
        """Start the workers, and end them."""
        self.warm()
        try:
            yield
        finally:
            self.cool()

    def ready(self, evaluate: Evaluate) -> None:
        """Let the workers load what they need, if they were started."""
        if self._crew is not None:
            self._crew.ready(evaluate)

    def run(self, ask: Ask, evaluate: Evaluate, tell: Tell, ahead: Ahead = nothing_ahead) -> None:
        """Keep every worker busy until ``ask`` returns ``None``."""
        crew = self._crew or Crew(self.workers, self.limits)
        crew.ready(evaluate)
        meanwhile = ahead if self.workers < usable_cores() else nothing_ahead
        try:
            while True:
                while crew.jobs < self.workers and (job := ask()) is not None:
                    crew.give(job)
                if not crew.jobs:
                    break
                for job, result in crew.results(meanwhile):
                    tell(job, result)
            crew.close()
        except BaseException:
            crew.kill()
            raise
