"""The store: one SQLite file, one writer, read back as two tables.

The tables ``ac_meta``, ``ac_trials`` and ``ac_candidates`` are the truth; ``ac_notes`` is what the sampler remembers,
written in the same transactions. The driver alone writes; workers return results.
"""

import json
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
from filelock import FileLock
from pydantic import JsonValue
from pydantic_core import from_json

from autocompress.core.atomic import storage_errors, write_atomic
from autocompress.core.records import Candidate, Job, State, TrialResult
from autocompress.core.run_info import RunInfo
from autocompress.errors import RunFolderError, StorageError, UsageError
from autocompress.store.connection import DATABASE as DATABASE, acquire, connect, damaged, require_run, taken
from autocompress.store.schema import (
    CANDIDATE_COLUMNS,
    SCHEMA,
    SEALED,
    TRIAL_COLUMNS,
    StoredTrial,
    candidate_of,
    candidate_row,
    cut_number,
    flat_candidate,
    job_row,
    trial_of,
)

FORMAT = 4
# Those whose tables tell whether they were damaged, and what can be read at all: if not continued, as samplers kept
# their memory in another form.
PROTECTED = (3, FORMAT)
READABLE = (2, *PROTECTED)


class RunStore:
    """One run folder's store.

    Open it with :meth:`create`, :meth:`open` (both lock it for writing) or :meth:`read`.

    Raises:
        RunFolderError: The folder is not a run, was written by a newer version, or is in use.
        StorageError: No space is left, or the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        connection: sqlite3.Connection,
        lock: FileLock | None,
        copy: "tempfile.TemporaryDirectory[str] | None" = None,
    ) -> None:
        self.folder = folder
        self._connection = connection
        self._lock = lock
        self._notes: list[str] = []
        self._copy = copy

    @classmethod
    def create(cls, folder: Path, info: RunInfo) -> "RunStore":
        """Create the store of a new run."""
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        lock = acquire(folder)
        if (folder / DATABASE).exists():
            lock.release()
            raise taken(folder)
        study = cls(folder, connect(folder / DATABASE), lock)
        study._connection.executescript(SCHEMA)
        study.update_run_info(replace(info, format=FORMAT))
        return study

    @classmethod
    def open(cls, folder: Path) -> "RunStore":
        """Open an existing run for writing."""
        require_run(folder)
        lock = acquire(folder)
        try:
            study = cls(folder, connect(folder / DATABASE), lock)
            study._check()
            if study._entry("format") != FORMAT:
                raise RunFolderError(f"{folder} was made by an older version: it can be read, but not continued")
        except BaseException:
            lock.release()
            raise
        return study

    @classmethod
    def read(cls, folder: Path) -> "RunStore":
        """Open an existing run for reading, also while a search writes to it or where its folder takes no files."""
        require_run(folder)
        try:
            study = cls(folder, connect(folder / DATABASE), None)
        except StorageError:
            # Readers of a store in WAL mode write beside it, which a read-only folder does not allow.
            copy = tempfile.TemporaryDirectory(prefix="autocompress-")
            for name in (DATABASE, f"{DATABASE}-wal"):
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, Path(copy.name) / name)
            study = cls(folder, connect(Path(copy.name) / DATABASE), None, copy)
        study._check()
        return study

    def _check(self) -> None:
        path = self.folder / DATABASE
        try:
            found = self._entry("format")
            damage = self._damage() if found in PROTECTED else ""
        except (sqlite3.DatabaseError, UnicodeDecodeError, ValueError) as fault:
            found, damage = FORMAT, str(fault)
        if damage:
            raise damaged(path, damage)
        if found not in READABLE:
            other = "an older" if isinstance(found, int) and found < FORMAT else "a newer"
            raise RunFolderError(f"{path} has format {found} of {other} version; this one reads format {FORMAT}")

    def _damage(self) -> str:
        """Return what of the file is not as it was written; empty if all is."""
        (found,) = self._connection.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            return str(found).replace("\n", " ")
        for table, (key, *rest) in SEALED.items():
            query = f"SELECT {key} FROM {table} WHERE seal IS NOT seal_of({', '.join([key, *rest])})"
            broken = [str(row[0]) for row in self._connection.execute(query)]
            if broken:
                return f"{table[3:]} {', '.join(broken[:5])}{' and more' * (len(broken) > 5)} changed since written"
        return ""

    def close(self) -> None:
        """Close the file and free the lock."""
        self._connection.close()
        if self._copy is not None:
            self._copy.cleanup()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> "RunStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- description --------------------------------------------------------------------------

    def run_info(self) -> RunInfo:
        """Return the description of the run."""
        return RunInfo.from_json(self._entries())

    def update_run_info(self, info: RunInfo) -> None:
        """Write the entries of the description that differ from the stored ones, in one transaction."""
        stored, entries = self._entries(), info.to_json()
        with self._transaction():
            self._connection.executemany(
                "INSERT INTO ac_meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                [(key, json.dumps(value)) for key, value in entries.items() if stored.get(key) != value],
            )
            self._connection.executemany(
                "DELETE FROM ac_meta WHERE key = ?", [(key,) for key in stored if key not in entries]
            )

    def _entries(self) -> dict[str, JsonValue]:
        rows = self._connection.execute("SELECT key, value FROM ac_meta ORDER BY key")
        return {key: from_json(value) for key, value in rows}

    def _entry(self, key: str) -> JsonValue:
        row = self._connection.execute("SELECT value FROM ac_meta WHERE key = ?", (key,)).fetchone()
        value: JsonValue = None if row is None else from_json(row[0])
        return value

    # -- writing ------------------------------------------------------------------------------

    def add_job(self, job: Job, optuna: int | None) -> None:
        """Record a job before it is handed out."""
        with self._transaction():
            self._connection.execute(
                "INSERT INTO ac_trials (number, role, config, base, optuna, state, cuts, rung, until)"
                " VALUES (:number, :role, :config, :base, :optuna, 'running', :cuts, :rung, :until)",
                {**job_row(job), "optuna": optuna},
            )

    def continue_job(self, job: Job) -> None:
        """Record that a paused training goes on with its next segment."""
        with self._transaction():
            self._connection.execute(
                "UPDATE ac_trials SET state = 'running', attempts = 1, cuts = :cuts, rung = :rung, until = :until"
                " WHERE number = :number",
                job_row(job),
            )

    def add_attempt(self, number: int) -> None:
        """Count one more execution of a job whose first one was interrupted."""
        with self._transaction():
            self._connection.execute("UPDATE ac_trials SET attempts = attempts + 1 WHERE number = ?", (number,))

    def cancel(self, numbers: Iterable[int]) -> None:
        """Uncount executions that were cancelled: their jobs did not fail, and come first when the run goes on."""
        with self._transaction():
            self._connection.executemany(
                "UPDATE ac_trials SET attempts = attempts - 1 WHERE number = ?", [(number,) for number in numbers]
            )

    def finish(self, result: TrialResult, *, elapsed: float, hypervolume: float) -> None:
        """Record a result, final or paused, with its candidates in one transaction; files are written first."""
        for name, content in result.checkpoints.items():
            write_atomic(self.checkpoint_path(name), content)
        if result.state is State.PAUSED:
            write_atomic(self._paused_path(result.number), result.paused)
        with self._transaction():
            self._connection.execute(
                "UPDATE ac_trials SET state = ?, reason = ?, seconds = COALESCE(seconds, 0) + ?, elapsed = ?,"
                " hypervolume = ?, curve = ? WHERE number = ?",
                (
                    result.state.value,
                    result.reason,
                    result.seconds,
                    elapsed,
                    hypervolume,
                    json.dumps([dict(row) for row in result.curve]),
                    result.number,
                ),
            )
            self._connection.executemany(
                f"INSERT OR REPLACE INTO ac_candidates ({', '.join(CANDIDATE_COLUMNS)})"
                f" VALUES ({', '.join('?' * len(CANDIDATE_COLUMNS))})",
                [candidate_row(candidate) for candidate in result.candidates],
            )
        if result.state is not State.PAUSED:
            self._paused_path(result.number).unlink(missing_ok=True)

    def stop(self, numbers: Iterable[int]) -> None:
        """Record that paused trainings do not go on; what they would have gone on from is dropped."""
        numbers = list(numbers)
        with self._transaction():
            self._connection.executemany(
                "UPDATE ac_trials SET state = 'stopped' WHERE number = ?", [(number,) for number in numbers]
            )
        for number in numbers:
            self._paused_path(number).unlink(missing_ok=True)

    def loaded(self, job: Job) -> Job:
        """Return a job with the files that it goes on from.

        Raises:
            RunFolderError: A file is missing.
        """
        paused = self._paused_path(job.number)
        try:
            if job.base is not None:
                content = self.checkpoint_path(job.base.checkpoint).read_bytes()
                return replace(job, base=replace(job.base, content=content))
            return replace(job, paused=paused.read_bytes()) if job.rung != 0 and paused.exists() else job
        except OSError as error:
            raise RunFolderError(f"{error.filename} cannot be read ({error.strerror}); the run is incomplete") from None

    def add_scores(self, scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
        """Add splits to the scores of candidates, ``{id: {split: {metric: value}}}``."""
        with self._transaction():
            for identity, splits in scores.items():
                row = self._connection.execute("SELECT scores FROM ac_candidates WHERE id = ?", (identity,)).fetchone()
                merged = {**from_json(row[0]), **{name: dict(values) for name, values in splits.items()}}
                self._connection.execute(
                    "UPDATE ac_candidates SET scores = ? WHERE id = ?", (json.dumps(merged), identity)
                )

    def note(self, line: str) -> None:
        """Take a line of JSON for whoever proposes trainings; it is written with the next transaction, or never."""
        self._notes.append(line)

    # -- reading ------------------------------------------------------------------------------

    def notes(self) -> Iterator[Any]:
        """Yield what :meth:`note` was given, in its order."""
        for (lines,) in self._connection.execute("SELECT notes FROM ac_notes ORDER BY number"):
            yield from from_json(lines)

    def stored_trials(self) -> list[StoredTrial]:
        """Return every trial in the order of its number."""
        rows = self._connection.execute(f"SELECT {', '.join(TRIAL_COLUMNS)} FROM ac_trials ORDER BY number")
        return [trial_of(dict(zip(TRIAL_COLUMNS, row, strict=True))) for row in rows]

    def candidate(self, identity: str) -> Candidate:
        """Return one candidate by its id.

        Raises:
            UsageError: There is none.
        """
        found = self._candidates("WHERE id = ?", (identity,))
        if not found:
            raise UsageError(f"{self.folder} has no candidate '{identity}'; ids look like t12c7 (see candidates.csv)")
        return found[0]

    def candidates_of(self, trial: int) -> list[Candidate]:
        """Return the candidates of one trial, the uncut parent first."""
        return sorted(
            self._candidates("WHERE trial = ?", (trial,)),
            key=lambda candidate: (candidate.complete, candidate.epochs, cut_number(candidate.id)),
        )

    def _candidates(self, where: str, values: Iterable[Any]) -> list[Candidate]:
        columns = ", ".join(CANDIDATE_COLUMNS)
        rows = self._connection.execute(f"SELECT {columns} FROM ac_candidates {where}", (*values,))
        return [candidate_of(dict(zip(CANDIDATE_COLUMNS, row, strict=True))) for row in rows]

    def checkpoint_path(self, name: str) -> Path:
        """Return where the checkpoint ``name`` lies."""
        return self.folder / "checkpoints" / f"{name}.safetensors"

    def _paused_path(self, number: int) -> Path:
        return self.folder / "paused" / f"t{number}.pt"

    def candidates(self) -> pd.DataFrame:
        """Return one row a candidate: knobs, scores, costs.

        A metric's plain name is its ``select_val`` score; ``_search`` and ``_test`` name the other splits.
        """
        columns = ", ".join(f"c.{name}" for name in CANDIDATE_COLUMNS)
        rows = self._connection.execute(
            f"SELECT t.role, {columns} FROM ac_candidates c JOIN ac_trials t ON t.number = c.trial"
            " ORDER BY c.trial, c.complete, c.epochs, CAST(substr(c.id, instr(c.id, 'c') + 1) AS INTEGER)"
        )
        table = [flat_candidate(role, dict(zip(CANDIDATE_COLUMNS, row, strict=True))) for role, *row in rows]
        return pd.DataFrame(table)

    def trials(self) -> pd.DataFrame:
        """Return one row a trial; ``further`` tells those that cut an earlier checkpoint instead of training."""
        rows = self._connection.execute(
            "SELECT number, role, state, base IS NOT NULL, reason, attempts, seconds, elapsed, hypervolume, curve,"
            " config FROM ac_trials ORDER BY number"
        )
        columns = [
            "number",
            "role",
            "state",
            "further",
            "reason",
            "attempts",
            "seconds",
            "elapsed",
            "hypervolume",
            "curve",
            "config",
        ]
        table = pd.DataFrame(rows.fetchall(), columns=columns)
        table["further"] = table["further"].astype(bool)
        table["curve"] = [from_json(text) for text in table["curve"]]
        for column in ("seconds", "elapsed", "hypervolume"):
            table[column] = table[column].astype(float)
        return table

    def version(self) -> str:
        """Return a text that changes with what is stored of trials, candidates and the front; cheap to ask for."""
        states = self._connection.execute("SELECT state, COUNT(*) FROM ac_trials GROUP BY state ORDER BY state")
        (candidates,) = self._connection.execute("SELECT COUNT(*) FROM ac_candidates").fetchone()
        counted = " ".join(f"{count} {state}" for state, count in states)
        return f"{counted}; {candidates} candidates; test read {self._entry('test_reads') or 0} times"

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit all or nothing; a full or read-only disk becomes a :class:`StorageError`."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            if self._notes:
                lines = f"[{', '.join(self._notes)}]"
                self._connection.execute("INSERT INTO ac_notes (notes) VALUES (?)", (lines,))
            self._connection.execute("COMMIT")
            self._notes.clear()
        except BaseException as fault:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            refused = isinstance(fault, sqlite3.OperationalError)
            if refused and any(word in str(fault) for word in ("full", "readonly", "disk I/O")):
                raise StorageError(
                    f"cannot write {self.folder / DATABASE} ({fault}); free some space or choose another folder"
                ) from fault
            raise


def now() -> float:
    """Return seconds of a clock that never goes back."""
    return time.monotonic()
