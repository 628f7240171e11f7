"""The tables of the store, and conversions between records and rows."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic_core import from_json

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import BaseCheckpoint, Candidate, CompressionRecipe, Job, Role, State

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
CREATE TABLE IF NOT EXISTS ac_notes (number INTEGER PRIMARY KEY, notes TEXT NOT NULL, seal TEXT);
"""
# Columns that the seal of each table covers, the key first.
SEALED = {
    "ac_meta": ("key", "value"),
    "ac_trials": (
        *("number", "role", "state", "config", "cuts", "rung", "until", "base", "optuna", "attempts", "reason"),
        *("seconds", "elapsed", "hypervolume", "curve"),
    ),
    "ac_candidates": ("id", "trial", "epochs", "config", "scores", "costs", "details", "checkpoint", "complete"),
    "ac_notes": ("number", "notes"),
}
# SQLite stores no checksums: without a seal, a flipped byte in a number would be read as another number.
for _table, (_key, *_rest) in SEALED.items():
    _sealed = ", ".join([_key, *_rest])
    _seal = f"UPDATE {_table} SET seal = seal_of({_sealed}) WHERE {_key} = NEW.{_key};"
    for _name, _event in (("insert", "INSERT"), ("update", f"UPDATE OF {_sealed}")):
        SCHEMA += f"CREATE TRIGGER IF NOT EXISTS {_table}_{_name} AFTER {_event} ON {_table} BEGIN {_seal} END;\n"
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
SUFFIX = {"select_val": "", "search_val": "_search", "test": "_test"}


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


def job_row(job: Job) -> Row:
    """Return the columns of ``ac_trials`` that describe a job."""
    base = job.base
    return {
        "number": job.number,
        "role": job.role.value,
        "config": json.dumps(job.training.to_json()),
        # The stored column keeps its first name, so that older runs can be read.
        "cuts": json.dumps([[_part_json(cut.prune), _part_json(cut.quantize)] for cut in job.recipes]),
        "rung": job.rung,
        "until": job.until,
        "base": None if base is None else json.dumps([base.checkpoint, _part_json(base.prune), base.epochs]),
    }


def trial_from_row(row: Row) -> StoredTrial:
    """Return the trial in a row of ``ac_trials``."""
    base = None
    if row["base"] is not None:
        checkpoint, prune, epochs = from_json(row["base"])
        base = BaseCheckpoint(checkpoint, _part_from_json(prune), epochs)
    job = Job(
        row["number"],
        CompressionConfig.from_json(from_json(row["config"])),
        tuple(CompressionRecipe(*map(_part_from_json, cut)) for cut in from_json(row["cuts"])),
        Role(row["role"]),
        row["rung"],
        row["until"],
        base,
    )
    outcome = (row[name] for name in ("optuna", "attempts", "seconds", "elapsed", "reason"))
    return StoredTrial(job, State(row["state"]), *outcome)


def candidate_row(candidate: Candidate) -> tuple[str | int, ...]:
    """Return the columns of a candidate in the order of ``CANDIDATE_COLUMNS``."""
    return (
        candidate.id,
        candidate.trial,
        candidate.epochs,
        json.dumps(candidate.config.to_json()),
        json.dumps({split: dict(values) for split, values in candidate.scores.items()}),
        json.dumps(dict(candidate.costs)),
        json.dumps(dict(candidate.details)),
        candidate.checkpoint,
        int(candidate.complete),
    )


def candidate_from_row(row: Row) -> Candidate:
    """Return the candidate in a row of ``ac_candidates``."""
    return Candidate(
        row["id"],
        row["trial"],
        CompressionConfig.from_json(from_json(row["config"])),
        row["epochs"],
        from_json(row["scores"]),
        from_json(row["costs"]),
        from_json(row["details"]),
        # The column may be NULL; a record without a checkpoint has an empty path.
        row["checkpoint"] or "",
        bool(row["complete"]),
    )


def flat_candidate(role: str, row: Row) -> Row:
    """Return a row of the candidate table: one column per hyperparameter, score and cost."""
    flat: Row = {name: row[name] for name in ("id", "trial")}
    flat |= {"role": role, "epochs": row["epochs"], "complete": bool(row["complete"])}
    flat.update(_flat_config(from_json(row["config"])))
    for split, metrics in from_json(row["scores"]).items():
        flat.update({f"{metric}{SUFFIX[split]}": value for metric, value in metrics.items()})
    flat.update(from_json(row["costs"]))
    # The JSON text stays beside the flat columns: repeats are matched by it.
    flat["config"] = row["config"]
    flat["details"] = from_json(row["details"])
    return flat


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


def _part_json(part: Part | None) -> object:
    return None if part is None else part.to_json()


def _part_from_json(data: Mapping[str, Any] | None) -> Part | None:
    return None if data is None else Part.from_json(data)


def _flat_config(config: Row) -> Row:
    """Return ``{"student": "cnn", "student.cnn.width": 8, ...}``."""
    row: Row = {"seed": config["seed"]}
    for section in ("student", "distill", "fit", "prune", "quantize"):
        # An empty section has the name `none`, so that a table can group by the column.
        parts = config[section] or {"none": {}}
        row[section] = " + ".join(parts)
        for name, settings in parts.items():
            row.update({f"{section}.{name}.{knob}": value for knob, value in settings.items()})
    return row
