"""What stays light: importing the package, asking for help, reading a finished run."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "ray", "optuna", "pandas", "plotly", "onnx", "onnxruntime", "sklearn", "torchmetrics")


def loaded(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(' '.join(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import autocompress",
        "import autocompress.cli.app",
        "from autocompress import CompressionConfig, knob",
        "dir(__import__('autocompress'))",
    ],
)
def test_the_package_and_its_command_line_import_nothing_heavy(statement: str) -> None:
    assert loaded(statement) == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        "autocompress.api",
        "autocompress.report",
        "autocompress.analysis.selection",
        "autocompress.analysis.pareto",
        "autocompress.store.run_store",
    ],
)
def test_reading_a_run_needs_neither_torch_nor_optuna(module: str) -> None:
    assert loaded(f"import {module}") <= {"pandas", "plotly"}


def test_timing_an_exported_file_needs_neither_torch_nor_pandas() -> None:
    assert loaded("import autocompress.export.bench_worker") == {"onnx", "onnxruntime"}
