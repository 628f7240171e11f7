"""Where an artifact comes from: its run and its candidate, with scores and costs. Imports no torch."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue

from autocompress.analysis.pareto import primary_objectives
from autocompress.core.atomic import compute_sha256
from autocompress.core.records import Candidate
from autocompress.core.run_info import RunInfo
from autocompress.core.untrusted import join_inside, parse_json
from autocompress.errors import ArtifactError
from autocompress.export.folder import MANIFEST, read_files
from autocompress.store.run_store import RunStore


def describe_origin(candidate: Candidate, info: RunInfo) -> dict[str, JsonValue]:
    """Return what an artifact says of its candidate: run, id, costs, and scores on select_val with their directions.

    Artifacts with equal ``fingerprint`` come from one run: it covers the name of the run, what decides its results, and
    its data.
    """
    identity = json.dumps([info.name, info.content, info.environment.data], sort_keys=True, default=str)
    scores: dict[str, JsonValue] = {
        name: {"value": value, "direction": info.measured[name].direction}
        for name, value in candidate.scores.get("select_val", {}).items()
        if name in info.measured and math.isfinite(value)
    }
    # The first score of the objectives is what models are compared by.
    metric = primary_objectives(info.objectives)[1].name if info.objectives else next(iter(scores), "")
    return {
        "run": info.name,
        "fingerprint": compute_sha256(identity.encode())[:12],
        "candidate": candidate.id,
        "metric": metric,
        "scores": scores,
        "costs": {name: value for name, value in candidate.costs.items() if math.isfinite(value)},
    }


def read_origin(content: bytes) -> Mapping[str, JsonValue]:
    """Return the record of the run and the candidate in a preprocess.json; empty in those of earlier versions.

    Raises:
        ArtifactError: It is no JSON.
    """
    try:
        record = parse_json(content)
    except ValueError as error:
        raise ArtifactError(f"preprocess.json cannot be read ({error}); export it again") from error
    origin = record.get("origin") if isinstance(record, dict) else None
    return origin if isinstance(origin, dict) else {}


def export_levels(run: Path, identities: Sequence[str], on_progress: Callable[[int, int], None]) -> list[Path]:
    """Return ``picks/<id>`` of several candidates; those that are not exported, or by an earlier version, are written.

    Args:
        run: The run folder.
        identities: Ids of the candidates.
        on_progress: Callback with the number of exported candidates and of all.

    Raises:
        UsageError: The run has no such candidate, or its training is not complete.
        ArtifactError: A candidate cannot be exported.
        VerificationError: An exported model does not behave as the searched one.
    """
    folders: list[Path] = []
    for identity in identities:
        on_progress(len(folders), len(identities))
        with RunStore.read(run) as store:
            expected = describe_origin(store.read_candidate(identity), store.run_info())
        folder = join_inside(run, "picks", identity)
        if (
            not (folder / MANIFEST).is_file()
            or read_origin(read_files(folder, required=()).get("preprocess.json", b"{}")) != expected
        ):
            # Imported here: it loads torch, which a service of exported candidates does not need.
            from autocompress.export.candidate import export_candidate

            export_candidate(run, identity)
        folders.append(folder)
    on_progress(len(folders), len(identities))
    return folders


def _read_origin_of(folder: Path) -> Mapping[str, JsonValue]:
    # Artifacts of earlier versions have no preprocess.json.
    return read_origin(read_files(folder, required=()).get("preprocess.json", b"{}"))
