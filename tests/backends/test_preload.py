"""The preloaded module: the libraries of a trial, imported in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """\
import signal
import sys
import autocompress.backends.preload
from autocompress.core.registry import DISTILL, FITS, OBJECTIVES, PRUNE, QUANTIZE, STUDENTS, TASKS

assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
assert {"autocompress.trial.runner", "torch._dynamo"} <= set(sys.modules)
loaded = set(sys.modules)
for registry in (TASKS, STUDENTS, DISTILL, FITS, PRUNE, QUANTIZE, OBJECTIVES):
    registry.import_builtins()
print(sorted(name for name in set(sys.modules) - loaded if name.startswith("autocompress")))
"""


# The import takes seconds, and it changes the handler of Ctrl-C: a new process each.
@pytest.mark.slow
def test_it_ignores_ctrl_c_and_imports_every_built_in_part() -> None:
    root = Path(__file__).parents[2]
    output = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, check=True)
    assert output.stdout == "[]\n"
