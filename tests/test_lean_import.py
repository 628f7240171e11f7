"""What stays light: importing the package, asking for help, reading a finished run."""

import subprocess
import sys

import pytest

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
def test_reading_a_run_needs_neither_torch_nor_optuna() -> None:
    modules = ("analysis.pareto", "store.run_store", "analysis.selection", "report", "api")
    heavy = list_heavy(*(f"import autocompress.{module}" for module in modules))
    assert all(libraries <= {"pandas", "plotly"} for libraries in heavy.values()), heavy


def test_timing_an_exported_file_needs_neither_torch_nor_pandas() -> None:
    statement = "import autocompress.export.bench_worker"
    assert list_heavy(statement) == {statement: {"onnx", "onnxruntime"}}
