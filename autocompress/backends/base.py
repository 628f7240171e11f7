"""The interface of backends: one method that runs jobs until there are none left."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, TypeAlias

from autocompress.core.records import Job, TrialResult
from autocompress.core.registry import WorkerPlugins, collect_plugins

Ask: TypeAlias = Callable[[], Job | None]
Tell: TypeAlias = Callable[[Job, TrialResult], None]
IdleWork: TypeAlias = Callable[[], bool]


def skip_idle_work() -> bool:
    """Return that no idle work is left."""
    return False


@dataclass(frozen=True)
class TrialLimits:
    """Time and memory that one job may take; a job that takes more fails alone.

    Attributes:
        seconds: Seconds from the moment at which a worker has the job; ``None`` for no limit.
        memory: Bytes of the worker's process, its start-up included; ``None`` for no limit.
    """

    seconds: float | None = None
    memory: int | None = None


NO_LIMITS = TrialLimits()


class Evaluate(Protocol):
    """The function that runs one job in a worker; it must be picklable."""

    def prepare(self) -> None:
        """Prepare the worker's process, once."""
        ...

    def __call__(self, job: Job) -> TrialResult:
        """Run one job and return its result; never raises for a fault of the trial."""
        ...


class Backend(ABC):
    """Runs jobs; every job that was asked for is told exactly once, whatever happens to its worker.

    A backend is a class with :meth:`run`; :meth:`opened` too, if jobs need something that must be freed. Its
    constructor takes ``workers`` and ``limits``, and by their names the settings of ``search`` that it supports, such
    as ``resources`` and ``address``.

    Attributes:
        name: The name in search spaces, ``search.backend``.
        libraries: Packages that the backend needs: a run records their versions.
    """

    name: ClassVar[str]
    libraries: ClassVar[tuple[str, ...]] = ()

    def collect_plugins(self, task: str) -> WorkerPlugins:
        """Return what the processes of the backend need besides this package.

        Args:
            task: Name of the task of the run.

        Raises:
            UsageError: The task exists in this process alone, and cannot be sent to another one.
        """
        return collect_plugins([task])

    @property
    def is_remote(self) -> bool:
        """Whether workers may run on machines without this machine's files."""
        return False

    # A backend that has nothing to start early or to prepare inherits these three, which do nothing.
    def prewarm(self) -> None:  # noqa: B027
        """Begin to start workers while the caller does other things; :meth:`opened` continues."""

    def shutdown(self) -> None:  # noqa: B027
        """Free what :meth:`warm` started, where nothing will be opened."""

    def prepare(self, evaluate: Evaluate) -> None:  # noqa: B027
        """Let the workers that were started prepare for ``evaluate``, while the caller does other things."""

    def open(self, folder: Path | None = None) -> AbstractContextManager[None]:
        """Start what jobs run on, and free it at the end; what would make every job fail is found here.

        Args:
            folder: The run folder, for temporary files.

        Raises:
            UsageError: Jobs cannot run as asked.
        """
        return nullcontext()

    @abstractmethod
    def run(self, ask: Ask, evaluate: Evaluate, tell: Tell, idle_work: IdleWork = skip_idle_work) -> None:
        """Ask, evaluate and tell until ``ask`` returns ``None`` and no job is running.

        All functions are called in the caller's thread only. After each ``tell``, ``ask`` is called again, even if it
        has returned ``None`` before: a result may allow new jobs.

        Args:
            ask: Returns the next job, or ``None`` if there is none for now.
            evaluate: Runs one job in a worker.
            tell: Takes a job with its result.
            idle_work: Does a little of what the next ``ask`` will need and returns whether more is left. A backend may
                call it while it waits and a processor is free; it changes no answer of ``ask``.

        Raises:
            KeyboardInterrupt: The user stopped the run; running jobs are cancelled and not told.
            WorkersError: No worker starts; the jobs that were asked for are not told.
        """


class BackendFactory(Protocol):
    """A backend class as the registry holds it."""

    def __call__(self, workers: int, *, limits: TrialLimits, **settings: object) -> Backend:
        """Return a backend, not yet opened.

        Args:
            workers: Number of jobs at once; 0 lets the backend decide.
            limits: Time and memory of one job.
            settings: Settings of ``search`` that its constructor names.
        """
        ...
