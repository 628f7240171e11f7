"""Processor time of the commands that read a finished run: ``python -m benchmarks.verbs RUN``.

Each command runs in a new process, as a user starts it. Its time is that of user and system together, of the process
and its children; the median of some repetitions counts. Writes reports/benchmarks/verbs.md.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import autocompress
from autocompress.core.run_info import read_processor_name

TABLE = Path(__file__).parents[1] / "reports" / "benchmarks" / "verbs.md"


def list_commands(run: str, folder: str) -> list[list[str]]:
    """Return the commands: those that search, export and measure nothing.

    Args:
        run: Path of the run.
        folder: Folder for what they write.
    """
    return [
        ["--version"],
        ["--help"],
        ["list", "methods"],
        ["init", "--task", "digits"],
        ["status", run],
        ["front", run],
        ["front", run, "--where", "accuracy >= 90% and not (structured or bytes > 30 KB)"],
        ["pick", run],
        ["pick", run, "--max", "bytes=20KB"],
        ["compare", run, run, "--out", f"{folder}/compare.html"],
        ["report", run, "--out", folder],
        ["doctor"],
    ]


def measure(words: Sequence[str], repeats: int) -> tuple[float, float]:
    """Return the medians of processor time and elapsed time of a command, in seconds."""
    times = []
    for _ in range(repeats):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [sys.executable, "-m", "autocompress", *words]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        after, elapsed = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
        times.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, elapsed))
    processor, elapsed = (statistics.median(column) for column in zip(*times, strict=True))
    return processor, elapsed


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    candidates = len(autocompress.load(arguments.run).candidates)
    lines = [
        "# Commands that read a run",
        "",
        f"Written by `python -m benchmarks.verbs RUN`, of a run with {candidates:,} candidates: processor time of a "
        "command in a new process, and elapsed time, medians.",
        "",
        "| command | processor | elapsed |",
        "|---|---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for words in list_commands(str(arguments.run), folder):
            processor, elapsed = measure(words, arguments.repeats)
            shown = " ".join(
                {str(arguments.run): "RUN"}.get(word, f'"{word}"' if " " in word else word) for word in words
            ).replace(folder, "FOLDER")
            lines.append(f"| `autocompress {shown}` | {processor:.2f} s | {elapsed:.2f} s |")
            print(lines[-1], flush=True)
    lines += ["", f"{read_processor_name()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}.", ""]
    TABLE.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
