"""The worker's side of Ray's backend: an actor of Tune's that is readied once and runs one job after the other."""

import faulthandler
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune

from autocompress.backends.base import Evaluate, TrialLimits
from autocompress.backends.watchdog import guard_group
from autocompress.backends.workers import confine, failed
from autocompress.core.records import Job, TrialResult
from autocompress.errors import UsageError

JOB = "job"
OUTCOME = "outcome"


class UnreadyError(Exception):
    """A worker could not be readied: its machine lacks something that every job needs."""


@dataclass(frozen=True)
class Kit:
    """What every worker of a run needs; travels once to each node."""

    evaluate: Evaluate
    limits: TrialLimits


class Parcel:
    """A job on its way to a worker; Tune's copies of it are itself, so that it can be emptied everywhere at once."""

    def __init__(self, job: Job, kit: Any, home: str) -> None:
        self.number = job.number
        self.job: Job | None = job
        self.kit = kit
        self.home = home

    def __deepcopy__(self, memo: dict[int, Any]) -> "Parcel":
        return self

    def __repr__(self) -> str:
        return f"job {self.number}"

    def empty(self) -> None:
        """Let go of the job: Tune keeps every trial, with its config, to the end."""
        self.job = self.kit = None


class Outcome:
    """A result on its way back; Tune prints and copies what it is given, and a result may weigh megabytes."""

    def __init__(self, result: TrialResult) -> None:
        self.result = result

    def __deepcopy__(self, memo: dict[int, Any]) -> "Outcome":
        return self

    def __repr__(self) -> str:
        return f"result {self.result.number}"


class Seat(tune.Trainable):
    """A worker: readied before its first job, kept for the next."""

    def setup(self, config: dict[str, Any]) -> None:
        """Get ready, and take the first job.

        Raises:
            UnreadyError: It cannot: the user's task raises, or the machine lacks something.
        """
        self.reset_config(config)
        # Ray ends workers alone, and nobody ends those of a driver that was killed.
        guard_group()
        try:
            kit: Kit = ray.get(self._parcel.kit)
            kit.evaluate.prepare()
            if kit.limits.memory is not None:
                confine(kit.limits.memory)
        except Exception as error:  # Whatever the user's task raises, the driver says.
            name = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
            raise UnreadyError(f"on {ray.util.get_node_ip_address()}: {name}{error}") from None
        self._evaluate, self._seconds = kit.evaluate, kit.limits.seconds

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another job."""
        self._parcel: Parcel = new_config[JOB]
        # Every result would carry the config, and with it the job, back.
        self.config = {}
        # Tune moves a worker into a folder of its own; the paths of a task may be relative to the driver's.
        if os.path.isdir(self._parcel.home):
            os.chdir(self._parcel.home)
        return True

    def step(self) -> dict[str, Any]:
        """Run the job."""
        parcel = self._parcel
        assert parcel.job is not None
        with self._in_time():
            try:
                result = self._evaluate(parcel.job)
            except MemoryError:
                result = failed(parcel.job, "out of memory")
            except Exception as error:  # Whatever a worker raises is that trial's fault, told as such.
                result = failed(parcel.job, f"{type(error).__name__}: {error}")
        return {OUTCOME: Outcome(result)}

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """End this process when the job is late, whatever it hangs in: the watchdog needs no lock of Python's."""
        if self._seconds is None:
            yield
            return
        with open(os.devnull, "w") as nowhere:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=nowhere)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
