from pathlib import Path

import pytest
import torch
from torch import nn

from autocompress.export import bench_torch
from autocompress.export.bench_torch import FILE, measure_kernels
from autocompress.prune import sparse_linear

SHAPES = [([2, 12], "float32")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact of a network of which a fifth of the first layer's weights is left."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3))
    with torch.no_grad():
        model[0].weight.mul_(torch.arange(120).view(10, 12) % 5 == 0)
    monkeypatch.setattr(bench_torch, "load_artifact", lambda _: model)
    (tmp_path / FILE).write_bytes(b"1234")
    return tmp_path


def test_both_kernels_are_timed_where_sparse_ones_are_faster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The layer is too small for a gain; here every sparse kernel counts as one.
    monkeypatch.setattr(sparse_linear, "MIN_GAIN", 1e9)
    rows = measure_kernels(folder, SHAPES, seconds=0.01)
    assert [row.file for row in rows] == [f"{FILE} (torch, dense)", f"{FILE} (torch, 1 sparse layer)"]
    for row in rows:
        assert 0 < row.median_ms <= row.p95_ms
        assert row.runs >= 30
        assert (row.batch, row.file_bytes) == (2, 4)


def test_there_is_no_row_without_a_gain(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_linear, "MIN_GAIN", 0.0)
    assert measure_kernels(folder, SHAPES, seconds=0.01) == []


def test_the_number_of_threads_is_restored(folder: Path) -> None:
    before = torch.get_num_threads()
    measure_kernels(folder, SHAPES, threads=before + 1, seconds=0.01)
    assert torch.get_num_threads() == before
