"""What workers are forked from has imported this: a search needs it in all of them, and it takes seconds.

One process imports it once for all workers, and for those that take the place of others.
"""

import signal
from importlib import import_module

# Ctrl-C reaches the whole process group; only the driver answers it.
signal.signal(signal.SIGINT, signal.SIG_IGN)

# What a trial needs. The first optimizer imports torch's compiler, which takes a second.
for _name in ("autocompress.trial.runner", "torch._dynamo", "autocompress.tasks"):
    import_module(_name)
