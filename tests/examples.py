"""The examples of a page in Markdown, as tests run them: what it shows is what a user types, at a size of seconds."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from autocompress.cli import app as cli
from tests.conftest import SMALL_SEARCH

# The models of a search of seconds are poor: what an example asks of accuracy is asked of them at half the level.
ASKED = re.compile(r"(accuracy ?>?= ?)0\.\d+")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def every_block(text: str) -> Iterator[tuple[str, str]]:
    """Yield language and content of every fenced block, in the order in which they stand."""
    return ((found[1], found[2]) for found in FENCE.finditer(text))


def blocks(text: str, language: str) -> list[str]:
    return [content for spoken, content in every_block(text) if spoken == language]


def commands(block: str) -> list[str]:
    """Return the lines of a shell block that call autocompress."""
    lines = [part.strip() for line in block.splitlines() for part in line.split("&&")]
    return [line for line in lines if line.startswith("autocompress ")]


def small_command(line: str) -> list[str]:
    """Return the words of a command, at a size that takes seconds, with limits that small models can keep."""
    words = shlex.split(ASKED.sub(r"\g<1>0.5", line))
    if words[1] == "pick":
        words = [word.replace("=2000", "=200000") for word in words]
    if words[1] == "confirm":
        words = [{"--top": "2", "--seeds": "2"}.get(before, word) for before, word in pairwise(["", *words])]
    if words[1] == "bench":
        words += ["--seconds", "0.05"]
    if words[1] == "search" and "--dry-run" not in words:
        words += [word for setting in SMALL_SEARCH for word in ("--set", setting)]
    return words


def small_python(block: str) -> str:
    """Return an example in Python with searches that take seconds."""
    return block.replace("trials=10", f"trials=2, overrides={SMALL_SEARCH}").replace("5000", "500000")


def run(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command in this process, and return what it printed; it must end well."""
    monkeypatch.setattr(sys, "argv", words)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main()
    printed = capsys.readouterr()
    assert not end.value.code, f"{shlex.join(words)}: {printed.err}"
    return printed.out


COMMANDS = """
import json
import sys

from autocompress.cli.app import main

if __name__ == "__main__":
    for words in json.loads(sys.argv.pop()):
        sys.argv[1:] = words
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise
"""


def run_in_a_process(commands: Sequence[Sequence[str]], folder: Path, **variables: str) -> str:
    """Run commands in a folder, one after the other in one new process, and return what they printed."""
    script = folder / "commands.py"
    script.write_text(COMMANDS)
    done = subprocess.run(
        [sys.executable, str(script), json.dumps([list(words) for words in commands])],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout
