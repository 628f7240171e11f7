"""The store of a run: one SQLite file with one writer.

The tables ``ac_meta``, ``ac_trials`` and ``ac_candidates`` hold the run; ``ac_notes`` holds the sampler's history,
written in the same transactions. Only the driver writes; workers return results.
"""

import json
import logging
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import pandas as pd
from pydantic import JsonValue

from autocompress.core.atomic import storage_errors, sync_folder, write_atomic
from autocompress.core.records import Candidate, Job, Segment, State, TrialResult
from autocompress.core.run_info import RunInfo
from autocompress.core.untrusted import (
    check_name,
    escape_controls,
    join_inside,
    parse_json,
    read_regular_file,
    show_value,
)
from autocompress.errors import RunFolderError, SearchFailedError, StorageError, UsageError
from autocompress.store.parts import PartTable, dump_compact
from autocompress.store.schema import (
    ADDED,
    CANDIDATE_COLUMNS,
    DATABASE as DATABASE,
    DATABASE_SUFFIXES,
    SCHEMA,
    SEALED,
    SEGMENTS,
    TRIAL_COLUMNS,
    CandidateRows,
    StoredTrial,
    acquire_lock,
    candidate_from_row,
    candidate_index,
    candidate_row,
    check_schema,
    damage_error,
    existing_run_error,
    find_other_types,
    job_row,
    limit_steps,
    open_database,
    read_errors,
    require_run,
    trial_from_row,
)

if TYPE_CHECKING:
    from filelock import FileLock

FORMAT = 5
# Formats that can be continued: format 4 lacks the tables of parts and of segments, which are added. Earlier ones store
# the history of the sampler in another form, and can only be read.
CONTINUED = (4, FORMAT)
# Formats with seals, and formats that can be read.
PROTECTED = (3, *CONTINUED)
READABLE = (2, *PROTECTED)

logger = logging.getLogger(__name__)


class RunStore:
    """Store of one run folder.

    Open it with :meth:`create`, :meth:`open` (both lock it for writing) or :meth:`read`.

    Raises:
        RunFolderError: The folder is not a run, was written by a newer version, or is in use.
        StorageError: No space is left, or the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        database: Path,
        lock: "FileLock | None",
        copy: "tempfile.TemporaryDirectory[str] | None" = None,
    ) -> None:
        self.folder = folder
        self._lock = lock
        self._notes: list[str] = []
        self._copy = copy
        # SQLite goes on writing to a file that was deleted, so a writer compares the file at its path.
        self._file = None if lock is None else os.stat(folder / DATABASE)
        # Last, because nothing closes the connection of a store whose construction fails.
        self._connection = open_database(database)
        self._parts = PartTable(self._connection)

    @classmethod
    def create(cls, folder: Path, info: RunInfo) -> "RunStore":
        """Create the store of a new run."""
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        lock = acquire_lock(folder)
        try:
            if (folder / DATABASE).exists():
                raise existing_run_error(folder)
            with storage_errors(folder):
                cls._write_new_database(folder, replace(info, format=FORMAT))
            store = cls(folder, folder / DATABASE, lock)
        except BaseException:
            lock.release()
            raise
        logger.info("%s: created", folder)
        return store

    @classmethod
    def _write_new_database(cls, folder: Path, info: RunInfo) -> None:
        """Write the file under another name first: a kill in between leaves no run, and the next search starts anew."""
        draft = folder / f"{DATABASE}.new"
        for suffix in DATABASE_SUFFIXES:
            draft.with_name(draft.name + suffix).unlink(missing_ok=True)
        with cls(folder, draft, None) as store:
            store._create_tables()
            store.update_run_info(info)
        os.replace(draft, folder / DATABASE)
        sync_folder(folder)

    @classmethod
    def open(cls, folder: Path) -> "RunStore":
        """Open an existing run for writing."""
        require_run(folder)
        lock = acquire_lock(folder)
        try:
            store = cls(folder, folder / DATABASE, lock)
        except BaseException:
            lock.release()
            raise
        try:
            store._check_format()
            if store._read_entry("format") not in CONTINUED:
                raise RunFolderError(f"{folder} was created by an older version: it can be read, but not continued")
            store._add_missing_tables()
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def read(cls, folder: Path) -> "RunStore":
        """Open an existing run for reading, also while a search writes to it or where its folder takes no files."""
        require_run(folder)
        try:
            store = cls(folder, folder / DATABASE, None)
        except StorageError:
            # A reader of a database in WAL mode writes files beside it, which a read-only folder does not allow.
            logger.info("%s: the folder is read-only, reads a copy of %s", folder, DATABASE)
            copy = tempfile.TemporaryDirectory(prefix="autocompress-")
            try:
                for name in (DATABASE, f"{DATABASE}-wal"):
                    if (folder / name).is_file():
                        shutil.copyfile(folder / name, Path(copy.name) / name)
                store = cls(folder, Path(copy.name) / DATABASE, None, copy)
            except BaseException:
                copy.cleanup()
                raise
        try:
            # A reader fires no trigger of ours, which need functions of this program.
            store._connection.execute("PRAGMA trusted_schema=OFF")
            store._check_format()
        except BaseException:
            store.close()
            raise
        return store

    def _create_tables(self) -> None:
        # One transaction: one write to the disk instead of one for each table.
        with self._write_errors():
            self._connection.executescript(f"BEGIN IMMEDIATE;{SCHEMA}COMMIT;")

    def _add_missing_tables(self) -> None:
        """Make the tables of the present format in a store of an earlier one."""
        if self._read_entry("format") != FORMAT:
            # A kill before the next line leaves a valid store of the earlier format.
            self._create_tables()
            self.update_run_info(replace(self.run_info(), format=FORMAT))
            logger.info("%s: continued in format %d", self.folder, FORMAT)

    def _check_format(self) -> None:
        path = self.folder / DATABASE
        try:
            with limit_steps(self._connection, path):
                # Before the first query of a table, which may be a view.
                damage = check_schema(self._connection, is_current=False)
                version = FORMAT if damage else self._read_entry("format")
                if version in CONTINUED:
                    damage = damage or check_schema(self._connection, is_current=True)
                if version in PROTECTED:
                    damage = damage or self._find_damage(is_current=version == FORMAT)
                if version in READABLE:
                    damage = damage or find_other_types(self._connection)
        except (sqlite3.DatabaseError, UnicodeDecodeError, ValueError) as fault:
            version, damage = FORMAT, escape_controls(str(fault), keeps_lines=False)
        if damage:
            logger.error("%s: %s", path, damage)
            raise damage_error(path, damage)
        if version is None:
            raise damage_error(path, "its format is missing")
        if version not in READABLE:
            other = "an older" if isinstance(version, int) and version < FORMAT else "a newer"
            raise RunFolderError(
                f"{path} has format {show_value(version)} of {other} version; this version reads format {FORMAT}"
            )
        with self._read_errors():
            self._check_names()

    def _check_names(self) -> None:
        """Check the names that become paths and parts of command lines, before any is used.

        Raises:
            RunFolderError: A name is none that autocompress writes.
        """
        columns = (("id", "candidate id"), ("NULLIF(checkpoint, '')", "name of a checkpoint"))
        for column, kind in columns:
            # A missing checkpoint is NULL or empty.
            query = f"SELECT {column} FROM ac_candidates WHERE {column} IS NOT NULL AND NOT is_name({column}) LIMIT 1"
            for (name,) in self._connection.execute(query):
                check_name(name, kind)
        name = self._read_entry("name")
        if name:
            check_name(name, "name of a run")

    def _find_damage(self, *, is_current: bool) -> str:
        """Return a description of the damaged part of the file; empty if there is none."""
        (verdict,) = self._connection.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            return str(verdict).replace("\n", " ")
        for table, (key, *rest) in SEALED.items():
            if table in ADDED and not is_current:
                continue
            # IS NOT also finds rows whose seal is NULL.
            query = f"SELECT {key} FROM {table} WHERE seal IS NOT seal_of({', '.join([key, *rest])})"
            broken = [str(row[0]) for row in self._connection.execute(query)]
            if broken:
                return f"{table[3:]} {', '.join(broken[:5])}{' and more' * (len(broken) > 5)} changed since written"
        return ""

    def close(self) -> None:
        """Close the file and release the lock."""
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
        with self._read_errors():
            return RunInfo.from_json(self._read_entries())

    def update_run_info(self, info: RunInfo) -> None:
        """Write the entries of the description that differ from the stored ones, in one transaction."""
        stored, entries = self._read_entries(), info.to_json()
        with self._transaction():
            self._connection.executemany(
                # An upsert fires the triggers that renew the seal.
                "INSERT INTO ac_meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                [(key, json.dumps(value)) for key, value in entries.items() if stored.get(key) != value],
            )
            self._connection.executemany(
                "DELETE FROM ac_meta WHERE key = ?", [(key,) for key in stored if key not in entries]
            )

    def _read_entries(self) -> dict[str, JsonValue]:
        rows = self._connection.execute("SELECT key, value FROM ac_meta ORDER BY key")
        return {key: parse_json(value) for key, value in rows}

    def _read_entry(self, key: str) -> JsonValue:
        row = self._connection.execute("SELECT value FROM ac_meta WHERE key = ?", (key,)).fetchone()
        value: JsonValue = None if row is None else parse_json(row[0])
        return value

    # -- writing ------------------------------------------------------------------------------

    def add_job(self, job: Job, optuna: int | None) -> None:
        """Record a job before a worker gets it."""
        with self._transaction():
            self._connection.execute(
                "INSERT INTO ac_trials (number, role, config, base, optuna, state, cuts, rung, until)"
                " VALUES (:number, :role, :config, :base, :optuna, 'running', :cuts, :rung, :until)",
                {**job_row(job, self._parts), "optuna": optuna},
            )

    def continue_job(self, job: Job) -> None:
        """Record that a paused trial continues with its next segment."""
        with self._transaction():
            self._connection.execute(
                "UPDATE ac_trials SET state = 'running', attempts = 1, cuts = :cuts, rung = :rung, until = :until"
                " WHERE number = :number",
                job_row(job, self._parts),
            )

    def add_attempt(self, number: int) -> None:
        """Count another attempt of a job that was interrupted."""
        with self._transaction():
            self._connection.execute("UPDATE ac_trials SET attempts = attempts + 1 WHERE number = ?", (number,))

    def cancel_attempts(self, numbers: Iterable[int]) -> None:
        """Subtract cancelled attempts: their jobs did not fail, and are executed first when the run is resumed."""
        with self._transaction():
            self._connection.executemany(
                "UPDATE ac_trials SET attempts = attempts - 1 WHERE number = ?", [(number,) for number in numbers]
            )

    def record_result(
        self, result: TrialResult, *, elapsed: float, hypervolume: float, segment: Segment | None = None
    ) -> None:
        """Record a final or paused result with its candidates in one transaction; files are written first."""
        # Before the files, which would create the folder again.
        self._require_present()
        # A crash after the files and before the transaction leaves files without rows, which the next attempt replaces.
        for name, content in result.checkpoints.items():
            write_atomic(self.checkpoint_path(name), content)
        if result.state is State.PAUSED:
            write_atomic(self._training_state_path(result.number), result.paused)
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
                    dump_compact([dict(row) for row in result.curve]),
                    result.number,
                ),
            )
            self._connection.executemany(
                f"INSERT OR REPLACE INTO ac_candidates ({', '.join(CANDIDATE_COLUMNS)})"
                f" VALUES ({', '.join('?' * len(CANDIDATE_COLUMNS))})",
                [candidate_row(candidate, self._parts) for candidate in result.candidates],
            )
            if segment is not None:
                self._connection.execute(
                    f"INSERT INTO {SEGMENTS} (trial, worker, started, ended) VALUES (?, ?, ?, ?)",
                    (result.number, segment.worker, segment.start, segment.end),
                )
        if result.state is not State.PAUSED:
            self._training_state_path(result.number).unlink(missing_ok=True)

    def stop_trials(self, reasons: Mapping[int, str]) -> None:
        """Record that paused trials are stopped early, with the reason of each, and delete their training states."""
        with self._transaction():
            self._connection.executemany(
                "UPDATE ac_trials SET state = 'stopped', reason = ? WHERE number = ?",
                [(reason, number) for number, reason in reasons.items()],
            )
        for number in reasons:
            self._training_state_path(number).unlink(missing_ok=True)

    def load_job_files(self, job: Job) -> Job:
        """Return a job with its base checkpoint or training state loaded.

        Raises:
            RunFolderError: A file is missing.
        """
        path = self._training_state_path(job.number)
        try:
            if job.base is not None:
                content = read_regular_file(self.checkpoint_path(job.base.checkpoint))
                return replace(job, base=replace(job.base, content=content))
            return replace(job, paused=read_regular_file(path)) if job.rung != 0 and path.exists() else job
        except OSError as error:
            raise RunFolderError(f"{error.filename} cannot be read ({error.strerror}); the run is incomplete") from None

    def read_checkpoint(self, name: str) -> bytes | None:
        """Return the content of the checkpoint ``name``; None if it was deleted.

        Raises:
            RunFolderError: The file cannot be read.
        """
        path = self.checkpoint_path(name)
        try:
            return read_regular_file(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunFolderError(f"{path} cannot be read ({error.strerror}); the run is incomplete") from None

    def add_scores(
        self, scores: Mapping[str, Mapping[str, Mapping[str, float]]], examples: Mapping[str, Mapping[str, str]] = {}
    ) -> None:
        """Add splits to the scores of candidates.

        Args:
            scores: Scores by id, split and metric.
            examples: Packed scores of the splits' examples by id and split.
        """
        with self._transaction():
            for identity, splits in scores.items():
                row = self._connection.execute(
                    "SELECT scores, details FROM ac_candidates WHERE id = ?", (identity,)
                ).fetchone()
                merged = {**parse_json(row[0]), **{name: dict(values) for name, values in splits.items()}}
                details = parse_json(row[1])
                if examples.get(identity):
                    details["examples"] = {**details.get("examples", {}), **examples[identity]}
                self._connection.execute(
                    "UPDATE ac_candidates SET scores = ?, details = ? WHERE id = ?",
                    (dump_compact(merged), dump_compact(details), identity),
                )

    def add_note(self, line: str) -> None:
        """Add a line of JSON to the history of the sampler; it is written with the next transaction."""
        self._notes.append(line)

    # -- reading ------------------------------------------------------------------------------

    def read_notes(self) -> Iterator[JsonValue]:
        """Yield the lines of :meth:`add_note` in their order."""
        with self._read_errors():
            for (lines,) in self._connection.execute("SELECT notes FROM ac_notes ORDER BY number"):
                yield from parse_json(lines)

    def read_trials(self) -> list[StoredTrial]:
        """Return every trial in the order of its number."""
        with self._read_errors():
            rows = self._connection.execute(f"SELECT {', '.join(TRIAL_COLUMNS)} FROM ac_trials ORDER BY number")
            return [trial_from_row(dict(zip(TRIAL_COLUMNS, row, strict=True)), self._parts) for row in rows]

    def read_candidate(self, identity: str) -> Candidate:
        """Return one candidate by its id.

        Raises:
            UsageError: There is no such candidate.
        """
        matches = self._query_candidates("WHERE id = ?", (identity,))
        if not matches:
            raise UsageError(f"{self.folder} has no candidate '{identity}'; ids look like t12c7 (see candidates.csv)")
        return matches[0]

    def read_trial_candidates(self, trial: int) -> list[Candidate]:
        """Return the candidates of one trial, the uncompressed student first."""
        # The columns of a run from elsewhere may hold values of other types, which have no order.
        with self._read_errors():
            return sorted(
                self._query_candidates("WHERE trial = ?", (trial,)),
                key=lambda candidate: (candidate.complete, candidate.epochs, candidate_index(candidate.id)),
            )

    def _query_candidates(self, where: str, values: Iterable[object]) -> list[Candidate]:
        columns = ", ".join(CANDIDATE_COLUMNS)
        with self._read_errors():
            rows = self._connection.execute(f"SELECT {columns} FROM ac_candidates {where}", (*values,))
            return [candidate_from_row(dict(zip(CANDIDATE_COLUMNS, row, strict=True)), self._parts) for row in rows]

    def _read_errors(self) -> AbstractContextManager[None]:
        self._parts.begin_read()
        return read_errors(self.folder / DATABASE)

    def checkpoint_path(self, name: str) -> Path:
        """Return the path of the checkpoint ``name``."""
        return join_inside(self.folder, "checkpoints", f"{name}.safetensors")

    def _training_state_path(self, number: int) -> Path:
        return join_inside(self.folder, "paused", f"t{number}.pt")

    def candidate_table(self) -> pd.DataFrame:
        """Return one row per candidate: hyperparameters, scores, costs.

        The plain name of a metric is its score on ``select_val``; ``_search`` and ``_test`` mark the other splits.
        """
        columns = ", ".join(f"c.{name}" for name in CANDIDATE_COLUMNS)
        with self._read_errors():
            rows = self._connection.execute(
                f"SELECT t.role, {columns} FROM ac_candidates c JOIN ac_trials t ON t.number = c.trial"
                " ORDER BY c.trial, c.complete, c.epochs, CAST(substr(c.id, instr(c.id, 'c') + 1) AS INTEGER)"
            )
            table = CandidateRows(self._parts)
            return pd.DataFrame(
                [table.flatten(role, dict(zip(CANDIDATE_COLUMNS, row, strict=True))) for role, *row in rows]
            )

    def trial_table(self) -> pd.DataFrame:
        """Return one row per trial; ``further`` marks those that compress an earlier checkpoint instead of training.

        ``segments`` lists ``worker``, ``start`` and ``end`` of each part that a worker has run, in seconds of search.
        """
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
        with self._read_errors():
            table = pd.DataFrame(rows.fetchall(), columns=columns)
            table["further"] = table["further"].astype(bool)
            table["curve"] = [parse_json(text) for text in table["curve"]]
            segments = self._read_segments()
            parts = [segments.get(number, []) for number in table["number"]]
            table["segments"] = pd.Series(parts, index=table.index, dtype=object)
            table["config"] = [json.dumps(self._parts.expand_config(text)) for text in table["config"]]
            for column in ("seconds", "elapsed", "hypervolume"):
                table[column] = table[column].astype(float)
        return table

    def _read_segments(self) -> dict[int, list[dict[str, float]]]:
        """Return the segments of each trial in their order; runs of earlier versions have none."""
        segments: dict[int, list[dict[str, float]]] = {}
        if self._has_segments:
            for trial, *values in self._connection.execute(
                f"SELECT trial, worker, started, ended FROM {SEGMENTS} ORDER BY number"
            ):
                segments.setdefault(trial, []).append(dict(zip(("worker", "start", "end"), values, strict=True)))
        return segments

    @property
    def _has_segments(self) -> bool:
        query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
        return self._connection.execute(query, (SEGMENTS,)).fetchone() is not None

    def content_version(self) -> str:
        """Return a short text that changes with every new state of a trial, candidate or reading of the test split."""
        states = self._connection.execute("SELECT state, COUNT(*) FROM ac_trials GROUP BY state ORDER BY state")
        (candidates,) = self._connection.execute("SELECT COUNT(*) FROM ac_candidates").fetchone()
        counts = " ".join(f"{count} {state}" for state, count in states)
        return f"{counts}; {candidates} candidates; test read {self._read_entry('test_reads') or 0} times"

    def _require_present(self) -> None:
        """Check that the store is still the file that was opened.

        Raises:
            SearchFailedError: The run folder was deleted, moved or replaced.
        """
        if self._file is None:
            return
        try:
            is_present = os.path.samestat(self._file, os.stat(self.folder / DATABASE))
        except OSError:
            is_present = False
        if not is_present:
            raise SearchFailedError(
                f"{self.folder} was deleted, moved or replaced while it was written to; no more is stored there"
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit all statements or none; a full or read-only disk raises :class:`StorageError`."""
        self._require_present()
        with self._write_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._parts.write_new_parts()
            # Notes share the transaction, so the history of the sampler never differs from the trials.
            if self._notes:
                lines = f"[{','.join(self._notes)}]"
                self._connection.execute("INSERT INTO ac_notes (notes) VALUES (?)", (lines,))
            self._connection.execute("COMMIT")
            self._parts.forget_new_parts()
            self._notes.clear()

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        """Undo an open transaction when the body fails; a full or read-only disk raises :class:`StorageError`."""
        try:
            yield
        except BaseException as fault:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            is_operational = isinstance(fault, sqlite3.OperationalError)
            if is_operational and any(word in str(fault) for word in ("full", "readonly", "disk I/O")):
                raise StorageError(
                    f"cannot write {self.folder / DATABASE} ({fault}); free some space or choose another folder"
                ) from fault
            raise


def monotonic_seconds() -> float:
    """Return the seconds of a monotonic clock."""
    return time.monotonic()
