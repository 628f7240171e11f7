from pathlib import Path

import pytest
import torch
from torch import nn

from autocompress.errors import ArtifactError
from autocompress.export.bench_worker import measure_file
from autocompress.export.onnx import export_float


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    proto = export_float(
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)).eval(), (torch.ones(1, 64),), {"y": 3}
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.slow
def test_a_larger_batch_takes_longer(model: Path) -> None:
    one, many = (measure_file(model, [([batch, 64], "float32")], seconds=0.05) for batch in (1, 4096))
    assert many.median_ms > one.median_ms
    assert (one.batch, many.batch) == (1, 4096)
    assert one.runs >= 30
    assert one.file_bytes == model.stat().st_size


def test_a_damaged_model_is_refused(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-40])
    with pytest.raises(ArtifactError):
        measure_file(model, [([1, 64], "float32")], seconds=0.01)
