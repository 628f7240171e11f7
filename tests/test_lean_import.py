"""What stays light: importing the package, asking for help, reading a finished run."""

import subprocess
import sys
from pathlib import Path

import pytest

from autocompress.cli.listing import read_listing
from autocompress.cli.options import Kind

HEAVY = (
    *("torch", "ray", "optuna", "sqlalchemy", "onnx", "onnxruntime", "torchmetrics", "pandas", "plotly", "sklearn"),
    *("scipy", "moocore", "jinja2", "yaml", "filelock", "http.server", "rich.progress", "multiprocessing"),
)
# What each command needs that reads a run. Each takes some hundredths of a second, most of them more than reading it.
TABLES = {"pandas"}
PAGES = TABLES | {"plotly", "jinja2", "moocore"}
FORESTS = {"sklearn", "scipy", "rich.progress", "multiprocessing"}
READING = {"status": TABLES, "front": TABLES, "pick": TABLES, "compare": PAGES, "report": PAGES | FORESTS}


TABLE_VERBS = ("status", "front", "pick")
PREPARE = (
    "import contextlib, io; from autocompress.cli.app import app\n"
    "def run(*words):\n"
    # What a command prints would stand between the lines of names.
    "    with contextlib.redirect_stdout(io.StringIO()): app(words, standalone_mode=False)"
)


def call(*words: str) -> str:
    return f"run(*{words!r})"


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


# In one process, a command would be given what those before it have imported.
@pytest.mark.slow
@pytest.mark.parametrize("verb", READING)
def test_commands_that_read_a_run_import_what_they_need(verb: str, small_run: Path, tmp_path: Path) -> None:
    run = str(small_run)
    variants = {
        "front": [["--where", "not structured or bytes > 1 and accuracy >= 1%"], ["--format", "json"]],
        "pick": [["--where", "not structured or bytes > 1 and accuracy >= 1%"], ["--json"]],
        "compare": [[run, "--out", str(tmp_path / "compare.html")]],
        "report": [["--out", str(tmp_path / "report")], [run, "--site", str(tmp_path / "site")]],
    }
    calls = [call(verb, run, *options) for options in ([], *variants.get(verb, [])) if options or verb in TABLE_VERBS]
    heavy = list_heavy(PREPARE, *calls)
    assert all(libraries <= READING[verb] for libraries in heavy.values()), heavy


@pytest.mark.slow
def test_commands_that_list_names_need_neither_torch_nor_optuna() -> None:
    # The first listing after a change of the package imports all parts.
    read_listing("methods")
    calls = [call(*words) for words in (*(["list", kind.value] for kind in Kind), ["init"], ["schema"])]
    heavy = list_heavy(PREPARE, *calls)
    assert all(libraries <= {"yaml"} for libraries in heavy.values()), heavy


def test_timing_an_exported_file_needs_neither_torch_nor_pandas() -> None:
    statement = "import autocompress.export.bench_worker"
    assert list_heavy(statement) == {statement: {"onnx", "onnxruntime"}}
