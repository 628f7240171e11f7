"""Benchmarks over search spaces: what they are asked, and rows kept as they come, so that a long one can go on."""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def kept(file: Path) -> list[dict[str, Any]]:
    """Return the rows so far."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def keep(file: Path, row: dict[str, Any]) -> None:
    """Add a row."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def questions(document: str | None, out: str, seeds: int) -> argparse.ArgumentParser:
    """Return a parser of what every such benchmark is asked.

    Args:
        document: The benchmark's docstring.
        out: Where its table goes by default.
        seeds: How many by default.
    """
    parser = argparse.ArgumentParser(description=document)
    parser.add_argument("--spaces", nargs="+", default=["digits", "mnist1d"])
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change keys of every spec")
    parser.add_argument("--out", type=Path, default=Path(out))
    return parser


def about(document: str | None) -> str:
    """Return what a benchmark's docstring says after its first line, as one line of Markdown."""
    return " ".join((document or "").split("\n\n")[1].split())


def turned(names: Sequence[str], seed: int) -> list[str]:
    """Return the names in an order that turns with the seed, so that none is always first.

    Example:
        >>> turned(["a", "b", "c"], 4)
        ['b', 'c', 'a']
    """
    turn = seed % max(len(names), 1)
    return [*names[turn:], *names[:turn]]


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean of positive values."""
    return math.exp(statistics.fmean(math.log(value) for value in values))
