from pathlib import Path

import pytest

from autocompress.errors import ArtifactError, UsageError
from autocompress.export.bench import bench
from autocompress.export.candidate import export_candidate
from autocompress.store.run_store import RunStore


@pytest.fixture(scope="module")
def artifact(small_run: Path) -> Path:
    with RunStore.read(small_run) as study:
        table = study.candidate_table()
    quantized = table[(table["quantize"] != "none") & (table["role"] == "search") & table["complete"]]["id"].iloc[0]
    return export_candidate(small_run, quantized, verify=True).folder


@pytest.mark.slow
def test_each_file_is_timed_in_its_own_process(artifact: Path) -> None:
    found = bench(artifact, batch=2, seconds=0.05)
    assert [one.file for one in found] == ["model.onnx", "model_float.onnx"]
    for one in found:
        assert 0 < one.median_ms <= one.p95_ms
        assert one.runs >= 30
        assert one.batch == 2
        assert one.file_bytes == (artifact / one.file).stat().st_size
        assert one.memory_bytes > 0


def test_what_is_no_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        bench(tmp_path)


@pytest.mark.slow
def test_a_candidate_without_its_checkpoint_is_trained_again(small_run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(small_run, copy)
    shutil.rmtree(copy / "checkpoints")
    with RunStore.read(copy) as study:
        table = study.candidate_table()
    pruned = table[(table["prune"] != "none") & (table["role"] == "search")]["id"].iloc[0]
    exported = export_candidate(copy, pruned)
    assert exported.verification is not None
    assert min(exported.verification.agreement.values()) >= 0.99


def test_a_candidate_of_a_training_under_way_is_refused(small_run: Path) -> None:
    with RunStore.read(small_run) as study:
        table = study.candidate_table()
    partial = table[~table["complete"]]["id"].iloc[0]
    with pytest.raises(UsageError, match=f"'{partial}' was measured after . epochs of an incomplete training"):
        export_candidate(small_run, partial)


def test_a_candidate_that_scores_otherwise_than_the_store_says_is_refused(small_run: Path, tmp_path: Path) -> None:
    import json
    import shutil

    from autocompress.errors import VerificationError

    copy = tmp_path / "copy"
    shutil.copytree(small_run, copy)
    with RunStore.open(copy) as study:
        candidate = study.read_candidate("t0c0")
        scores = json.dumps({**candidate.scores, "select_val": {"accuracy": 0.01}})
        with study._transaction():
            study._connection.execute("UPDATE ac_candidates SET scores = ? WHERE id = 't0c0'", (scores,))
    with pytest.raises(VerificationError, match="differs from those of the search"):
        export_candidate(copy, "t0c0")
