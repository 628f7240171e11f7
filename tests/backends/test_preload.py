"""The preloaded module: the libraries of a trial, imported in a process of its own."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autocompress.backends.workers import DRIVER

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


needs_linux = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs file descriptors of processes")


@needs_linux
def test_a_fork_server_that_imports_ends_with_its_driver(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    child = [sys.executable, "-c", "import autocompress.backends.preload"]
    code = f"import os, subprocess; os.environ[{DRIVER!r}] = str(os.getpid()); subprocess.run({child})"
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        server = os.pidfd_open(int(driver.stdout.readline()))
        driver.kill()
    has_ended = bool(select.select([server], [], [], 60)[0])
    if not has_ended:
        signal.pidfd_send_signal(server, signal.SIGKILL)
    os.close(server)
    assert has_ended


@needs_linux
def test_a_fork_server_whose_driver_has_ended_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("print('imported')")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    environment = {**os.environ, "PYTHONPATH": path}
    for driver in (ended.pid, 1):
        environment[DRIVER] = str(driver)
        command = [sys.executable, "-c", "import autocompress.backends.preload"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1, ""), done.stderr


FORK_SERVER = """\
import atexit
import os
import warnings
atexit.register(print, "modules are taken apart", flush=True)
os.environ["AUTOCOMPRESS_DRIVER"] = str(os.getppid())
import autocompress.backends.preload
warnings.simplefilter("ignore")
if not os.fork():
    atexit._run_exitfuncs()
    os._exit(0)
os.wait()
"""


@pytest.mark.slow
@needs_linux
def test_a_fork_server_ends_at_once_and_its_workers_end_as_others_do() -> None:
    root = Path(__file__).parents[2]
    output = subprocess.run([sys.executable, "-c", FORK_SERVER], cwd=root, capture_output=True, text=True, check=True)
    assert output.stdout == "modules are taken apart\n"
