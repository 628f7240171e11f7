from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.export.onnx import export_float
from autocompress.targets import make_target

EXAMPLE = (torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0)),)


class Pooled(nn.Module):
    """Has two operators that torch decomposes, and that another operator stands for."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 3, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.layer(x)).flatten(1) + (x > 0).to(torch.float32).sum((1, 2, 3))[:, None]


class Accumulated(nn.Module):
    """Changes a tensor in place, which ONNX has no form of."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean((2, 3))
        y += 1
        return y


@pytest.fixture
def decompositions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that gets an entry for each program that the exporter decomposes."""
    from torch.onnx._internal.exporter import _fx_passes

    calls: list[Any] = []
    decompose: Callable[..., Any] = _fx_passes.decompose_with_registry

    def count(program: Any, registry: Any) -> Any:
        calls.append(program)
        return decompose(program, registry)

    monkeypatch.setattr(_fx_passes, "decompose_with_registry", count)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize(("make", "count"), [(Pooled, 0), (Accumulated, 1)])
def test_a_program_is_decomposed_only_if_an_operator_has_no_form_in_onnx(
    make: Callable[[], nn.Module], count: int, decompositions: list[Any]
) -> None:
    torch.manual_seed(0)
    model = make().eval()
    content = export_float(model, EXAMPLE, {"y": 3}).SerializeToString()
    assert len(decompositions) == count
    (values,) = make_target("onnxruntime", {}).load(content)([EXAMPLE[0].numpy()])
    torch.testing.assert_close(torch.from_numpy(values), model(*EXAMPLE))
