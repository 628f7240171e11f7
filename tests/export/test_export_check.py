from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import autocompress
from autocompress.core.precisions import Precisions
from autocompress.core.registry import TASKS
from autocompress.core.run_info import TargetInfo
from autocompress.errors import SpecError
from autocompress.export.export_check import find_export_error, is_proven
from autocompress.targets import Model
from autocompress.targets.base import make_inputs
from autocompress.targets.onnx_module import OnnxModule
from autocompress.targets.onnxruntime import OnnxRuntime
from autocompress.tasks.module import bring_model

TARGET = TargetInfo("onnxruntime", precisions=Precisions(((8, 8), (32, 32)), (8, 32)))


class Packed(nn.Module):
    """A recurrent network whose sequences are packed by their lengths, which no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.full((len(x),), x.shape[1])
        _, last = self.cells(pack_padded_sequence(x, lengths, batch_first=True))
        return self.head(last[-1])


@pytest.fixture(autouse=True)
def own_tasks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Built-in tasks are registered once per process: they must not go with the copy.
    TASKS.import_builtins()
    monkeypatch.setattr(TASKS, "_objects", dict(TASKS._objects))
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))


def test_families_of_the_package_are_proven_and_the_users_model_is_not() -> None:
    assert is_proven("cnn", "onnxruntime")
    assert not is_proven("cnn", "openvino")
    assert not is_proven("from_teacher", "onnxruntime")


@pytest.mark.slow
def test_a_model_that_can_be_exported_has_no_error() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    bring_model(model, (torch.randn(90, 3), torch.arange(90) % 2))
    assert find_export_error(TASKS.get("module")(), "from_teacher", TARGET) == ""


class Translating(OnnxRuntime):
    """A runtime that loads what the converters of ExecuTorch and LiteRT translate."""

    def load(self, model: bytes, threads: int = 1) -> Model:
        OnnxModule(model, make_inputs(model))
        return super().load(model, threads)


@pytest.mark.slow
def test_the_layers_of_an_operator_that_a_converter_lacks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = {"edges": nn.Conv1d(1, 4, 3, padding=1, padding_mode="reflect"), "flat": nn.Flatten()}
    model = nn.Sequential(OrderedDict(**layers, head=nn.Linear(32, 2)))
    bring_model(model, (torch.randn(90, 1, 8), torch.arange(90) % 2))
    monkeypatch.setattr("autocompress.export.export_check.make_target", lambda *_: Translating())
    reason = find_export_error(TASKS.get("module")(), "from_teacher", TARGET)
    assert reason.startswith("Pad: padding with other values than a constant is not translated")
    assert reason.endswith("(Pad of 'edges')")


class Projecting(nn.Module):
    """A recurrent network with projections."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(3, 8, proj_size=4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


def test_an_lstm_with_projections_is_refused_by_name() -> None:
    bring_model(Projecting(), (torch.randn(90, 5, 3), torch.arange(90) % 2))
    reason = find_export_error(TASKS.get("module")(), "from_teacher", TARGET)
    assert "the LSTM 'cells' has proj_size 4, which ONNX has no operator for" in reason


def test_a_graph_that_loads_and_does_not_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Non-zero status code\nmore")

    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    bring_model(model, (torch.randn(90, 3), torch.arange(90) % 2))
    monkeypatch.setattr("onnxruntime.InferenceSession.run", fail)
    reason = find_export_error(TASKS.get("module")(), "from_teacher", TARGET)
    assert reason == "onnxruntime cannot run the model: [ONNXRuntimeError] : 1 : FAIL : Non-zero status code"


@pytest.mark.slow
def test_a_model_that_cannot_be_exported_is_refused_before_the_search(tmp_path: Path) -> None:
    data = (torch.randn(90, 5, 3), torch.arange(90) % 2)
    with pytest.raises(SpecError, match=r"cannot be exported for the target onnxruntime: .*'cells' \(GRU\): .*padded"):
        autocompress.search(teacher=Packed(), data=data, runs=tmp_path, name="gru", workers=1)
    assert not (tmp_path / "gru").exists()
