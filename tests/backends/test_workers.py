"""Worker processes without starting one: exit reasons, failed results, deadlines, memory limits and a pool's queue."""

import math
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, Future

import pytest

from autocompress.backends import workers
from autocompress.backends.base import TrialLimits
from autocompress.backends.workers import (
    Worker,
    WorkerPool,
    describe_exit,
    limit_memory,
    make_failed_result,
    memory_in_use,
)
from autocompress.core.records import State
from autocompress.errors import UsageError, WorkersError
from tests.backends.test_local import jobs


class FailingStarter(Executor):
    """Starts no process: each start fails as on a system without free processes."""

    def submit(self, *args: object, **keywords: object) -> "Future[object]":  # type: ignore[override]
        start: Future[object] = Future()
        start.set_exception(BlockingIOError("no more processes"))
        return start


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(TrialLimits(seconds=5.0), FailingStarter())
    yield worker
    worker.terminate()
    worker._arguments[0].close()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (0, "exit code 0"),
        (3, "exit code 3"),
        (None, "exit code None"),
        (-signal.SIGTERM, "killed by SIGTERM"),
        (-signal.SIGKILL, "killed by SIGKILL, as the system does when memory runs out"),
    ],
)
def test_the_reason_of_an_exit_names_the_code_or_the_signal(code: int | None, reason: str) -> None:
    assert describe_exit(code) == reason


def test_a_failed_result_has_the_number_of_its_job_and_the_reason() -> None:
    result = make_failed_result(jobs(4)[3], "out of memory", 2.5)
    assert (result.number, result.state, result.reason, result.seconds) == (3, State.FAILED, "out of memory", 2.5)
    assert result.candidates == ()
    assert make_failed_result(jobs(1)[0], "lost").seconds == 0.0


def test_a_worker_has_a_deadline_only_during_a_job_with_a_time_limit(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worker.deadline == math.inf
    monkeypatch.setattr(workers.time, "monotonic", lambda: 100.0)
    worker.assign_job(jobs(1)[0])
    assert worker.deadline == 105.0
    worker._limit = None
    assert worker.deadline == math.inf


def test_a_worker_that_cannot_start_raises_the_reason(worker: Worker) -> None:
    with pytest.raises(WorkersError, match="the workers do not start: BlockingIOError: no more processes"):
        _ = worker.process


def test_an_unused_pool_has_no_jobs_and_closes_at_once() -> None:
    pool = WorkerPool(2, TrialLimits())
    assert pool.job_count == 0
    pool.close()
    pool.kill_workers()
    assert pool.job_count == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
def test_a_memory_limit_below_the_memory_in_use_is_refused() -> None:
    used = memory_in_use()
    assert used > 2**20
    assert used % 1024 == 0
    with pytest.raises(UsageError, match=r"search\.memory of 1 MiB is too little: a worker has [\d,]+ MiB in use"):
        limit_memory(2**20)
