"""What this machine is called."""

import platform


def read_processor_name() -> str:
    """Return the processor's name, such as ``AMD EPYC 7B13``."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        # No Linux, or a /proc/cpuinfo without model names.
        return platform.processor() or platform.machine()
