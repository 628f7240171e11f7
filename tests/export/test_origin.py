import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.core.records import Candidate
from autocompress.core.run_info import EnvironmentInfo, ObjectiveSpec, RunInfo
from autocompress.errors import ArtifactError
from autocompress.export import candidate as candidate_module
from autocompress.export.origin import describe_origin, read_origin
from autocompress.front import Front
from tests.runtime.artifacts import write_model
from tests.test_front import INFO, write_run


def read_candidate(run: Path) -> Candidate:
    from autocompress.store.run_store import RunStore

    with RunStore.read(run) as store:
        return store.read_candidate(Front(run).candidates["id"].iloc[0])


def test_the_origin_has_run_candidate_scores_and_costs(tmp_path: Path) -> None:
    candidate = read_candidate(write_run(tmp_path / "run"))
    candidate = replace(candidate, costs={"bytes": 5.0, "latency_ms": math.nan})
    error = ObjectiveSpec("rmse", "minimize")
    info = replace(INFO, all_objectives=(*INFO.all_objectives, error))
    candidate = replace(candidate, scores={"select_val": {"accuracy": 0.9, "rmse": 0.2, "unknown": 1.0}})
    origin = describe_origin(candidate, info)
    assert origin["run"] == "small"
    assert (origin["candidate"], origin["metric"], origin["costs"]) == (candidate.id, "accuracy", {"bytes": 5.0})
    assert origin["scores"] == {
        "accuracy": {"value": 0.9, "direction": "maximize"},
        "rmse": {"value": 0.2, "direction": "minimize"},
    }
    # It is stored as strict JSON.
    assert json.loads(json.dumps(origin, allow_nan=False)) == origin


def test_runs_of_another_name_spec_or_data_have_another_fingerprint(tmp_path: Path) -> None:
    candidate = read_candidate(write_run(tmp_path / "run"))
    infos: list[RunInfo] = [
        INFO,
        replace(INFO, name="other"),
        replace(INFO, content={"search.seed": 1}),
        replace(INFO, environment=EnvironmentInfo(data="abc")),
    ]
    fingerprints = [describe_origin(candidate, info)["fingerprint"] for info in infos]
    assert len(set(fingerprints)) == 4
    assert describe_origin(candidate, replace(INFO, seconds=5.0))["fingerprint"] == fingerprints[0]


@pytest.mark.parametrize("content", [b"{}", b"[]", b'{"origin": 5}'])
def test_earlier_files_have_no_origin(content: bytes) -> None:
    assert read_origin(content) == {}


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b"\xff"])
def test_a_damaged_file_is_named(content: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"preprocess\.json cannot be read"):
        read_origin(content)


def test_candidates_are_exported_once_and_again_after_an_earlier_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run")
    front = Front(run)
    first, second = front.candidates["id"][:2]
    written: list[str] = []

    def write(folder: Path, identity: str) -> None:
        written.append(identity)
        from autocompress.store.run_store import RunStore

        with RunStore.read(folder) as store:
            write_model(folder / "picks" / identity, describe_origin(store.read_candidate(identity), store.run_info()))

    monkeypatch.setattr(candidate_module, "export_candidate", write)
    # This one was exported by an earlier version.
    write_model(run / "picks" / first)
    steps: list[tuple[int, int]] = []
    for _ in range(2):
        folders = front.export_levels([first, second], on_progress=lambda *step: steps.append(step))
    assert folders == [run / "picks" / first, run / "picks" / second]
    assert written == [first, second]
    assert steps[:3] == [(0, 2), (1, 2), (2, 2)]
