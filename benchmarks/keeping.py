"""Rows of a benchmark, kept as they come: a long one can be stopped and goes on where it was."""

import json
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
