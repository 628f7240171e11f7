"""A search and an export reach no network, and no library leaves a device id or a queue of events behind."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SEARCH_AND_EXPORT = """
import sys
import autocompress
small = ["search.backend=serial", "search.sampler=random", "fit.adamw.epochs=1", "prune={none: }", "quantize={none: }"]
small += ["student={cnn: {width: 4, depth: 1}}", "teacher.student={cnn: {width: 4, depth: 1}}"]
small += ["teacher.fit={adamw: {epochs: 1}}"]
front = autocompress.search("digits", trials=1, runs=sys.argv[1], overrides=small)
front.export(front.candidates["id"].iloc[0])
"""
SWITCHES = {"ORT_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}


def can_leave_the_network() -> bool:
    return (
        shutil.which("unshare") is not None and subprocess.run(["unshare", "-n", "true"], check=False).returncode == 0
    )


@pytest.mark.slow
def test_a_search_and_an_export_need_no_network_and_leave_no_file_of_telemetry(tmp_path: Path) -> None:
    home, cache = tmp_path / "home", tmp_path / "cache"
    home.mkdir()
    env = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    env |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "AUTOCOMPRESS_CACHE": str(cache)}
    env |= {"PYTHONDONTWRITEBYTECODE": "1"}
    # A network namespace without any route: whatever is sent fails, and the search may not need it.
    words = ["unshare", "-n"] if can_leave_the_network() else []
    subprocess.run([*words, sys.executable, "-c", SEARCH_AND_EXPORT, str(tmp_path / "runs")], env=env, check=True)
    assert list((tmp_path / "runs" / "digits" / "picks").iterdir())
    assert [path for path in home.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("value", "expected"), [(None, "1"), ("0", "0")])
def test_a_value_of_the_user_stays(value: str | None, expected: str) -> None:
    env = {name: text for name, text in os.environ.items() if name not in SWITCHES}
    env |= {} if value is None else {"ORT_DISABLE_TELEMETRY": value}
    code = f"import autocompress, os; print(*(os.environ[name] for name in {list(SWITCHES)}))"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected, *[*SWITCHES.values()][1:]]
