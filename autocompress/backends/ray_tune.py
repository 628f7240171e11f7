"""Ray Tune's side of the seam: a job is a Tune trial of one result, and Tune's actors are the workers.

The searcher forwards ``suggest`` to ``ask`` and ``on_trial_complete`` to ``tell``; which training goes on past a rung
is the driver's business, so the scheduler ends every trial at its first result and never reorders what was asked.
Tune's snapshots, loggers, files and retries are not used. This module imports ray: nothing but the backend, when it
runs, imports this.
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
from autocompress.backends.ray_worker import JOB, OUTCOME, Kit, Parcel, Seat, UnreadyError
from autocompress.backends.workers import EXECUTIONS, failed
from autocompress.core.records import Job, TrialResult
from autocompress.errors import WorkersError

#: Workers in a row that die before they have a job, with none at work, before the search ends.
MISSED = 3
#: Characters of a reason.
MOST = 200
#: What Ray's memory monitor says of the actors that it killed, which Tune has no answer to.
AT_FAULT = re.compile(r"Selected to kill: \(Actor\((\w+)\)")
#: Times in a row that Tune may give up as a whole without a result in between.
COLLAPSES = 3

# Read by Tune when it starts: no snapshots, no loggers, no handler of Ctrl-C, no prints; all that is asked may wait.
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


class Through(BaseException):
    """Carries what ``ask`` or ``tell`` raised out of Tune, which catches every ``Exception``."""

    def __init__(self, fault: Exception) -> None:
        super().__init__(fault)
        self.fault = fault


@dataclass
class UnderWay:
    """A job that a trial of Tune's stands for."""

    job: Job
    parcel: Parcel
    begun: float | None = None
    actor: str = ""
    outcome: TrialResult | None = None
    fault: Exception | None = None


class Forwarder(Searcher):
    """Asks when a seat is free and tells what came; keeps count of what is under way.

    Args:
        ask: The driver's.
        tell: The driver's.
        seats: Returns how many jobs may be under way.
        pack: Makes a job's parcel.
        seconds: What a job may take; its worker ends itself then.
    """

    def __init__(
        self,
        ask: Ask,
        tell: Tell,
        seats: Callable[[], int],
        pack: Callable[[Job], Parcel],
        seconds: float | None = None,
    ) -> None:
        super().__init__()
        self._seconds = seconds
        self._ask = ask
        self._tell = tell
        self._seats = seats
        self._pack = pack
        self._again: list[Job] = []
        self._executions: dict[int, int] = {}
        self._dry = False
        self._missed = 0
        self._given_up = 0
        self.under_way: dict[str, UnderWay] = {}
        self.told = 0

    # -- what Tune calls ----------------------------------------------------------------------

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Return the next job, ``None`` to be asked again after a result, or ``FINISHED``."""
        if len(self.under_way) >= max(1, self._seats() - self._given_up):
            return None
        job = self._next()
        if job is None:
            return None if self.under_way else str(Searcher.FINISHED)
        found = self.under_way[trial_id] = UnderWay(job, self._pack(job))
        return {JOB: found.parcel}

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tell what came of a job, or hand it out again when its worker died."""
        ended = self.under_way.pop(trial_id)
        ended.parcel.empty()
        if ended.outcome is not None:
            self._answer(ended.job, ended.outcome)
        else:
            self._mourn(ended)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the run's own store is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""

    # -- what the other halves note -----------------------------------------------------------

    def begin(self, trial_id: str, actor: str = "") -> None:
        """Note that a worker, the actor of that id, runs a job now."""
        self._missed = 0
        found = self.under_way[trial_id]
        found.actor = actor
        found.begun = time.monotonic()
        number = found.job.number
        self._executions[number] = self._executions.get(number, 0) + 1

    def collapse(self, error: Exception) -> None:
        """Take up what was under way when Tune gave up as a whole; where Ray names the actors at fault, only theirs."""
        at_fault = AT_FAULT.findall(str(error))
        for trial_id, found in list(self.under_way.items()):
            found.fault = error
            if at_fault and found.begun is not None and found.actor not in at_fault:
                self._executions[found.job.number] -= 1
            self.on_trial_complete(trial_id, error=True)

    # -- within -------------------------------------------------------------------------------

    def _next(self) -> Job | None:
        if self._again:
            return self._again.pop(0)
        if self._dry:
            return None
        with _through():
            job = self._ask()
        self._dry = job is None
        return job

    def _answer(self, job: Job, result: TrialResult) -> None:
        self._executions.pop(job.number, None)
        self.told += 1
        # What came may be worth going on with.
        self._dry = False
        with _through():
            self._tell(job, result)

    def _mourn(self, ended: UnderWay) -> None:
        """Run the job of a dead worker once more; being late, or a second death, is the job's own fault."""
        job, deaths = ended.job, self._executions.get(ended.job.number, 0)
        if ended.begun is None:
            self._miss_worker(ended.fault)
            self._again.append(job)
            return
        took = time.monotonic() - ended.begun
        if isinstance(ended.fault, RayTaskError):
            self._answer(job, failed(job, f"its result cannot be sent{_gist(ended.fault)}", took))
        elif self._seconds is not None and took >= self._seconds:
            self._answer(job, failed(job, f"timed out after {self._seconds:g} s", took))
        elif deaths >= EXECUTIONS:
            self._answer(job, failed(job, f"its worker died {deaths} times{_gist(ended.fault)}", took))
        else:
            self._again.append(job)

    def _miss_worker(self, fault: Exception | None) -> None:
        """Take note of a worker that died before it had a job: it was never ready, or idle on a node that is lost."""
        self._missed += 1
        if UnreadyError.__name__ in str(fault):
            # The next one there would not be ready either.
            self._given_up += 1
        if self._missed >= MISSED and all(found.begun is None for found in self.under_way.values()):
            raise Through(WorkersError(f"the workers do not start{_gist(fault)}"))


def _gist(fault: BaseException | None) -> str:
    """Return the one line of Ray's many that tells why."""
    cause = getattr(fault, "cause", None)
    if isinstance(cause, Exception):
        return f" ({type(cause).__name__}: {cause})"
    lines = str(fault or "").strip().removeprefix("Caught unexpected exception: ").splitlines()
    told = [line.partition(f"{UnreadyError.__name__}: ")[2] for line in lines if UnreadyError.__name__ in line]
    return f" ({(told or lines)[-1 if told else 0][:MOST]})" if lines else ""


class OneResult(TrialScheduler):
    """Ends every trial at its first result: pauses and promotions are jobs of their own, which the driver asks for.

    It never chooses a trial to run. Tune then gives an idle actor to a trial that has none, and leaves those that are
    starting to theirs; its own scheduler would throw the starting actors away.
    """

    def __init__(self, forwarder: Forwarder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._forwarder = forwarder
        self._kept = 0

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Let Tune keep as many idle actors as jobs were ever under way at once; by itself it keeps a single one."""
        cache = getattr(getattr(tune_controller, "_tune_controller", None), "_actor_cache", None)
        if cache is not None and self._kept < len(self._forwarder.under_way):
            cache.increase_max(trial.placement_group_factory)
            self._kept += 1

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop: there is nothing more to come."""
        return str(TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Keep the reason for the searcher, which Tune does not tell it."""
        found = self._forwarder.under_way[trial.trial_id]
        if trial.pickled_error_file is not None:
            found.fault = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
        elif trial.error_file is not None:
            # Its first line says only when that was.
            found.fault = RuntimeError(Path(trial.error_file).read_text().partition("\n")[2])

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Do nothing: the searcher is told next."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Do nothing."""

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Leave the choice to the order in which jobs were asked for."""

    def debug_string(self) -> str:
        """Return what Tune prints."""
        return "one result a trial"


class Watcher(tune.Callback):
    """Notes beginnings, and takes results out of Tune before it copies them."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a worker has the job."""
        identity = getattr(trial.temporary_state.ray_actor, "_actor_id", None)
        self._forwarder.begin(trial.trial_id, "" if identity is None else identity.hex())

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Take the result; Tune would keep it to the end."""
        self._forwarder.under_way[trial.trial_id].outcome = result.pop(OUTCOME).result


def run_jobs(
    ask: Ask,
    evaluate: Evaluate,
    tell: Tell,
    seats: Callable[[], int],
    limits: TrialLimits,
    bundle: Mapping[str, float],
    folder: str,
) -> None:
    """Ask, evaluate and tell on the cluster that this process is connected to.

    Args:
        ask: The driver's.
        evaluate: What runs a job.
        tell: The driver's.
        seats: Returns how many jobs may be under way.
        limits: What one job may take.
        bundle: What one worker takes, in Ray's names.
        folder: For what Tune insists on writing.

    Raises:
        WorkersError: No worker starts, or Tune fails over and over.
    """
    kit, home = ray.put(Kit(evaluate, limits)), os.getcwd()
    forwarder = Forwarder(ask, tell, seats, lambda job: Parcel(job, kit, home), limits.seconds)
    collapses = 0
    while True:
        told = forwarder.told
        try:
            with _quiet(SETTINGS):
                _tuned(forwarder, bundle, folder)
            return
        except Through as through:
            raise through.fault from None
        except Exception as error:
            # Such as a result that was lost with the node it lay on, which Tune has no answer to.
            collapses = 1 if forwarder.told > told else collapses + 1
            if collapses == COLLAPSES:
                raise WorkersError(f"Ray Tune fails over and over{_gist(error)}") from error
            forwarder.collapse(error)


def _tuned(forwarder: Forwarder, bundle: Mapping[str, float], folder: str) -> None:
    tune.run(
        Seat,
        name="jobs",
        search_alg=forwarder,
        scheduler=OneResult(forwarder),
        callbacks=[Watcher(forwarder)],
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
def _through() -> Iterator[None]:
    try:
        yield
    except Exception as fault:
        raise Through(fault) from fault


@contextmanager
def _quiet(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables and hush Tune's log, and put both back."""
    before = {name: os.environ.get(name) for name in settings}
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    os.environ.update(settings)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
