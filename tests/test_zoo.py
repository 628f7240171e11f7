"""Some of the models of other libraries that `benchmarks.zoo` measures, and its steps on a model of torch alone."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from autocompress.tasks.module import Module
from benchmarks.zoo import (
    ZooRow,
    check_export,
    compare_flops,
    measure_difference,
    measure_model,
    prune_model,
    write_table,
)
from benchmarks.zoo_models import TESTED, ZooModel, list_models

MODELS = {model.name.partition(" ")[2]: model for model in list_models()}
# Shared layers, grouped queries, layers that are not torch's, depthwise convolutions.
PRUNED = ("Albert", "Llama", "GPT2", "convnext_atto")


@pytest.mark.parametrize("name", TESTED)
def test_a_model_of_another_library_is_brought_and_counted(name: str) -> None:
    if name not in MODELS:
        pytest.skip("needs the extra `zoo`")
    torch.manual_seed(0)
    module, data = MODELS[name].build()
    task = Module(module, data)
    assert compare_flops(task.model, task.example()) == pytest.approx(1, rel=0.01)
    if name in PRUNED:
        pruned = prune_model(task)
        assert sum(map(torch.numel, pruned.parameters())) < 0.85 * sum(map(torch.numel, task.model.parameters()))


class Refused(nn.Module):
    """A module that no data fits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("no")


def make_model(module: nn.Module) -> ZooModel:
    return ZooModel("own", "torch", lambda: (module, (torch.randn(60, 4), torch.arange(60) % 3)))


def test_a_row_tells_refusals_from_tracebacks(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = measure_model(make_model(Refused()))
    assert (refused.accepted, refused.traceback) == (False, "")
    assert "bring: Refused fails on one example of the data" in refused.reason
    monkeypatch.setattr("benchmarks.zoo.compare_flops", lambda model, example: 1 / 0)
    monkeypatch.setattr("benchmarks.zoo.check_export", lambda model, task: None)
    row = measure_model(make_model(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))))
    assert (row.accepted, row.flops, row.removed, row.exported) == (True, False, True, True)
    assert row.traceback.startswith("FLOPs: ZeroDivisionError")
    assert row.remaining == pytest.approx((4 * 8 + 8 + 8 * 3 + 3) / (4 * 16 + 16 + 16 * 3 + 3))


def test_the_table_has_totals_and_reasons(tmp_path: Path) -> None:
    rows = [ZooRow("a", accepted=True, flops=True, parameters=10), ZooRow("b", reason="bring: too | odd")]
    write_table(rows, tmp_path / "zoo.md", 3)
    text = (tmp_path / "zoo.md").read_text()
    assert "2 of 3 models are measured" in text
    assert "| accepted | 1 of 2 | 50.0% | 95% |" in text
    assert "bring: too / odd" in text


@pytest.mark.slow
def test_an_exported_graph_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = make_model(nn.Linear(4, 3)).build()
    task = Module(module, data)
    check_export(task.model, task)
    with torch.no_grad():
        other = Module(nn.Linear(4, 3), data)
    monkeypatch.setattr("benchmarks.zoo.run_model", lambda model, inputs, task: [other.model(*inputs).detach().numpy()])
    with pytest.raises(Exception, match="outputs in onnxruntime differ by"):
        check_export(task.model, task)
    assert measure_difference([torch.ones(2).numpy()], [torch.ones(2).numpy()]) == 0


def test_every_tested_model_is_in_the_zoo() -> None:
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("timm"):
        assert set(TESTED) <= set(MODELS)
