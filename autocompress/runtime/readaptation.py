"""Adaptation of the models of a service to its recent inputs, on request only.

The work is that of ``autocompress adapt`` without labels and without training: batch-norm statistics and quantization
ranges are estimated again. It runs in a process of its own at low priority, so that the service imports no torch and
keeps answering. All new versions are written and verified before the first one answers.
"""

import logging
import os
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autocompress.core.commands import python_command
from autocompress.errors import ArtifactError, UsageError
from autocompress.export.pipeline import Values
from autocompress.runtime.drift import DriftWatch
from autocompress.runtime.models import ServedModel, load_model
from autocompress.runtime.service import AnsweredRequest, ModelService

# Increment of the niceness of the adapting process.
NICENESS = 10

logger = logging.getLogger(__name__)


class RecentInputs:
    """The last encoded inputs of a service; safe for use from several threads.

    Args:
        size: Largest number of examples.
    """

    def __init__(self, size: int = 2000) -> None:
        self._values: deque[Values] = deque(maxlen=size)
        self._lock = threading.Lock()

    def observe(self, answered: AnsweredRequest) -> None:
        """Add the examples of an answered request."""
        with self._lock:
            self._values.extend(answered.values)

    def __len__(self) -> int:
        return len(self._values)

    def write(self, path: Path, tensors: dict[str, str]) -> None:
        """Write the inputs as an ``.npz`` file that ``autocompress adapt`` reads.

        Args:
            path: Path of the file.
            tensors: Name of each input to its name in ``model.onnx``.

        Raises:
            UsageError: There are no inputs yet, or lists of different lengths.
        """
        with self._lock:
            values = list(self._values)
        if not values:
            raise UsageError("there are no recent inputs yet")
        shapes = {tuple(tensor.shape for _, tensor in example.values()) for example in values}
        if len(shapes) > 1:
            raise UsageError("the recent inputs have lists of different lengths; adapt to a file of equal ones instead")
        arrays = {name: np.stack([example[input_][1] for example in values]) for input_, name in tensors.items()}
        np.savez(path, **arrays)  # type: ignore[arg-type]


def adapt_service(
    service: ModelService, recent: RecentInputs, watch: DriftWatch | None = None, plugins: Sequence[Path] = ()
) -> dict[str, str]:
    """Adapt every model of a service to its recent inputs, and return the name of each model with that of its version.

    Args:
        service: The service.
        recent: Recent inputs of the service.
        watch: Watch of the service, whose reference begins again.
        plugins: Plugin files that the task of the models needs.

    Raises:
        UsageError: There are too few recent inputs, or they do not fit.
        ArtifactError: A version cannot be written or loaded; the service keeps its models.
    """
    models = {model.name: model for level in service.levels for model in (level.model, level.larger) if model}
    record = next(iter(models.values())).pipeline.record
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "recent.npz"
        recent.write(data, {entry["name"]: entry["tensor"] for entry in record["inputs"]})
        versions = {name: _write_version(model, data, plugins) for name, model in models.items()}
    loaded = {name: load_model(path) for name, path in versions.items()}
    for name, model in loaded.items():
        service.replace_model(name, model)
    if watch is not None:
        # What was normal for the old versions is not for the new ones.
        watch.reset()
    return {name: model.name for name, model in loaded.items()}


def _write_version(model: ServedModel, data: Path, plugins: Sequence[Path]) -> Path:
    """Return the folder of the new version of a model."""
    command = [*python_command(), "-m", "autocompress", "adapt", str(model.folder)]
    command += ["--data", str(data), "--minutes", "0"]
    command += [word for path in plugins for word in ("--plugin", str(path))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # The process may have ended already.
    try:
        os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
    except OSError as error:
        logger.info("the adaptation has normal priority: %s", error)
    output, errors = process.communicate()
    if process.returncode != 0:
        reason = errors.strip().splitlines()[-1].removeprefix("error: ") if errors.strip() else "no reason given"
        kind = UsageError if process.returncode == UsageError.exit_code else ArtifactError
        raise kind(f"{model.name} cannot be adapted: {reason}")
    return Path(output.splitlines()[0])
