"""Ray Tune's side of the backend: a job is a Tune trial of one result, and Tune's actors are the workers.

The searcher forwards ``suggest`` to ``ask`` and ``on_trial_complete`` to ``tell``. The driver decides which trials are
promoted, so the scheduler ends every Tune trial at its first result and keeps the order of the jobs. Tune's snapshots,
loggers, files and retries are not used. This module imports ray; only the running backend imports it.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayTaskError
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from autocompress.backends.base import Ask, Evaluate, Tell, TrialLimits
from autocompress.backends.ray_cluster import read_versions
from autocompress.backends.ray_worker import (
    JOB,
    OUTCOME,
    JobPayload,
    RayWorker,
    ResultPayload,
    WorkerSetup,
    WorkerStartError,
)
from autocompress.backends.workers import EXECUTIONS, make_failed_result
from autocompress.core.records import Job, TrialResult
from autocompress.errors import WorkersError

logger = logging.getLogger(__name__)

#: Workers in a row that may die before they have a job, while no other worker runs one.
FAILED_STARTS = 3
#: Largest number of characters of a reason.
REASON_LENGTH = 200
#: The message of Ray's memory monitor about the actors that it killed; Tune fails as a whole then.
AT_FAULT = re.compile(r"Selected to kill: \(Actor\((\w+)\)")
#: Times in a row that Tune may fail as a whole without a result in between.
COLLAPSES = 3

# Tune reads these when it starts: no snapshots, no loggers, no Ctrl-C handler, no prints, no limit on pending trials.
SETTINGS = {
    "TUNE_GLOBAL_CHECKPOINT_S": "1e12",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "100000",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "5",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000000",
    "TUNE_WARN_THRESHOLD_S": "1000000000",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class DriverFault(BaseException):
    """Carries an exception of ``ask`` or ``tell`` out of Tune, which catches every ``Exception``."""

    def __init__(self, fault: Exception) -> None:
        super().__init__(fault)
        self.fault = fault


@dataclass
class RunningJob:
    """A job and the Tune trial that runs it."""

    job: Job
    payload: JobPayload
    start: float | None = None
    actor: str = ""
    outcome: TrialResult | None = None
    fault: Exception | None = None


class JobSearcher(Searcher):
    """Asks the driver for a job when a worker is free, and tells it the results.

    Args:
        ask: The driver's function that returns the next job.
        tell: The driver's function that takes a result.
        count_slots: Function that returns the largest number of jobs at once.
        pack: Function that makes the payload of a job.
        seconds: Time limit of a job in seconds; its worker ends itself then.
    """

    def __init__(
        self,
        ask: Ask,
        tell: Tell,
        count_slots: Callable[[], int],
        pack: Callable[[Job], JobPayload],
        seconds: float | None = None,
    ) -> None:
        super().__init__()
        self._seconds = seconds
        self._ask = ask
        self._tell = tell
        self._count_slots = count_slots
        self._pack = pack
        self._retries: list[Job] = []
        self._executions: dict[int, int] = {}
        self._is_exhausted = False
        self._failed_starts = 0
        self._unusable_workers = 0
        self.running: dict[str, RunningJob] = {}
        self.result_count = 0

    # -- called by Tune -----------------------------------------------------------------------

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Return the next job, ``None`` to be asked again after a result, or ``FINISHED``."""
        if len(self.running) >= max(1, self._count_slots() - self._unusable_workers):
            return None
        job = self._next_job()
        if job is None:
            return None if self.running else str(Searcher.FINISHED)
        running = self.running[trial_id] = RunningJob(job, self._pack(job))
        return {JOB: running.payload}

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tell the result of a job, or run it again if its worker died."""
        ended = self.running.pop(trial_id)
        ended.payload.release()
        if ended.outcome is not None:
            self._tell_result(ended.job, ended.outcome)
        else:
            self._handle_death(ended)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the run's own store holds all results."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""

    # -- called by the callback and by run_jobs -----------------------------------------------

    def start_job(self, trial_id: str, actor: str = "") -> None:
        """Record that a worker, the actor of that id, runs a job now."""
        self._failed_starts = 0
        running = self.running[trial_id]
        running.actor = actor
        running.start = time.monotonic()
        number = running.job.number
        self._executions[number] = self._executions.get(number, 0) + 1

    def recover_jobs(self, error: Exception) -> None:
        """Retry the jobs that ran when Tune failed; only those of actors that Ray blames count as executed."""
        at_fault = AT_FAULT.findall(str(error))
        for trial_id, running in list(self.running.items()):
            running.fault = error
            if at_fault and running.start is not None and running.actor not in at_fault:
                self._executions[running.job.number] -= 1
            self.on_trial_complete(trial_id, error=True)

    # -- internal -----------------------------------------------------------------------------

    def _next_job(self) -> Job | None:
        if self._retries:
            return self._retries.pop(0)
        if self._is_exhausted:
            return None
        with _carry_driver_faults():
            job = self._ask()
        self._is_exhausted = job is None
        return job

    def _tell_result(self, job: Job, result: TrialResult) -> None:
        self._executions.pop(job.number, None)
        self.result_count += 1
        # A result may allow new jobs.
        self._is_exhausted = False
        with _carry_driver_faults():
            self._tell(job, result)

    def _handle_death(self, ended: RunningJob) -> None:
        """Run the job of a dead worker once more; it fails after a timeout or a second death."""
        job, deaths = ended.job, self._executions.get(ended.job.number, 0)
        if ended.start is None:
            self._count_failed_start(ended.fault)
            self._retries.append(job)
            return
        seconds = time.monotonic() - ended.start
        logger.warning("a worker died during trial %d%s", job.number, _summarize_error(ended.fault))
        if isinstance(ended.fault, RayTaskError):
            self._tell_result(
                job, make_failed_result(job, f"its result cannot be sent{_summarize_error(ended.fault)}", seconds)
            )
        elif self._seconds is not None and seconds >= self._seconds:
            self._tell_result(job, make_failed_result(job, f"timed out after {self._seconds:g} s", seconds))
        elif deaths >= EXECUTIONS:
            self._tell_result(
                job, make_failed_result(job, f"its worker died {deaths} times{_summarize_error(ended.fault)}", seconds)
            )
        else:
            self._retries.append(job)

    def _count_failed_start(self, fault: Exception | None) -> None:
        """Count a worker that died before it had a job: it was never ready, or idle on a node that was lost."""
        self._failed_starts += 1
        logger.warning("a worker ended without a job%s", _summarize_error(fault))
        if WorkerStartError.__name__ in str(fault):
            # The next worker on that node would not be ready either.
            self._unusable_workers += 1
        if self._failed_starts >= FAILED_STARTS and all(job.start is None for job in self.running.values()):
            raise DriverFault(WorkersError(f"the workers do not start{_summarize_error(fault)}"))


def _summarize_error(fault: BaseException | None) -> str:
    """Return the line of Ray's error that gives the reason, in brackets."""
    cause = getattr(fault, "cause", None)
    if isinstance(cause, Exception):
        return f" ({type(cause).__name__}: {cause})"
    lines = str(fault or "").strip().removeprefix("Caught unexpected exception: ").splitlines()
    reasons = [
        line.partition(f"{WorkerStartError.__name__}: ")[2] for line in lines if WorkerStartError.__name__ in line
    ]
    return f" ({(reasons or lines)[-1 if reasons else 0][:REASON_LENGTH]})" if lines else ""


class SingleResultScheduler(TrialScheduler):
    """Ends every Tune trial at its first result: a promoted trial continues as a job of its own.

    It never chooses a trial to run. Tune then gives an idle actor to a trial without one, and leaves starting actors
    to their trials; Tune's own scheduler would stop the starting actors.
    """

    def __init__(self, forwarder: JobSearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._forwarder = forwarder
        self._idle_actors = 0

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Let Tune keep as many idle actors as jobs have run at once; by default it keeps a single one."""
        cache = getattr(getattr(tune_controller, "_tune_controller", None), "_actor_cache", None)
        if cache is not None and self._idle_actors < len(self._forwarder.running):
            cache.increase_max(trial.placement_group_factory)
            self._idle_actors += 1

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop the trial: it has one result."""
        return str(TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Keep the exception for the searcher, which Tune does not give it."""
        running = self._forwarder.running[trial.trial_id]
        if trial.pickled_error_file is not None:
            running.fault = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
        elif trial.error_file is not None:
            # Its first line holds the time only.
            running.fault = RuntimeError(Path(trial.error_file).read_text().partition("\n")[2])

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Do nothing: Tune calls the searcher next."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Do nothing."""

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Keep the order of the jobs."""

    def debug_string(self) -> str:
        """Return the text that Tune prints."""
        return "one result a trial"


class ResultCollector(tune.Callback):
    """Records the start of jobs, and takes results out of Tune before it copies them."""

    def __init__(self, forwarder: JobSearcher) -> None:
        self._forwarder = forwarder

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record that a worker has the job."""
        identity = getattr(trial.temporary_state.ray_actor, "_actor_id", None)
        self._forwarder.start_job(trial.trial_id, "" if identity is None else identity.hex())

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Take the result; Tune would keep it to the end."""
        payload: ResultPayload = result.pop(OUTCOME)
        for name, level, text in payload.messages:
            logging.getLogger(name).log(level, "worker of trial %d: %s", payload.result.number, text)
        self._forwarder.running[trial.trial_id].outcome = payload.result


def run_jobs(
    ask: Ask,
    evaluate: Evaluate,
    tell: Tell,
    count_slots: Callable[[], int],
    limits: TrialLimits,
    bundle: Mapping[str, float],
    folder: str,
) -> None:
    """Ask, evaluate and tell on the cluster that this process is connected to.

    Args:
        ask: The driver's function that returns the next job.
        evaluate: Function that runs a job.
        tell: The driver's function that takes a result.
        count_slots: Function that returns the largest number of jobs at once.
        limits: Time and memory of one job.
        bundle: Resources of one worker, in Ray's names.
        folder: Folder for files that Tune cannot do without.

    Raises:
        WorkersError: No worker starts, or Tune fails again and again.
    """
    setup, driver_folder, versions = ray.put(WorkerSetup(evaluate, limits)), os.getcwd(), read_versions()
    forwarder = JobSearcher(
        ask, tell, count_slots, lambda job: JobPayload(job, setup, driver_folder, versions), limits.seconds
    )
    collapses = 0
    while True:
        results_before = forwarder.result_count
        try:
            with _apply_settings(SETTINGS):
                _run_tune(forwarder, bundle, folder)
            return
        except DriverFault as fault:
            raise fault.fault from None
        except Exception as error:
            # For example, Tune cannot handle a result that was lost with the node that held it.
            collapses = 1 if forwarder.result_count > results_before else collapses + 1
            if collapses == COLLAPSES:
                raise WorkersError(f"Ray Tune fails again and again{_summarize_error(error)}") from error
            logger.warning("Ray Tune failed and is started again%s", _summarize_error(error))
            forwarder.recover_jobs(error)


def _run_tune(forwarder: JobSearcher, bundle: Mapping[str, float], folder: str) -> None:
    tune.run(
        RayWorker,
        name="jobs",
        search_alg=forwarder,
        scheduler=SingleResultScheduler(forwarder),
        callbacks=[ResultCollector(forwarder)],
        resources_per_trial=tune.PlacementGroupFactory([dict(bundle)]),
        reuse_actors=True,
        num_samples=-1,
        max_failures=0,
        raise_on_failed_trial=False,
        log_to_file=False,
        storage_path=folder,
        trial_dirname_creator=lambda trial: str(trial.trial_id),
        verbose=0,
    )


@contextmanager
def _carry_driver_faults() -> Iterator[None]:
    try:
        yield
    except Exception as fault:
        raise DriverFault(fault) from fault


@contextmanager
def _apply_settings(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables and silence Tune's log for the time of the context."""
    before = {name: os.environ.get(name) for name in settings}
    tune_logger = logging.getLogger("ray.tune")
    level = tune_logger.level
    tune_logger.setLevel(logging.CRITICAL)
    os.environ.update(settings)
    try:
        yield
    finally:
        tune_logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
