"""The module that the fork server of workers imports: every worker needs these libraries, and they take seconds.

The fork server imports them once, for the first workers and for those that replace them.
"""

import signal
from importlib import import_module

from autocompress.core.registry import DISTILL, FITS, OBJECTIVES, PRUNE, QUANTIZE, STUDENTS, TASKS

# Ctrl-C reaches the whole process group; only the driver handles it.
signal.signal(signal.SIGINT, signal.SIG_IGN)

# The libraries of a trial. The first optimizer imports torch's compiler, which takes a second.
for _name in ("autocompress.trial.runner", "torch._dynamo"):
    import_module(_name)
# Built-in parts only: a plugin runs in the workers, after the driver's environment is set there.
for _registry in (TASKS, STUDENTS, DISTILL, FITS, PRUNE, QUANTIZE, OBJECTIVES):
    _registry.import_builtins()
