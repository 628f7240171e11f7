"""What doctor looks at, broken on purpose."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autocompress.cli import doctor as checkup


def test_a_missing_package_and_an_old_one_are_broken_with_their_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["no-such-package-at-all>=3", "pandas>=999", "pytest>=9; extra == 'test'", "numpy>=2"]
    monkeypatch.setattr(checkup, "requires", lambda name: wanted)
    sound, missing, old = checkup.packages()
    assert sound.state == "ok"
    assert "numpy" in sound.found
    assert "pytest" not in sound.found
    assert (missing.state, missing.found) == ("broken", "no-such-package-at-all is missing")
    assert missing.fix == "pip install 'no-such-package-at-all>=3'"
    assert old.state == "broken"
    assert "does not satisfy >=999" in old.found


def test_a_folder_that_will_be_made_is_judged_by_the_one_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkup.folder("runs", tmp_path / "a" / "b", "").state == "ok"
    assert not list(tmp_path.iterdir())
    assert checkup.folder("runs", Path("/proc/a"), "choose another").fix == "choose another"
    usage = checkup.shutil.disk_usage(tmp_path)
    for free, state in ((1e6, "broken"), (5e8, "scant"), (5e9, "ok")):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: usage._replace(free=free))
        assert checkup.folder("runs", tmp_path, "").state == state


def test_little_memory_is_scant(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, state in ((1e9, "scant"), (8e9, "ok"), (None, "ok")):
        monkeypatch.setattr(checkup, "_memory_free", lambda free=free: free)
        assert checkup.memory().state == state


def test_libraries_are_tried_not_only_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkup.torch_works().startswith("trains; ")
    assert checkup.torch_works().endswith("no graphics card") == (not torch.cuda.is_available())
    assert re.search("CPUExecutionProvider; int8 products (are exact|overflow)", checkup.onnxruntime_works())
    monkeypatch.setattr("torch.nn.Conv2d", None)
    found = checkup._tried("torch", checkup.torch_works, "mend it")
    assert (found.state, found.fix) == ("broken", "mend it")
    assert found.found.startswith("TypeError: ")


@pytest.mark.parametrize(
    ("code", "message"), [("print(42)", ""), ("raise SystemExit('no luck')", "no luck"), ("", "it did")]
)
def test_ray_must_have_run_a_task(code: str, message: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True)
    if message:
        with pytest.raises(RuntimeError, match=message):
            checkup.ray_works(process)
    else:
        assert checkup.ray_works(process) == "a local cluster ran a task"
