"""The database file of a store and its tables, and conversions between records and rows.

One writer holds a lock that the kernel releases when the process ends; readers need none.
"""

import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from autocompress.core.atomic import make_lock, storage_errors, write_atomic
from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import BaseCheckpoint, Candidate, CompressionRecipe, Job, Role, State
from autocompress.core.untrusted import (
    CONTENT_ERRORS,
    check_name,
    is_name,
    parse_json,
    read_regular_file,
    require_regular,
    show_value,
)
from autocompress.errors import RunFolderError, StorageError, UsageError
from autocompress.store.parts import SECTIONS, PartTable, Section, dump_compact

if TYPE_CHECKING:
    from filelock import FileLock

DATABASE = "study.db"
LARGEST_VALUE = 2**26
# Steps of SQLite's machine that checking a store may take, besides one for each byte of its file: ten times what a
# store of 3,000 trials takes.
LARGEST_STEPS, STEPS_PER_CALL = 10_000_000, 1000
# SQLite writes files of these names beside a database, through links too.
DATABASE_SUFFIXES = ("", "-wal", "-shm", "-journal")
LOCK, OWNER = ".lock", ".driver"
SEGMENTS = "ac_segments"
# Tables that runs of format 4 lack until they are continued.
ADDED = ("ac_parts", SEGMENTS)

logger = logging.getLogger(__name__)


def open_database(path: Path) -> sqlite3.Connection:
    """Open the database of a store, and create it if it does not exist.

    Raises:
        StorageError: The file cannot be opened.
        RunFolderError: It is not a database, a damaged one, or one with a rollback journal.
    """
    require_regular(path.with_name(path.name + suffix) for suffix in DATABASE_SUFFIXES)
    journal = path.with_name(f"{path.name}-journal")
    # A store is in WAL mode from its first byte. SQLite would apply such a journal, and remove the file of any path
    # that the journal gives as its super-journal.
    if journal.exists():
        raise RunFolderError(
            f"{journal} is no file of a store; autocompress did not write it, so do not use the folder"
        )
    try:
        with ExitStack() as on_error:
            # No implicit transactions: the store begins and ends its own.
            connection = on_error.enter_context(closing(sqlite3.connect(path, timeout=30, isolation_level=None)))
            # A value that SQLite reads into memory; a row of ours has some megabytes at most.
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE)
            connection.create_function("seal_of", -1, seal_of, deterministic=True)
            connection.create_function("is_name", 1, is_name, deterministic=True)
            # Journal mode is a property of the file, so Optuna's connections share it.
            connection.execute("PRAGMA journal_mode=WAL")
            # A committed transaction survives a power failure.
            connection.execute("PRAGMA synchronous=FULL")
            on_error.pop_all()
            return connection
    except sqlite3.OperationalError as reason:
        raise StorageError(f"cannot open {path} ({reason}); check that the folder can be written") from None
    except sqlite3.DatabaseError as damage:
        raise RunFolderError(f"{path} is not a study ({damage}); point at a folder under reports/") from None
    except UnicodeDecodeError:
        # SQLite quotes the broken part of its schema in the error, and the bytes are not valid text.
        raise damage_error(path, "its schema cannot be read") from None


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn what malformed rows raise into the error of a damaged store.

    Raises:
        RunFolderError: A row cannot be read.
    """
    try:
        yield
    except RunFolderError:
        raise
    except sqlite3.OperationalError as fault:
        # No space, no permission and a lock are no damage.
        if "interrupted" not in str(fault) and "no such" not in str(fault):
            raise
        raise damage_error(path, show_value(fault)) from fault
    except (*CONTENT_ERRORS, UsageError, sqlite3.DatabaseError) as fault:
        raise damage_error(path, f"{type(fault).__name__}: {show_value(fault)}") from fault


@contextmanager
def limit_steps(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Interrupt the statements of the body when they take far more steps than the size of the file explains."""
    calls = 0
    limit = LARGEST_STEPS + path.stat().st_size

    def count_calls() -> bool:
        nonlocal calls
        calls += STEPS_PER_CALL
        # A true value interrupts the statement.
        return calls > limit

    connection.set_progress_handler(count_calls, STEPS_PER_CALL)
    try:
        yield
    finally:
        connection.set_progress_handler(None, 0)


def check_schema(connection: sqlite3.Connection, *, is_current: bool) -> str:
    """Return why the schema of a store is not what autocompress writes; empty if it is.

    A view or a trigger of someone else would run when a row is read or written, with the functions of this program.

    Args:
        connection: The store.
        is_current: Whether it has the present format, whose tables and triggers are compared word for word.
    """
    with closing(sqlite3.connect(":memory:")) as expected:
        expected.executescript(SCHEMA)
        own = dict(expected.execute("SELECT name, sql FROM sqlite_master"))
    for kind, name, text in connection.execute("SELECT type, name, sql FROM sqlite_master"):
        is_foreign = kind not in ("table", "index") and name not in own
        is_virtual = kind == "table" and str(text).upper().startswith("CREATE VIRTUAL")
        if is_foreign or is_virtual or (is_current and name in own and text != own[name]):
            return f"the {show_value(kind)} {show_value(name)} is not one that autocompress writes"
    return ""


def find_other_types(connection: sqlite3.Connection) -> str:
    """Return which row holds a value of another type than its column declares; empty if there is none.

    SQLite keeps a text in a column of numbers, and everything that reads the row would meet it.
    """
    with closing(sqlite3.connect(":memory:")) as own:
        own.executescript(SCHEMA)
        columns = {table: own.execute(f"PRAGMA table_info({table})").fetchall() for table in SEALED}
    for table in SEALED:
        present = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        faults = []
        for _, name, kind, is_required, _, is_key in columns[table]:
            # Earlier formats lack some columns.
            if name in present:
                types = [*_STORED_TYPES[kind], *([] if is_required or is_key else ["null"])]
                faults.append(f"typeof({name}) NOT IN ({', '.join(map(repr, types))})")
        key = SEALED[table][0]
        query = f"SELECT {key} FROM {table} WHERE {' OR '.join(faults)} LIMIT 1"
        for (row,) in connection.execute(query) if faults else ():
            return f"{table[3:]} {show_value(row)} has a value of another type"
    return ""


def damage_error(path: Path, damage: str) -> RunFolderError:
    """Return the error for a store whose content differs from what was written."""
    return RunFolderError(
        f"{path} is damaged ({damage}); run `sqlite3 {DATABASE} .recover` on a copy, or start a new run"
    )


def require_run(folder: Path) -> None:
    """Raise an error if a folder holds no run.

    Raises:
        RunFolderError: The folder does not exist, or has no store.
    """
    if not folder.is_dir():
        raise RunFolderError(f"{folder} does not exist; runs lie under reports/, see `ls reports`")
    if not (folder / DATABASE).is_file():
        raise RunFolderError(f"{folder} is not a run folder: it has no {DATABASE}")


def acquire_lock(folder: Path) -> "FileLock":
    """Lock a run folder for writing until the lock is released or this process ends.

    Raises:
        RunFolderError: Another process holds the lock.
        StorageError: The folder cannot be written, or its file system has no locks.
    """
    # Imported here: a reader needs no lock.
    from filelock import Timeout

    # The kernel releases the lock of a killed process, so no stale lock remains.
    path = folder / LOCK
    # The lock file is emptied when it is opened, through a link too.
    require_regular([path])
    lock = make_lock(path)
    try:
        with storage_errors(folder):
            lock.acquire(timeout=0)
    except Timeout:
        owner = read_owner(folder)
        raise RunFolderError(
            f"{folder} is in use by process {owner or 'unknown'}; wait for it, or stop it first"
        ) from None
    write_atomic(folder / OWNER, str(os.getpid()))
    logger.debug("%s: locked for writing", folder)
    return lock


def read_owner(folder: Path) -> int | None:
    """Return the id of the process that wrote to a run folder last; None if it is not known."""
    try:
        process = int(read_regular_file(folder / OWNER, limit=32))
    except (OSError, ValueError):
        return None
    # Zero and negative numbers name groups of processes; the system's numbers have 32 bits.
    return process if 0 < process < 2**31 else None


def existing_run_error(folder: Path) -> RunFolderError:
    """Return the error for a new search in a folder that holds a run."""
    return RunFolderError(f"{folder} already holds a run; add --resume to continue it, or --name another")


SCHEMA = """
CREATE TABLE IF NOT EXISTS ac_meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, seal TEXT);
CREATE TABLE IF NOT EXISTS ac_trials (
    number INTEGER PRIMARY KEY, role TEXT NOT NULL, state TEXT NOT NULL, config TEXT NOT NULL, cuts TEXT NOT NULL,
    rung INTEGER, until INTEGER, base TEXT,
    optuna INTEGER, attempts INTEGER NOT NULL DEFAULT 1, reason TEXT NOT NULL DEFAULT '', seconds REAL,
    elapsed REAL, hypervolume REAL, curve TEXT NOT NULL DEFAULT '[]', seal TEXT);
CREATE TABLE IF NOT EXISTS ac_candidates (
    id TEXT PRIMARY KEY, trial INTEGER NOT NULL REFERENCES ac_trials (number), epochs INTEGER NOT NULL,
    config TEXT NOT NULL, scores TEXT NOT NULL, costs TEXT NOT NULL, details TEXT NOT NULL, checkpoint TEXT,
    complete INTEGER NOT NULL DEFAULT 1, seal TEXT);
CREATE INDEX IF NOT EXISTS ac_candidates_trial ON ac_candidates (trial);
CREATE TABLE IF NOT EXISTS ac_segments (
    number INTEGER PRIMARY KEY, trial INTEGER NOT NULL REFERENCES ac_trials (number), worker INTEGER NOT NULL,
    started REAL NOT NULL, ended REAL NOT NULL, seal TEXT);
CREATE TABLE IF NOT EXISTS ac_notes (number INTEGER PRIMARY KEY, notes TEXT NOT NULL, seal TEXT);
CREATE TABLE IF NOT EXISTS ac_parts (number INTEGER PRIMARY KEY, part TEXT NOT NULL, seal TEXT);
"""
# Columns that the seal of each table covers, the key first.
SEALED = {
    "ac_meta": ("key", "value"),
    "ac_trials": (
        *("number", "role", "state", "config", "cuts", "rung", "until", "base", "optuna", "attempts", "reason"),
        *("seconds", "elapsed", "hypervolume", "curve"),
    ),
    "ac_candidates": ("id", "trial", "epochs", "config", "scores", "costs", "details", "checkpoint", "complete"),
    "ac_segments": ("number", "trial", "worker", "started", "ended"),
    "ac_notes": ("number", "notes"),
    "ac_parts": ("number", "part"),
}
# SQLite stores no checksums: without a seal, a flipped byte in a number would be read as another number.
for _table, (_key, *_rest) in SEALED.items():
    _sealed = ", ".join([_key, *_rest])
    _seal = f"UPDATE {_table} SET seal = seal_of({_sealed}) WHERE {_key} = NEW.{_key};"
    for _name, _event in (("insert", "INSERT"), ("update", f"UPDATE OF {_sealed}")):
        SCHEMA += f"CREATE TRIGGER IF NOT EXISTS {_table}_{_name} AFTER {_event} ON {_table} BEGIN {_seal} END;\n"
# SQLite's types of the values in a column, by the type that the column declares.
_STORED_TYPES = {"TEXT": ("text",), "INTEGER": ("integer",), "REAL": ("real", "integer")}
# Columns of the candidate table that hold no score and no cost.
RESERVED = frozenset({"id", "trial", "role", "epochs", "complete", "config", "details"})
CANDIDATE_COLUMNS = ("id", "trial", "epochs", "config", "scores", "costs", "details", "checkpoint", "complete")
TRIAL_COLUMNS = (
    "number",
    "role",
    "state",
    "config",
    "cuts",
    "rung",
    "until",
    "base",
    "optuna",
    "attempts",
    "seconds",
    "elapsed",
    "reason",
)
# The plain name of a metric is its score on select_val, which ranks candidates.
SUFFIX = {"select_val": "", "search_val": "_search", "test": "_test", "folds": "_folds"}


#: Column name to value; SQLite does not know the types of columns.
Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class StoredTrial:
    """One row of ``ac_trials``, as the driver reads it when a run is resumed."""

    job: Job
    state: State
    optuna: int | None
    attempts: int
    seconds: float | None
    elapsed: float | None
    reason: str = ""

    @property
    def is_copied(self) -> bool:
        """Whether the trial was copied from an earlier run before the search began, at 0 seconds of it."""
        return self.elapsed == 0.0 and self.job.role is Role.SEARCH


def job_row(job: Job, parts: PartTable) -> Row:
    """Return the columns of ``ac_trials`` that describe a job."""
    base, shorten = job.base, parts.shorten_part
    return {
        "number": job.number,
        "role": job.role.value,
        "config": parts.shorten_config(job.training),
        # The stored column keeps its first name, so that older runs can be read.
        "cuts": dump_compact([[shorten(cut.prune), shorten(cut.quantize)] for cut in job.recipes]),
        "rung": job.rung,
        "until": job.until,
        "base": None if base is None else dump_compact([base.checkpoint, shorten(base.prune), base.epochs]),
    }


def trial_from_row(row: Row, parts: PartTable) -> StoredTrial:
    """Return the trial in a row of ``ac_trials``."""

    def read_part(value: int | Section | None) -> Part | None:
        section = parts.expand_section(value)
        return None if section is None else Part.from_json(section)

    base = None
    if row["base"] is not None:
        checkpoint, prune, epochs = parse_json(row["base"])
        base = BaseCheckpoint(check_name(checkpoint, "name of a checkpoint"), read_part(prune), epochs)
    job = Job(
        row["number"],
        CompressionConfig.from_json(parts.expand_config(row["config"])),
        tuple(CompressionRecipe(*map(read_part, cut)) for cut in parse_json(row["cuts"])),
        Role(row["role"]),
        row["rung"],
        row["until"],
        base,
    )
    outcome = (row[name] for name in ("optuna", "attempts", "seconds", "elapsed", "reason"))
    return StoredTrial(job, State(row["state"]), *outcome)


def candidate_row(candidate: Candidate, parts: PartTable) -> tuple[str | int, ...]:
    """Return the columns of a candidate in the order of ``CANDIDATE_COLUMNS``."""
    return (
        candidate.id,
        candidate.trial,
        candidate.epochs,
        parts.shorten_config(candidate.config),
        dump_compact({split: dict(values) for split, values in candidate.scores.items()}),
        dump_compact(dict(candidate.costs)),
        dump_compact(dict(candidate.details)),
        candidate.checkpoint,
        int(candidate.complete),
    )


def candidate_from_row(row: Row, parts: PartTable) -> Candidate:
    """Return the candidate in a row of ``ac_candidates``."""
    return Candidate(
        row["id"],
        row["trial"],
        CompressionConfig.from_json(parts.expand_config(row["config"])),
        row["epochs"],
        {split: _check_numbers(metrics) for split, metrics in parse_json(row["scores"]).items()},
        _check_numbers(parse_json(row["costs"])),
        parse_json(row["details"]),
        # The column may be NULL; a record without a checkpoint has an empty path.
        row["checkpoint"] or "",
        bool(row["complete"]),
    )


class CandidateRows:
    """Reads rows of the candidate table: one column per hyperparameter, score and cost.

    Args:
        parts: Parts of the configs; candidates share them, so each is flattened once.
    """

    def __init__(self, parts: PartTable) -> None:
        self._parts = parts
        # Columns and JSON text of the sections that were read.
        self._sections: dict[tuple[str, int | None], tuple[Row, str]] = {}

    def flatten(self, role: str, row: Row) -> Row:
        """Return a row of the table from a row of ``ac_candidates``."""
        flat: Row = {name: row[name] for name in ("id", "trial")}
        flat |= {"role": role, "epochs": row["epochs"], "complete": bool(row["complete"])}
        config: Row = parse_json(row["config"])
        flat["seed"] = _check_leaf(config["seed"])
        sections = {name: self._flatten_section(name, config[name]) for name in SECTIONS}
        for columns, _ in sections.values():
            flat.update(columns)
        for split, metrics in parse_json(row["scores"]).items():
            suffix = SUFFIX[split]
            flat.update({f"{metric}{suffix}": value for metric, value in _check_numbers(metrics).items()})
        flat.update(_check_numbers(parse_json(row["costs"])))
        # The JSON text stays beside the flat columns: repeats are matched by it.
        texts = (
            f"{json.dumps(name)}: {sections[name][1] if name in sections else json.dumps(value)}"
            for name, value in config.items()
        )
        flat["config"] = f"{{{', '.join(texts)}}}"
        flat["details"] = parse_json(row["details"])
        return flat

    def _flatten_section(self, name: str, value: int | Section | None) -> tuple[Row, str]:
        section = self._parts.expand_section(value)
        # Earlier formats have the sections themselves in the place of numbers.
        key = (name, value) if value is None or isinstance(value, int) else None
        if key is None:
            return _flat_section(name, section), json.dumps(section)
        if key not in self._sections:
            self._sections[key] = _flat_section(name, section), json.dumps(section)
        return self._sections[key]


def seal_of(*values: object) -> str:
    """Return the seal of a row: a checksum of its values.

    Example:
        >>> seal_of("t0c0", 0.5) == seal_of("t0c0", 0.5), seal_of("t0c0", 0.5) == seal_of("t0c0", 0.25)
        (True, False)
    """
    # The seal detects damage and not tampering, so eight bytes suffice.
    return hashlib.blake2b(repr(values).encode(), digest_size=8).hexdigest()


def candidate_index(identity: str) -> int:
    """Return the last number of a candidate's id.

    Example:
        >>> candidate_index("t12r0c7")
        7
    """
    return int(identity.rpartition("c")[2])


def _check_numbers(values: Row) -> Row:
    """Return measurements by name; another name or value than a driver writes would replace a column of the table."""
    if not RESERVED.isdisjoint(values):
        raise ValueError(f"{', '.join(RESERVED & values.keys())} is a measurement")
    for name, value in values.items():
        # Nearly all values are floats, and a run has some hundred thousand of them.
        if type(value) is float:
            continue
        if value is not None and not isinstance(value, int | float):
            raise ValueError(f"{name} is {value!r}")
        _check_leaf(value)
    return values


def _check_leaf(value: object) -> object:
    if type(value) is float or type(value) is str:
        return value
    if isinstance(value, list):
        # A tuple, because tables group by the values of a column.
        return tuple(_check_leaf(item) for item in value)
    if not isinstance(value, str | int | float | None):
        raise ValueError(f"a setting is {value!r}")
    if isinstance(value, int):
        # JSON has numbers that no float can hold; they are an OverflowError here instead of anywhere later.
        float(value)
    return value


def _flat_section(name: str, section: Section | None) -> Row:
    """Return ``{"student": "cnn", "student.cnn.width": 8, ...}``."""
    # An empty section has the name `none`, so that a table can group by the column.
    methods = section or {"none": {}}
    row: Row = {name: " + ".join(methods)}
    for method, settings in methods.items():
        row.update({f"{name}.{method}.{knob}": _check_leaf(value) for knob, value in settings.items()})
    return row
