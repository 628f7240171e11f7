import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autocompress.errors import ArtifactError, UsageError
from autocompress.runtime import readaptation as module
from autocompress.runtime.drift import DriftWatch
from autocompress.runtime.models import Level
from autocompress.runtime.readaptation import RecentInputs, adapt_service
from autocompress.runtime.service import ModelService
from tests.runtime.artifacts import describe_origin, make_levels, write_model


class Adapting:
    """A process that writes the next version of a model whose outputs are three times as large."""

    commands: Sequence[list[str]] = ()
    returncode, pid, errors = 0, 10**9, ""

    def __init__(self, command: list[str], **options: Any) -> None:
        type(self).commands = [*self.commands, command]
        self.folder = Path(command[4])
        with np.load(command[6]) as arrays:
            self.names, self.rows = list(arrays), arrays["input"]

    def communicate(self) -> tuple[str, str]:
        if self.returncode:
            return "", self.errors
        origin = describe_origin(self.folder.name, 0.9)
        version = write_model(self.folder.with_name(f"{self.folder.name}-v2"), origin, 3 * np.eye(4, 3))
        return f"{version}\nre-estimated\n", ""


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> type[Adapting]:
    kind = type("Process", (Adapting,), {})
    monkeypatch.setattr(subprocess, "Popen", kind)
    return kind


def test_every_model_of_a_service_is_adapted_to_its_recent_inputs(tmp_path: Path, process: type[Adapting]) -> None:
    small, large = make_levels(tmp_path)
    cascade = Level("m0+m1", small.model, large.model, threshold=0.9, share=0.5)
    recent, watch = RecentInputs(size=3), DriftWatch()
    with ModelService([small, cascade], observers=[recent.observe, watch.observe]) as service:
        for value in range(5):
            service.predict([float(value), 0.0, 0.0, 0.0], 10)
        assert watch.indices()
        assert adapt_service(service, recent, watch, [Path("my_task.py")]) == {"m0": "m0-v2", "m1": "m1-v2"}
        assert [service.levels[1].model.name, service.levels[1].larger.name] == ["m0-v2", "m1-v2"]  # type: ignore[union-attr]
        # What was normal for the old versions is not for the new ones.
        assert watch.indices() == {}
        # The confidence of one row is above 0.9 only in the new version.
        assert service.submit([[1.0, 0.0, 0.0, 0.0]]).result(10).predictions[0]["label"]["probability"] > 0.9  # type: ignore[index]
    assert [Path(command[4]).name for command in process.commands] == ["m0", "m1"]
    assert process.commands[0][7:] == ["--minutes", "0", "--plugin", "my_task.py"]


@pytest.mark.parametrize(("code", "kind"), [(2, UsageError), (1, ArtifactError), (-9, ArtifactError)])
def test_a_version_that_cannot_be_written_leaves_every_model_in_its_place(
    tmp_path: Path, process: type[Adapting], code: int, kind: type[Exception]
) -> None:
    process.returncode, process.errors = code, "error: picks cannot be written (Read-only file system)\n"
    recent = RecentInputs()
    with ModelService(make_levels(tmp_path), observers=[recent.observe]) as service:
        service.predict([1.0, 0.0, 0.0, 0.0], 10)
        with pytest.raises(kind, match=r"m0 cannot be adapted: picks cannot be written"):
            adapt_service(service, recent)
        assert [level.model.name for level in service.levels] == ["m0", "m1"]


def test_without_recent_inputs_there_is_nothing_to_adapt_to(tmp_path: Path) -> None:
    with ModelService(make_levels(tmp_path)) as service, pytest.raises(UsageError, match="no recent inputs"):
        adapt_service(service, RecentInputs())


def test_recent_inputs_are_the_last_ones_by_the_names_of_the_model(tmp_path: Path) -> None:
    recent = RecentInputs(size=2)
    recent._values.extend({"features": (None, np.full(4, value, np.float32))} for value in range(4))
    recent.write(tmp_path / "recent.npz", {"features": "input"})
    with np.load(tmp_path / "recent.npz") as arrays:
        assert arrays["input"][:, 0].tolist() == [2.0, 3.0]
    recent._values.append({"features": (None, np.zeros(3, np.float32))})
    with pytest.raises(UsageError, match="different lengths"):
        recent.write(tmp_path / "recent.npz", {"features": "input"})


def test_the_priority_of_a_process_that_has_ended_is_no_error(
    tmp_path: Path, process: type[Adapting], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: int) -> None:
        raise ProcessLookupError(3, "No such process")

    monkeypatch.setattr(module.os, "setpriority", fail)
    recent = RecentInputs()
    with ModelService(make_levels(tmp_path, (0.8,)), observers=[recent.observe]) as service:
        service.predict([1.0, 0.0, 0.0, 0.0], 10)
        assert adapt_service(service, recent) == {"m0": "m0-v2"}
