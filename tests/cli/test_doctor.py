"""Checks of the machine, each with a fault that the test makes."""

import re
from pathlib import Path

import pytest
import torch

import autocompress
from autocompress.cli import doctor


def test_a_missing_package_and_an_old_one_are_broken_with_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["no-such-package-at-all>=3", "pandas>=999", "pytest>=9; extra == 'test'", "numpy>=2"]
    monkeypatch.setattr(doctor, "requires", lambda name: wanted)
    installed, missing, old = doctor.check_packages()
    assert installed.state == "ok"
    assert installed.finding == f"autocompress {autocompress.__version__}; 1 other is new enough"
    assert (missing.state, missing.finding) == ("broken", "no-such-package-at-all is missing")
    assert missing.fix == "pip install 'no-such-package-at-all>=3'"
    assert old.state == "broken"
    assert "does not satisfy >=999" in old.finding


def test_a_missing_folder_is_checked_by_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_folder("runs", tmp_path / "a" / "b", "").state == "ok"
    assert not list(tmp_path.iterdir())
    assert doctor.check_folder("runs", Path("/proc/a"), "choose another").fix == "choose another"
    usage = doctor.shutil.disk_usage(tmp_path)
    for free, state in ((1e6, "broken"), (5e8, "warning"), (5e9, "ok")):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: usage._replace(free=free))
        assert doctor.check_folder("runs", tmp_path, "").state == state


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, state in ((1e9, "warning"), (8e9, "ok"), (None, "ok")):
        monkeypatch.setattr(doctor, "free_memory", lambda free=free: free)
        assert doctor.check_memory().state == state


def test_libraries_run_an_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.try_torch().startswith("trains; ")
    assert doctor.try_torch().endswith("no graphics card") == (not torch.cuda.is_available())
    assert re.search("CPUExecutionProvider; int8 products (are exact|overflow)", doctor.try_onnxruntime())
    monkeypatch.setattr("torch.nn.Conv2d", None)
    check = doctor._run_check("torch", doctor.try_torch, "mend it")
    assert (check.state, check.fix) == ("broken", "mend it")
    assert check.finding.startswith("TypeError: ")


@pytest.mark.parametrize(
    ("code", "message"), [("print(42)", ""), ("raise SystemExit('no luck')", "no luck"), ("", "it did")]
)
def test_the_ray_check_needs_a_result_of_the_task(code: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_RAY_SCRIPT", code)
    if message:
        with pytest.raises(RuntimeError, match=message):
            doctor.try_ray()
    else:
        assert doctor.try_ray() == "a local cluster ran a task"
