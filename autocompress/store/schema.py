"""Records as rows of the store, and back."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Base, Candidate, Cut, Job, Role, State

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
# Columns under each table's seal, the key first.
SEALED = {
    "ac_meta": ("key", "value"),
    "ac_trials": (
        *("number", "role", "state", "config", "cuts", "rung", "until", "base", "optuna", "attempts", "reason"),
        *("seconds", "elapsed", "hypervolume", "curve"),
    ),
    "ac_candidates": ("id", "trial", "epochs", "config", "scores", "costs", "details", "checkpoint", "complete"),
    "ac_notes": ("number", "notes"),
}
# SQLite keeps no checksums: a flipped byte in a number would be read as another number.
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
SUFFIX = {"select_val": "", "search_val": "_search", "test": "_test"}


@dataclass(frozen=True)
class StoredTrial:
    """One row of ``ac_trials`` as the driver needs it on resume."""

    job: Job
    state: State
    optuna: int | None
    attempts: int
    seconds: float | None
    elapsed: float | None
    reason: str = ""


def job_row(job: Job) -> dict[str, Any]:
    """Return a job's columns of ``ac_trials``."""
    base = job.base
    return {
        "number": job.number,
        "role": job.role.value,
        "config": json.dumps(job.training.to_json()),
        "cuts": json.dumps([[_part(cut.prune), _part(cut.quantize)] for cut in job.cuts]),
        "rung": job.rung,
        "until": job.until,
        "base": None if base is None else json.dumps([base.checkpoint, _part(base.prune), base.epochs]),
    }


def trial_of(row: Mapping[str, Any]) -> StoredTrial:
    """Return what a row of ``ac_trials`` says."""
    base = None
    if row["base"] is not None:
        checkpoint, prune, epochs = from_json(row["base"])
        base = Base(checkpoint, _read(prune), epochs)
    job = Job(
        row["number"],
        CompressionConfig.from_json(from_json(row["config"])),
        tuple(Cut(*map(_read, cut)) for cut in from_json(row["cuts"])),
        Role(row["role"]),
        row["rung"],
        row["until"],
        base,
    )
    told = (row[name] for name in ("optuna", "attempts", "seconds", "elapsed", "reason"))
    return StoredTrial(job, State(row["state"]), *told)


def candidate_row(candidate: Candidate) -> tuple[Any, ...]:
    """Return a candidate's columns, in the order of ``CANDIDATE_COLUMNS``."""
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


def candidate_of(row: Mapping[str, Any]) -> Candidate:
    """Return what a row of ``ac_candidates`` says."""
    return Candidate(
        row["id"],
        row["trial"],
        CompressionConfig.from_json(from_json(row["config"])),
        row["epochs"],
        from_json(row["scores"]),
        from_json(row["costs"]),
        from_json(row["details"]),
        row["checkpoint"] or "",
        bool(row["complete"]),
    )


def flat_candidate(role: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the table of candidates: a column for each knob, score and cost."""
    found: dict[str, Any] = {name: row[name] for name in ("id", "trial")}
    found |= {"role": role, "epochs": row["epochs"], "complete": bool(row["complete"])}
    found.update(_flat_config(from_json(row["config"])))
    for split, metrics in from_json(row["scores"]).items():
        found.update({f"{metric}{SUFFIX[split]}": value for metric, value in metrics.items()})
    found.update(from_json(row["costs"]))
    found["config"] = row["config"]
    found["details"] = from_json(row["details"])
    return found


def seal_of(*values: Any) -> str:
    """Return what is stored beside a row, to tell it from a damaged one.

    Example:
        >>> seal_of("t0c0", 0.5) == seal_of("t0c0", 0.5), seal_of("t0c0", 0.5) == seal_of("t0c0", 0.25)
        (True, False)
    """
    return hashlib.blake2b(repr(values).encode(), digest_size=8).hexdigest()


def cut_number(identity: str) -> int:
    """Return the last number of a candidate's id.

    Example:
        >>> cut_number("t12r0c7")
        7
    """
    return int(identity.rpartition("c")[2])


def _part(part: Part | None) -> Any:
    return None if part is None else part.to_json()


def _read(data: Any) -> Part | None:
    return None if data is None else Part.from_json(data)


def _flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"student": "cnn", "student.cnn.width": 8, ...}``."""
    row: dict[str, Any] = {"seed": config["seed"]}
    for section in ("student", "distill", "fit", "prune", "quantize"):
        parts = config[section] or {"none": {}}
        row[section] = " + ".join(parts)
        for name, settings in parts.items():
            row.update({f"{section}.{name}.{knob}": value for knob, value in settings.items()})
    return row
