"""The seam of backends: one method that runs jobs until there are none left."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from autocompress.core.records import Job, TrialResult

Ask: TypeAlias = Callable[[], Job | None]
Tell: TypeAlias = Callable[[Job, TrialResult], None]
Ahead: TypeAlias = Callable[[], bool]


def nothing_ahead() -> bool:
    """Return that there is nothing to be done ahead."""
    return False


@dataclass(frozen=True)
class TrialLimits:
    """What one job may take; one that takes more fails alone.

    Attributes:
        seconds: From the moment at which a worker has it; ``None`` for no limit.
        memory: Bytes of the worker's process, what it needs to start included; ``None`` for no limit.
    """

    seconds: float | None = None
    memory: int | None = None


NO_LIMITS = TrialLimits()


class Evaluate(Protocol):
    """What runs one job in a worker; it must be picklable."""

    def prepare(self) -> None:
        """Ready the worker's process, once."""
        ...

    def __call__(self, job: Job) -> TrialResult:
        """Run one job and return what it came to; never raises for a fault of the trial."""
        ...


class Backend(Protocol):
    """Runs jobs; every asked job is told exactly once, whatever becomes of its worker.

    Its constructor takes ``workers``, and by their names those settings of ``search`` that it can keep.

    Attributes:
        name: What it is called in a search space.
        elsewhere: Whether workers may run on machines without this one's files.
        libraries: Packages that it needs: a run records their versions.
    """

    name: str
    elsewhere: bool
    libraries: tuple[str, ...]

    def warm(self) -> None:
        """Begin to start what jobs will run on, while the caller does other things; :meth:`opened` goes on with it."""
        ...

    def cool(self) -> None:
        """End what :meth:`warm` started, where nothing will be opened."""
        ...

    def opened(self, folder: Path | None = None) -> AbstractContextManager[None]:
        """Ready what jobs run on, and free it at the end; what would make every job fail is found here.

        Args:
            folder: The run folder, for temporary files.

        Raises:
            UsageError: Jobs cannot run where they should.
        """
        ...

    def ready(self, evaluate: Evaluate) -> None:
        """Let what was opened ready itself for ``evaluate``, while the caller does other things."""
        ...

    def run(self, ask: Ask, evaluate: Evaluate, tell: Tell, ahead: Ahead = nothing_ahead) -> None:
        """Ask, evaluate and tell until ``ask`` returns ``None`` and nothing is under way.

        All are called in the caller's thread only. After each ``tell``, ``ask`` is called again, even if it has
        answered ``None``: a result may be worth going on with.

        While it waits and has a processor to spare, a backend may call ``ahead``: it does a little of what the next
        ``ask`` will need, changes none of its answers, and returns whether more is left.

        Raises:
            KeyboardInterrupt: The user stopped it; running jobs are cancelled and not told.
            WorkersError: No worker starts; the jobs that were asked are not told.
        """
        ...
