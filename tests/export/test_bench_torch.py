from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.core.config import Part
from autocompress.core.registry import PRUNE
from autocompress.export.artifact import write_artifact
from autocompress.export.bench import bench
from autocompress.export.bench_torch import measure_kernels
from autocompress.prune import sparse_linear
from tests.export.nets import context, deployable, splits, train


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of which a tenth of the weights is left."""
    split, _ = splits()
    model = train("rows", split, epochs=1)
    part = Part.of("unstructured", pruning_ratio=0.9)
    method = PRUNE.get(part.name)
    pruned, state = method.apply(model, method.config.of(part.values), context(split))
    made = deployable("rows", pruned, split)
    made = replace(made, config=replace(made.config, prune=part), prune_state=state)
    return write_artifact(tmp_path_factory.mktemp("pruned") / "artifact", made, {})


def shapes(batch: int = 2) -> list[tuple[list[int], str]]:
    return [([batch, 1, 8, 8], "float32")]


def test_both_kernels_are_timed_where_sparse_ones_are_faster(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The layers are too small for a gain; here every sparse kernel counts as one.
    monkeypatch.setattr(sparse_linear, "MIN_GAIN", 1e9)
    dense, sparse = measure_kernels(artifact, shapes(), seconds=0.01)
    assert dense.file == "model.safetensors (torch, dense)"
    assert sparse.file.startswith("model.safetensors (torch, ")
    assert "sparse layer" in sparse.file
    for row in (dense, sparse):
        assert 0 < row.median_ms <= row.p95_ms
        assert row.runs >= 30
        assert (row.batch, row.file_bytes) == (2, (artifact / "model.safetensors").stat().st_size)


def test_there_is_no_row_without_a_gain(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_linear, "MIN_GAIN", 0.0)
    assert measure_kernels(artifact, shapes(), seconds=0.01) == []


@pytest.mark.slow
def test_bench_asks_torch_about_a_sparse_file(artifact: Path) -> None:
    names = [row.file for row in bench(artifact, seconds=0.01)]
    assert names[0] == "model.onnx"
    # Whether the small layers are faster with sparse kernels is up to the processor.
    assert len(names) in (1, 3)
