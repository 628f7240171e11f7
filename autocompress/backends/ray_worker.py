"""The worker's side of the Ray backend: an actor of Ray Tune that is prepared once and runs one job after another."""

import faulthandler
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import ray
from ray import tune

from autocompress.backends.base import Evaluate, TrialLimits
from autocompress.backends.ray_cluster import describe_difference, read_versions
from autocompress.backends.watchdog import guard_group
from autocompress.backends.workers import limit_memory, make_failed_result
from autocompress.core.records import Job, TrialResult
from autocompress.errors import UsageError

JOB = "job"
OUTCOME = "outcome"

#: Logger name, level and text.
LogMessage: TypeAlias = tuple[str, int, str]


class WorkerStartError(Exception):
    """A worker could not be prepared: its machine lacks something that every job needs."""


@dataclass(frozen=True)
class WorkerSetup:
    """The function and the limits that every worker of a run needs; sent once to each node."""

    evaluate: Evaluate
    limits: TrialLimits


class JobPayload:
    """A job on its way to a worker; copies that Tune makes are the same object, so that all release the job at once."""

    def __init__(
        self,
        job: Job,
        setup: "ray.ObjectRef[WorkerSetup]",
        driver_folder: str,
        versions: Mapping[str, str],
    ) -> None:
        self.number = job.number
        self.versions = versions
        self.job: Job | None = job
        self.setup: ray.ObjectRef[WorkerSetup] | None = setup
        self.driver_folder = driver_folder

    def __deepcopy__(self, memo: dict[int, Any]) -> "JobPayload":
        return self

    def __repr__(self) -> str:
        return f"job {self.number}"

    def release(self) -> None:
        """Drop the job: Tune keeps every trial with its config to the end."""
        self.job = self.setup = None


class ResultPayload:
    """A result on its way back; Tune prints and copies plain values, and a result may hold megabytes."""

    def __init__(self, result: TrialResult, messages: Sequence[LogMessage] = ()) -> None:
        self.result = result
        self.messages = messages

    def __deepcopy__(self, memo: dict[int, Any]) -> "ResultPayload":
        return self

    def __repr__(self) -> str:
        return f"result {self.result.number}"


class MessageCollector(logging.Handler):
    """Keeps log messages of a worker until they travel to the driver: Ray writes a worker's output to its own files."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._messages: list[LogMessage] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self._messages.append((record.name, record.levelno, record.getMessage()))

    def pop_messages(self) -> list[LogMessage]:
        """Return the messages since the last call."""
        messages, self._messages = self._messages, []
        return messages


class RayWorker(tune.Trainable):
    """A worker: prepared before its first job, reused for the next."""

    def setup(self, config: dict[str, Any]) -> None:
        """Prepare the process, and take the first job.

        Raises:
            WorkerStartError: The user's task raises, or the machine lacks something.
        """
        self.reset_config(config)
        self._collector = MessageCollector()
        logging.getLogger("autocompress").addHandler(self._collector)
        # Ray kills a worker alone: processes that it started, and workers of a killed driver, would stay.
        guard_group()
        try:
            # A node that joined the cluster during the search was not checked when the search started.
            if difference := describe_difference(read_versions(), self._payload.versions):
                raise UsageError(f"this node {difference}")
            assert self._payload.setup is not None
            setup = ray.get(self._payload.setup)
            setup.evaluate.prepare()
            if setup.limits.memory is not None:
                limit_memory(setup.limits.memory)
        except Exception as error:  # The driver reports whatever the user's task raises.
            name = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
            raise WorkerStartError(f"on {ray.util.get_node_ip_address()}: {name}{error}") from None
        self._evaluate, self._seconds = setup.evaluate, setup.limits.seconds

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another job."""
        self._payload: JobPayload = new_config[JOB]
        # Every result would carry the config, and the job in it, back to the driver.
        self.config = {}
        # Tune gives each worker its own folder; the paths of a task may be relative to the driver's folder.
        if os.path.isdir(self._payload.driver_folder):
            os.chdir(self._payload.driver_folder)
        return True

    def step(self) -> dict[str, Any]:
        """Run the job."""
        job = self._payload.job
        assert job is not None
        with self._enforce_time_limit():
            try:
                result = self._evaluate(job)
            except MemoryError:
                result = make_failed_result(job, "out of memory")
            except Exception as error:  # A fault of the user's code fails this job alone.
                result = make_failed_result(job, f"{type(error).__name__}: {error}")
        return {OUTCOME: ResultPayload(result, self._collector.pop_messages())}

    @contextmanager
    def _enforce_time_limit(self) -> Iterator[None]:
        """End this process when the job exceeds its limit, even in a call that holds Python's global lock."""
        if self._seconds is None:
            yield
            return
        with open(os.devnull, "w") as nowhere:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=nowhere)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
