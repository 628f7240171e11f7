"""Worker processes, each with a pipe of its own to the driver.

Nothing is shared between workers, neither a pipe nor a lock, so one that is killed at any instant, in the middle of
sending a result too, takes nothing along but its own job. (Pools that share one pipe wait for ever for its lock.)
"""

import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection, wait
from typing import Any

from autocompress.backends.base import Ahead, Evaluate, TrialLimits, nothing_ahead
from autocompress.core.records import Job, State, TrialResult
from autocompress.errors import UsageError, WorkersError

# Executions of a job whose worker dies: the system may have killed it for what another process took.
EXECUTIONS = 2
# Workers in a row that end before they are ready.
STARTS = 3
# Seconds between two looks at workers that say nothing.
LOOK = 1.0
# Seconds that an idle worker may take to leave.
LEAVE = 5.0

READY = "ready"
PRELOAD = "autocompress.backends.preload"
NAME = "autocompress worker"


class Worker:
    """One process, and the job that it has.

    Args:
        limits: What a job may take.
        starter: Where it is started: that waits for what workers are copied from, which imports all they need.
    """

    def __init__(self, limits: TrialLimits, starter: Executor) -> None:
        self.pipe, theirs = multiprocessing.get_context("spawn").Pipe()
        self._arguments = theirs, limits.memory, dict(os.environ)
        self._started = starter.submit(self._start)
        self.ready = False
        self.job: Job | None = None
        self.since = 0.0
        self._limit = limits.seconds

    def _start(self) -> multiprocessing.process.BaseProcess:
        with self._arguments[0]:
            if sys.platform == "linux":
                # One that was itself forked cannot use what its parent forks from, nor start another.
                with suppress(OSError, EOFError):
                    return _copied(self._arguments)
            process = multiprocessing.get_context("spawn").Process(target=_work, args=self._arguments, name=NAME)
            process.start()
            return process

    @property
    def process(self) -> multiprocessing.process.BaseProcess:
        """Its process, as soon as that is there.

        Raises:
            WorkersError: The system starts none.
        """
        try:
            return self._started.result()
        except (OSError, EOFError) as error:
            raise WorkersError(f"the workers do not start: {type(error).__name__}: {error}") from None

    @property
    def deadline(self) -> float:
        """When its job is late, by the monotonic clock."""
        return math.inf if self.job is None or self._limit is None else self.since + self._limit

    def begin(self, job: Job) -> None:
        """Hand over a job."""
        self.job, self.since = job, time.monotonic()
        self.send(pickle.dumps(job))

    def send(self, message: bytes) -> None:
        """Send, unless the process is gone: that is seen by whoever looks at it next."""
        with suppress(OSError):
            self.pipe.send_bytes(message)

    def end(self) -> None:
        """Kill the process with all that it started, if it is still there, and wait until it is gone."""
        with suppress(WorkersError):
            if self.process.pid is not None and hasattr(os, "killpg"):
                with suppress(OSError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
            self.process.join()
        self.pipe.close()


def _copied(arguments: tuple[Any, ...]) -> multiprocessing.process.BaseProcess:
    """Start a process as a copy of one that has imported what workers need: in milliseconds, not in seconds.

    Python keeps that one for all processes that a program forks so, and ends it with the program.
    """
    context = multiprocessing.get_context("forkserver")
    # Of no effect where the caller has started it for purposes of its own: workers import for themselves then.
    context.set_forkserver_preload([PRELOAD])
    process = context.Process(target=_work, args=arguments, name=NAME)
    process.start()
    return process


class Crew:
    """As many workers as there are jobs, up to a number; those that end are replaced.

    Args:
        size: Workers at most.
        limits: What a job may take.
    """

    def __init__(self, size: int, limits: TrialLimits) -> None:
        self._size = size
        self._evaluate = b""
        self._limits = limits
        self._workers: list[Worker] = []
        self._starter = ThreadPoolExecutor(1, "autocompress starter")
        self._waiting: deque[Job] = deque()
        self._deaths: dict[int, int] = {}
        self._unready = 0

    def warm(self) -> None:
        """Begin to start all workers, which takes seconds that the caller has other uses for."""
        self._workers += [Worker(self._limits, self._starter) for _ in range(self._size)]

    def ready(self, evaluate: Evaluate) -> None:
        """Say what runs a job; saying it again changes nothing."""
        content = pickle.dumps(evaluate)
        if content == self._evaluate:
            return
        self._evaluate = content
        for worker in self._workers:
            worker.send(self._evaluate)

    @property
    def jobs(self) -> int:
        """How many jobs were given and have not come back."""
        return len(self._waiting) + sum(worker.job is not None for worker in self._workers)

    def give(self, job: Job) -> None:
        """Take a job; a worker that is idle begins at once."""
        self._waiting.append(job)
        self._assign()

    def results(self, meanwhile: Ahead = nothing_ahead) -> list[tuple[Job, TrialResult]]:
        """Wait for results, at least one.

        Args:
            meanwhile: Called while nothing arrives, until it has nothing left to do.

        Raises:
            WorkersError: No worker starts.
        """
        while True:
            due = min((worker.deadline for worker in self._workers), default=math.inf) - time.monotonic()
            watched: list[Any] = [worker.pipe for worker in self._workers]
            watched += [worker.process.sentinel for worker in self._workers]
            if not wait(watched, timeout=0.0) and not meanwhile():
                wait(watched, timeout=min(max(due, 0.0), LOOK))
            found = [outcome for worker in list(self._workers) for outcome in self._looked_at(worker)]
            self._assign()
            if found:
                return found

    def close(self) -> None:
        """Let idle workers leave."""
        for worker in self._workers:
            worker.send(pickle.dumps(None))
        for worker in self._workers:
            worker.process.join(LEAVE)
            worker.end()
        self._workers.clear()

    def kill(self) -> None:
        """End every worker, whatever it does."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def _assign(self) -> None:
        for _ in range(min(self._size, self.jobs) - len(self._workers)):
            self._workers.append(Worker(self._limits, self._starter))
            self._workers[-1].send(self._evaluate)
        for worker in self._workers:
            if self._waiting and worker.ready and worker.job is None:
                worker.begin(self._waiting.popleft())

    def _looked_at(self, worker: Worker) -> list[tuple[Job, TrialResult]]:
        """Return what a worker has sent, or what became of its job without it."""
        gone = not worker.process.is_alive()
        try:
            if worker.pipe.poll():
                return self._read(worker, worker.pipe.recv_bytes())
        except (EOFError, OSError):
            gone = True
        if gone:
            return self._lost(worker)
        if time.monotonic() < worker.deadline:
            return []
        assert worker.job is not None
        job, took = worker.job, time.monotonic() - worker.since
        self._remove(worker)
        return [(job, failed(job, f"timed out after {self._limits.seconds:g} s", took))]

    def _read(self, worker: Worker, content: bytes) -> list[tuple[Job, TrialResult]]:
        job, worker.job = worker.job, None
        if job is not None:
            try:
                return [(job, pickle.loads(content))]
            except Exception as error:  # A result of the user's own classes may refuse in any way.
                return [(job, failed(job, f"its result cannot be read ({type(error).__name__}: {error})"))]
        message = pickle.loads(content)
        if message != READY:
            raise WorkersError(f"the workers do not start: {message}")
        worker.ready, self._unready = True, 0
        return []

    def _lost(self, worker: Worker) -> list[tuple[Job, TrialResult]]:
        job, took = worker.job, time.monotonic() - worker.since
        self._remove(worker)
        how = _said(worker.process.exitcode)
        if job is None:
            self._unready += not worker.ready
            if self._unready >= STARTS:
                raise WorkersError(
                    f"the workers do not start ({how}); a script must call search under "
                    '`if __name__ == "__main__":`, else see above for what they say'
                )
            return []
        deaths = self._deaths[job.number] = self._deaths.get(job.number, 0) + 1
        if deaths < EXECUTIONS:
            self._waiting.appendleft(job)
            return []
        return [(job, failed(job, f"its worker died {deaths} times ({how})", took))]

    def _remove(self, worker: Worker) -> None:
        worker.end()
        self._workers.remove(worker)


def failed(job: Job, reason: str, seconds: float = 0.0) -> TrialResult:
    """Return what becomes of a job that brought nothing."""
    return TrialResult(job.number, State.FAILED, reason=reason, seconds=seconds)


def _said(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"


# -- in the worker ----------------------------------------------------------------------------


def _work(pipe: Connection, memory: int | None, environment: Mapping[str, str]) -> None:
    """Run jobs until the driver has none, or is gone."""
    # What it was copied from may be older than what the driver has set since.
    os.environ.clear()
    os.environ.update(environment)
    _stand_alone()
    import_module(PRELOAD)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # The driver is gone.
        _serve(pipe, memory)


def _serve(pipe: Connection, memory: int | None) -> None:
    content = pipe.recv_bytes()
    try:
        evaluate: Evaluate = pickle.loads(content)
        evaluate.prepare()
        if memory is not None:
            confine(memory)
    except Exception as error:  # Whatever the user's task raises, the driver says.
        name = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
        pipe.send_bytes(pickle.dumps(f"{name}{error}"))
        return
    pipe.send_bytes(pickle.dumps(READY))
    while (job := pickle.loads(pipe.recv_bytes())) is not None:
        pipe.send_bytes(_answer(evaluate, job))


def _answer(evaluate: Evaluate, job: Job) -> bytes:
    try:
        return pickle.dumps(evaluate(job), protocol=pickle.HIGHEST_PROTOCOL)
    except MemoryError:
        return pickle.dumps(failed(job, "out of memory"))
    except Exception as error:  # Whatever a job raises is that job's fault, told as such.
        return pickle.dumps(failed(job, f"{type(error).__name__}: {error}"))


def _stand_alone() -> None:
    """Leave signals to the driver, and leave with it."""
    # Ctrl-C and a stop of the whole job reach every process; what becomes of the workers, the driver decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        # In a group of its own, what the worker starts can be ended with it.
        os.setpgid(0, 0)
    threading.Thread(target=_leave_with_driver, daemon=True).start()


def _leave_with_driver() -> None:
    """End this process when the driver is gone: nobody is left to tell, and a training may take an hour."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    if hasattr(os, "killpg"):
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def confine(memory: int) -> None:
    """Let allocations beyond ``memory`` bytes fail, so that a trial that wants more is told so, and nothing else ends.

    The limit is that on private writable memory (``RLIMIT_DATA``): on address space it would count the libraries that
    torch maps, and on resident memory Linux has none. A watcher that kills would lose the worker and, with it, the
    seconds of a start.
    """
    import resource

    needed = memory_in_use()
    if needed >= memory:
        raise UsageError(
            f"search.memory of {memory / 2**20:,.0f} MiB is too little: a worker has {needed / 2**20:,.0f} MiB in use "
            "before its first trial"
        )
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def memory_in_use() -> int:
    """Return the bytes of this process that count against its limit."""
    with open("/proc/self/status") as lines:
        kilobytes = next(line.split()[1] for line in lines if line.startswith("VmData"))
    return int(kilobytes) * 1024
