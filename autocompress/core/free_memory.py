"""Memory that is free on this machine."""

from pathlib import Path

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def free_memory() -> float | None:
    """Return the bytes of memory that a process may still take; None where the system does not tell."""
    amounts = []
    try:
        lines = MEMINFO.read_text().splitlines()
        amounts += [float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
        # The limit of a container (cgroup v2) may lie far below the memory of the machine.
        limit, used = ((CGROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        amounts += [float(limit) - float(used)] if limit != "max" else []
    except (OSError, ValueError):
        pass
    return min(amounts) if amounts else None
