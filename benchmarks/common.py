"""Shared by benchmarks: command-line options, result rows that are stored at once so that a run can be resumed."""

import argparse
import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def load_rows(file: Path) -> list[dict[str, Any]]:
    """Return the stored rows."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def append_row(file: Path, row: dict[str, Any]) -> None:
    """Append a row to a file of JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def build_parser(document: str | None, out: str, seeds: int) -> argparse.ArgumentParser:
    """Return the parser of the options that benchmarks over search spaces share.

    Args:
        document: Docstring of the benchmark.
        out: Default path of the table.
        seeds: Default number of seeds.
    """
    parser = argparse.ArgumentParser(description=document)
    parser.add_argument("--spaces", nargs="+", default=["digits", "mnist1d"])
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change keys of every spec")
    parser.add_argument("--out", type=Path, default=Path(out))
    return parser


def describe_benchmark(document: str | None) -> str:
    """Return the second paragraph of a benchmark's docstring as one line of Markdown."""
    return " ".join((document or "").split("\n\n")[1].split())


def describe_processor() -> str:
    """Return the name of this machine's processor and the number of its threads."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    name = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return f"{name or platform.machine()}, {os.cpu_count()} threads"


def rotate_names(names: Sequence[str], seed: int) -> list[str]:
    """Return the names rotated by the seed, so that no name is always first.

    Example:
        >>> rotate_names(["a", "b", "c"], 4)
        ['b', 'c', 'a']
    """
    offset = seed % max(len(names), 1)
    return [*names[offset:], *names[:offset]]


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean of positive values."""
    return math.exp(statistics.fmean(math.log(value) for value in values))
