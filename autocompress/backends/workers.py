"""Worker processes, each with its own pipe to the driver.

Workers share nothing, neither a pipe nor a lock: a worker that is killed at any moment, even while it sends a result,
loses its own job only. (Pools whose workers share one pipe block forever when its lock is lost.)
"""

import logging
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
from typing import TypeAlias

from autocompress.backends.base import Evaluate, IdleWork, TrialLimits, skip_idle_work
from autocompress.core.commands import import_safely
from autocompress.core.records import Job, State, TrialResult
from autocompress.errors import UsageError, WorkersError

logger = logging.getLogger(__name__)

# Executions of a job whose worker dies: the system may have killed it for memory that another process took.
EXECUTIONS = 2
# Workers in a row that may end before they are ready.
FAILED_STARTS = 3
# Seconds between two checks of workers that send nothing.
POLL_INTERVAL = 1.0
# Seconds in which an idle worker must exit after it was told to.
EXIT_TIMEOUT = 5.0

READY = "ready"
PRELOAD = "autocompress.backends.preload"
#: Environment variable that tells a fork server the process id of its driver.
DRIVER = "AUTOCOMPRESS_DRIVER"
PROCESS_NAME = "autocompress worker"
#: Pipe, memory limit in bytes, environment variables, logging level and module to import of a worker.
WorkerArguments: TypeAlias = tuple[Connection, int | None, Mapping[str, str], int, str]


class Worker:
    """One process, and the job that it runs.

    Args:
        limits: Time and memory of one job.
        starter: Executor that starts the process: a start waits until the process that workers are forked from has
            imported what they need.
    """

    def __init__(self, limits: TrialLimits, starter: Executor) -> None:
        self.pipe, worker_pipe = multiprocessing.get_context("spawn").Pipe()
        level = logging.getLogger("autocompress").getEffectiveLevel()
        self._arguments: WorkerArguments = worker_pipe, limits.memory, dict(os.environ), level, PRELOAD
        self._start_result = starter.submit(self._start)
        self.is_ready = False
        self.job: Job | None = None
        self.job_start = 0.0
        self._limit = limits.seconds

    def _start(self) -> multiprocessing.process.BaseProcess:
        with self._arguments[0], import_safely():
            if sys.platform == "linux":
                # A driver that was itself forked can neither use its parent's fork server nor start another one.
                with suppress(OSError, EOFError):
                    return _fork_worker(self._arguments)
            process = multiprocessing.get_context("spawn").Process(
                target=_run_worker, args=self._arguments, name=PROCESS_NAME
            )
            process.start()
            return process

    @property
    def process(self) -> multiprocessing.process.BaseProcess:
        """The process; waits until it is started.

        Raises:
            WorkersError: The system starts no process.
        """
        try:
            return self._start_result.result()
        except (OSError, EOFError) as error:
            raise WorkersError(f"the workers do not start: {type(error).__name__}: {error}") from None

    @property
    def deadline(self) -> float:
        """The time, by the monotonic clock, at which the job exceeds its limit."""
        return math.inf if self.job is None or self._limit is None else self.job_start + self._limit

    def assign_job(self, job: Job) -> None:
        """Send a job to the worker."""
        self.job, self.job_start = job, time.monotonic()
        self.send_message(pickle.dumps(job))

    def send_message(self, message: bytes) -> None:
        """Send a message; the end of the process is noticed by the next check."""
        with suppress(OSError):
            self.pipe.send_bytes(message)

    def terminate(self) -> None:
        """Kill the process and all processes that it started, and wait for its end."""
        with suppress(WorkersError):
            if self.process.pid is not None and hasattr(os, "killpg"):
                with suppress(OSError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
            self.process.join()
        self.pipe.close()


def _fork_worker(arguments: WorkerArguments) -> multiprocessing.process.BaseProcess:
    """Start a worker as a fork of a process that has imported what workers need: in milliseconds, not in seconds.

    Python keeps that process, the fork server, for the whole program and ends it with the program.
    """
    context = multiprocessing.get_context("forkserver")
    # Without effect if the caller's program has started a fork server already: workers then import for themselves.
    context.set_forkserver_preload([PRELOAD])
    process = context.Process(target=_run_worker, args=arguments, name=PROCESS_NAME)
    os.environ[DRIVER] = str(os.getpid())
    try:
        process.start()
    finally:
        os.environ.pop(DRIVER, None)
    return process


class WorkerPool:
    """As many workers as there are jobs, up to a largest number; a worker that ends is replaced.

    Args:
        size: Largest number of workers.
        limits: Time and memory of one job.
    """

    def __init__(self, size: int, limits: TrialLimits) -> None:
        self._size = size
        self._evaluate = b""
        self._limits = limits
        self._workers: list[Worker] = []
        self._starter = ThreadPoolExecutor(1, "autocompress starter")
        self._waiting: deque[Job] = deque()
        self._deaths: dict[int, int] = {}
        self._failed_starts = 0

    def start_workers(self) -> None:
        """Begin to start all workers; the caller need not wait for the seconds that this takes."""
        logger.info("starting %d workers", self._size)
        self._workers += [Worker(self._limits, self._starter) for _ in range(self._size)]

    def set_evaluate(self, evaluate: Evaluate) -> None:
        """Send the function that runs jobs to all workers; the same function is sent once."""
        content = pickle.dumps(evaluate)
        if content == self._evaluate:
            return
        self._evaluate = content
        for worker in self._workers:
            worker.send_message(self._evaluate)

    @property
    def job_count(self) -> int:
        """The number of jobs that were submitted and have no result yet."""
        return len(self._waiting) + sum(worker.job is not None for worker in self._workers)

    def submit_job(self, job: Job) -> None:
        """Take a job; an idle worker begins at once."""
        self._waiting.append(job)
        self._assign_jobs()

    def wait_for_results(self, idle_work: IdleWork = skip_idle_work) -> list[tuple[Job, TrialResult]]:
        """Wait for at least one result and return all that have arrived.

        Args:
            idle_work: Function that is called while no result arrives, until no idle work is left.

        Raises:
            WorkersError: No worker starts.
        """
        while True:
            due = min((worker.deadline for worker in self._workers), default=math.inf) - time.monotonic()
            watched: list[Connection | int] = [worker.pipe for worker in self._workers]
            watched += [worker.process.sentinel for worker in self._workers]
            if not wait(watched, timeout=0.0) and not idle_work():
                wait(watched, timeout=min(max(due, 0.0), POLL_INTERVAL))
            results = [result for worker in list(self._workers) for result in self._poll_worker(worker)]
            self._assign_jobs()
            if results:
                return results

    def close(self) -> None:
        """Let idle workers exit."""
        for worker in self._workers:
            worker.send_message(pickle.dumps(None))
        for worker in self._workers:
            worker.process.join(EXIT_TIMEOUT)
            worker.terminate()
        self._workers.clear()

    def kill_workers(self) -> None:
        """Kill every worker, busy or not."""
        for worker in self._workers:
            worker.terminate()
        self._workers.clear()

    def _assign_jobs(self) -> None:
        for _ in range(min(self._size, self.job_count) - len(self._workers)):
            self._workers.append(Worker(self._limits, self._starter))
            self._workers[-1].send_message(self._evaluate)
        for worker in self._workers:
            if self._waiting and worker.is_ready and worker.job is None:
                worker.assign_job(self._waiting.popleft())

    def _poll_worker(self, worker: Worker) -> list[tuple[Job, TrialResult]]:
        """Return the result that a worker has sent, or a failure if it died or its job exceeded the time limit."""
        is_dead = not worker.process.is_alive()
        try:
            if worker.pipe.poll():
                return self._read_message(worker, worker.pipe.recv_bytes())
        except (EOFError, OSError):
            is_dead = True
        if is_dead:
            return self._handle_death(worker)
        if time.monotonic() < worker.deadline:
            return []
        assert worker.job is not None
        job, seconds = worker.job, time.monotonic() - worker.job_start
        self._remove_worker(worker)
        logger.warning("trial %d timed out after %.3g s; its worker was killed", job.number, seconds)
        return [(job, make_failed_result(job, f"timed out after {self._limits.seconds:g} s", seconds))]

    def _read_message(self, worker: Worker, content: bytes) -> list[tuple[Job, TrialResult]]:
        job, worker.job = worker.job, None
        if job is not None:
            try:
                return [(job, pickle.loads(content))]
            except Exception as error:  # Results with the user's own classes may raise anything.
                return [(job, make_failed_result(job, f"its result cannot be read ({type(error).__name__}: {error})"))]
        message = pickle.loads(content)
        if message != READY:
            raise WorkersError(f"the workers do not start: {message}")
        worker.is_ready, self._failed_starts = True, 0
        logger.info("worker %s is ready", worker.process.pid)
        return []

    def _handle_death(self, worker: Worker) -> list[tuple[Job, TrialResult]]:
        """Return the failure of a dead worker's job, or nothing if the job is to run once more."""
        job, seconds = worker.job, time.monotonic() - worker.job_start
        self._remove_worker(worker)
        reason = describe_exit(worker.process.exitcode)
        if job is None:
            self._failed_starts += not worker.is_ready
            logger.warning("worker %s ended without a job: %s", worker.process.pid, reason)
            if self._failed_starts >= FAILED_STARTS:
                raise WorkersError(
                    f"the workers do not start ({reason}); a script must call search under "
                    '`if __name__ == "__main__":`; otherwise see the messages of the workers above'
                )
            return []
        logger.warning("worker %s died during trial %d: %s", worker.process.pid, job.number, reason)
        deaths = self._deaths[job.number] = self._deaths.get(job.number, 0) + 1
        if deaths < EXECUTIONS:
            self._waiting.appendleft(job)
            return []
        return [(job, make_failed_result(job, f"its worker died {deaths} times ({reason})", seconds))]

    def _remove_worker(self, worker: Worker) -> None:
        worker.terminate()
        self._workers.remove(worker)


def make_failed_result(job: Job, reason: str, seconds: float = 0.0) -> TrialResult:
    """Return the result of a job that failed without one of its own."""
    return TrialResult(job.number, State.FAILED, reason=reason, seconds=seconds)


def describe_exit(code: int | None) -> str:
    """Return the reason of a process's end.

    Args:
        code: Exit code; negative for the number of a signal, ``None`` if unknown.

    Example:
        >>> describe_exit(1), describe_exit(-15)
        ('exit code 1', 'killed by SIGTERM')
    """
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"


# -- in the worker ----------------------------------------------------------------------------


def _run_worker(pipe: Connection, memory: int | None, environment: Mapping[str, str], level: int, preload: str) -> None:
    """Run jobs until the driver has none or ends."""
    # The fork server may be older than the driver's present environment.
    os.environ.clear()
    os.environ.update(environment)
    _isolate_process()
    _configure_logging(level)
    import_module(preload)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # The driver ended.
        _serve_jobs(pipe, memory)


def _serve_jobs(pipe: Connection, memory: int | None) -> None:
    content = pipe.recv_bytes()
    try:
        evaluate: Evaluate = pickle.loads(content)
        evaluate.prepare()
        if memory is not None:
            limit_memory(memory)
    except Exception as error:  # The driver reports whatever the user's task raises.
        name = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
        pipe.send_bytes(pickle.dumps(f"{name}{error}"))
        return
    pipe.send_bytes(pickle.dumps(READY))
    while (job := pickle.loads(pipe.recv_bytes())) is not None:
        pipe.send_bytes(_evaluate_job(evaluate, job))


def _evaluate_job(evaluate: Evaluate, job: Job) -> bytes:
    try:
        return pickle.dumps(evaluate(job), protocol=pickle.HIGHEST_PROTOCOL)
    except MemoryError:
        return pickle.dumps(make_failed_result(job, "out of memory"))
    except Exception as error:  # A fault of the user's code fails this job alone.
        return pickle.dumps(make_failed_result(job, f"{type(error).__name__}: {error}"))


def _isolate_process() -> None:
    """Ignore signals that the driver handles, and end when the driver ends."""
    # Ctrl-C and a scheduler's stop signal reach every process; the driver decides about its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        # Processes that the worker starts belong to its group and are killed with it.
        os.setpgid(0, 0)
    threading.Thread(target=_exit_with_driver, daemon=True).start()


def _configure_logging(level: int) -> None:
    """Write the log records of this process to standard error, which it shares with the driver."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("worker %(process)d: %(levelname)s: %(name)s: %(message)s"))
    package = logging.getLogger("autocompress")
    package.handlers = [handler]
    package.setLevel(level)
    package.propagate = False


def _exit_with_driver() -> None:
    """End this process when the driver ends: no process is left to take the result, and a trial may take an hour."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    if hasattr(os, "killpg"):
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def limit_memory(memory: int) -> None:
    """Let allocations beyond a limit fail, so that a trial that needs more memory fails alone.

    The limit is on private writable memory (``RLIMIT_DATA``). A limit on address space would count the libraries that
    torch maps, and Linux enforces none on resident memory. Killing a worker from outside would cost a new start.

    Args:
        memory: Largest number of bytes, those of the running process included.

    Raises:
        UsageError: The process uses more than that before its first trial.
    """
    import resource

    used = memory_in_use()
    if used >= memory:
        raise UsageError(
            f"search.memory of {memory / 2**20:,.0f} MiB is too little: a worker has {used / 2**20:,.0f} MiB in use "
            "before its first trial"
        )
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def memory_in_use() -> int:
    """Return the bytes of this process that count against its limit."""
    with open("/proc/self/status") as lines:
        kilobytes = next(line.split()[1] for line in lines if line.startswith("VmData"))
    return int(kilobytes) * 1024
