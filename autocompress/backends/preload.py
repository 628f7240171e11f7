"""The module that the fork server of workers imports: every worker needs these libraries, and they take seconds.

The fork server imports them once, for the first workers and for those that replace them.
"""

import atexit
import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import parent_process

from autocompress.backends.workers import DRIVER
from autocompress.core.registry import DISTILL, FITS, OBJECTIVES, PRUNE, QUANTIZE, STUDENTS, TASKS


@contextmanager
def _end_with_driver(process: int) -> Iterator[None]:
    """Let this process, a fork server, end at once when its driver ends.

    Python looks for the end of the driver after the imports, and then takes all modules apart: some six seconds of
    processor time, for which a process would outlive a search that was killed. The pipe by which it notices the end
    stays open, besides, as long as a worker lives or a request for one waits.

    Args:
        process: Process id of the driver.
    """
    try:
        driver = os.pidfd_open(process)
    except ProcessLookupError:
        os._exit(1)
    if os.getppid() != process:
        os._exit(1)
    reader, writer = os.pipe()

    def watch() -> None:
        if driver in select.select([driver, reader], [], [])[0]:
            os._exit(1)

    # The thread lives as long as the imports: it is better to fork a process that has only one.
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(writer)
        thread.join()
        os.close(reader)
        os.close(driver)
    # Called first, because it is registered last.
    atexit.register(_exit_at_once, os.getpid())


def _exit_at_once(process: int) -> None:
    # A worker inherits the call.
    if os.getpid() == process:
        os._exit(0)


def _import_libraries() -> None:
    # The libraries of a trial. The first optimizer imports torch's compiler, which takes a second.
    for name in ("autocompress.trial.runner", "torch._dynamo"):
        import_module(name)
    # Built-in parts only: a plugin runs in the workers, after the driver's environment is set there.
    for registry in (TASKS, STUDENTS, DISTILL, FITS, PRUNE, QUANTIZE, OBJECTIVES):
        registry.import_builtins()


# Ctrl-C reaches the whole process group; only the driver handles it.
signal.signal(signal.SIGINT, signal.SIG_IGN)
_driver = os.environ.pop(DRIVER, "")
# A worker imports this module itself where the user's program has started the fork server.
if _driver and parent_process() is None and hasattr(os, "pidfd_open"):
    with _end_with_driver(int(_driver)):
        _import_libraries()
else:
    _import_libraries()
