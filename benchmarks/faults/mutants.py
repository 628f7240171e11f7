"""Mutants: a guard is taken out in a copy of the package, and a row must fail there."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutant:
    """A guard and the rows that depend on it.

    Attributes:
        guard: Name of the guard.
        path: File that holds it.
        edits: Texts that occur once in the file, and what replaces them.
        rows: Rows of the benchmark, one of which must fail.
    """

    guard: str
    path: str
    edits: tuple[tuple[str, str], ...]
    rows: tuple[int, ...]

    def apply(self, root: Path) -> None:
        """Take the guard out of a copy of the package.

        Raises:
            ValueError: A text does not occur once: the code has changed.
        """
        path = root / self.path
        content = path.read_text(encoding="utf-8")
        for before, after in self.edits:
            if content.count(before) != 1:
                raise ValueError(f"{self.guard}: {before!r} occurs {content.count(before)} times in {self.path}")
            content = content.replace(before, after)
        path.write_text(content, encoding="utf-8")


#: The first line of the table, in which every row must pass.
NO_GUARD = "none"
SPEC = "autocompress/engine/spec.py"
ATOMIC, SCHEMA = "autocompress/core/atomic.py", "autocompress/store/schema.py"
STORE, DRIVER = "autocompress/store/run_store.py", "autocompress/engine/driver.py"
WORKERS, TEACHER = "autocompress/backends/workers.py", "autocompress/trial/teacher.py"
MUTANTS = (
    Mutant("fsync of a file", ATOMIC, (("os.fsync(file.fileno())", "pass"),), (29,)),
    Mutant("fsync of its folder", ATOMIC, (("            sync_folder(path.parent)\n", ""),), (29,)),
    Mutant("PRAGMA synchronous", SCHEMA, (("PRAGMA synchronous=FULL", "PRAGMA synchronous=OFF"),), (29,)),
    Mutant(
        "atomic write",
        ATOMIC,
        (
            (
                "handle, aside = create_temporary(path)\n        try:\n            with os.fdopen",
                "aside = str(path)\n        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)\n"
                "        try:\n            with os.fdopen",
            ),
        ),
        (29,),
    ),
    Mutant(
        "transaction",
        STORE,
        (('self._connection.execute("BEGIN IMMEDIATE")', "pass"), ('self._connection.execute("COMMIT")', "pass")),
        (1,),
    ),
    Mutant(
        "store under another name", STORE, (('draft = folder / f"{DATABASE}.new"', "draft = folder / DATABASE"),), (1,)
    ),
    Mutant("duplicate guard", DRIVER, (("if self._feedback.has_trial(key):", "if False:"),), (31,)),
    Mutant("lock", SCHEMA, (("lock.acquire(timeout=0)", "pass"),), (6,)),
    Mutant("refusal of a rollback journal", SCHEMA, (("if journal.exists():", "if False:"),), (25,)),
    Mutant("refusal of a folder without locks", ATOMIC, (("if reason.errno not in NO_LOCKS:", "if True:"),), (35,)),
    Mutant("check that the folder is there", STORE, (("if not is_present:", "if False:"),), (28,)),
    Mutant("seals", STORE, (("in SEALED.items():", "in ():"),), (7,)),
    Mutant("integrity check", STORE, (('if verdict != "ok":', "if False:"),), (7,)),
    Mutant("check of names in a store", STORE, (("            self._check_names()\n", "            pass\n"),), (25,)),
    Mutant(
        "check of the tables of a store",
        STORE,
        (
            ("check_schema(self._connection, is_current=False)", '""'),
            ("check_schema(self._connection, is_current=True)", '""'),
        ),
        (25,),
    ),
    Mutant(
        "checksums of an artifact",
        "autocompress/export/folder.py",
        (("if compute_sha256(content) != entry.sha256:", "if False:"),),
        (19,),
    ),
    Mutant(
        "bound of a module by its tensors",
        "autocompress/export/artifact.py",
        (("if nbytes > ", "if False and nbytes > "),),
        (26,),
    ),
    Mutant(
        "bound of the values of a JSON text",
        "autocompress/core/untrusted.py",
        (("if len(content) <= LARGEST_CONTAINERS:", "if True:"),),
        (26,),
    ),
    Mutant(
        "bound of the tensors of a file",
        "autocompress/core/untrusted.py",
        (("if size > LARGEST_HEADER:", "if False:"),),
        (26,),
    ),
    Mutant(
        "refusal of a repeated history",
        "autocompress/core/method.py",
        (("        if name in seen:", "        if False:"),),
        (26,),
    ),
    Mutant(
        "size of a search space",
        SPEC,
        (
            ("if len(text) > MAX_BYTES:", "if False:"),
            ("read_regular_file(path.resolve(), MAX_BYTES)", "read_regular_file(path.resolve())"),
        ),
        (17,),
    ),
    Mutant(
        "refusal of aliases",
        SPEC,
        (("if self.check_event(yaml.AliasEvent):", "if False:"),),
        (17,),
    ),
    Mutant(
        "private folder of the cache",
        ATOMIC,
        (("if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):", "if False:"),),
        (27,),
    ),
    Mutant(
        "checks of a cached teacher",
        TEACHER,
        (
            ("if compute_sha256(content[name]) != record.sha256.get(name):", "if False:"),
            ("    _check_logits(logits, model, task, splits)\n    return logits", "    return logits"),
        ),
        (27,),
    ),
    Mutant("two executions at most", WORKERS, (("EXECUTIONS = 2", "EXECUTIONS = 9"),), (2,)),
    Mutant("end of a worker's processes", WORKERS, (("os.killpg(self.process.pid, signal.SIGKILL)", "pass"),), (4,)),
    Mutant("time limit", WORKERS, (("self.job_start + self._limit", "self.job_start + 9 + self._limit"),), (34,)),
    Mutant("monotonic clock", STORE, (("return time.monotonic()", "return time.time()"),), (33,)),
    Mutant(
        "refusal of values that are not finite",
        "autocompress/engine/archive.py",
        (("if _has_finite_values(candidate) and not", "if not"),),
        (9,),
    ),
    Mutant("end after failures only", DRIVER, (("MAX_INITIAL_FAILURES = 10", "MAX_INITIAL_FAILURES = 20"),), (15,)),
    Mutant("interrupted-twice rule", DRIVER, (("if stored.attempts < MAX_ATTEMPTS:", "if True:"),), (30,)),
)


def run_mutant(mutant: Mutant, folder: Path) -> list[int]:
    """Return the rows that fail without a guard.

    Args:
        mutant: The guard.
        folder: An empty folder for the copy.
    """
    for name in ("autocompress", "benchmarks", "search_spaces", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    mutant.apply(folder)
    table = folder / "table.md"
    command = [
        sys.executable,
        "-m",
        "benchmarks.faults",
        "--small",
        "--out",
        str(table),
        "--rows",
        *map(str, mutant.rows),
    ]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if not table.exists():
        raise RuntimeError(f"{mutant.guard}: the benchmark did not end: {done.stderr[-500:]}")
    return [int(row) for row in re.findall(r"^\| (\d+) \|.*\*\*no\*\*", table.read_text(), re.MULTILINE)]


def format_mutants(mutants: Sequence[Mutant], folder: Path) -> list[str]:
    """Run mutants one after the other, print a line each, and return the rows of the table."""
    lines = ["| guard taken out | rows run | rows that fail | caught |", "|---|---|---|---|"]
    # A row that fails with every guard in its place would catch nothing.
    control = Mutant(NO_GUARD, ATOMIC, (), tuple(sorted({row for mutant in mutants for row in mutant.rows})))
    for number, mutant in enumerate([control, *mutants]):
        copy = folder / str(number)
        copy.mkdir(parents=True)
        failed = run_mutant(mutant, copy)
        rows, shown = (", ".join(map(str, numbers)) or "none" for numbers in (mutant.rows, failed))
        caught = "yes" if failed else "**no**"
        if mutant is control:
            caught = "**all of these rows must pass**" if failed else ""
        lines.append(f"| {mutant.guard} | {rows} | {shown} | {caught} |")
        print(lines[-1], flush=True)
        shutil.rmtree(copy, ignore_errors=True)
    return lines
