"""Logs of a search for other tools, written while it runs: TensorBoard here, MLflow in :mod:`.mlflow_export`."""

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from autocompress.core.formatting import is_finite
from autocompress.core.records import Job, TrialResult
from autocompress.core.untrusted import join_inside
from autocompress.errors import UsageError, did_you_mean
from autocompress.export.mlflow_export import MlflowLog

logger = logging.getLogger(__name__)

#: Folder of the event files in a run folder.
TENSORBOARD = "tensorboard"


class LiveLog(Protocol):
    """A log that receives each result of a search."""

    def record(self, job: Job, result: TrialResult, seconds: float, values: Mapping[str, float]) -> None:
        """Write a result, and values of the search after it.

        Args:
            job: The job.
            result: Its result.
            seconds: Seconds of the search so far.
            values: Values of the search by name, such as ``hypervolume``.
        """

    def close(self) -> None:
        """Write what is left."""


class TensorBoardLog:
    """Event files in the folder ``tensorboard`` of a run: one series of the search, and one of each trial.

    Steps of the search are its seconds, those of a trial its epochs. A resumed search goes on in new files.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open = SummaryWriter
        self._folder = folder
        self._writer = SummaryWriter(str(join_inside(folder, TENSORBOARD, "search")))
        self._epochs: dict[int, float] = {}

    def record(self, job: Job, result: TrialResult, seconds: float, values: Mapping[str, float]) -> None:
        """Write a result, and values of the search after it."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, round(seconds))
        # So that each result is seen at once.
        self._writer.flush()
        if job.base is not None or not result.candidates:
            return
        parent, last = result.candidates[0], self._epochs.get(job.number, 0.0)
        with self._open(str(join_inside(self._folder, TENSORBOARD, f"trial-{job.number}"))) as writer:
            for row in result.curve:
                for name, value in row.items():
                    if name != "epoch" and row["epoch"] > last and is_finite(value):
                        writer.add_scalar(name, value, round(row["epoch"]))
            for name, value in (parent.scores.get("search_val") or {}).items():
                if is_finite(value):
                    writer.add_scalar(f"search_val/{name}", value, parent.epochs)
        self._epochs[job.number] = float(parent.epochs)

    def close(self) -> None:
        """Close the file of the search."""
        self._writer.close()


#: Logs by name, which is also that of their library.
LOGS: Mapping[str, Callable[[Path], LiveLog]] = MappingProxyType(
    {TENSORBOARD: TensorBoardLog, "mlflow": lambda folder: MlflowLog(folder.name)}
)


class LiveLogs:
    """Several logs as one. A log that fails is warned of and left out, because the search is worth more.

    Logs are opened at the first result, so that a search that is refused leaves none.

    Args:
        names: Names in ``LOGS``.
        folder: The run folder.

    Raises:
        UsageError: There is no such log, or its library is not installed.
    """

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        for name in names:
            if name not in LOGS:
                raise UsageError(f"unknown log '{name}': {did_you_mean(name, LOGS)}")
            if find_spec(name) is None:
                raise UsageError(f"{name} is not installed: pip install 'autocompress[{name}]'")
        self._folder = folder
        self._names = list(dict.fromkeys(names))
        self._logs: dict[str, LiveLog] = {}

    def record(self, job: Job, result: TrialResult, seconds: float, values: Mapping[str, float]) -> None:
        """Write a result, and values of the search after it, into each log."""

        def write(name: str) -> None:
            if name not in self._logs:
                self._logs[name] = LOGS[name](self._folder)
            self._logs[name].record(job, result, seconds, values)

        self._call_each(write)

    def close(self) -> None:
        """Close each log."""
        self._call_each(lambda name: self._logs[name].close() if name in self._logs else None)

    def _call_each(self, action: Callable[[str], None]) -> None:
        for name in list(self._names):
            try:
                action(name)
            except Exception as error:
                logger.warning("the log %s fails and is left out from here on: %s", name, error)
                self._names.remove(name)
