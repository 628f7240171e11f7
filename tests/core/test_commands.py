"""Processes of this Python import nothing from the current folder, which may be an artifact from elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import autocompress

SCRIPT = """
import multiprocessing, os, subprocess
from autocompress.core.commands import import_safely, python_command
if __name__ == "__main__":
    subprocess.run([*python_command(), "-c", "import json, pickle"])
    for method in multiprocessing.get_all_start_methods():
        if method != "fork":
            with import_safely():
                process = multiprocessing.get_context(method).Process(target=print, args=(method,))
                process.start()
            process.join()
    print(len(python_command()), "PYTHONSAFEPATH" in os.environ)
"""
TRAPS = ("json", "multiprocessing", "pickle", "selectors", "socket", "struct")


def run_script(script: Path, folder: Path) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(autocompress.__file__).parents[1])}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.slow
def test_a_process_imports_no_module_of_the_current_folder(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    for name in TRAPS:
        (folder / f"{name}.py").write_text(f"print('{name} is of a stranger')\n")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    output = run_script(script, folder)
    assert "stranger" not in output
    assert {"spawn", "forkserver"} <= set(output) or sys.platform == "win32"
    assert output[-2:] == ["2", "False"]


@pytest.mark.slow
def test_a_program_in_the_current_folder_keeps_its_imports(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    assert run_script(script, tmp_path)[-2:] == ["1", "False"]
