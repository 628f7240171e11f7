"""What stays light: importing the package, asking for help, reading a finished run."""

import subprocess
import sys
from pathlib import Path

import pytest

from autocompress.cli.listing import read_listing
from autocompress.cli.options import Kind

HEAVY = ("torch", "ray", "optuna", "pandas", "plotly", "onnx", "onnxruntime", "sklearn", "torchmetrics")


def list_heavy(*statements: str) -> dict[str, set[str]]:
    """Return the heavy libraries that are there after each statement, one after the other in a new process."""
    check = f"print(' '.join(name for name in {HEAVY!r} if name in sys.modules))"
    code = "\n".join(["import sys", *(f"{statement}\n{check}" for statement in statements)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {statement: set(line.split()) for statement, line in zip(statements, done.stdout.splitlines(), strict=True)}


def test_the_package_and_its_command_line_import_nothing_heavy() -> None:
    statements = (
        "import autocompress",
        "import autocompress.cli.app",
        "from autocompress import CompressionConfig, knob",
        "dir(__import__('autocompress'))",
    )
    assert list_heavy(*statements) == {statement: set() for statement in statements}


@pytest.mark.slow
def test_commands_that_train_and_export_nothing_need_neither_torch_nor_optuna(small_run: Path, tmp_path: Path) -> None:
    run, page, out = str(small_run), str(tmp_path / "compare.html"), str(tmp_path / "report")
    # The first listing after a change of the package imports all parts.
    read_listing("methods")
    commands = (
        *(["list", kind.value] for kind in Kind),
        ["init"],
        ["schema"],
        ["status", run],
        ["front", run],
        ["pick", run],
        ["pick", run, "--where", "not structured or bytes > 1 and accuracy >= 1%"],
        ["report", run, "--out", out],
        ["compare", run, run, "--out", page],
        ["report", run, run, "--site", str(tmp_path / "site")],
    )
    prepare = (
        "import contextlib, io; from autocompress.cli.app import app\n"
        "def run(*words):\n"
        # What a command prints would stand between the lines of names.
        "    with contextlib.redirect_stdout(io.StringIO()): app(words, standalone_mode=False)"
    )
    calls = [f"run(*{command})" for command in commands]
    heavy = list_heavy(prepare, *calls)
    assert all(libraries <= {"pandas", "plotly", "sklearn"} for libraries in heavy.values()), heavy
    # Those before the report draw nothing.
    reading = [heavy[call] for call, command in zip(calls, commands, strict=True) if "--out" not in command][:-1]
    assert all(libraries <= {"pandas"} for libraries in reading[:6]), heavy


def test_timing_an_exported_file_needs_neither_torch_nor_pandas() -> None:
    statement = "import autocompress.export.bench_worker"
    assert list_heavy(statement) == {statement: {"onnx", "onnxruntime"}}
